// What lanes wait for: records of events that have yet to be dispatched. Operations on a real event
// (ACL_EVENT_EXTERNAL) are dispatched in the order of the program, whatever the lane.
#include <algorithm>

#include "flexnpu/daemon/lanes.hpp"

namespace flexnpu::daemon {

namespace {

// From so many earlier records on, those whose waits are over are looked for.
constexpr size_t kMostEarlier = 8;

}  // namespace

void Event::renew(std::shared_ptr<Mark> fresh) {
    if (mark->queued_waits) earlier.push_back(mark);
    mark = std::move(fresh);
    if (earlier.size() > kMostEarlier) waits_pending();
}

bool Event::waits_pending() {
    std::erase_if(earlier, [](const std::shared_ptr<Mark>& m) {
        int32_t status = acl::EVENT_WAIT_NOT_READY;
        return m->queued_waits == 0 && (m->vendor.aclrtQueryEventWaitStatus(m->event, &status) != 0 ||
                                        status == acl::EVENT_WAIT_COMPLETE);
    });
    return !earlier.empty();
}

Mark* Lanes::obstacle(const Item& item) {
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

// The lane waits for the mark, and gives up at the wait's deadline.
void Lanes::block(Lane& lane, const Item& item, Mark& on) {
    lane.blocked = true;
    on.blocked.push_back(&lane);
    const auto* wait = std::get_if<WaitItem>(&item.work);
    if (wait && wait->deadline_ns >= 0) {
        lane.blocked_until =
            timers_.add(uint64_t(wait->deadline_ns),
                        [this, id = lane.id, ticket = item.ticket] { give_up_wait(id, ticket); });
    }
    protect(lane);
}

// A chain: the lane of the record may be blocked itself. It ends, since each turn protects more of some lane.
void Lanes::protect(const Lane& lane) {
    for (const Lane* waiting = &lane; waiting && waiting->blocked;) {
        const Item& head = *waiting->backlog.front();
        if (!gate_.protects(waiting->id, head.ticket)) return;
        const Mark* on = obstacle(head);
        if (!on || !on->pending || !gate_.inherit(on->lane, on->ticket)) return;
        waiting = find(on->lane);
    }
}

void Lanes::detach(Lane& lane, const Item& item) {
    if (item.mark) std::erase(item.mark->blocked, &lane);
    for (const auto& m : item.uses) std::erase(m->blocked, &lane);
    for (const auto& m : item.makes) {
        if (m->previous) std::erase(m->previous->blocked, &lane);
    }
}

void Lanes::unblock(Mark& mark) {
    for (Lane* l : std::exchange(mark.blocked, {})) {
        l->blocked = false;
        timers_.cancel(std::exchange(l->blocked_until, {}));
        flow(*l);
    }
}

void Lanes::recorded(Mark& mark) {
    mark.pending = false;
    auto waiters = std::exchange(mark.waiters, {});
    unblock(mark);
    for (auto& w : waiters) w();
}

void Lanes::release(Item& item) {
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
