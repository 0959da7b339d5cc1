#include "flexnpu/daemon/limits.hpp"

#include <unistd.h>

namespace flexnpu::daemon {

namespace {

// Connections beyond a user's sessions: of programs that learn that they are refused.
constexpr uint64_t kSpareConnections = 32;

std::string user(uint32_t uid) { return "user " + std::to_string(uid); }
std::string number(uint64_t n) { return std::to_string(n); }

}  // namespace

Limits Limits::resolved() const {
    Limits l = *this;
    const uint64_t machine = uint64_t(sysconf(_SC_PHYS_PAGES)) * uint64_t(sysconf(_SC_PAGESIZE));
    if (!l.host_bytes) l.host_bytes = machine / 4 * 3;
    if (!l.host_bytes_per_user) l.host_bytes_per_user = machine / 2;
    if (!l.pinned_bytes) l.pinned_bytes = machine / 2;
    if (!l.pinned_bytes_per_user) l.pinned_bytes_per_user = machine / 4;
    return l;
}

std::string Usage::take_connection(uint32_t uid) {
    Amounts& mine = users_[uid];
    const bool too_many = mine.connections >= limits_.sessions_per_user + kSpareConnections;
    if (too_many || all_.connections >= 2 * limits_.sessions + kSpareConnections) {
        connections_++;
        if (!too_many)
            return "FlexNPU: " + number(all_.connections) + " connections are open: no more are accepted";
        return "FlexNPU: " + user(uid) + " has " + number(mine.connections) +
               " connections open: no more are accepted; see flexnpud --max-sessions-per-user";
    }
    mine.connections++;
    all_.connections++;
    return {};
}

std::string Usage::take_session(uint32_t uid, uint64_t live) {
    if (live >= limits_.sessions) {
        sessions_++;
        return "FlexNPU: " + number(limits_.sessions) +
               " sessions are open: no more are accepted; see flexnpud --max-sessions";
    }
    Amounts& mine = users_[uid];
    if (mine.sessions >= limits_.sessions_per_user) {
        sessions_++;
        return "FlexNPU: " + user(uid) + " has " + number(mine.sessions) +
               " sessions open, as many as one user may; see flexnpud --max-sessions-per-user";
    }
    mine.sessions++;
    all_.sessions++;
    return {};
}

std::string Usage::take_ring(uint32_t uid, uint64_t in_session) {
    Amounts& mine = users_[uid];
    std::string why;
    if (in_session >= limits_.rings_per_session) {
        why =
            "FlexNPU: " + number(in_session) +
            " threads of this program call at once, as many as one may; see flexnpud --max-rings-per-session";
    } else if (mine.rings >= limits_.rings_per_user) {
        why = "FlexNPU: " + number(mine.rings) + " threads of " + user(uid) +
              " call at once, as many as one user's may; see flexnpud --max-rings-per-user";
    } else if (all_.rings >= limits_.rings) {
        why = "FlexNPU: " + number(all_.rings) +
              " threads call at once: no more are served; see flexnpud --max-rings";
    } else {
        mine.rings++;
        all_.rings++;
        return {};
    }
    rings_++;
    return why;
}

std::string Usage::take_host(uint32_t uid, uint64_t bytes) {
    Amounts& mine = users_[uid];
    std::string why;
    if (bytes > limits_.host_bytes_per_user - mine.host_bytes) {
        why = number(bytes) + " bytes more of shared host memory: " + user(uid) + " has " +
              number(mine.host_bytes) + " of the " + number(limits_.host_bytes_per_user) +
              " that one user may; see flexnpud --max-host-bytes-per-user";
    } else if (bytes > limits_.host_bytes - all_.host_bytes) {
        why = number(bytes) + " bytes more of shared host memory: " + number(all_.host_bytes) + " of " +
              number(limits_.host_bytes) + " are given out; see flexnpud --max-host-bytes";
    } else {
        mine.host_bytes += bytes;
        all_.host_bytes += bytes;
        return {};
    }
    host_++;
    return why;
}

void Usage::give(uint32_t uid, const Amounts& a) {
    for (Amounts* from : {&users_[uid], &all_}) {
        from->connections -= a.connections;
        from->sessions -= a.sessions;
        from->rings -= a.rings;
        from->host_bytes -= a.host_bytes;
    }
    if (users_[uid].connections == 0) users_.erase(uid);
}

void Usage::counters(std::map<std::string, uint64_t>* out) const {
    (*out)["limited_connections"] = connections_;
    (*out)["limited_sessions"] = sessions_;
    (*out)["limited_rings"] = rings_;
    (*out)["limited_host_memory"] = host_;
}

}  // namespace flexnpu::daemon
