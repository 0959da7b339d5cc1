#include "flexnpu/daemon/records/events.hpp"

#include <algorithm>
#include <bit>

#include "flexnpu/daemon/deadline.hpp"
#include "flexnpu/daemon/graphs.hpp"
#include "flexnpu/wire/futex.hpp"

namespace flexnpu::daemon {

namespace {

// How often a wait for another session's stream looks whether its own session has ended.
constexpr int32_t kEventSliceMs = 500;
// Events that could not be made, kept for what names them.
constexpr size_t kMaxBadEvents = 1024;

Failure not_reached(const char* function) {
    return {acl::RT_EVENT_TIMESTAMP_INVALID,
            std::string(function) + ": an event is not recorded or not reached yet"};
}

// Why a handle names no event of the session.
Failure no_event(const Session& s, const char* function, uint64_t handle) {
    if (const auto bad = s.bad_events.find(handle); bad != s.bad_events.end()) return bad->second;
    return {acl::RT_INVALID_HANDLE, std::string(function) + ": " + hex(handle) + " is not an event"};
}

// Runs `job` once the last record of that event has been dispatched: now, if nothing is outstanding.
void when_recorded(const std::shared_ptr<Mark>& mark, std::function<void()> job) {
    if (mark->pending)
        mark->waiters.push_back(std::move(job));
    else
        job();
}

}  // namespace

// The client chooses the handle, so that it need not wait: it asks once for each kind of event, and an event
// that then cannot be made is one that its records and waits do not find.
void EventRecords::create(Session& s, Payload p, const Reply& reply) {
    wire::CreateEvent c;
    if (!taken(s, p, &c, reply, "aclrtCreateEvent")) return;
    void* event = nullptr;
    // All sessions' events are this process's: the vendor need not know that one is for several.
    const bool ipc = (c.flags & acl::EVENT_IPC) != 0;
    if (ipc && (c.flags & acl::EVENT_EXTERNAL)) {
        return refuse(s, reply, acl::RT_PARAM_INVALID,
                      "aclrtCreateEvent: FlexNPU does not share external events between processes");
    }
    if (ipc)
        c.flags = (c.flags & ~uint32_t(acl::EVENT_IPC)) ? c.flags & ~uint32_t(acl::EVENT_IPC)
                                                        : uint32_t(acl::EVENT_SYNC);
    auto made = std::make_shared<Event>();
    Failure failure;
    if (s.holder->take(HeldKind::events, "aclrtCreateEvent", &made->place, &failure)) {
        failure.code = c.ex ? vendor_.aclrtCreateEventExWithFlag(&event, c.flags)
                            : vendor_.aclrtCreateEventWithFlag(&event, c.flags);
        if (failure.code) {
            failures_.count_vendor_error();
            failure.message = vendor_.message("aclrtCreateEventWithFlag", failure.code);
        }
    }
    if (failure.code) {
        // Nobody waits, most often: who uses it is told.
        if (s.bad_events.size() >= kMaxBadEvents) s.bad_events.clear();
        if (!reply.request) s.bad_events[c.handle] = failure;
        return refuse(s, reply, failure.code, failure.message);
    }
    s.bad_events.erase(c.handle);
    made->flags = c.flags;
    made->ex = c.ex != 0;
    made->ipc = ipc;
    made->mark = std::make_shared<Mark>(vendor_, event);
    made->mark->between_sessions = ipc;
    if (!s.events.add_at(c.handle, made))
        return refuse(s, reply, acl::RT_INVALID_HANDLE,
                      "aclrtCreateEvent: " + hex(c.handle) + " is not free");
    reply.ok();
}

void EventRecords::destroy(Session& s, Payload p, const Reply& reply) {
    wire::EventOp o;
    if (!taken(s, p, &o, reply, "aclrtDestroyEvent")) return;
    if (!s.events.remove(o.event))
        return refuse(s, reply, acl::RT_INVALID_HANDLE, hex(o.event) + " is not an event");
    s.ipc_events.erase(o.event);
    reply.ok();
}

Event* EventRecords::event_at(Session& s, uint64_t handle, const Reply& reply, const char* function) {
    Event* e = s.events.find(handle);
    if (e) return e;
    Failure failure = no_event(s, function, handle);
    refuse(s, reply, failure.code, failure.message);
    return nullptr;
}

// An event's record, wait or reset in a lane: what it means to a capture. True when that is all that it
// means.
bool EventRecords::capture(Session& s, Lane& lane, Event& event, ItemType type) {
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
void EventRecords::use_real(Lane& lane, Event& event, ItemType type, int64_t deadline_ns) {
    auto item = std::make_unique<Item>(event_work(type, deadline_ns));
    if (type == ItemType::record) {
        event.renew(std::make_shared<Mark>(event.mark));
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

void EventRecords::record(Session& s, Payload p) {
    wire::EventOp o;
    if (!take(p, &o)) {
        return malformed(s);
    }
    Event* e = s.events.find(o.event);
    Lane* lane = lane_of(s, o.stream);
    if (!e || !lane) {
        Failure failure = no_event(s, "aclrtRecordEvent", o.event);
        return refuse_later(s, lane, failure.code, std::move(failure.message));
    }
    if (capture(s, *lane, *e, ItemType::record)) return;
    if (e->real()) return use_real(*lane, *e, ItemType::record, -1);
    if (e->mark.use_count() > 1) {
        // Operators that have yet to be dispatched mean the earlier record.
        void* fresh = nullptr;
        const int32_t err = e->ex ? vendor_.aclrtCreateEventExWithFlag(&fresh, e->flags)
                                  : vendor_.aclrtCreateEventWithFlag(&fresh, e->flags);
        if (err) return failures_.fail(*lane, err, vendor_.message("aclrtRecordEvent", err));
        e->renew(std::make_shared<Mark>(vendor_, fresh));
        e->mark->between_sessions = e->ipc;
    }
    e->mark->pending = e->mark->recorded = true;
    e->mark->error = 0;
    e->mark->capture = lane->capture;
    auto item = std::make_unique<Item>(RecordItem{});
    item->mark = e->mark;
    push(*lane, std::move(item));
}

// A wait or a reset: takes its place in the lane, and means the event's record of now.
void EventRecords::order(Session& s, Payload p, ItemType type, const char* function) {
    wire::EventOp o;
    if (!take(p, &o)) {
        return malformed(s);
    }
    Event* e = s.events.find(o.event);
    Lane* lane = lane_of(s, o.stream);
    if (!e || !lane) {
        Failure failure = no_event(s, function, o.event);
        return refuse_later(s, lane, failure.code, std::move(failure.message));
    }
    if (capture(s, *lane, *e, type)) return;
    if (e->real()) return use_real(*lane, *e, type, o.deadline_ns);
    auto item = std::make_unique<Item>(event_work(type, o.deadline_ns));
    item->mark = e->mark;
    if (type == ItemType::wait) e->mark->queued_waits += item->as<WaitItem>().counted = e->mark->recorded;
    push(*lane, std::move(item));
}

void EventRecords::synchronise(Session& s, Payload p, const Reply& reply) {
    wire::EventOp o;
    if (!taken(s, p, &o, reply, "aclrtSynchronizeEvent")) return;
    Event* e = event_at(s, o.event, reply, "aclrtSynchronizeEvent");
    if (!e) return;
    auto t =
        e->mark->pending ? timed_.add(o.deadline_ns, "aclrtSynchronizeEventWithTimeout", reply) : nullptr;
    when_recorded(e->mark, [this, mark = e->mark, o, reply, t] {
        if (!timed_.settle(t)) return;
        if (mark->error)
            return reply.fail({mark->error, "aclrtSynchronizeEvent: the event's stream was aborted"});
        auto wait = [this, mark, o, reply] {
            const int32_t err = o.deadline_ns >= 0 ? vendor_.aclrtSynchronizeEventWithTimeout(
                                                         mark->event, left_ms(o.deadline_ns))
                                : mark->between_sessions ? wait_between_sessions(*mark, *reply.ring)
                                                         : vendor_.aclrtSynchronizeEvent(mark->event);
            if (err)
                reply.fail({err, vendor_.message("aclrtSynchronizeEvent", err)});
            else
                reply.ok();
        };
        int32_t status = acl::EVENT_RECORDED_NOT_READY;
        if (vendor_.aclrtQueryEventStatus(mark->event, &status) == 0 &&
            status == acl::EVENT_RECORDED_COMPLETE)
            return wait();  // returns at once
        worker_of(*reply.ring).post(std::move(wait));
    });
}

// For an event in another session's stream: that stream may run on when the session that waits has ended.
int32_t EventRecords::wait_between_sessions(const Mark& mark, const Ring& ring) const {
    int32_t e = acl::RT_WAIT_TIMEOUT;
    while (e == acl::RT_WAIT_TIMEOUT && !ring.closed)
        e = vendor_.aclrtSynchronizeEventWithTimeout(mark.event, kEventSliceMs);
    return e;
}

void EventRecords::query(Session& s, Payload p, const Reply& reply) {
    wire::EventOp o;
    if (!take(p, &o) || o.stream > 2) {
        return malformed(s, reply, "aclrtQueryEvent");
    }
    Event* e = event_at(s, o.event, reply, "aclrtQueryEvent");
    if (!e) return;
    // The three functions name the same two states by different numbers.
    if (o.stream == 2) {
        int32_t status = acl::EVENT_WAIT_NOT_READY;
        if (!e->waits_pending() && e->mark->queued_waits == 0) {
            if (int32_t err = vendor_.aclrtQueryEventWaitStatus(e->mark->event, &status))
                return reply.fail({err, vendor_.message("aclrtQueryEventWaitStatus", err)});
        }
        return reply.ok(uint64_t(uint32_t(status)));
    }
    int32_t status = acl::EVENT_RECORDED_NOT_READY;
    if (!e->mark->pending) {
        if (int32_t err = vendor_.aclrtQueryEventStatus(e->mark->event, &status))
            return reply.fail({err, vendor_.message("aclrtQueryEventStatus", err)});
    }
    if (o.stream == 0)
        status = status == acl::EVENT_RECORDED_COMPLETE ? acl::EVENT_COMPLETE : acl::EVENT_NOT_READY;
    reply.ok(uint64_t(uint32_t(status)));
}

void EventRecords::timestamp(Session& s, Payload p, const Reply& reply) {
    wire::EventOp o;
    if (!taken(s, p, &o, reply, "aclrtEventGetTimestamp")) return;
    Event* e = event_at(s, o.event, reply, "aclrtEventGetTimestamp");
    if (!e) return;
    if (e->mark->pending) return reply.fail(not_reached("aclrtEventGetTimestamp"));
    uint64_t t = 0;
    if (int32_t err = vendor_.aclrtEventGetTimestamp(e->mark->event, &t))
        return reply.fail({err, vendor_.message("aclrtEventGetTimestamp", err)});
    reply.ok(t);
}

void EventRecords::elapsed(Session& s, Payload p, const Reply& reply) {
    wire::EventPair o;
    if (!taken(s, p, &o, reply, "aclrtEventElapsedTime")) return;
    Event *a = s.events.find(o.start), *b = s.events.find(o.end);
    if (!a || !b)
        return refuse(s, reply, acl::RT_INVALID_HANDLE,
                      "aclrtEventElapsedTime: " + hex(a ? o.end : o.start) + " is not an event");
    if (a->mark->pending || b->mark->pending) return reply.fail(not_reached("aclrtEventElapsedTime"));
    float ms = 0;
    if (int32_t e = vendor_.aclrtEventElapsedTime(&ms, a->mark->event, b->mark->event))
        return reply.fail({e, vendor_.message("aclrtEventElapsedTime", e)});
    reply.ok(std::bit_cast<uint32_t>(ms));
}

}  // namespace flexnpu::daemon
