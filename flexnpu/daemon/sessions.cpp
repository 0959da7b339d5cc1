// Sessions: opened, given rings and memory, and torn down when their client has gone.
#include <sys/socket.h>

#include <algorithm>
#include <thread>

#include "flexnpu/daemon/communicators.hpp"
#include "flexnpu/daemon/deadline.hpp"
#include "flexnpu/daemon/dispatcher.hpp"
#include "flexnpu/daemon/graphs.hpp"
#include "flexnpu/daemon/kernels.hpp"
#include "flexnpu/wire/futex.hpp"

namespace flexnpu::daemon {

using wire::now_ns;

namespace {

constexpr uint64_t kMostLeavingHost = uint64_t(1) << 30;
// A dying session's streams, if it has communicators, get this long to end by themselves: other ranks wait.
constexpr uint64_t kRanksEndMs = 2000;
// Threads of the pool that wait for one session's markers, twice: it gets half of its share for that.
constexpr size_t kMarkerShare = 16;

}  // namespace

void Dispatcher::add_session(std::shared_ptr<Session> session) {
    count_.sessions++;
    session->page->doze.store(inbox_.doze(), std::memory_order_seq_cst);
    // A call that ends in an exception ends its session: the hang-up is noticed by the acceptor.
    const auto hang_up = [weak = session->weak_from_this()] {
        if (const auto s = weak.lock()) shutdown(s->socket.get(), SHUT_RDWR);
    };
    session->holder = holdings_.holder(session->uid);
    session->call_share = std::make_shared<Threads::Group>(std::max<size_t>(1, limits_.threads / 4), hang_up);
    session->wait_share = std::make_shared<Threads::Group>(kMarkerShare, hang_up);
    sessions_.push_back(std::move(session));
    board_.changed();
}

bool Dispatcher::open_session(const std::weak_ptr<Session>& session) {
    auto s = session.lock();
    if (s) add_session(s);
    return s != nullptr;
}

bool Dispatcher::add_ring(const std::shared_ptr<Session>& s, const std::weak_ptr<Ring>& ring) {
    auto r = ring.lock();
    if (!r) return false;
    r->group = s->call_share;
    s->rings.push_back(r);
    return true;
}

bool Dispatcher::add_host(const std::shared_ptr<Session>& s, uint32_t number,
                          const std::weak_ptr<HostMemory>& region) {
    auto r = region.lock();
    if (r) s->host[number] = r;
    return r != nullptr;
}

// The client waits for its copies before it frees; one that does not must not pull memory from under the
// device.
std::shared_ptr<HostMemory> Dispatcher::retire_host(const std::shared_ptr<Session>& session,
                                                    uint32_t number) {
    Session& s = *session;
    auto it = s.host.find(number);
    if (it == s.host.end()) return nullptr;
    bool quiet = s.queued == 0 &&
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

Session* Dispatcher::session(uint32_t id) {
    for (auto& s : sessions_) {
        if (s->id == id) return s.get();
    }
    return nullptr;
}

void Dispatcher::remove_session(uint32_t id) {
    for (size_t i = 0; i < sessions_.size(); i++) {
        if (sessions_[i]->id != id) continue;
        std::shared_ptr<Session> s = sessions_[i];
        sessions_.erase(sessions_.begin() + ptrdiff_t(i));
        board_.changed();
        s->removed = true;
        exports_.forget(s->id, nullptr);
        const auto orphans = orphans_of(*s);
        s->each_lane([this](const std::shared_ptr<Lane>& lane) { lanes_.drop(*lane); });
        // Others may have opened its events: from here on these are theirs, and nobody waits for records that
        // will not come.
        for (const uint64_t event : s->ipc_events) s->events.remove(event);
        for (const auto& mark : orphans) lanes_.recorded(*mark);
        end_session(s);
        return;
    }
}

// Records that the session has not dispatched, of events that other sessions may wait for.
std::vector<std::shared_ptr<Mark>> Dispatcher::orphans_of(const Session& s) {
    std::vector<std::shared_ptr<Mark>> out;
    s.each_lane([&](const std::shared_ptr<Lane>& lane) {
        for (auto* items : {&lane->backlog, &lane->queue}) {
            for (auto& item : *items) {
                if (item->type() == ItemType::record && item->mark->between_sessions)
                    out.push_back(item->mark);
            }
        }
    });
    return out;
}

// One session after the other, but for those that wait for ranks elsewhere.
void Dispatcher::end_session(std::shared_ptr<Session> s) {
    for (auto& ring : s->rings) ring->closed = true;
    if (!s->communicators) return reaper_->post([this, s] { tear_down(s); });
    std::erase_if(ranked_teardowns_, [](const auto& one) { return one->idle(); });
    ranked_teardowns_.push_back(std::make_unique<Worker>(workers_.threads(), teardown_share_));
    ranked_teardowns_.back()->post([this, s] {
        s->communicators->abandon();
        tear_down(s);
    });
}

// Sees to it that the session's streams end: by themselves or, after a time, by an abort. Whoever waits for
// them then returns: the session's own threads, and other ranks.
void Dispatcher::end_streams(Session& s) {
    const uint64_t end_ms = s.communicators ? std::min(s.end_ms, kRanksEndMs) : s.end_ms;
    const uint64_t give_up = std::min(now_ns() + end_ms * 1'000'000, end_by_ns_.load());
    const auto end = [&](const std::shared_ptr<Lane>& lane) {
        int32_t status = acl::STREAM_NOT_READY;
        while (vendor_.aclrtStreamQuery(lane->stream, &status) == 0 && status != acl::STREAM_COMPLETE) {
            if (now_ns() > give_up) {
                if (vendor_.aclrtStreamAbort) vendor_.aclrtStreamAbort(lane->stream);
                return;
            }
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
        }
    };
    s.each_lane(end);
    for (const auto& one : s.leaving_lanes) {
        if (const auto lane = one.lock()) end(lane);
    }
}

// On the reaper's thread. Waits for what is in flight, then gives everything back.
void Dispatcher::tear_down(std::shared_ptr<Session> s) {
    end_streams(*s);
    for (auto& ring : s->rings) ring->worker.reset();
    captures_.tear_down(*s);
    s->communicators.reset();
    // Of all together: a stream that has been aborted and does not end is left.
    const int64_t deadline_ns = int64_t(std::min(now_ns() + s->end_ms * 1'000'000, end_by_ns_.load()));
    s->each_lane([this, deadline_ns](const std::shared_ptr<Lane>& lane) {
        if (lane->markers) workers_.completions().close(lane->markers);
        vendor_.aclrtSynchronizeStreamWithTimeout(lane->stream, left_ms(deadline_ns));
        for (const Lent& l : lane->lent) vendor_.aclrtDestroyEvent(l.event);
        std::vector<uint8_t*> buffers;
        for (const Lent& l : lane->lent) {
            if (l.buffer) buffers.push_back(l.buffer);
        }
        if (!buffers.empty() && running_) {
            post([this, buffers] {
                for (uint8_t* b : buffers) spares_.give_buffer(b);
            });
        }
        lane->lent.clear();
        for (const Lane::Fence& f : lane->fences) vendor_.aclrtDestroyEvent(f.event);
        lane->old_workspaces.clear();
        lane->workspace.reset();
        vendor_.aclrtDestroyStream(lane->stream);
    });
    s->kernels.reset();
    s->events.each([](const std::shared_ptr<Event>& e) { e->mark->waiters.clear(); });
    s->events = Table<Event>(wire::HandleKind::event);
    s->streams = Table<Lane>(wire::HandleKind::stream);
    s->default_lane.reset();
    s->shapes.clear();
    s->late.clear();
    std::vector<MemoryMap::Range> ranges = s->memory.take_all();
    std::move(s->leaving.begin(), s->leaving.end(), std::back_inserter(ranges));
    s->leaving.clear();
    give_back_virtual_memory(*s, std::move(ranges));
    s->host.clear();
    s->leaving_host.clear();
    s->staging_pin.reset();
    s->live.reset();
}

}  // namespace flexnpu::daemon
