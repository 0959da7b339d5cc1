// Streams, launches, callbacks.
#include <pthread.h>
#include <unistd.h>
#include <algorithm>
#include <cstring>

#include "acl.gen.h"
#include "flexnpu/api/stream_states.hpp"
#include "flexnpu/emulator/runtime/lookup.hpp"
#include "flexnpu/emulator/runtime/own_kernels.hpp"
#include "flexnpu/emulator/runtime/runtime.hpp"

// Sixteen bytes, read and written by attribute.
struct aclrtStreamAttrValue {
    union {
        uint64_t failure_mode;
        uint32_t overflow_switch;
        uint32_t words[4];
    };
};

namespace emu = flexnpu::emulator;
namespace acl = flexnpu::acl;
using emu::append;
using emu::fail;
using emu::find_stream;
using emu::Runtime;
using flexnpu::api::StreamStates;

namespace {

enum : int32_t { kAttrFailureMode = 1, kAttrOverflowSwitch = 2 };

int32_t synchronize(const char* function, aclrtStream handle, int32_t timeout_ms) {
    std::shared_ptr<emu::Stream> stream;
    if (int32_t error = find_stream(function, handle, &stream)) {
        return error;
    }
    if (int32_t error = Runtime::get().captures.check_stream(function, *stream)) {
        return error;
    }
    std::optional<emu::Clock::time_point> deadline;
    if (timeout_ms > 0) {
        deadline = emu::Clock::now() + std::chrono::milliseconds(timeout_ms);
    }
    if (stream->synchronize(deadline) == emu::Stream::Wait::TimedOut) {
        return fail(acl::RT_WAIT_TIMEOUT, "%s: the stream is not idle after %d ms", function, timeout_ms);
    }
    std::string message;
    int32_t error = stream->take_error(&message);
    return error == 0 ? error : emu::fail_with(error, std::move(message));
}

int32_t create(const char* function, aclrtStream* stream, uint32_t priority, uint32_t flags) {
    if (stream == nullptr) {
        return fail(acl::INVALID_PARAM, "%s: the output is null", function);
    }
    const int32_t error = Runtime::get().create_stream(stream, priority, flags);
    if (error == 0) {
        StreamStates::get().tell(*stream, StreamStates::created);
    }
    return error;
}

int32_t destroy(const char* function, aclrtStream handle, bool force) {
    std::shared_ptr<emu::Stream> stream;
    if (handle == nullptr) {
        return fail(acl::RT_INVALID_HANDLE, "%s: a context's default stream is not destroyed", function);
    }
    if (int32_t error = find_stream(function, handle, &stream)) {
        return error;
    }
    StreamStates::get().tell(handle, StreamStates::destroying);
    return Runtime::get().destroy_stream(handle, force);
}

}  // namespace

extern "C" {

aclError aclrtRegStreamStateCallback(const char* name, aclrtStreamStateCallback function, void* argument) {
    if (name == nullptr || *name == '\0') {
        return fail(acl::INVALID_PARAM, "aclrtRegStreamStateCallback: the name is null or empty");
    }
    if (!StreamStates::get().set(name, reinterpret_cast<StreamStates::Callback>(function), argument)) {
        return fail(acl::INVALID_PARAM,
                    "aclrtRegStreamStateCallback: no function of the name %s is registered", name);
    }
    return acl::SUCCESS;
}

aclError aclrtCreateStream(aclrtStream* stream) { return create("aclrtCreateStream", stream, 0, 0); }
aclError aclrtCreateStreamWithConfig(aclrtStream* stream, uint32_t priority, uint32_t flags) {
    return create("aclrtCreateStreamWithConfig", stream, priority, flags);
}
aclError aclrtDestroyStream(aclrtStream stream) { return destroy("aclrtDestroyStream", stream, false); }
aclError aclrtDestroyStreamForce(aclrtStream stream) {
    return destroy("aclrtDestroyStreamForce", stream, true);
}

aclError aclrtSynchronizeStream(aclrtStream stream) {
    return synchronize("aclrtSynchronizeStream", stream, -1);
}
aclError aclrtSynchronizeStreamWithTimeout(aclrtStream stream, int32_t ms) {
    if (ms < -1 || ms == 0) {
        return fail(acl::RT_PARAM_INVALID, "aclrtSynchronizeStreamWithTimeout: %d ms is not a timeout", ms);
    }
    return synchronize("aclrtSynchronizeStreamWithTimeout", stream, ms);
}

aclError aclrtStreamQuery(aclrtStream handle, aclrtStreamStatus* status) {
    std::shared_ptr<emu::Stream> stream;
    if (status == nullptr) {
        return fail(acl::INVALID_PARAM, "aclrtStreamQuery: the output is null");
    }
    if (int32_t error = find_stream("aclrtStreamQuery", handle, &stream)) {
        return error;
    }
    if (int32_t error = Runtime::get().captures.check_stream("aclrtStreamQuery", *stream)) {
        return error;
    }
    std::string message;
    if (int32_t error = stream->stopped_by(&message)) {
        return emu::fail_with(error, std::move(message));
    }
    *status = stream->idle() ? acl::STREAM_COMPLETE : acl::STREAM_NOT_READY;
    return acl::SUCCESS;
}

aclError aclrtStreamAbort(aclrtStream handle) {
    std::shared_ptr<emu::Stream> stream;
    if (handle == nullptr) {
        return fail(acl::RT_PARAM_INVALID, "aclrtStreamAbort: the default stream cannot be aborted");
    }
    if (int32_t error = find_stream("aclrtStreamAbort", handle, &stream)) {
        return error;
    }
    Runtime::get().captures.stream_aborted(*stream);
    if (!stream->idle()) {
        stream->abort(acl::RT_STREAM_ABORT, "the stream was aborted");
    }
    return acl::SUCCESS;
}

aclError aclrtStreamGetId(aclrtStream handle, int32_t* id) {
    std::shared_ptr<emu::Stream> stream;
    if (int32_t error = find_stream("aclrtStreamGetId", handle, &stream)) {
        return error;
    }
    if (id == nullptr) {
        return fail(acl::INVALID_PARAM, "aclrtStreamGetId: the output is null");
    }
    *id = stream->id;
    return acl::SUCCESS;
}

aclError aclrtStreamGetPriority(aclrtStream handle, uint32_t* priority) {
    std::shared_ptr<emu::Stream> stream;
    if (int32_t error = find_stream("aclrtStreamGetPriority", handle, &stream)) {
        return error;
    }
    if (priority == nullptr) {
        return fail(acl::INVALID_PARAM, "aclrtStreamGetPriority: the output is null");
    }
    *priority = stream->priority;
    return acl::SUCCESS;
}

aclError aclrtStreamGetFlags(aclrtStream handle, uint32_t* flags) {
    std::shared_ptr<emu::Stream> stream;
    if (int32_t error = find_stream("aclrtStreamGetFlags", handle, &stream)) {
        return error;
    }
    if (flags == nullptr) {
        return fail(acl::INVALID_PARAM, "aclrtStreamGetFlags: the output is null");
    }
    *flags = stream->flags;
    return acl::SUCCESS;
}

aclError aclrtGetStreamAvailableNum(uint32_t* count) {
    if (count == nullptr) {
        return fail(acl::INVALID_PARAM, "aclrtGetStreamAvailableNum: the output is null");
    }
    auto context = Runtime::get().current_context();
    if (!context) {
        return emu::check_context("aclrtGetStreamAvailableNum");
    }
    *count = uint32_t(context->device->shared.objects_left(emu::DeviceObject::Stream));
    return acl::SUCCESS;
}

aclError aclrtSetStreamFailureMode(aclrtStream handle, uint64_t mode) {
    std::shared_ptr<emu::Stream> stream;
    if (int32_t error = find_stream("aclrtSetStreamFailureMode", handle, &stream)) {
        return error;
    }
    if (mode > 1) {
        return fail(acl::RT_PARAM_INVALID, "aclrtSetStreamFailureMode: mode %llu is neither 0 nor 1",
                    static_cast<unsigned long long>(mode));
    }
    stream->failure_mode = mode;
    return acl::SUCCESS;
}

aclError aclrtSetStreamOverflowSwitch(aclrtStream handle, uint32_t value) {
    std::shared_ptr<emu::Stream> stream;
    if (int32_t error = find_stream("aclrtSetStreamOverflowSwitch", handle, &stream)) {
        return error;
    }
    stream->overflow_switch = value;
    return acl::SUCCESS;
}

aclError aclrtGetStreamOverflowSwitch(aclrtStream handle, uint32_t* value) {
    std::shared_ptr<emu::Stream> stream;
    if (int32_t error = find_stream("aclrtGetStreamOverflowSwitch", handle, &stream)) {
        return error;
    }
    if (value == nullptr) {
        return fail(acl::INVALID_PARAM, "aclrtGetStreamOverflowSwitch: the output is null");
    }
    *value = stream->overflow_switch;
    return acl::SUCCESS;
}

aclError aclrtSetStreamAttribute(aclrtStream handle, aclrtStreamAttr attribute, aclrtStreamAttrValue* value) {
    if (value == nullptr) {
        return fail(acl::INVALID_PARAM, "aclrtSetStreamAttribute: the value is null");
    }
    switch (attribute) {
        case kAttrFailureMode: return aclrtSetStreamFailureMode(handle, value->failure_mode);
        case kAttrOverflowSwitch: return aclrtSetStreamOverflowSwitch(handle, value->overflow_switch);
        default:
            return fail(acl::RT_PARAM_INVALID, "aclrtSetStreamAttribute: attribute %d is not modelled",
                        attribute);
    }
}

aclError aclrtGetStreamAttribute(aclrtStream handle, aclrtStreamAttr attribute, aclrtStreamAttrValue* value) {
    std::shared_ptr<emu::Stream> stream;
    if (value == nullptr) {
        return fail(acl::INVALID_PARAM, "aclrtGetStreamAttribute: the output is null");
    }
    if (int32_t error = find_stream("aclrtGetStreamAttribute", handle, &stream)) {
        return error;
    }
    std::memset(value, 0, sizeof(*value));
    switch (attribute) {
        case kAttrFailureMode: value->failure_mode = stream->failure_mode; return acl::SUCCESS;
        case kAttrOverflowSwitch: value->overflow_switch = stream->overflow_switch; return acl::SUCCESS;
        default:
            return fail(acl::RT_PARAM_INVALID, "aclrtGetStreamAttribute: attribute %d is not modelled",
                        attribute);
    }
}

aclError aclrtGetStreamResLimit(aclrtStream handle, aclrtDevResLimitType type, uint32_t* value) {
    std::shared_ptr<emu::Stream> stream;
    if (int32_t error = find_stream("aclrtGetStreamResLimit", handle, &stream)) {
        return error;
    }
    return aclrtGetDeviceResLimit(stream->device, type, value);
}
aclError aclrtSetStreamResLimit(aclrtStream handle, aclrtDevResLimitType, uint32_t) {
    std::shared_ptr<emu::Stream> stream;
    return find_stream("aclrtSetStreamResLimit", handle, &stream);
}
aclError aclrtResetStreamResLimit(aclrtStream handle) {
    std::shared_ptr<emu::Stream> stream;
    return find_stream("aclrtResetStreamResLimit", handle, &stream);
}
aclError aclrtUseStreamResInCurrentThread(aclrtStream handle) {
    std::shared_ptr<emu::Stream> stream;
    return find_stream("aclrtUseStreamResInCurrentThread", handle, &stream);
}
aclError aclrtUnuseStreamResInCurrentThread(aclrtStream handle) {
    std::shared_ptr<emu::Stream> stream;
    return find_stream("aclrtUnuseStreamResInCurrentThread", handle, &stream);
}

// The one way of every kernel to the device.
aclError aclrtLaunchKernelWithHostArgs(aclrtFuncHandle function, uint32_t blocks, aclrtStream handle,
                                       aclrtLaunchKernelCfg*, void* arguments, size_t size,
                                       aclrtPlaceHolderInfo* place_holders, size_t count) {
    if (function != nullptr || arguments == nullptr) {
        return emu::launch_own_kernel("aclrtLaunchKernelWithHostArgs", function, blocks, handle, arguments,
                                      size, place_holders, count);
    }
    std::shared_ptr<emu::Stream> stream;
    if (int32_t error = find_stream("aclrtLaunchKernelWithHostArgs", handle, &stream)) {
        return error;
    }
    if (size != sizeof(emu::Kernel)) {
        return fail(acl::KERNEL_NOT_FOUND,
                    "aclrtLaunchKernelWithHostArgs: the emulated device runs its own kernels only");
    }
    emu::Task task;
    task.kind = emu::TaskKind::Kernel;
    std::memcpy(static_cast<void*>(&task.kernel), arguments, sizeof(emu::Kernel));
    if (task.kernel.magic != emu::kKernelMagic || task.kernel.name == nullptr) {
        return fail(acl::KERNEL_NOT_FOUND,
                    "aclrtLaunchKernelWithHostArgs: the emulated device runs its own kernels only");
    }
    return append("aclrtLaunchKernelWithHostArgs", *stream, std::move(task));
}

aclError aclrtLaunchHostFunc(aclrtStream handle, aclrtHostFunc function, void* argument) {
    std::shared_ptr<emu::Stream> stream;
    if (function == nullptr) {
        return fail(acl::INVALID_PARAM, "aclrtLaunchHostFunc: the function is null");
    }
    if (int32_t error = find_stream("aclrtLaunchHostFunc", handle, &stream)) {
        return error;
    }
    emu::Task task;
    task.kind = emu::TaskKind::HostFunction;
    task.function = reinterpret_cast<emu::HostFunction>(function);
    task.argument = argument;
    return append("aclrtLaunchHostFunc", *stream, std::move(task));
}

aclError aclrtLaunchCallback(aclrtCallback function, void* argument, aclrtCallbackBlockType block,
                             aclrtStream handle) {
    std::shared_ptr<emu::Stream> stream;
    if (function == nullptr) {
        return fail(acl::INVALID_PARAM, "aclrtLaunchCallback: the function is null");
    }
    if (int32_t error = find_stream("aclrtLaunchCallback", handle, &stream)) {
        return error;
    }
    auto queue = stream->report_queue();
    if (!queue || queue->closed()) {
        return fail(emu::kStreamNoCallback, "aclrtLaunchCallback: no thread subscribed to the stream");
    }
    emu::Task task;
    task.kind = emu::TaskKind::Callback;
    task.function = reinterpret_cast<emu::HostFunction>(function);
    task.argument = argument;
    task.blocking = block != 0;
    return append("aclrtLaunchCallback", *stream, std::move(task));
}

aclError aclrtSubscribeReport(uint64_t thread, aclrtStream handle) {
    std::shared_ptr<emu::Stream> stream;
    if (int32_t error = find_stream("aclrtSubscribeReport", handle, &stream)) {
        return error;
    }
    auto queue = Runtime::get().report_queue(thread, true);
    if (auto before = stream->report_queue()) {
        if (before == queue) {
            return fail(acl::RT_PARAM_INVALID,
                        "aclrtSubscribeReport: the stream is subscribed to this thread already");
        }
        before->unsubscribe();
    }
    queue->subscribe();
    stream->set_report_queue(queue);
    return acl::SUCCESS;
}

aclError aclrtUnSubscribeReport(uint64_t thread, aclrtStream handle) {
    std::shared_ptr<emu::Stream> stream;
    if (int32_t error = find_stream("aclrtUnSubscribeReport", handle, &stream)) {
        return error;
    }
    auto queue = stream->report_queue();
    if (!queue || queue != Runtime::get().report_queue(thread, false)) {
        return fail(emu::kThreadNotSubscribed,
                    "aclrtUnSubscribeReport: the thread is not subscribed to the stream");
    }
    stream->set_report_queue(nullptr);
    queue->unsubscribe();
    return acl::SUCCESS;
}

aclError aclrtProcessReport(int32_t timeout_ms) {
    if (timeout_ms < -1 || timeout_ms == 0) {
        return fail(acl::INVALID_PARAM, "aclrtProcessReport: %d ms is not a timeout", timeout_ms);
    }
    auto queue = Runtime::get().report_queue(uint64_t(pthread_self()), false);
    if (!queue) {
        return fail(emu::kThreadNotSubscribed, "aclrtProcessReport: this thread is subscribed to no stream");
    }
    std::optional<emu::Clock::time_point> deadline;
    if (timeout_ms > 0) {
        deadline = emu::Clock::now() + std::chrono::milliseconds(timeout_ms);
    }
    switch (queue->process(deadline)) {
        case emu::ReportQueue::Result::Ran: return acl::SUCCESS;
        case emu::ReportQueue::Result::TimedOut:
            return fail(emu::kReportTimeout, "aclrtProcessReport: no callback within %d ms", timeout_ms);
        default:
            return fail(emu::kThreadNotSubscribed,
                        "aclrtProcessReport: this thread is subscribed to no stream");
    }
}
}
