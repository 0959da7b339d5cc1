#include "flexnpu/daemon/sessions.hpp"

#include <sys/socket.h>

#include <algorithm>

namespace flexnpu::daemon {

namespace {

constexpr uint64_t kMostLeavingHost = uint64_t(1) << 30;
// Threads of the pool that wait for one session's markers, twice: it gets half of its share for that.
constexpr size_t kMarkerShare = 16;

}  // namespace

Sessions::Sessions(const Parts& p, const Limits& limits)
    : vendor_(p.vendor),
      inbox_(p.inbox),
      board_(p.board),
      lanes_(p.lanes),
      exports_(p.exports),
      teardown_(p.teardown),
      call_share_(std::max<size_t>(1, limits.threads / 4)),
      holdings_(limits) {}

bool Sessions::open(const std::weak_ptr<Session>& weak) {
    auto s = weak.lock();
    if (!s) return false;
    opened_++;
    s->page->doze.store(inbox_.doze(), std::memory_order_seq_cst);
    // A call that ends in an exception ends its session: the hang-up is noticed by the acceptor.
    const auto hang_up = [weak] {
        if (const auto s = weak.lock()) shutdown(s->socket.get(), SHUT_RDWR);
    };
    s->holder = holdings_.holder(s->uid);
    s->call_share = std::make_shared<Threads::Group>(call_share_, hang_up);
    s->wait_share = std::make_shared<Threads::Group>(kMarkerShare, hang_up);
    sessions_.push_back(std::move(s));
    board_.changed();
    return true;
}

bool Sessions::add_ring(const std::shared_ptr<Session>& s, const std::weak_ptr<Ring>& ring) {
    auto r = ring.lock();
    if (!r) return false;
    r->group = s->call_share;
    s->rings.push_back(r);
    return true;
}

bool Sessions::add_host(const std::shared_ptr<Session>& s, uint32_t number,
                        const std::weak_ptr<HostMemory>& region) {
    auto r = region.lock();
    if (r) s->host[number] = r;
    return r != nullptr;
}

// The client waits for its copies before it frees; one that does not must not pull memory from under the
// device.
std::shared_ptr<HostMemory> Sessions::retire_host(const std::shared_ptr<Session>& session, uint32_t number) {
    Session& s = *session;
    auto it = s.host.find(number);
    if (it == s.host.end()) return nullptr;
    bool quiet = s.queued == 0 && !s.lanes_leave() &&
                 std::all_of(s.uses.begin(), s.uses.end(), [](const auto& use) { return use.expired(); });
    s.each_lane([&](const std::shared_ptr<Lane>& lane) {
        int32_t status = acl::STREAM_NOT_READY;
        // A stream that captures must not be asked.
        quiet = quiet && !lane->in_capture && vendor_.aclrtStreamQuery(lane->stream, &status) == 0 &&
                status == acl::STREAM_COMPLETE;
    });
    if (quiet) s.leaving_host.clear();
    uint64_t waiting = 0;
    for (const auto& region : s.leaving_host) waiting += region->bytes;
    if (!quiet && !s.leaving_host.empty() && waiting + it->second->bytes > kMostLeavingHost) return nullptr;
    std::shared_ptr<HostMemory> region = std::move(it->second);
    s.host.erase(it);
    if (!quiet) s.leaving_host.push_back(region);
    return region;
}

void Sessions::sever(Session& s) {
    if (s.broken) return;
    s.broken = true;
    broken_++;
    s.refused++;
    if (on_broken) on_broken(s);
}

void Sessions::remove(uint32_t id) {
    const auto at =
        std::find_if(sessions_.begin(), sessions_.end(), [id](const auto& s) { return s->id == id; });
    if (at == sessions_.end()) return;
    const std::shared_ptr<Session> s = *at;
    sessions_.erase(at);
    board_.changed();
    s->removed = true;
    exports_.forget(s->id, nullptr);
    const auto orphans = drop_lanes(*s);
    // Others may have opened its events: from here on these are theirs, and nobody waits for records that
    // will not come.
    for (const uint64_t event : s->ipc_events) s->events.remove(event);
    for (const auto& mark : orphans) lanes_.recorded(*mark);
    teardown_.begin(s);
}

std::vector<std::shared_ptr<Mark>> Sessions::drop_lanes(Session& s) {
    std::vector<std::shared_ptr<Mark>> orphans;
    s.each_lane([&](const std::shared_ptr<Lane>& lane) {
        for (auto* items : {&lane->backlog, &lane->queue}) {
            for (auto& item : *items) {
                if (item->type() == ItemType::record && item->mark->between_sessions)
                    orphans.push_back(item->mark);
            }
        }
    });
    s.each_lane([this](const std::shared_ptr<Lane>& lane) { lanes_.drop(*lane); });
    return orphans;
}

void Sessions::end_all() {
    for (auto& s : sessions_) {
        s->removed = true;
        for (const auto& mark : drop_lanes(*s)) mark->waiters.clear();  // they hold the mark
        teardown_.begin(s);
    }
    sessions_.clear();
}

bool Sessions::nothing_queued() const {
    return std::all_of(sessions_.begin(), sessions_.end(), [](const auto& s) { return s->queued == 0; });
}

std::vector<SessionInfo> Sessions::infos() const {
    std::vector<SessionInfo> out;
    for (auto& s : sessions_) {
        uint64_t lanes = s->streams.size() + (s->default_lane ? 1 : 0);
        out.push_back({s->id, s->pid, s->comm, s->uid, s->account->used(), s->account->quota(),
                       s->rings.size(), lanes, s->calls, s->refused.load(), s->page->ring_full.load(),
                       s->page->launches.load(), s->page->steps.load()});
    }
    return out;
}

void Sessions::counters(std::map<std::string, uint64_t>* out) const {
    (*out)["sessions_opened"] = opened_;
    (*out)["sessions_broken"] = broken_;
    holdings_.counters(out);
}

}  // namespace flexnpu::daemon
