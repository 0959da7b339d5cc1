#include "flexnpu/daemon/lanes.hpp"

#include <algorithm>

#include "flexnpu/daemon/communicators.hpp"
#include "flexnpu/daemon/graphs.hpp"
#include "flexnpu/daemon/kernels.hpp"
#include "flexnpu/wire/futex.hpp"

namespace flexnpu::daemon {

using wire::now_ns;

namespace {

constexpr size_t kMostSpareItems = 1024, kMostSpareAddresses = 64;

}  // namespace

Lanes::Lanes(const Parts& p)
    : vendor_(p.vendor),
      gate_(p.gate),
      board_(p.board),
      timers_(p.timers),
      lent_(p.lent),
      markers_(p.markers),
      first_calls_(p.first_calls),
      failures_(p.failures),
      turn_(p.turn) {}

std::shared_ptr<Lane> Lanes::make(Session& s, const char* function, Failure* failure) {
    auto lane = std::make_shared<Lane>();
    lane->session = &s;
    return s.holder->take(HeldKind::streams, function, &lane->place, failure) ? lane : nullptr;
}

Failure Lanes::make_stream(Lane& lane, uint32_t priority, uint32_t flags) const {
    const int32_t e = vendor_.aclrtCreateStreamWithConfig(&lane.stream, priority, flags);
    return e ? Failure{e, vendor_.message("aclrtCreateStreamWithConfig", e)} : Failure{};
}

void Lanes::enter(Lane& lane) {
    lane.id = next_++;
    lanes_[lane.id] = &lane;
    gate_.add_lane(lane.id);
    board_.changed();
}

Lane* Lanes::default_lane(Session& s) {
    if (!s.default_lane) {
        auto lane = make(s, "the default stream", &s.no_default_lane);
        if (!lane) return nullptr;
        s.no_default_lane = make_stream(*lane, 0, 0);
        if (s.no_default_lane.code) return nullptr;
        enter(*lane);
        s.default_lane = std::move(lane);
    }
    return s.default_lane.get();
}

std::vector<Lane*> Lanes::all_of(const Session& s) {
    std::vector<Lane*> out;
    s.each_lane([&](const std::shared_ptr<Lane>& lane) { out.push_back(lane.get()); });
    return out;
}

void Lanes::drop(Lane& lane) {
    gate_.remove_lane(lane.id);
    lanes_.erase(lane.id);
    board_.changed();
    if (last_ == &lane) last_ = nullptr;
    timers_.cancel(std::exchange(lane.blocked_until, {}));
    for (auto* items : {&lane.backlog, &lane.queue}) {
        for (auto& item : *items) {
            lane.session->queued--;
            lent_.give_back(lane, *item);
            if (item->mark) {
                std::erase(item->mark->blocked, &lane);
                if (!item->mark->between_sessions) item->mark->waiters.clear();
                if (item->type() == ItemType::wait) item->mark->queued_waits -= item->as<WaitItem>().counted;
            }
            detach(lane, *item);
            for (const auto& m : item->makes) {
                m->waiters.clear();
                m->previous.reset();  // one by one: a long chain that ends at once would end on the stack
            }
        }
        items->clear();
    }
    lent_.forget(lane);
}

std::vector<std::unique_ptr<Item>> Lanes::take_all(Lane& lane) {
    const auto stats = gate_.stats(lane.id).value_or(gate::LaneStats{});
    gate_.remove_lane(lane.id);
    gate_.add_lane(lane.id);
    gate_.set_phase(lane.id, stats.phase, stats.target_us);
    lane.blocked = lane.calling = false;
    lane.first_call = 0;
    timers_.cancel(std::exchange(lane.blocked_until, {}));
    std::vector<std::unique_ptr<Item>> dropped;
    for (auto* items : {&lane.queue, &lane.backlog}) {
        for (auto& item : *items) dropped.push_back(std::move(item));
        items->clear();
    }
    lane.session->queued -= dropped.size();
    return dropped;
}

bool Lanes::set_phase(uint32_t id, gate::Phase phase, double target_us) {
    if (!gate_.set_phase(id, phase, target_us)) return false;
    if (const Lane* lane = find(id); lane && lane->blocked) protect(*lane);
    return true;
}

void Lanes::set_decode_targets(double target_us) {
    for (const auto& [id, lane] : lanes_) {
        const auto stats = gate_.stats(id);
        if (stats && stats->decodes) gate_.set_phase(id, stats->phase, target_us);
    }
}

void Lanes::set_target(uint32_t id, double target_us) {
    if (const auto stats = gate_.stats(id)) gate_.set_phase(id, stats->phase, target_us);
}

std::unique_ptr<Item> Lanes::spare_item() {
    if (spare_items_.empty()) return std::make_unique<Item>();
    std::unique_ptr<Item> item = std::move(spare_items_.back());
    spare_items_.pop_back();
    return item;
}

void Lanes::keep_item(std::unique_ptr<Item> item) {
    if (spare_items_.size() >= kMostSpareItems || item->addresses.capacity() > kMostSpareAddresses) return;
    item->shape.reset();
    item->capturing.reset();
    item->group.reset();
    spare_items_.push_back(std::move(item));
}

void Lanes::push(Lane& lane, std::unique_ptr<Item> item) {
    if (item->type() != ItemType::sync) {
        if (lane.capture || lane.update) {
            item->capturing = lane.update ? lane.update->graph.lock() : lane.capture;
            item->group = lane.update ? lane.update : lane.group;
        }
        item->behind = lane.ending != nullptr;
        item->of_refused_update = lane.update_refused;
    }
    item->ticket = ++lane.last_ticket;
    if (item->type() == ItemType::record) item->mark->recorded_by(lane.id, item->ticket);
    for (const auto& m : item->makes) m->recorded_by(lane.id, item->ticket);
    lane.session->queued++;
    lane.backlog.push_back(std::move(item));
    flow(lane);
}

// A wait whose record has not been dispatched stops here: the gate need not know about such waits, and
// nothing behind one can be admitted before its time.
void Lanes::flow(Lane& lane) {
    turn_.serving = lane.session;
    if (lane.held()) return;
    while (!lane.backlog.empty()) {
        Item& item = *lane.backlog.front();
        if (Mark* first = obstacle(item)) return block(lane, item, *first);
        if (item.behind && lane.ending) return;
        const ItemType type = item.type();
        if (type == ItemType::launch && item.shape->first_call != Shape::FirstCall::over &&
            !first_call_ready(lane, item))
            return;
        if (!item.capturing && !markers_.room(lane)) return;
        enqueue(lane, item);
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

inline void Lanes::enqueue(Lane& lane, const Item& item) {
    const ItemType type = item.type();
    gate::Item g;
    g.ticket = item.ticket;
    g.costed = ((type == ItemType::launch || type == ItemType::kernel) && !item.capturing) ||
               type == ItemType::replay;
    g.step_end = item.step_end;
    if (g.costed) {
        g.step_begin = (item.step.flags & wire::kBeginsStep) != 0;
        // A mixed step is prefill work for whoever decodes beside it.
        g.phase = (item.step.flags & wire::kStepPrefills) != 0  ? gate::Phase::Prefill
                  : (item.step.flags & wire::kStepDecodes) != 0 ? gate::Phase::Decode
                                                                : gate::Phase::Unknown;
        g.tokens = item.step.tokens;
    }
    if (item.shape) g.key = item.shape->key();
    if (const auto* replay = std::get_if<ReplayItem>(&item.work))
        g.key = gate::graph_key(replay->graph->serial, replay->graph->us);
    if (const auto* kernel = std::get_if<KernelItem>(&item.work))
        g.key = gate::kernel_key(kernel->function->serial, kernel->blocks);
    gate_.enqueue(turn_.now, lane.id, g);
}

void Lanes::after(const std::vector<Lane*>& lanes, bool step_end, std::function<void()> job) {
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

void Lanes::call_over(uint32_t id, uint64_t ticket) {
    Lane* lane = find(id);
    if (!lane || !lane->calling || lane->call != ticket) return;
    lane->calling = false;
    flow(*lane);
}

void Lanes::synced(uint32_t id, uint64_t ticket) {
    Lane* lane = find(id);
    if (!lane || lane->last_ticket != ticket) return;
    lane->completed = lane->launched;
    lane->in_flight_since_sync = 0;
    lane->step_open = false;
    lane->replayed.reset();
    markers_.progress(*lane);
    lane->over = lane->given;
    lent_.reclaim(*lane, true);
    lane->old_workspaces.clear();
    gate_.step_end(now_ns(), id);
}

// Whether the item, the first of its lane's backlog, can be dispatched as far as its shape is concerned. If
// not, its first call is under way beside the dispatching thread, and the lane waits for it.
bool Lanes::first_call_ready(Lane& lane, Item& item) {
    const std::shared_ptr<Shape>& shape = item.shape;
    if (shape->first_call == Shape::FirstCall::none && lane.session->first_calls.quick(shape->key()))
        shape->first_call = Shape::FirstCall::credited;
    if (shape->first_call == Shape::FirstCall::credited) return true;
    lane.first_call = item.ticket;
    shape->waiting.emplace_back(lane.id, item.ticket);
    if (shape->first_call == Shape::FirstCall::none) {
        first_calls_.begin(*lane.session, shape, item.addresses,
                           [this, id = lane.id, ticket = item.ticket](const Failure& failure, uint64_t) {
                               if (failure.code) drop_first(id, ticket, failure);
                           });
    }
    return false;
}

void Lanes::first_call_over(uint32_t id, uint64_t ticket) {
    Lane* lane = find(id);
    if (!lane || lane->first_call != ticket) return;
    lane->first_call = 0;
    flow(*lane);
}

// The first of the lane's backlog, if it is still this one, cannot be launched: the next synchronise, or the
// capture's end, reports why.
void Lanes::drop_first(uint32_t id, uint64_t ticket, const Failure& failure) {
    Lane* lane = find(id);
    if (!lane || lane->first_call != ticket || lane->backlog.empty() ||
        lane->backlog.front()->ticket != ticket)
        return;
    const std::unique_ptr<Item> item = std::move(lane->backlog.front());
    lane->backlog.pop_front();
    lane->session->queued--;
    failures_.count_vendor_error();
    count_operator(*lane, *item);
    const Failures::Dispatching of(failures_, *item);
    failures_.fail(*lane, failure.code, failure.message);
}

// A wait at its lane's head whose record has not come in time: the lane goes on, and its next synchronise
// reports it.
void Lanes::give_up_wait(uint32_t id, uint64_t ticket) {
    Lane* found = find(id);
    if (!found) return;
    Lane& lane = *found;
    if (!lane.blocked || lane.backlog.empty() || lane.backlog.front()->ticket != ticket) return;
    const std::unique_ptr<Item> item = std::move(lane.backlog.front());
    detach(lane, *item);
    item->mark->queued_waits -= item->as<WaitItem>().counted;
    lane.blocked = false;
    lane.blocked_until = {};
    lane.backlog.pop_front();
    lane.session->queued--;
    failures_.count_timeout();
    release(*item);
    {
        const Failures::Dispatching of(failures_, *item);
        failures_.fail(lane, acl::RT_WAIT_TIMEOUT,
                       "aclrtStreamWaitEvent: the event was not recorded in time");
    }
    flow(lane);
}

void Lanes::counters(std::map<std::string, uint64_t>* out) const {
    (*out)["launches"] = launches_;
    (*out)["captured_launches"] = captured_;
}

}  // namespace flexnpu::daemon
