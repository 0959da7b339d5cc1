// Lanes: what a stream of a client holds here, in its order, on its way to the gate.
#include <algorithm>

#include "flexnpu/daemon/communicators.hpp"
#include "flexnpu/daemon/dispatcher.hpp"
#include "flexnpu/daemon/graphs.hpp"
#include "flexnpu/daemon/kernels.hpp"
#include "flexnpu/wire/futex.hpp"

namespace flexnpu::daemon {

using wire::now_ns;

namespace {

// Items of one lane between us and the device. Hardware streams hold about a thousand or two; with fewer than
// this a device runs dry.
constexpr uint64_t kInFlight = 512;
constexpr uint64_t kFenceEvery = 64;
constexpr size_t kMostSpareItems = 1024, kMostSpareAddresses = 64;

}  // namespace

void Dispatcher::refuse(Session& s, const Reply& reply, int32_t code, std::string message) {
    count_.refused++;
    s.refused++;
    reply.send(code, message.c_str(), nullptr, 0);
}

void Dispatcher::refuse_later(Session& s, Lane* lane, int32_t code, std::string message) {
    count_.refused++;
    s.refused++;
    if (lane) fail(*lane, code, std::move(message));
}

// The first failure since the last synchronise is the one that it reports.
void Dispatcher::fail(Lane& lane, int32_t code, std::string message) {
    // A capture's failures are for its end to report.
    Graph* capture = dispatching_ ? dispatching_->capturing.get() : lane.capture.get();
    Failure& first = capture && !capture->over ? capture->failure : lane.failure;
    if (first.code == 0) first = {code, std::move(message)};
}

// A lane whose vendor's stream has yet to be made, if the session may have one more.
std::shared_ptr<Lane> Dispatcher::new_lane(Session& s, const char* function, Failure* failure) {
    auto lane = std::make_shared<Lane>();
    lane->session = &s;
    return s.holder->take(HeldKind::streams, function, &lane->place, failure) ? lane : nullptr;
}

// Makes the vendor's stream. May take its time; any thread.
Failure Dispatcher::make_stream(Lane& lane, uint32_t priority, uint32_t flags) const {
    const int32_t e = vendor_.aclrtCreateStreamWithConfig(&lane.stream, priority, flags);
    return e ? Failure{e, vendor_.message("aclrtCreateStreamWithConfig", e)} : Failure{};
}

void Dispatcher::enter_lane(Lane& lane) {
    lane.id = next_lane_++;
    lanes_[lane.id] = &lane;
    gate_.add_lane(lane.id);
    board_.changed();
}

// A session's default stream is a stream of its own: the vendor's would tie all sessions together.
Lane* Dispatcher::lane_of(Session& s, uint64_t handle) {
    if (handle != 0) return s.streams.find(handle);
    if (!s.default_lane) {
        auto lane = new_lane(s, "the default stream", &s.no_default_lane);
        if (!lane) return nullptr;
        s.no_default_lane = make_stream(*lane, 0, 0);
        if (s.no_default_lane.code) return nullptr;
        enter_lane(*lane);
        s.default_lane = std::move(lane);
    }
    return s.default_lane.get();
}

std::vector<Lane*> Dispatcher::lanes_of(Session& s) {
    std::vector<Lane*> out;
    s.each_lane([&](const std::shared_ptr<Lane>& lane) { out.push_back(lane.get()); });
    return out;
}

// Operators are by far the most frequent items: theirs, with room for addresses, are used again.
std::unique_ptr<Item> Dispatcher::spare_item() {
    if (spare_items_.empty()) return std::make_unique<Item>();
    std::unique_ptr<Item> item = std::move(spare_items_.back());
    spare_items_.pop_back();
    return item;
}

void Dispatcher::keep_item(std::unique_ptr<Item> item) {
    if (spare_items_.size() >= kMostSpareItems || item->addresses.capacity() > kMostSpareAddresses) return;
    item->shape.reset();
    item->capturing.reset();
    item->group.reset();
    spare_items_.push_back(std::move(item));
}

void Dispatcher::push(Lane& lane, std::unique_ptr<Item> item) {
    if (item->type() != ItemType::sync && (lane.capture || lane.update)) {
        item->capturing = lane.update ? lane.update->graph.lock() : lane.capture;
        item->group = lane.update ? lane.update : lane.group;
    }
    item->behind = lane.ending && item->type() != ItemType::sync;
    item->ticket = ++lane.last_ticket;
    lane.session->queued++;
    lane.backlog.push_back(std::move(item));
    flow(lane);
}

// Hands the backlog to the gate, up to a wait whose record has not been dispatched: the gate need not know
// about such waits, and nothing behind one can be admitted before its time.
void Dispatcher::flow(Lane& lane) {
    serving_ = lane.session;
    if (lane.held()) return;
    while (!lane.backlog.empty()) {
        Item& item = *lane.backlog.front();
        if (Mark* first = obstacle(item)) {
            lane.blocked = true;
            first->blocked.push_back(&lane);
            const auto* wait = std::get_if<WaitItem>(&item.work);
            if (wait && wait->deadline_ns >= 0) {
                lane.blocked_until =
                    timers_.add(uint64_t(wait->deadline_ns),
                                [this, id = lane.id, ticket = item.ticket] { give_up_wait(id, ticket); });
            }
            return;
        }
        if (item.behind && lane.ending) return;
        const ItemType type = item.type();
        if (type == ItemType::launch && item.shape->first_call != Shape::FirstCall::over &&
            !first_call_over(lane, item))
            return;
        if (!item.capturing && !room(lane)) return;
        gate::Item g;
        g.ticket = item.ticket;
        g.costed = ((type == ItemType::launch || type == ItemType::kernel) && !item.capturing) ||
                   type == ItemType::replay;
        g.step_end = item.step_end;
        if (item.shape) g.key = item.shape->key();
        if (const auto* replay = std::get_if<ReplayItem>(&item.work))
            g.key = gate::graph_key(replay->graph->serial, replay->graph->us);
        if (const auto* kernel = std::get_if<KernelItem>(&item.work))
            g.key = gate::kernel_key(kernel->function->serial, kernel->blocks);
        gate_.enqueue(now_, lane.id, g);
        auto* collective = std::get_if<CollectiveItem>(&item.work);
        if (collective) collective->may_block = may_block(*collective);
        const auto* function = std::get_if<HostFunctionItem>(&item.work);
        if (type == ItemType::call || (collective && collective->may_block) ||
            (function && function->blocks)) {
            lane.calling = true;
            lane.call = item.ticket;
        }
        lane.queue.push_back(std::move(lane.backlog.front()));
        lane.backlog.pop_front();
        if (lane.calling) return;
    }
}

void Dispatcher::after(const std::vector<Lane*>& lanes, bool step_end, std::function<void()> job) {
    auto left = std::make_shared<size_t>(1);
    auto shared_job = std::make_shared<std::function<void()>>(std::move(job));
    auto arrive = [left, shared_job] {
        if (--*left == 0) (*shared_job)();
    };
    for (Lane* lane : lanes) {
        if (lane->idle() && !(step_end && lane->step_open)) continue;
        ++*left;
        auto item = std::make_unique<Item>(SyncItem{arrive});
        item->step_end = step_end && lane->step_open;
        push(*lane, std::move(item));
    }
    arrive();
}

void Dispatcher::progress(Lane& lane) {
    while (!lane.fences.empty()) {
        const Lane::Fence f = lane.fences.front();
        int32_t status = acl::EVENT_RECORDED_NOT_READY;
        if (vendor_.aclrtQueryEventStatus(f.event, &status) != 0 || status != acl::EVENT_RECORDED_COMPLETE)
            return;
        lane.over = std::max(lane.over, f.given);
        spares_.give_event(f.event);
        lane.fences.pop_front();
    }
}

bool Dispatcher::room(Lane& lane) {
    if (lane.given + lane.queue.size() - lane.over < kInFlight) return true;
    progress(lane);
    if (lane.given + lane.queue.size() - lane.over < kInFlight || lane.fences.empty()) return true;
    lane.full = true;
    const Lane::Fence f = lane.fences.front();
    lane.fences.pop_front();
    lane.over = std::max(lane.over, f.given);  // will be, when the marker comes back
    mark(lane, {f.event, nullptr, 0});
    return false;
}

// Something has been given to the vendor's stream.
void Dispatcher::fence(Lane& lane) {
    if (++lane.given % kFenceEvery != 0) return;
    void* e = spares_.event();
    if (!e) return;
    if (vendor_.aclrtRecordEvent(e, lane.stream) != 0) return spares_.give_event(e);
    lane.fences.push_back({e, lane.given});
}

void Dispatcher::mark(Lane& lane, const Completions::Marker& m) {
    if (!lane.markers) {
        lane.markers = completions_->lane(lane.session->wait_share,
                                          [this, id = lane.id](const Completions::Marker& m, double us) {
                                              post([this, id, m, us] { marked(id, m, us); });
                                          });
    }
    completions_->add(lane.markers, m);
}

void Dispatcher::marked(uint32_t id, const Completions::Marker& m, double us) {
    spares_.give_event(m.end);
    if (m.start) spares_.give_event(m.start);
    auto it = lanes_.find(id);
    if (it == lanes_.end()) return;
    if (m.ticket != 0) return gate_.completed(now_ns(), id, m.ticket, us);
    if (m.call) return host_reached(*it->second);
    it->second->full = false;
    flow(*it->second);
}

// A wait at its lane's head whose record has not come in time: the lane goes on, and its next synchronise
// reports it.
void Dispatcher::give_up_wait(uint32_t id, uint64_t ticket) {
    auto it = lanes_.find(id);
    if (it == lanes_.end()) return;
    Lane& lane = *it->second;
    if (!lane.blocked || lane.backlog.empty() || lane.backlog.front()->ticket != ticket) return;
    const std::unique_ptr<Item> item = std::move(lane.backlog.front());
    detach(lane, *item);
    item->mark->queued_waits -= item->as<WaitItem>().counted;
    lane.blocked = false;
    lane.blocked_until = {};
    lane.backlog.pop_front();
    lane.session->queued--;
    count_.timeouts++;
    release_marks(*item);
    dispatching_ = item.get();
    fail(lane, acl::RT_WAIT_TIMEOUT, "aclrtStreamWaitEvent: the event was not recorded in time");
    dispatching_ = nullptr;
    flow(lane);
}

// Buffers of copies that are over go back to where they came from.
void Dispatcher::reclaim(Lane& lane, bool all) {
    while (!lane.lent.empty()) {
        const Lent l = lane.lent.front();
        int32_t status = acl::EVENT_RECORDED_NOT_READY;
        if (!all &&
            (vendor_.aclrtQueryEventStatus(l.event, &status) != 0 || status != acl::EVENT_RECORDED_COMPLETE))
            return;
        lane.lent.pop_front();
        lent_--;
        spares_.give_event(l.event);
        if (l.buffer) spares_.give_buffer(l.buffer);
        lane.session->give_block(l.block, l.ticket);
    }
}

bool Dispatcher::reclaim_some() {
    for (auto& s : sessions_) {
        s->each_lane([this](const std::shared_ptr<Lane>& lane) { reclaim(*lane, false); });
    }
    return lent_ == 0;
}

// A synchronise of this lane has been answered, or is about to be.
void Dispatcher::synced(uint32_t lane_id, uint64_t ticket) {
    auto it = lanes_.find(lane_id);
    if (it == lanes_.end()) return;
    Lane& lane = *it->second;
    if (lane.last_ticket == ticket) {
        lane.completed = lane.launched;
        lane.in_flight_since_sync = 0;
        lane.step_open = false;
        lane.replayed.reset();
        progress(lane);
        lane.over = lane.given;
        reclaim(lane, true);
        lane.old_workspaces.clear();
        gate_.step_end(now_ns(), lane_id);
    }
}

// Answers at the deadline unless settle() comes first. Without a deadline there is nothing to settle:
// nullptr.
std::shared_ptr<Dispatcher::Timed> Dispatcher::timed(int64_t deadline_ns, const char* function,
                                                     const Reply& reply) {
    if (deadline_ns < 0) return nullptr;
    auto t = std::make_shared<Timed>();
    t->timer = timers_.add(uint64_t(deadline_ns), [this, t, function, reply] {
        t->over = true;
        count_.timeouts++;
        reply.fail({acl::RT_WAIT_TIMEOUT, std::string(function) + ": not over in time"});
    });
    return t;
}

// False: the deadline came first.
bool Dispatcher::settle(const std::shared_ptr<Timed>& t) {
    if (!t) return true;
    if (t->over) return false;
    t->over = true;
    timers_.cancel(t->timer);
    return true;
}

}  // namespace flexnpu::daemon
