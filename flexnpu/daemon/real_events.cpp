// Events as graphs and captures see them. Operations on a real event (ACL_EVENT_EXTERNAL) are dispatched in
// the order of the program, whatever the lane.
#include <algorithm>

#include "flexnpu/daemon/dispatcher.hpp"
#include "flexnpu/daemon/graphs.hpp"

namespace flexnpu::daemon {

// An event's record, wait or reset in a lane: what it means to a capture. True when that is all that it
// means.
bool Dispatcher::capture_event(Session& s, Lane& lane, Event& event, ItemType type) {
    if (!event.real()) {
        // Waiting for an event of a capture joins it.
        const auto of = event.mark->capture.lock();
        if (type == ItemType::wait && !lane.capture && !lane.ending && of && !of->ending &&
            s.graphs.find(of->handle) == of.get()) {
            lane.capture = of;
            of->lanes.push_back(lane.weak_from_this());
        }
        return false;
    }
    if (!lane.capture) return false;
    (type == ItemType::record ? lane.capture->records : lane.capture->uses).insert(event.shared_from_this());
    auto item = std::make_unique<Item>(event_work(type, -1));
    item->mark = event.mark;
    item->as_it_is = true;
    if (type == ItemType::wait) event.mark->queued_waits += item->as<WaitItem>().counted = 1;
    push(lane, std::move(item));
    return true;
}

// A real event outside of a capture: operations on it are dispatched in the order of the program, whatever
// the lane.
void Dispatcher::use_real_event(Lane& lane, Event& event, ItemType type, int64_t deadline_ns) {
    auto item = std::make_unique<Item>(event_work(type, deadline_ns));
    if (type == ItemType::record) {
        if (event.mark->queued_waits) event.earlier.push_back(event.mark);
        event.mark = std::make_shared<Mark>(event.mark);
        event.mark->pending = event.mark->recorded = true;
        item->makes.push_back(event.mark);
    } else {
        event.mark->users++;
        item->uses.push_back(event.mark);
    }
    if (type == ItemType::wait) event.mark->queued_waits += item->as<WaitItem>().counted = 1;
    item->mark = event.mark;
    push(lane, std::move(item));
}

// What must be dispatched before this item, or nullptr.
Mark* Dispatcher::obstacle(const Item& item) {
    if ((item.type() == ItemType::wait || item.type() == ItemType::reset) && item.mark->pending &&
        !item.as_it_is)
        return item.mark.get();
    for (const auto& m : item.uses) {
        if (m->pending) return m.get();
    }
    for (const auto& m : item.makes) {
        Mark* before = m->previous.get();
        if (before && (before->pending ||
                       before->users > size_t(std::count(item.uses.begin(), item.uses.end(), m->previous))))
            return before;
    }
    return nullptr;
}

// The lane does not wait for the item's obstacle any more.
void Dispatcher::detach(Lane& lane, const Item& item) {
    if (item.mark) std::erase(item.mark->blocked, &lane);
    for (const auto& m : item.uses) std::erase(m->blocked, &lane);
    for (const auto& m : item.makes) {
        if (m->previous) std::erase(m->previous->blocked, &lane);
    }
}

void Dispatcher::unblock(Mark& mark) {
    for (Lane* l : std::exchange(mark.blocked, {})) {
        l->blocked = false;
        timers_.cancel(std::exchange(l->blocked_until, {}));
        flow(*l);
    }
}

// The item has been dispatched, or never will be.
void Dispatcher::release_marks(Item& item) {
    for (const auto& m : std::exchange(item.uses, {})) {
        m->users--;
        unblock(*m);
    }
    for (const auto& m : std::exchange(item.makes, {})) {
        m->pending = false;
        m->previous.reset();
        unblock(*m);
        for (auto& w : std::exchange(m->waiters, {})) w();
    }
}

}  // namespace flexnpu::daemon
