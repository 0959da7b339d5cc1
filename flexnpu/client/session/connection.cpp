#include "flexnpu/client/session/connection.hpp"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>

#include <cmath>
#include <cstring>

#include "acl.gen.h"
#include "flexnpu/api/guest.hpp"
#include "flexnpu/client/error.hpp"
#include "flexnpu/wire/futex.hpp"

namespace flexnpu::client {

namespace {

// How long a new session is waited for, unless FLEXNPU_CONNECT_TIMEOUT says otherwise.
constexpr double kConnectSeconds = 300;
// After this long the program says on stderr what it waits for.
constexpr uint64_t kTellNs = 3'000'000'000;
// How often a bounded wait looks at the clock.
constexpr uint64_t kLookNs = 100'000'000;

timespec to_timespec(uint64_t ns) { return {time_t(ns / 1'000'000'000ull), long(ns % 1'000'000'000ull)}; }

// Seconds; negative, with the error recorded, when the variable is no number of seconds.
double connect_seconds() {
    const char* text = getenv("FLEXNPU_CONNECT_TIMEOUT");
    if (!text || !*text) return kConnectSeconds;
    char* end = nullptr;
    const double seconds = strtod(text, &end);
    if (*end == '\0' && std::isfinite(seconds) && seconds > 0 && seconds <= 1e9) return seconds;
    fail(acl::RT_INTERNAL,
         "FlexNPU: FLEXNPU_CONNECT_TIMEOUT is '%s': it must be a number of seconds above 0, such as 60",
         text);
    return -1;
}

}  // namespace

void nap(uint64_t ns) {
    const timespec t = to_timespec(ns);
    syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &t, nullptr);
}

std::mutex& files_mutex() {
    static auto* mutex = new std::mutex;
    return *mutex;
}

// ---- waiting ----

// Until `events`, the daemon's end, or the bound. Without a bound it may take for ever: see the top of the
// header.
Connection::Wait Connection::wait(short events, Bound* bound) {
    for (;;) {
        pollfd p{socket_.load(), events, 0};
        const timespec slice = to_timespec(kLookNs);
        const int n = ppoll(&p, 1, bound ? &slice : nullptr, nullptr);
        if (n < 0 && errno != EINTR && errno != EAGAIN && errno != ENOMEM) return Wait::gone;
        if (n > 0 && (p.revents & events)) return Wait::ready;
        if (n > 0) return Wait::gone;  // hung up, with nothing left to read
        if (!bound) continue;
        if (wire::now_ns() > bound->until_ns) return Wait::late;
        tell(bound);
    }
}

void Connection::tell(Bound* bound) const {
    if (bound->told || wire::now_ns() - bound->began_ns < kTellNs) return;
    bound->told = true;
    dprintf(STDERR_FILENO,
            "FlexNPU: waiting for the daemon at %s to open a session: it is busy or stopped; "
            "giving up after %g s (FLEXNPU_CONNECT_TIMEOUT)\n",
            path_.c_str(), double(bound->until_ns - bound->began_ns) / 1e9);
}

bool Connection::overdue(const Bound& bound) const {
    fail(acl::RT_INTERNAL,
         "FlexNPU: the daemon at %s has opened no session within %g s: it is busy or stopped; see `flexnpu "
         "status` and its log, or set FLEXNPU_CONNECT_TIMEOUT to wait longer",
         path_.c_str(), double(bound.until_ns - bound.began_ns) / 1e9);
    return false;
}

// ---- opening ----

bool Connection::connect_to(Bound* bound) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path_.size() >= sizeof(address.sun_path)) {
        fail(acl::RT_INTERNAL, "FlexNPU: the socket path %s is longer than %zu characters", path_.c_str(),
             sizeof(address.sun_path) - 1);
        return false;
    }
    std::memcpy(address.sun_path, path_.c_str(), path_.size() + 1);
    {
        std::lock_guard no_fork(files_mutex());
        socket_ = guest::above_standard(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    }
    if (socket_ < 0) {
        fail(acl::RT_INTERNAL, "FlexNPU: cannot open a socket to the daemon: %s%s", strerror(errno),
             errno == EMFILE ? "; see ulimit -n" : "");
        return false;
    }
    // A full queue of connections makes connect() wait; in slices, so that the bound is seen.
    const timeval slice{0, long(kLookNs / 1000)};
    setsockopt(socket_, SOL_SOCKET, SO_SNDTIMEO, &slice, sizeof(slice));
    while (::connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
        if (errno == EAGAIN || errno == EINTR) {
            if (wire::now_ns() > bound->until_ns) return overdue(*bound);
            tell(bound);
            continue;
        }
        fail(acl::RT_INTERNAL, "FlexNPU: no daemon answers at %s (%s); start one with `flexnpud`",
             path_.c_str(), strerror(errno));
        return false;
    }
    return true;
}

bool Connection::open(const std::string& path, const wire::Request& hello, Received* out) {
    const NoCancel whole;
    path_ = path;
    const double seconds = connect_seconds();
    if (seconds < 0) return false;
    const uint64_t now = wire::now_ns();
    Bound bound{now, now + uint64_t(seconds * 1e9)};
    if (!connect_to(&bound) || !exchange(hello, 2, out, &bound)) return false;
    open_ = true;
    return true;
}

// ---- questions and answers ----

uint32_t Connection::next_question() {
    if (++questions_ == 0) ++questions_;
    return questions_;
}

bool Connection::ask(const wire::Request& request, size_t files, Received* out) {
    const NoCancel whole;
    return exchange(request, files, out, nullptr);
}

bool Connection::exchange(wire::Request request, size_t files, Received* out, Bound* bound) {
    std::lock_guard one_at_a_time(mutex_);
    request.magic = wire::kMagic;
    request.version = wire::kVersion;
    request.question = next_question();
    if (!alive()) {
        read_last_words();
        return lost();
    }
    // The daemon may have turned us away and hung up before it has heard us: then what it said first is
    // still there to be read.
    while (send(socket_, &request, sizeof(request), MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
        if (errno == EINTR) continue;
        if (errno != EAGAIN) break;
        const Wait w = wait(POLLOUT, bound);
        if (w == Wait::late) return overdue(*bound);
        if (w == Wait::gone) break;
    }
    for (;;) {
        const Wait w = wait(POLLIN, bound);
        if (w == Wait::late) return overdue(*bound);
        if (w == Wait::gone) return lost();
        if (!receive(out)) {
            if (dead_) return lost();
            continue;
        }
        const wire::Answer& a = out->answer;
        if (a.question == request.question) break;
        if (a.question == 0) {
            // Unasked: the daemon turns the connection away, or says that it is being stopped.
            if (open_) stopped_ = true;
            dead_ = true;
            if (open_ || a.status == 0) return lost();
            fail_text(a.status, a.message);
            return false;
        }
        // Of a question that nobody waits for any more.
        if (a.status == 0) release(a);
        out->drop();
    }
    const wire::Answer& a = out->answer;
    if (a.status != 0) {
        fail_text(a.status, a.message);
        out->drop();
        return false;
    }
    if (out->count != files) {
        fail(acl::RT_INTERNAL,
             "FlexNPU: this program has too many files open to take what the daemon has sent; see ulimit -n");
        release(a);
        out->drop();
        return false;
    }
    return true;
}

// Reads a message. False when there was none after all, or the connection is at its end (then dead_ is set).
bool Connection::receive(Received* out) {
    out->no_fork = std::unique_lock(files_mutex());
    out->count = 0;
    iovec io{&out->answer, sizeof(out->answer)};
    alignas(cmsghdr) char control[CMSG_SPACE(4 * sizeof(int))];
    msghdr header{};
    header.msg_iov = &io;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof(control);
    const ssize_t n = recvmsg(socket_, &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (n < 0) {
        out->no_fork.unlock();
        // ECONNRESET is said once, before what the other side had sent can be read.
        if (errno != EAGAIN && errno != EINTR && errno != ECONNRESET) dead_ = true;
        return false;
    }
    for (cmsghdr* c = CMSG_FIRSTHDR(&header); c; c = CMSG_NXTHDR(&header, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
        const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            std::memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
            File file(guest::above_standard(fd));
            if (out->count < Received::kFiles) out->files[out->count] = std::move(file);
            out->count++;
        }
    }
    wire::Answer& a = out->answer;
    // A daemon of a later version says so, perhaps in a longer message.
    const bool longer = (header.msg_flags & MSG_TRUNC) && open_;
    if (n != ssize_t(sizeof(a)) || longer || a.magic != wire::kMagic) {
        out->drop();
        dead_ = true;
        return false;
    }
    a.message[sizeof(a.message) - 1] = a.soc[sizeof(a.soc) - 1] = '\0';
    return true;
}

void Connection::give_back(const wire::Answer& answer) {
    const NoCancel whole;
    std::lock_guard one_at_a_time(mutex_);
    release(answer);
}

// Under mutex_. The answer to this is not waited for: it is late by the time of the next question.
void Connection::release(const wire::Answer& answer) {
    wire::Request request{};
    request.magic = wire::kMagic;
    request.version = wire::kVersion;
    request.question = next_question();
    request.region = answer.number;
    switch (answer.ask) {
        case wire::Ask::host_memory: request.ask = wire::Ask::free_host_memory; break;
        case wire::Ask::new_ring: request.ask = wire::Ask::free_ring; break;
        default: return;
    }
    while (send(socket_, &request, sizeof(request), MSG_NOSIGNAL | MSG_DONTWAIT) < 0 && errno == EINTR)
        continue;
}

bool Connection::lost() {
    if (open_) {
        dead_ = true;
        if (stopped_)
            fail(acl::RT_INTERNAL, "FlexNPU: the daemon at %s was stopped; start it, then this program again",
                 path_.c_str());
        else
            fail(acl::RT_INTERNAL, "FlexNPU: the daemon at %s is gone; restart it, then this program",
                 path_.c_str());
    } else {
        fail(acl::RT_INTERNAL,
             "FlexNPU: the daemon at %s has hung up without a word; see its log, and whether it is of this "
             "program's version of FlexNPU",
             path_.c_str());
    }
    return false;
}

// ---- the daemon's life ----

bool Connection::alive() {
    if (dead_.load(std::memory_order_relaxed)) return false;
    pollfd p{socket_.load(), 0, 0};
    const timespec now{0, 0};
    // Not poll(): that is a point of cancellation.
    if (syscall(SYS_ppoll, &p, 1, &now, nullptr, 0) > 0 && (p.revents & (POLLHUP | POLLERR | POLLNVAL))) {
        // What it has said before it hung up may explain it, so who is amid a question reads that first.
        if (!open_) return true;
        dead_ = true;
        return false;
    }
    return true;
}

void Connection::read_last_words() {
    wire::Answer last{};
    while (!stopped_) {
        const ssize_t n = recv(socket_, &last, sizeof(last), MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) break;
        if (n == ssize_t(sizeof(last)) && last.magic == wire::kMagic && last.question == 0 &&
            last.status != 0)
            stopped_ = true;
    }
}

int32_t Connection::gone() {
    const NoCancel whole;
    if (mutex_.try_lock()) {  // else somebody is amid a question, and reads it
        read_last_words();
        mutex_.unlock();
    }
    lost();
    return acl::RT_INTERNAL;
}

void Connection::close() {
    const NoCancel whole;
    dead_ = true;
    shutdown(socket_, SHUT_RDWR);
    std::lock_guard one_at_a_time(mutex_);
    ::close(socket_.exchange(-1));
}

void Connection::abandon() {
    if (const int fd = socket_.exchange(-1); fd >= 0) ::close(fd);
}

}  // namespace flexnpu::client
