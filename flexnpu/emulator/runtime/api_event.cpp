// Events.
#include <atomic>

#include <cstring>

#include "acl.gen.h"
#include "flexnpu/api/resource_errors.h"
#include "flexnpu/emulator/runtime/lookup.hpp"
#include "flexnpu/emulator/runtime/runtime.hpp"

namespace emu = flexnpu::emulator;
namespace acl = flexnpu::acl;
using emu::append;
using emu::fail;
using emu::find_stream;
using emu::Runtime;

namespace {

int32_t create(const char* function, aclrtEvent* handle, uint32_t flags) {
    if (handle == nullptr) {
        return fail(acl::INVALID_PARAM, "%s: the output is null", function);
    }
    Runtime& runtime = Runtime::get();
    if (!runtime.current_context()) {
        return fail(acl::RT_CONTEXT_NULL, "%s: this thread has no device: call aclrtSetDevice first",
                    function);
    }
    auto event = std::make_shared<emu::Event>(flags, runtime.next_event_id++);
    event->device = runtime.current_device();
    auto device = runtime.current_context()->device;
    event->place = {device, device->shared, emu::DeviceObject::Event};
    if (!event->place) {
        return fail(acl::RT_NO_EVENT_RESOURCE,
                    "%s: the device has no more events: all of its %llu are in use", function,
                    static_cast<unsigned long long>(emu::kMostObjects[1]));
    }
    if (flags & acl::EVENT_IPC) {
        event->between.slot = device->shared.make_event();
        if (event->between.slot == nullptr) {
            return fail(acl::RT_INTERNAL, "%s: no more events between processes", function);
        }
        event->between.id = event->between.slot->id;
        event->between.keep = device;
    }
    *handle = runtime.events.add(std::move(event));
    return *handle != nullptr ? int32_t(acl::SUCCESS)
                              : fail(acl::RT_INTERNAL, "%s: no more events", function);
}

int32_t find(const char* function, aclrtEvent handle, std::shared_ptr<emu::Event>* event) {
    *event = Runtime::get().events.get(handle);
    if (!*event) {
        return fail(acl::RT_INVALID_HANDLE, "%s: %p is not an event", function, handle);
    }
    return acl::SUCCESS;
}

int32_t find_both(const char* function, aclrtEvent event_handle, aclrtStream stream_handle,
                  std::shared_ptr<emu::Event>* event, std::shared_ptr<emu::Stream>* stream) {
    if (int32_t error = find(function, event_handle, event)) {
        return error;
    }
    return find_stream(function, stream_handle, stream);
}

// The same for what the event's own device does with it.
int32_t find_at_home(const char* function, aclrtEvent event_handle, aclrtStream stream_handle,
                     std::shared_ptr<emu::Event>* event, std::shared_ptr<emu::Stream>* stream) {
    if (int32_t error = find_both(function, event_handle, stream_handle, event, stream)) {
        return error;
    }
    if ((*event)->device != (*stream)->device) {
        return fail(acl::RT_STREAM_CONTEXT, "%s: event %p is of device %d, the stream of device %d", function,
                    event_handle, (*event)->device, (*stream)->device);
    }
    return acl::SUCCESS;
}

// Of the process, by aclrtSetOpWaitTimeout; 0: none.
std::atomic<uint32_t> g_wait_timeout_s{0};

// `timeout_ms` < 0: none.
int32_t stream_wait(const char* function, aclrtStream stream_handle, aclrtEvent handle, int64_t timeout_ms) {
    std::shared_ptr<emu::Event> event;
    std::shared_ptr<emu::Stream> stream;
    if (int32_t error = find_both(function, handle, stream_handle, &event, &stream)) {
        return error;
    }
    bool captured = false;
    int32_t capture_error = Runtime::get().captures.wait(function, event, stream, &captured);
    if (captured) {
        return capture_error;
    }
    bool external = (event->flags & acl::EVENT_EXTERNAL) != 0;
    uint64_t record = external ? emu::kExternalRecord : event->current();
    if (record == 0) {
        return acl::SUCCESS;  // nothing was recorded: nothing to wait for
    }
    emu::Task task;
    task.kind = emu::TaskKind::EventWait;
    task.event = event;
    task.record = record;
    if (timeout_ms >= 0) {
        task.deadline_ns = emu::now_ns() + uint64_t(timeout_ms) * 1'000'000;
    }
    event->pending_waits.fetch_add(1);
    int32_t error = append(function, *stream, std::move(task));
    if (error != 0) {
        event->pending_waits.fetch_sub(1);
    }
    return error;
}

int32_t host_wait(const char* function, aclrtEvent handle, int32_t timeout_ms) {
    std::shared_ptr<emu::Event> event;
    if (int32_t error = find(function, handle, &event)) {
        return error;
    }
    if (int32_t error = Runtime::get().captures.check_event(function, *event)) {
        return error;
    }
    uint64_t record = event->current();
    if (record == 0) {
        return acl::SUCCESS;
    }
    std::optional<emu::Clock::time_point> deadline;
    if (timeout_ms > 0) {
        deadline = emu::Clock::now() + std::chrono::milliseconds(timeout_ms);
    }
    if (!event->wait(record, deadline)) {
        return fail(acl::RT_WAIT_TIMEOUT, "%s: the event is not recorded after %d ms", function, timeout_ms);
    }
    if (event->aborted(record)) {
        return fail(acl::RT_STREAM_ABORT, "%s: the event's stream was aborted", function);
    }
    return acl::SUCCESS;
}

}  // namespace

extern "C" {

aclError aclrtCreateEvent(aclrtEvent* event) {
    return create("aclrtCreateEvent", event, acl::EVENT_TIME_LINE);
}
aclError aclrtCreateEventWithFlag(aclrtEvent* event, uint32_t flags) {
    return create("aclrtCreateEventWithFlag", event, flags);
}
aclError aclrtCreateEventExWithFlag(aclrtEvent* event, uint32_t flags) {
    return create("aclrtCreateEventExWithFlag", event, flags);
}

aclError aclrtDestroyEvent(aclrtEvent handle) {
    if (!Runtime::get().events.remove(handle)) {
        return fail(acl::RT_INVALID_HANDLE, "aclrtDestroyEvent: %p is not an event", handle);
    }
    return acl::SUCCESS;  // streams that still hold it keep it
}

aclError aclrtRecordEvent(aclrtEvent handle, aclrtStream stream_handle) {
    std::shared_ptr<emu::Event> event;
    std::shared_ptr<emu::Stream> stream;
    if (int32_t error = find_at_home("aclrtRecordEvent", handle, stream_handle, &event, &stream)) {
        return error;
    }
    bool captured = false;
    int32_t capture_error = Runtime::get().captures.record("aclrtRecordEvent", event, *stream, &captured);
    if (captured) {
        return capture_error;
    }
    if (event->between.theirs) {
        return fail(
            acl::API_NOT_SUPPORTED,
            "aclrtRecordEvent: on the emulated device only its owner records an event between processes");
    }
    emu::Task task;
    task.kind = emu::TaskKind::EventRecord;
    task.event = event;
    task.record = event->next_record();
    uint64_t record = task.record;
    int32_t error = append("aclrtRecordEvent", *stream, std::move(task));
    if (error != 0) {
        event->complete(record, emu::now_ns());  // it will never run: nobody may wait for it
    }
    return error;
}
aclError aclrtRecordEventWithFlag(aclrtEvent event, aclrtStream stream, uint32_t) {
    return aclrtRecordEvent(event, stream);
}

aclError aclrtResetEvent(aclrtEvent handle, aclrtStream stream_handle) {
    std::shared_ptr<emu::Event> event;
    std::shared_ptr<emu::Stream> stream;
    if (int32_t error = find_at_home("aclrtResetEvent", handle, stream_handle, &event, &stream)) {
        return error;
    }
    bool captured = false;
    int32_t capture_error = Runtime::get().captures.reset("aclrtResetEvent", event, *stream, &captured);
    if (captured) {
        return capture_error;
    }
    emu::Task task;
    task.kind = emu::TaskKind::EventReset;
    task.event = event;
    task.record = (event->flags & acl::EVENT_EXTERNAL) != 0 ? emu::kExternalRecord : event->current();
    return append("aclrtResetEvent", *stream, std::move(task));
}

aclError aclrtStreamWaitEvent(aclrtStream stream, aclrtEvent event) {
    uint32_t s = g_wait_timeout_s;
    return stream_wait("aclrtStreamWaitEvent", stream, event, s == 0 ? -1 : int64_t(s) * 1000);
}
aclError aclrtStreamWaitEventWithTimeout(aclrtStream stream, aclrtEvent event, int32_t ms) {
    if (ms < -1 || ms == 0) {
        return fail(acl::RT_PARAM_INVALID, "aclrtStreamWaitEventWithTimeout: %d ms is not a timeout", ms);
    }
    return stream_wait("aclrtStreamWaitEventWithTimeout", stream, event, ms);
}
aclError aclrtSetOpWaitTimeout(uint32_t seconds) {
    g_wait_timeout_s = seconds;
    return acl::SUCCESS;
}

aclError aclrtSynchronizeEvent(aclrtEvent event) { return host_wait("aclrtSynchronizeEvent", event, -1); }
aclError aclrtSynchronizeEventWithTimeout(aclrtEvent event, int32_t ms) {
    if (ms < -1 || ms == 0) {
        return fail(acl::RT_PARAM_INVALID, "aclrtSynchronizeEventWithTimeout: %d ms is not a timeout", ms);
    }
    return host_wait("aclrtSynchronizeEventWithTimeout", event, ms);
}

aclError aclrtQueryEvent(aclrtEvent handle, aclrtEventStatus* status) {
    std::shared_ptr<emu::Event> event;
    if (status == nullptr) {
        return fail(acl::INVALID_PARAM, "aclrtQueryEvent: the output is null");
    }
    if (int32_t error = find("aclrtQueryEvent", handle, &event)) {
        return error;
    }
    if (int32_t error = Runtime::get().captures.check_event("aclrtQueryEvent", *event)) {
        return error;
    }
    *status = event->recorded_and_complete() ? acl::EVENT_COMPLETE : acl::EVENT_NOT_READY;
    return acl::SUCCESS;
}

aclError aclrtQueryEventStatus(aclrtEvent handle, aclrtEventRecordedStatus* status) {
    std::shared_ptr<emu::Event> event;
    if (status == nullptr) {
        return fail(acl::INVALID_PARAM, "aclrtQueryEventStatus: the output is null");
    }
    if (int32_t error = find("aclrtQueryEventStatus", handle, &event)) {
        return error;
    }
    if (int32_t error = Runtime::get().captures.check_event("aclrtQueryEventStatus", *event)) {
        return error;
    }
    *status = event->recorded_and_complete() ? acl::EVENT_RECORDED_COMPLETE : acl::EVENT_RECORDED_NOT_READY;
    return acl::SUCCESS;
}

aclError aclrtQueryEventWaitStatus(aclrtEvent handle, aclrtEventWaitStatus* status) {
    std::shared_ptr<emu::Event> event;
    if (status == nullptr) {
        return fail(acl::INVALID_PARAM, "aclrtQueryEventWaitStatus: the output is null");
    }
    if (int32_t error = find("aclrtQueryEventWaitStatus", handle, &event)) {
        return error;
    }
    *status = event->pending_waits.load() == 0 ? acl::EVENT_WAIT_COMPLETE : acl::EVENT_WAIT_NOT_READY;
    return acl::SUCCESS;
}

aclError aclrtEventElapsedTime(float* ms, aclrtEvent begin_handle, aclrtEvent end_handle) {
    std::shared_ptr<emu::Event> begin, end;
    if (ms == nullptr) {
        return fail(acl::INVALID_PARAM, "aclrtEventElapsedTime: the output is null");
    }
    if (int32_t error = find("aclrtEventElapsedTime", begin_handle, &begin)) {
        return error;
    }
    if (int32_t error = find("aclrtEventElapsedTime", end_handle, &end)) {
        return error;
    }
    auto from = begin->timestamp(), to = end->timestamp();
    if (!from || !to) {
        return fail(emu::kEventTimestampInvalid,
                    "aclrtEventElapsedTime: an event is not recorded or not reached yet");
    }
    *ms = float(double(int64_t(*to - *from)) / 1e6);
    return acl::SUCCESS;
}

aclError aclrtEventGetTimestamp(aclrtEvent handle, uint64_t* us) {
    std::shared_ptr<emu::Event> event;
    if (us == nullptr) {
        return fail(acl::INVALID_PARAM, "aclrtEventGetTimestamp: the output is null");
    }
    if (int32_t error = find("aclrtEventGetTimestamp", handle, &event)) {
        return error;
    }
    auto at = event->timestamp();
    if (!at) {
        return fail(emu::kEventTimestampInvalid,
                    "aclrtEventGetTimestamp: the event is not recorded or not reached yet");
    }
    *us = *at / 1000;
    return acl::SUCCESS;
}

aclError aclrtGetEventId(aclrtEvent handle, uint32_t* id) {
    std::shared_ptr<emu::Event> event;
    if (id == nullptr) {
        return fail(acl::INVALID_PARAM, "aclrtGetEventId: the output is null");
    }
    if (int32_t error = find("aclrtGetEventId", handle, &event)) {
        return error;
    }
    *id = event->id;
    return acl::SUCCESS;
}

aclError aclrtGetEventAvailNum(uint32_t* count) {
    if (count == nullptr) {
        return fail(acl::INVALID_PARAM, "aclrtGetEventAvailNum: the output is null");
    }
    auto context = Runtime::get().current_context();
    if (!context) {
        return emu::check_context("aclrtGetEventAvailNum");
    }
    *count = uint32_t(context->device->shared.objects_left(emu::DeviceObject::Event));
    return acl::SUCCESS;
}

// In the handle: a word that tells it from other bytes, the slot, its random number.
constexpr uint64_t kIpcEventMagic = 0x746e657665786c66ull;

aclError aclrtIpcGetEventHandle(aclrtEvent handle, aclrtIpcEventHandle* out) {
    std::shared_ptr<emu::Event> event;
    if (out == nullptr) {
        return fail(acl::INVALID_PARAM, "aclrtIpcGetEventHandle: the output is null");
    }
    if (int32_t error = find("aclrtIpcGetEventHandle", handle, &event)) {
        return error;
    }
    if (event->between.slot == nullptr || event->between.theirs) {
        return fail(acl::RT_PARAM_INVALID,
                    "aclrtIpcGetEventHandle: not an event that was created with the IPC flag");
    }
    auto device = std::static_pointer_cast<emu::Device>(event->between.keep);
    uint64_t words[3] = {kIpcEventMagic, device->shared.number_of(event->between.slot), event->between.id};
    *out = {};
    std::memcpy(out->bytes, words, sizeof(words));
    return acl::SUCCESS;
}

aclError aclrtIpcOpenEventHandle(aclrtIpcEventHandle handle, aclrtEvent* out) {
    if (out == nullptr) {
        return fail(acl::INVALID_PARAM, "aclrtIpcOpenEventHandle: the output is null");
    }
    *out = nullptr;
    Runtime& runtime = Runtime::get();
    auto context = runtime.current_context();
    if (!context) {
        return fail(acl::RT_CONTEXT_NULL, "aclrtIpcOpenEventHandle: this thread has no device");
    }
    uint64_t words[3];
    std::memcpy(words, handle.bytes, sizeof(words));
    auto* slot = words[0] == kIpcEventMagic && words[1] < UINT32_MAX
                     ? context->device->shared.event(uint32_t(words[1]))
                     : nullptr;
    if (slot == nullptr || words[2] == 0 || slot->id != words[2]) {
        return fail(acl::RT_PARAM_INVALID,
                    "aclrtIpcOpenEventHandle: no such event, or its owner has destroyed it or has ended");
    }
    auto event = std::make_shared<emu::Event>(acl::EVENT_IPC, runtime.next_event_id++);
    event->device = context->device->index;
    event->between = {context->device, slot, words[2], true};
    *out = runtime.events.add(std::move(event));
    return *out != nullptr ? int32_t(acl::SUCCESS)
                           : fail(acl::RT_INTERNAL, "aclrtIpcOpenEventHandle: no more events");
}
}
