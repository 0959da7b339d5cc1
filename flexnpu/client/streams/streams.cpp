// Streams and events.
#include "acl.gen.h"
#include "flexnpu/api/stream_states.hpp"
#include "flexnpu/client/devices.hpp"
#include "flexnpu/client/error.hpp"
#include "flexnpu/client/session/session.hpp"
#include "flexnpu/client/streams/host_calls.hpp"
#include "flexnpu/client/streams/timeouts.hpp"

namespace acl = flexnpu::acl;
namespace wire = flexnpu::wire;
using flexnpu::client::Channel;
using flexnpu::client::fail;
using flexnpu::client::number;
using flexnpu::client::Session;
using flexnpu::client::StepMark;
using wire::Kind;

namespace {

void* handle(uint64_t h) { return reinterpret_cast<void*>(h); }

aclError check_stream(Channel& c, const char* function, aclrtStream s) {
    return flexnpu::client::check_stream(c.session(), function, number(s));
}
aclError check_event(Channel& c, const char* function, aclrtEvent e) {
    if (c.session().events.has(number(e))) return 0;
    return fail(acl::RT_INVALID_HANDLE, "%s: %p is not an event", function, e);
}

#define CHANNEL(c)                   \
    Channel* c = Session::channel(); \
    if (!c) return flexnpu::client::last_error()
// Of the event's device, whatever the thread's: an event is asked about by any.
#define EVENT_CHANNEL(c, event)                                        \
    Session* of_event = Session::holder(number(event));                \
    Channel* c = of_event ? of_event->mine() : Session::any_channel(); \
    if (!c) return flexnpu::client::last_error()
#define CHECK(e) \
    if (aclError error = (e)) return error

aclError create_stream(const char* function, aclrtStream* out, uint32_t priority, uint32_t flags) {
    if (!out) return fail(acl::INVALID_PARAM, "%s: stream is null", function);
    CHANNEL(c);
    CHECK(c->call(Kind::create_stream, wire::CreateStream{priority, flags}));
    const uint64_t h = c->words()[0];
    c->session().streams.add(h);
    flexnpu::client::add_to_context(h);
    *out = handle(h);
    flexnpu::api::StreamStates::get().tell(*out, flexnpu::api::StreamStates::created);
    return 0;
}

aclError destroy_stream(const char* function, aclrtStream s, bool force) {
    CHANNEL(c);
    if (!s) return fail(acl::RT_INVALID_HANDLE, "%s: %p is not a stream", function, s);
    CHECK(check_stream(*c, function, s));
    flexnpu::api::StreamStates::get().tell(s, flexnpu::api::StreamStates::destroying);
    if (!c->session().streams.remove(number(s)))
        return fail(acl::RT_INVALID_HANDLE, "%s: %p is not a stream", function, s);
    c->session().steps.stream_destroyed(number(s));
    const aclError e = c->call(Kind::destroy_stream, wire::StreamOp{number(s), force ? 0 : -1});
    if (auto* calls = c->session().peek_host_calls()) calls->forget(number(s));
    return e;
}

// A synchronise after launches ends a step.
void end_step(Session& s) {
    if (s.step_open.load(std::memory_order_relaxed) &&
        s.step_open.exchange(false, std::memory_order_relaxed)) {
        s.page().steps.fetch_add(1, std::memory_order_relaxed);
    }
}

// A deadline begins with the call: what the daemon and its gate take counts too.
aclError sync_stream(const char* function, aclrtStream s, int32_t timeout_ms) {
    const int64_t deadline = flexnpu::client::deadline_ns(timeout_ms);
    CHANNEL(c);
    CHECK(flexnpu::client::check_timeout(function, timeout_ms));
    CHECK(check_stream(*c, function, s));
    end_step(c->session());
    // What other threads launch while this one waits is not waited for.
    const StepMark mark = c->session().steps.mark(number(s));
    if (int32_t e = c->call_until(Kind::sync_stream, wire::StreamOp{number(s), deadline})) {
        c->session().graphs.doubt(number(s));
        return e;
    }
    c->session().steps.reached(mark);
    c->session().settle(*c, number(s), false);
    return 0;
}

aclError sync_device(const char* function, int32_t timeout_ms) {
    const int64_t deadline = flexnpu::client::deadline_ns(timeout_ms);
    CHANNEL(c);
    CHECK(flexnpu::client::check_timeout(function, timeout_ms));
    end_step(c->session());
    const auto marks = c->session().steps.marks();
    CHECK(c->call_until(Kind::sync_device, wire::StreamOp{0, deadline}));
    for (const StepMark& mark : marks) c->session().steps.reached(mark);
    c->session().settle(*c, 0, true);
    return 0;
}

// A program with more events than this waits for the daemon's answer: it may be near its limit.
constexpr uint32_t kAskForEvents = 4096;

aclError create_event(const char* function, aclrtEvent* out, uint32_t flags, bool ex) {
    if (!out) return fail(acl::INVALID_PARAM, "%s: event is null", function);
    CHANNEL(c);
    Session& session = c->session();
    const uint64_t h = session.event_numbers.take();
    if (!h) return fail(acl::RT_MEMORY_ALLOCATION, "%s: too many events", function);
    const wire::CreateEvent ask{h, flags, ex};
    // Of a kind that the vendor has made before: made without waiting.
    const uint64_t kind = flags < 32 ? uint64_t(1) << (flags + (ex ? 32 : 0)) : 0;
    const bool known =
        (session.event_kinds.load(std::memory_order_relaxed) & kind) && wire::handle_index(h) < kAskForEvents;
    if (int32_t e = known ? c->post(Kind::create_event, ask) : c->call(Kind::create_event, ask)) {
        session.event_numbers.give_back(h);
        return e;
    }
    session.event_kinds.fetch_or(kind, std::memory_order_relaxed);
    if (flags & acl::EVENT_EXTERNAL) session.graphs.add_real_event(h);
    session.events.add(h);
    *out = handle(h);
    return 0;
}

aclError post_event(Kind kind, const char* function, aclrtEvent e, aclrtStream s, int64_t deadline = -1) {
    CHANNEL(c);
    if (Session* other = Session::holder(number(e));
        other && other != &c->session() && other->events.has(number(e))) {
        if (kind != Kind::wait_event) {
            return fail(acl::RT_STREAM_CONTEXT, "%s: event %p is of device %d, the stream of device %d",
                        function, e, other->device(), c->session().device());
        }
        // Another device's event cannot be put into this one's stream: the caller waits, and the stream has
        // nothing left to wait for.
        CHECK(check_stream(*c, function, s));
        Channel* theirs = other->mine();
        return theirs ? theirs->call_until(Kind::sync_event, wire::EventOp{number(e), 0, deadline})
                      : flexnpu::client::last_error();
    }
    CHECK(check_event(*c, function, e));
    CHECK(check_stream(*c, function, s));
    if (__builtin_expect(c->session().graphs.any(), 0)) {
        if (kind == Kind::record_event) c->session().graphs.recorded(number(e), number(s));
        if (kind == Kind::wait_event) c->session().graphs.waited(number(s), number(e));
    }
    if (kind == Kind::record_event) c->session().steps.event_recorded(number(e), number(s));
    if (kind == Kind::wait_event) c->session().steps.event_awaited(number(e), number(s));
    return c->post(kind, wire::EventOp{number(e), number(s), deadline});
}

// `form`: which of the three query functions asks; the daemon answers in its terms.
aclError query_event(const char* function, aclrtEvent e, uint64_t form, int32_t* status) {
    if (!status) return fail(acl::INVALID_PARAM, "%s: status is null", function);
    EVENT_CHANNEL(c, e);
    CHECK(check_event(*c, function, e));
    const StepMark mark = c->session().steps.mark_of_event(number(e));
    CHECK(c->call(Kind::query_event, wire::EventOp{number(e), form, -1}));
    *status = int32_t(c->words()[0]);
    // Who asks until it is so has waited.
    if ((form == 0 && *status == acl::EVENT_COMPLETE) ||
        (form == 1 && *status == acl::EVENT_RECORDED_COMPLETE))
        c->session().steps.reached(mark);
    return 0;
}

}  // namespace

extern "C" {

aclError aclrtRegStreamStateCallback(const char* name, aclrtStreamStateCallback function, void* argument) {
    if (!name || !*name)
        return fail(acl::INVALID_PARAM, "aclrtRegStreamStateCallback: the name is null or empty");
    using flexnpu::api::StreamStates;
    if (StreamStates::get().set(name, reinterpret_cast<StreamStates::Callback>(function), argument)) return 0;
    return fail(acl::INVALID_PARAM, "aclrtRegStreamStateCallback: no function of the name %s is registered",
                name);
}

aclError aclrtCreateStream(aclrtStream* s) { return create_stream("aclrtCreateStream", s, 0, 0); }
aclError aclrtCreateStreamWithConfig(aclrtStream* s, uint32_t priority, uint32_t flags) {
    return create_stream("aclrtCreateStreamWithConfig", s, priority, flags);
}
aclError aclrtDestroyStream(aclrtStream s) { return destroy_stream("aclrtDestroyStream", s, false); }
aclError aclrtDestroyStreamForce(aclrtStream s) { return destroy_stream("aclrtDestroyStreamForce", s, true); }
aclError aclrtStreamAbort(aclrtStream s) {
    if (!s) return fail(acl::RT_PARAM_INVALID, "aclrtStreamAbort: the default stream cannot be aborted");
    CHANNEL(c);
    CHECK(check_stream(*c, "aclrtStreamAbort", s));
    return c->call(Kind::abort_stream, wire::StreamOp{number(s), -1});
}
// The timeout bounds how long the vendor may take; its own functions bound that, and report it.
aclError aclrtDeviceTaskAbort(int32_t device, uint32_t) {
    CHANNEL(c);
    if (device != c->session().device())
        return fail(acl::RT_INVALID_DEVICE, "aclrtDeviceTaskAbort: device %d does not exist", device);
    return c->call(Kind::abort_device, wire::StreamOp{0, -1});
}
aclError aclrtStreamGetId(aclrtStream s, int32_t* id) {
    if (!id) return fail(acl::INVALID_PARAM, "aclrtStreamGetId: id is null");
    CHANNEL(c);
    CHECK(check_stream(*c, "aclrtStreamGetId", s));
    CHECK(c->call(Kind::stream_id, wire::StreamOp{number(s), -1}));
    *id = int32_t(c->words()[0]);
    return 0;
}
aclError aclrtStreamQuery(aclrtStream s, aclrtStreamStatus* status) {
    if (!status) return fail(acl::INVALID_PARAM, "aclrtStreamQuery: status is null");
    CHANNEL(c);
    CHECK(check_stream(*c, "aclrtStreamQuery", s));
    CHECK(c->call(Kind::query_stream, wire::StreamOp{number(s), -1}));
    *status = int32_t(c->words()[0]);
    return 0;
}
aclError aclrtSynchronizeStream(aclrtStream s) { return sync_stream("aclrtSynchronizeStream", s, -1); }
aclError aclrtSynchronizeStreamWithTimeout(aclrtStream s, int32_t ms) {
    return sync_stream("aclrtSynchronizeStreamWithTimeout", s, ms);
}
aclError aclrtSynchronizeDevice() { return sync_device("aclrtSynchronizeDevice", -1); }
aclError aclrtSynchronizeDeviceWithTimeout(int32_t ms) {
    return sync_device("aclrtSynchronizeDeviceWithTimeout", ms);
}

aclError aclrtCreateEvent(aclrtEvent* e) {
    return create_event("aclrtCreateEvent", e, acl::EVENT_SYNC | acl::EVENT_TIME_LINE, false);
}
aclError aclrtCreateEventWithFlag(aclrtEvent* e, uint32_t flags) {
    return create_event("aclrtCreateEventWithFlag", e, flags, false);
}
aclError aclrtCreateEventExWithFlag(aclrtEvent* e, uint32_t flags) {
    return create_event("aclrtCreateEventExWithFlag", e, flags, true);
}
aclError aclrtDestroyEvent(aclrtEvent e) {
    EVENT_CHANNEL(c, e);
    if (!c->session().events.remove(number(e)))
        return fail(acl::RT_INVALID_HANDLE, "aclrtDestroyEvent: %p is not an event", e);
    c->session().graphs.forget_event(number(e));
    const int32_t error = c->post(Kind::destroy_event, wire::EventOp{number(e), 0, -1});
    c->session().event_numbers.give_back(number(e));
    return error;
}
aclError aclrtRecordEvent(aclrtEvent e, aclrtStream s) {
    return post_event(Kind::record_event, "aclrtRecordEvent", e, s);
}
aclError aclrtResetEvent(aclrtEvent e, aclrtStream s) {
    return post_event(Kind::reset_event, "aclrtResetEvent", e, s);
}
aclError aclrtStreamWaitEvent(aclrtStream s, aclrtEvent e) {
    return post_event(Kind::wait_event, "aclrtStreamWaitEvent", e, s, flexnpu::client::wait_deadline_ns());
}
aclError aclrtStreamWaitEventWithTimeout(aclrtStream s, aclrtEvent e, int32_t ms) {
    const int64_t deadline = flexnpu::client::deadline_ns(ms);
    CHECK(flexnpu::client::check_timeout("aclrtStreamWaitEventWithTimeout", ms));
    return post_event(Kind::wait_event, "aclrtStreamWaitEventWithTimeout", e, s, deadline);
}
aclError aclrtSynchronizeEventWithTimeout(aclrtEvent e, int32_t ms) {
    const int64_t deadline = flexnpu::client::deadline_ns(ms);
    EVENT_CHANNEL(c, e);
    CHECK(flexnpu::client::check_timeout("aclrtSynchronizeEventWithTimeout", ms));
    CHECK(check_event(*c, "aclrtSynchronizeEvent", e));
    const StepMark mark = c->session().steps.mark_of_event(number(e));  // it may be recorded anew meanwhile
    CHECK(c->call_until(Kind::sync_event, wire::EventOp{number(e), 0, deadline}));
    c->session().steps.reached(mark);
    return 0;
}
aclError aclrtSynchronizeEvent(aclrtEvent e) { return aclrtSynchronizeEventWithTimeout(e, -1); }
aclError aclrtQueryEvent(aclrtEvent e, aclrtEventStatus* status) {
    return query_event("aclrtQueryEvent", e, 0, status);
}
aclError aclrtQueryEventStatus(aclrtEvent e, aclrtEventRecordedStatus* status) {
    return query_event("aclrtQueryEventStatus", e, 1, status);
}
aclError aclrtQueryEventWaitStatus(aclrtEvent e, aclrtEventWaitStatus* status) {
    return query_event("aclrtQueryEventWaitStatus", e, 2, status);
}
aclError aclrtEventElapsedTime(float* ms, aclrtEvent start, aclrtEvent end) {
    if (!ms) return fail(acl::INVALID_PARAM, "aclrtEventElapsedTime: ms is null");
    EVENT_CHANNEL(c, start);
    CHECK(check_event(*c, "aclrtEventElapsedTime", start));
    CHECK(check_event(*c, "aclrtEventElapsedTime", end));
    CHECK(c->call(Kind::event_elapsed, wire::EventPair{number(start), number(end)}));
    std::memcpy(ms, c->words(), sizeof(*ms));
    return 0;
}
aclError aclrtEventGetTimestamp(aclrtEvent e, uint64_t* timestamp) {
    if (!timestamp) return fail(acl::INVALID_PARAM, "aclrtEventGetTimestamp: timestamp is null");
    EVENT_CHANNEL(c, e);
    CHECK(check_event(*c, "aclrtEventGetTimestamp", e));
    CHECK(c->call(Kind::event_timestamp, wire::EventOp{number(e), 0, -1}));
    *timestamp = c->words()[0];
    return 0;
}

// Attributes are what their own functions set; the value's first word is all that these two have.
struct aclrtStreamAttrValue {
    union {
        uint64_t failure_mode;
        uint32_t overflow_switch;
        uint32_t words[4];
    };
};
aclError aclrtSetStreamAttribute(aclrtStream s, aclrtStreamAttr attribute, aclrtStreamAttrValue* value) {
    if (!value) return fail(acl::INVALID_PARAM, "aclrtSetStreamAttribute: the value is null");
    switch (attribute) {
        case 1: return aclrtSetStreamFailureMode(s, value->failure_mode);
        case 2: return aclrtSetStreamOverflowSwitch(s, value->overflow_switch);
        default:
            return fail(acl::RT_PARAM_INVALID,
                        "aclrtSetStreamAttribute: FlexNPU does not interpose attribute %d", attribute);
    }
}

}  // extern "C"
