// Devices and contexts.
#include <unistd.h>
#include <algorithm>
#include <climits>
#include <cstdio>
#include <cstring>
#include <mutex>

#include "acl.gen.h"
#include "flexnpu/emulator/runtime/lookup.hpp"
#include "flexnpu/emulator/runtime/runtime.hpp"

namespace emu = flexnpu::emulator;
namespace acl = flexnpu::acl;
using emu::check_device;
using emu::fail;
using emu::null_argument;
using emu::Runtime;

namespace {

std::atomic<bool> g_peers[64][64];  // aclrtDeviceEnablePeerAccess: of the device, to the peer

int32_t current_device(const char* function, int32_t* index) {
    auto context = Runtime::get().current_context();
    if (!context) {
        return fail(acl::RT_CONTEXT_NULL, "%s: this thread has no device: call aclrtSetDevice first",
                    function);
    }
    *index = context->device->index;
    return acl::SUCCESS;
}

// What was enabled is only remembered: any device reaches any other's memory.
int32_t peer_access(const char* function, int32_t peer, bool enable) {
    int32_t device = 0;
    if (int32_t error = check_device(function, peer)) {
        return error;
    }
    if (int32_t error = current_device(function, &device)) {
        return error;
    }
    g_peers[device][peer] = enable;
    return acl::SUCCESS;
}

// The machine's number of a device that the program sees, or the other way round.
int32_t machine_number(const char* function, int32_t from, int32_t* to) {
    if (to == nullptr) {
        return null_argument(function);
    }
    if (int32_t error = check_device(function, from)) {
        return error;
    }
    *to = Runtime::get().settings().visible[size_t(from)];
    return acl::SUCCESS;
}
int32_t program_number(const char* function, int32_t from, int32_t* to) {
    if (to == nullptr) {
        return null_argument(function);
    }
    const auto& visible = Runtime::get().settings().visible;
    const auto at = std::find(visible.begin(), visible.end(), from);
    if (at == visible.end()) {
        return fail(acl::RT_INVALID_DEVICE, "%s: this program does not see device %d of the machine",
                    function, from);
    }
    *to = int32_t(at - visible.begin());
    return acl::SUCCESS;
}
// The machine has one number for a device, whether it is called logical or physical.
int32_t same_number(const char* function, int32_t from, int32_t* to) {
    int32_t number = 0;
    const int32_t error = to == nullptr ? null_argument(function) : program_number(function, from, &number);
    if (error == 0) {
        *to = from;
    }
    return error;
}

// Errors of streams come out at the next synchronise, the first stream's first.
int32_t synchronize_device(const char* function, int32_t timeout_ms) {
    Runtime& runtime = Runtime::get();
    int32_t index = 0;
    if (int32_t error = current_device(function, &index)) {
        return error;
    }
    if (int32_t error = runtime.captures.check_device(function, index)) {
        return error;
    }
    std::optional<emu::Clock::time_point> deadline;
    if (timeout_ms > 0) {
        deadline = emu::Clock::now() + std::chrono::milliseconds(timeout_ms);
    }
    int32_t first = 0;
    std::string first_message;
    for (const auto& stream : runtime.streams(index)) {
        if (stream->synchronize(deadline) == emu::Stream::Wait::TimedOut) {
            return fail(acl::RT_WAIT_TIMEOUT, "%s: device %d is not idle after %d ms", function, index,
                        timeout_ms);
        }
        std::string message;
        int32_t error = stream->take_error(&message);
        if (error != 0 && first == 0) {
            first = error;
            first_message = std::move(message);
        }
    }
    return first == 0 ? first : emu::fail_with(first, std::move(first_message));
}

}  // namespace

extern "C" {

// Hooks for the other emulated libraries and for tests.

FLEXNPU_EXPORT const char* flexnpu_emu_soc_name(void) {
    return Runtime::get().settings().profile.soc.c_str();
}
int32_t flexnpu_emu_mode(void) { return Runtime::get().settings().mode; }
const char* flexnpu_emu_machine(void) { return Runtime::get().settings().machine.c_str(); }
void flexnpu_emu_link(double* rate, double* step_ns) {
    const emu::Profile& profile = Runtime::get().settings().profile;
    *rate = profile.link_rate_now();
    *step_ns = profile.link_step_ns_now();
}
int32_t flexnpu_emu_missing(void) { return Runtime::get().settings().missing; }

int32_t flexnpu_emu_is_device_range(const void* p, size_t size) {
    return Runtime::get().is_device_range(p, size);
}

int32_t flexnpu_emu_device_busy_ns(int32_t index, uint64_t* out) {
    if (out == nullptr) {
        return null_argument("flexnpu_emu_device_busy_ns");
    }
    auto device = Runtime::get().open_device(index);
    if (!device) {
        return acl::RT_INVALID_DEVICE;
    }
    *out = device->shared.busy_ns(emu::kCompute);
    return acl::SUCCESS;
}

aclError aclInit(const char*) { return Runtime::get().init(); }
aclError aclFinalize() { return Runtime::get().finalize(); }
aclError aclFinalizeReference(uint64_t* left) {
    if (left != nullptr) {
        *left = 0;
    }
    return Runtime::get().finalize();
}

aclError aclrtGetDeviceCount(uint32_t* count) {
    if (count == nullptr) {
        return null_argument("aclrtGetDeviceCount");
    }
    Runtime& runtime = Runtime::get();
    if (!runtime.settings_error().empty()) {
        return fail(acl::INVALID_PARAM, "%s", runtime.settings_error().c_str());
    }
    *count = uint32_t(runtime.settings().devices);
    return acl::SUCCESS;
}

aclError aclrtSetDevice(int32_t index) { return Runtime::get().set_device(index); }
aclError aclrtResetDevice(int32_t index) { return Runtime::get().reset_device(index, false); }
aclError aclrtResetDeviceForce(int32_t index) { return Runtime::get().reset_device(index, true); }

aclError aclrtGetDevice(int32_t* index) {
    return index == nullptr ? null_argument("aclrtGetDevice") : current_device("aclrtGetDevice", index);
}

aclError aclrtCreateContext(aclrtContext* context, int32_t device) {
    return context == nullptr ? null_argument("aclrtCreateContext")
                              : Runtime::get().create_context(context, device);
}
aclError aclrtDestroyContext(aclrtContext context) { return Runtime::get().destroy_context(context); }
aclError aclrtSetCurrentContext(aclrtContext context) { return Runtime::get().set_current_context(context); }

aclError aclrtGetCurrentContext(aclrtContext* context) {
    if (context == nullptr) {
        return null_argument("aclrtGetCurrentContext");
    }
    *context = Runtime::get().current_context_handle();
    if (*context == nullptr) {
        return fail(acl::RT_CONTEXT_NULL, "aclrtGetCurrentContext: this thread has no context");
    }
    return acl::SUCCESS;
}

aclError aclrtCtxGetCurrentDefaultStream(aclrtStream* stream) {
    if (stream == nullptr) {
        return null_argument("aclrtCtxGetCurrentDefaultStream");
    }
    auto context = Runtime::get().current_context();
    if (!context) {
        return fail(acl::RT_CONTEXT_NULL, "aclrtCtxGetCurrentDefaultStream: this thread has no context");
    }
    *stream = context->default_stream;
    return acl::SUCCESS;
}

aclError aclrtGetPrimaryCtxState(int32_t device, uint32_t* flags, int32_t* active) {
    if (int32_t error = check_device("aclrtGetPrimaryCtxState", device)) {
        return error;
    }
    if (flags != nullptr) {
        *flags = 0;
    }
    if (active != nullptr) {
        *active = Runtime::get().primary_active(device) ? 1 : 0;
    }
    return acl::SUCCESS;
}

aclError aclrtSynchronizeDevice() { return synchronize_device("aclrtSynchronizeDevice", -1); }
aclError aclrtSynchronizeDeviceWithTimeout(int32_t ms) {
    if (ms < -1 || ms == 0) {
        return fail(acl::RT_PARAM_INVALID, "aclrtSynchronizeDeviceWithTimeout: %d ms is not a timeout", ms);
    }
    return synchronize_device("aclrtSynchronizeDeviceWithTimeout", ms);
}

aclError aclrtGetRunMode(aclrtRunMode* mode) {
    if (mode == nullptr) {
        return null_argument("aclrtGetRunMode");
    }
    *mode = 1;  // the program runs on the host
    return acl::SUCCESS;
}

aclError aclrtSetTsDevice(aclrtTsId) { return acl::SUCCESS; }

aclError aclrtQueryDeviceStatus(int32_t device, aclrtDeviceStatus* status) {
    if (status == nullptr) {
        return null_argument("aclrtQueryDeviceStatus");
    }
    *status = 0;
    return check_device("aclrtQueryDeviceStatus", device);
}

aclError aclrtGetDeviceInfo(uint32_t device, aclrtDevAttr attribute, int64_t* value) {
    if (value == nullptr) {
        return null_argument("aclrtGetDeviceInfo");
    }
    if (int32_t error = check_device("aclrtGetDeviceInfo", device)) {
        return error;
    }
    const emu::Profile& profile = Runtime::get().settings().profile;
    switch (attribute) {
        case acl::ATTR_AICORE_CORE_NUM:
        case acl::ATTR_CUBE_CORE_NUM: *value = profile.cube_cores; break;
        case acl::ATTR_VECTOR_CORE_NUM: *value = profile.vector_cores; break;
        case acl::ATTR_TOTAL_GLOBAL_MEM_SIZE: *value = int64_t(profile.memory_bytes); break;
        case acl::ATTR_L2_CACHE_SIZE: *value = int64_t(profile.l2_bytes); break;
        case acl::ATTR_IS_VIRTUAL: *value = 0; break;
        default:
            return fail(acl::RT_PARAM_INVALID, "aclrtGetDeviceInfo: attribute %d is not modelled", attribute);
    }
    return acl::SUCCESS;
}

aclError aclrtGetDeviceUtilizationRate(int32_t device, aclrtUtilizationInfo* info) {
    if (info == nullptr) {
        return null_argument("aclrtGetDeviceUtilizationRate");
    }
    if (int32_t error = check_device("aclrtGetDeviceUtilizationRate", device)) {
        return error;
    }
    auto open = Runtime::get().open_device(device);
    if (!open) {
        return acl::RT_INTERNAL;
    }
    // Over the time since this process asked last: a rate needs an interval.
    struct Sample {
        uint64_t at = 0, busy = 0, cube = 0;
    };
    static std::mutex mutex;
    static auto* samples = new std::map<int32_t, Sample>;
    std::lock_guard lock(mutex);
    Sample& last = (*samples)[device];
    Sample now{emu::now_ns(), open->shared.busy_ns(emu::kCompute), open->shared.cube_ns()};
    auto percent = [&](uint64_t part) {
        uint64_t span = std::max<uint64_t>(now.at - last.at, 1);
        return int32_t(std::min<uint64_t>(100, part * 100 / span));
    };
    bool first = last.at == 0 || now.busy < last.busy;
    uint64_t cube = now.cube - last.cube, busy = now.busy - last.busy;
    info->cube = first ? 0 : percent(cube);
    info->vector = first ? 0 : percent(busy > cube ? busy - cube : 0);
    info->aicpu = 0;
    info->memory = int32_t(open->shared.used() * 100 / std::max<uint64_t>(open->shared.capacity(), 1));
    last = now;
    return acl::SUCCESS;
}

aclError aclrtDeviceGetUuid(int32_t device, aclrtUuid* uuid) {
    if (uuid == nullptr) {
        return null_argument("aclrtDeviceGetUuid");
    }
    if (int32_t error = check_device("aclrtDeviceGetUuid", device)) {
        return error;
    }
    std::memset(uuid->bytes, 0, sizeof(uuid->bytes));
    std::memcpy(uuid->bytes, "flexnpu-emu", 11);
    uuid->bytes[15] = char(device);
    return acl::SUCCESS;
}

aclError aclrtDeviceGetPCIBusId(int32_t device, char* text, int32_t size) {
    if (text == nullptr || size < 13) {
        return fail(acl::RT_PARAM_INVALID, "aclrtDeviceGetPCIBusId: 13 bytes are needed");
    }
    if (int32_t error = check_device("aclrtDeviceGetPCIBusId", device)) {
        return error;
    }
    std::snprintf(text, size_t(size), "0000:%02x:00.0", unsigned(device & 0xff));
    return acl::SUCCESS;
}

aclError aclrtDeviceGetBareTgid(int32_t* pid) {
    if (pid == nullptr) {
        return null_argument("aclrtDeviceGetBareTgid");
    }
    *pid = getpid();
    return acl::SUCCESS;
}

aclError aclrtDeviceCanAccessPeer(int32_t* can, int32_t device, int32_t peer) {
    if (can == nullptr) {
        return null_argument("aclrtDeviceCanAccessPeer");
    }
    for (int32_t index : {device, peer}) {
        if (int32_t error = check_device("aclrtDeviceCanAccessPeer", index)) {
            return error;
        }
    }
    *can = device != peer ? 1 : 0;  // all devices' memory lies in one address space
    return acl::SUCCESS;
}
aclError aclrtDeviceEnablePeerAccess(int32_t peer, uint32_t) {
    return peer_access("aclrtDeviceEnablePeerAccess", peer, true);
}
aclError aclrtDeviceDisablePeerAccess(int32_t peer) {
    return peer_access("aclrtDeviceDisablePeerAccess", peer, false);
}
aclError aclrtDevicePeerAccessStatus(int32_t device, int32_t peer, int32_t* status) {
    if (status == nullptr) {
        return null_argument("aclrtDevicePeerAccessStatus");
    }
    for (int32_t index : {device, peer}) {
        if (int32_t error = check_device("aclrtDevicePeerAccessStatus", index)) {
            return error;
        }
    }
    *status = g_peers[device][peer] ? 1 : 0;
    return acl::SUCCESS;
}

aclError aclrtDeviceGetStreamPriorityRange(int32_t* least, int32_t* greatest) {
    if (least == nullptr || greatest == nullptr) {
        return null_argument("aclrtDeviceGetStreamPriorityRange");
    }
    *least = 7;
    *greatest = 0;
    return acl::SUCCESS;
}

aclError aclrtDeviceTaskAbort(int32_t device, uint32_t) {
    if (int32_t error = check_device("aclrtDeviceTaskAbort", device)) {
        return error;
    }
    for (const auto& stream : Runtime::get().streams(device)) {
        Runtime::get().captures.stream_aborted(*stream);
        if (!stream->idle()) {
            stream->abort(acl::RT_STREAM_ABORT, "the device's tasks were aborted");
        }
    }
    return acl::SUCCESS;
}

aclError aclrtGetLogicDevIdByUserDevId(const int32_t from, int32_t* const to) {
    return machine_number("aclrtGetLogicDevIdByUserDevId", from, to);
}
aclError aclrtGetUserDevIdByLogicDevId(const int32_t from, int32_t* const to) {
    return program_number("aclrtGetUserDevIdByLogicDevId", from, to);
}
aclError aclrtGetLogicDevIdByPhyDevId(const int32_t from, int32_t* const to) {
    return same_number("aclrtGetLogicDevIdByPhyDevId", from, to);
}
aclError aclrtGetPhyDevIdByLogicDevId(const int32_t from, int32_t* const to) {
    return same_number("aclrtGetPhyDevIdByLogicDevId", from, to);
}
aclError aclrtGetPhyDevIdByUserDevId(const int32_t from, int32_t* const to) {
    return machine_number("aclrtGetPhyDevIdByUserDevId", from, to);
}
aclError aclrtGetUserDevIdByPhyDevId(const int32_t from, int32_t* const to) {
    return program_number("aclrtGetUserDevIdByPhyDevId", from, to);
}

// Versions of the emulated package.

aclError aclrtGetVersion(int32_t* major, int32_t* minor, int32_t* patch) {
    if (major == nullptr || minor == nullptr || patch == nullptr) {
        return null_argument("aclrtGetVersion");
    }
    *major = 1;
    *minor = 17;
    *patch = 0;
    return acl::SUCCESS;
}
}
