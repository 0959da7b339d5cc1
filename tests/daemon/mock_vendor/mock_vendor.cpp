#include "mock_vendor.hpp"

#include <sys/mman.h>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "acl.gen.h"
#include "flexnpu/api/host_objects.hpp"
#include "fn_ids.gen.h"
#include "mock_state.hpp"

namespace acl = flexnpu::acl;
namespace api = flexnpu::api;

struct aclOpExecutor {
    uint32_t op;
    std::vector<uint64_t> addresses;
};

using namespace mock;

extern "C" {

FLEXNPU_EXPORT uint64_t mock_calls(uint64_t from, MockCall* out, uint64_t room) {
    std::lock_guard lock(mutex);
    for (uint64_t i = from; i < calls.size() && i - from < room; i++) out[i - from] = calls[i];
    return calls.size();
}
FLEXNPU_EXPORT MockHeld mock_held(void) {
    std::lock_guard lock(mutex);
    uint64_t bytes = 0;
    for (const auto& [p, n] : pinned) bytes += n;
    return {streams, events, memory, host, tensors, executors, models, bytes};
}
FLEXNPU_EXPORT void mock_refuse_pins(int on) { refusing_pins = on; }
FLEXNPU_EXPORT void mock_hold(int on) {
    {
        std::lock_guard lock(mutex);
        held = on;
    }
    changed.notify_all();
}
FLEXNPU_EXPORT void mock_stop_stream(void* stream, int on) {
    {
        std::lock_guard lock(mutex);
        static_cast<Stream*>(stream)->stopped = on;
    }
    changed.notify_all();
}
FLEXNPU_EXPORT void mock_close_memory(int on) {
    {
        std::lock_guard lock(mutex);
        memory_closed = on;
    }
    changed.notify_all();
}
FLEXNPU_EXPORT int mock_memory_waits(void) {
    std::lock_guard lock(mutex);
    return memory_waits;
}
FLEXNPU_EXPORT void mock_log(int on) {
    std::lock_guard lock(mutex);
    logging = on;
}
FLEXNPU_EXPORT void mock_fail_launch(int64_t op) { failing = op; }
FLEXNPU_EXPORT void mock_block_first(int64_t op) {
    std::lock_guard lock(mutex);
    blocking_first = op;
    changed.notify_all();
}
FLEXNPU_EXPORT int mock_blocked_first(void) {
    std::lock_guard lock(mutex);
    return blocked_first;
}
FLEXNPU_EXPORT void mock_fail_update(int on) { failing_update = on; }
FLEXNPU_EXPORT uint64_t mock_nodes(void* model) {
    std::lock_guard lock(mutex);
    return static_cast<Model*>(model)->nodes;
}
FLEXNPU_EXPORT void mock_stick(int on) {
    std::lock_guard lock(mutex);
    sticky = on;
    if (!on) {
        for (Stream* s : all_streams) s->stuck = nullptr;
    }
}

int emu_unsupported(const char* function) {
    snprintf(message, sizeof(message), "mock: %s does nothing", function);
    return acl::API_NOT_SUPPORTED;
}

aclError aclInit(const char*) { return 0; }
aclError aclFinalize() { return 0; }
const char* aclGetRecentErrMsg() { return message; }
const char* aclrtGetSocName() { return "Mock910"; }
aclError aclrtSetDevice(int32_t d) { return d == 0 ? 0 : fail(acl::RT_INVALID_DEVICE, "no such device"); }
aclError aclrtGetDeviceCount(uint32_t* n) { return *n = 1, 0; }
aclError aclrtGetRunMode(aclrtRunMode* mode) { return *mode = 1, 0; }

aclError aclrtMalloc(void** p, size_t bytes, aclrtMemMallocPolicy) {
    if (bytes > (size_t(1) << 32)) return fail(acl::RT_OUT_OF_MEMORY, "out of memory");
    *p = malloc(bytes);
    if (!*p) return fail(acl::RT_OUT_OF_MEMORY, "out of memory");
    memset(*p, 0, bytes < 4096 ? bytes : 4096);
    memory++;
    return 0;
}
aclError aclrtMallocAlign32(void** p, size_t bytes, aclrtMemMallocPolicy policy) {
    return aclrtMalloc(p, bytes, policy);
}
aclError aclrtFree(void* p) {
    log({'f', 0, nullptr, reinterpret_cast<uint64_t>(p), 0, 0});
    free(p);
    memory--;
    return 0;
}
aclError aclrtMallocHost(void** p, size_t bytes) {
    host++;
    return (*p = malloc(bytes)) ? 0 : acl::RT_MEMORY_ALLOCATION;
}
aclError aclrtFreeHost(void* p) {
    host--;
    free(p);
    return 0;
}
aclError aclrtHostRegisterV2(void* p, uint64_t bytes, uint32_t flag) {
    if (refusing_pins) return fail(acl::API_NOT_SUPPORTED, "memory cannot be registered");
    std::lock_guard lock(mutex);
    const bool aligned = reinterpret_cast<uint64_t>(p) % 4096 == 0;
    if (!aligned || !bytes || flag != acl::HOST_REG_PINNED || pinned.contains(p))
        return fail(acl::RT_PARAM_INVALID, "not to be registered");
    pinned[p] = bytes;
    return 0;
}
aclError aclrtHostUnregister(void* p) {
    std::lock_guard lock(mutex);
    // It must still be there: what is unmapped first cannot be unregistered.
    if (!pinned.contains(p) || msync(p, 4096, MS_ASYNC) != 0)
        return fail(acl::RT_PARAM_INVALID, "not registered");
    pinned.erase(p);
    return 0;
}
aclError aclrtGetMemInfo(aclrtMemAttr, size_t* free, size_t* total) {
    {
        std::unique_lock lock(mutex);
        memory_waits++;
        changed.wait(lock, [] { return !memory_closed; });
        memory_waits--;
    }
    return *free = 1 << 20, *total = 1 << 21, 0;
}
aclError aclrtMemcpy(void* to, size_t, const void* from, size_t bytes, aclrtMemcpyKind) {
    memmove(to, from, bytes);
    return 0;
}
aclError aclrtMemcpyAsync(void* to, size_t, const void* from, size_t bytes, aclrtMemcpyKind,
                          aclrtStream stream) {
    log({'c', 0, stream, reinterpret_cast<uint64_t>(to), reinterpret_cast<uint64_t>(from), bytes});
    memmove(to, from, bytes);
    return 0;
}
aclError aclrtMemset(void* to, size_t, int32_t value, size_t bytes) {
    memset(to, value, bytes);
    return 0;
}
aclError aclrtMemsetAsync(void* to, size_t, int32_t value, size_t bytes, aclrtStream stream) {
    log({'m', 0, stream, reinterpret_cast<uint64_t>(to), uint64_t(uint32_t(value)), bytes});
    memset(to, value, bytes);
    return 0;
}

// Addresses are real and always readable; mapping is not looked at, so that what reaches it has passed the
// daemon's own checks.
constexpr size_t kMockReservation = size_t(1) << 26;
aclError aclrtReserveMemAddress(void** p, size_t bytes, size_t, void*, uint64_t) {
    if (bytes > kMockReservation) return fail(acl::RT_MEMORY_ALLOCATION, "no addresses");
    memory++;
    *p = mmap(nullptr, kMockReservation, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
              -1, 0);
    return *p == MAP_FAILED ? acl::RT_MEMORY_ALLOCATION : 0;
}
aclError aclrtReleaseMemAddress(void* p) {
    memory--;
    munmap(p, kMockReservation);
    return 0;
}
aclError aclrtMallocPhysical(aclrtDrvMemHandle* handle, size_t bytes, const aclrtPhysicalMemProp*, uint64_t) {
    return aclrtMalloc(handle, bytes > 4096 ? 4096 : bytes, 0);
}
aclError aclrtFreePhysical(aclrtDrvMemHandle handle) {
    free(handle);
    memory--;
    return 0;
}
aclError aclrtMapMem(void* p, size_t bytes, size_t, aclrtDrvMemHandle, uint64_t) {
    log({'M', 0, nullptr, reinterpret_cast<uint64_t>(p), bytes, 0});
    return 0;
}
aclError aclrtUnmapMem(void* p) {
    log({'U', 0, nullptr, reinterpret_cast<uint64_t>(p), 0, 0});
    return 0;
}
aclError aclrtMemGetAllocationGranularity(aclrtPhysicalMemProp*, aclrtMemGranularityOptions, size_t* bytes) {
    return *bytes = 4096, 0;
}

aclError aclrtCreateStreamWithConfig(aclrtStream* out, uint32_t, uint32_t) {
    auto* s = new Stream{int(++streams)};
    std::lock_guard lock(mutex);
    all_streams.push_back(s);
    *out = s;
    return 0;
}
aclError aclrtDestroyStream(aclrtStream s) {
    streams--;
    std::lock_guard lock(mutex);
    std::erase(all_streams, static_cast<Stream*>(s));
    delete static_cast<Stream*>(s);
    return 0;
}
aclError aclrtSynchronizeStream(aclrtStream s) {
    log({'s', 0, s, 0, 0, 0});
    if (int e = asked(static_cast<Stream*>(s)->capture)) return e;
    return wait_free(-1, static_cast<Stream*>(s));
}
aclError aclrtSynchronizeStreamWithTimeout(aclrtStream s, int32_t ms) {
    log({'s', 0, s, 0, 0, 0});
    if (int e = asked(static_cast<Stream*>(s)->capture)) return e;
    if (static_cast<Stream*>(s)->stuck) return fail(acl::RT_WAIT_TIMEOUT, "stuck");
    return wait_free(ms, static_cast<Stream*>(s));
}
aclError aclrtStreamQuery(aclrtStream s, aclrtStreamStatus* status) {
    std::lock_guard lock(mutex);
    if (int e = asked(static_cast<Stream*>(s)->capture)) return e;
    *status = held || static_cast<Stream*>(s)->stuck || static_cast<Stream*>(s)->stopped
                  ? acl::STREAM_NOT_READY
                  : acl::STREAM_COMPLETE;
    return 0;
}
aclError aclrtStreamAbort(aclrtStream s) {
    log({'a', 0, s, 0, 0, 0});
    mock_stop_stream(s, 0);
    return 0;
}
aclError aclrtGetStreamAvailableNum(uint32_t* n) { return *n = 1984, 0; }
aclError aclrtGetEventAvailNum(uint32_t* n) { return *n = 65536, 0; }
aclError aclrtStreamGetId(aclrtStream s, int32_t* id) { return *id = static_cast<Stream*>(s)->id, 0; }
aclError aclrtStreamWaitEvent(aclrtStream s, aclrtEvent e) {
    std::lock_guard lock(mutex);
    auto* stream = static_cast<Stream*>(s);
    auto* event = static_cast<Event*>(e);
    if (!(event->flags & acl::EVENT_EXTERNAL)) {
        if (stream->capture && event->capture.load() != stream->capture.load()) {
            stream->capture.load()->invalid = true;
            return fail(acl::RT_CAPTURE_DEPENDENCY, "the event has not been recorded in the capture");
        }
        if (event->capture) stream->capture = event->capture.load();
    }
    log_locked({'w', 0, s, reinterpret_cast<uint64_t>(e), event->at, 0});
    return 0;
}
aclError aclrtStreamWaitEventWithTimeout(aclrtStream s, aclrtEvent e, int32_t) {
    return aclrtStreamWaitEvent(s, e);
}

aclError aclrtCreateEventWithFlag(aclrtEvent* out, uint32_t flags) {
    events++;
    *out = new Event{flags};
    return 0;
}
aclError aclrtCreateEventExWithFlag(aclrtEvent* out, uint32_t flags) {
    return aclrtCreateEventWithFlag(out, flags);
}
aclError aclrtDestroyEvent(aclrtEvent e) {
    events--;
    delete static_cast<Event*>(e);
    return 0;
}
aclError aclrtRecordEvent(aclrtEvent e, aclrtStream s) {
    std::lock_guard lock(mutex);
    log_locked({'r', 0, s, reinterpret_cast<uint64_t>(e), 0, 0});
    auto* event = static_cast<Event*>(e);
    Model* capture = static_cast<Stream*>(s)->capture;
    if (event->flags & acl::EVENT_EXTERNAL && capture) return 0;  // is recorded when the graph is replayed
    event->at = logging ? calls.size() : 1;
    event->capture = capture;
    return 0;
}
aclError aclrtResetEvent(aclrtEvent, aclrtStream) { return 0; }
aclError aclrtSynchronizeEvent(aclrtEvent e) { return aclrtSynchronizeEventWithTimeout(e, -1); }
aclError aclrtSynchronizeEventWithTimeout(aclrtEvent e, int32_t ms) {
    if (int error = asked(static_cast<Event*>(e)->capture)) return error;
    return wait_free(ms);
}
aclError aclrtQueryEventStatus(aclrtEvent e, aclrtEventRecordedStatus* status) {
    std::lock_guard lock(mutex);
    if (int error = asked(static_cast<Event*>(e)->capture)) return error;
    *status =
        !held && static_cast<Event*>(e)->at ? acl::EVENT_RECORDED_COMPLETE : acl::EVENT_RECORDED_NOT_READY;
    return 0;
}
aclError aclrtQueryEventWaitStatus(aclrtEvent, aclrtEventWaitStatus* status) {
    return *status = acl::EVENT_WAIT_COMPLETE, 0;
}
aclError aclrtEventElapsedTime(float* ms, aclrtEvent, aclrtEvent) { return *ms = 0.01f, 0; }
aclError aclrtEventGetTimestamp(aclrtEvent e, uint64_t* t) { return *t = static_cast<Event*>(e)->at, 0; }

aclError aclsysGetVersionStr(char* package, char* out) { return snprintf(out, 64, "%s 1.0", package), 0; }
aclError aclsysGetVersionNum(char*, int32_t* out) { return *out = 7, 0; }
aclError aclGetCompileopt(aclCompileOpt, char* out, size_t) { return strcpy(out, "yes"), 0; }
size_t aclGetCompileoptSize(aclCompileOpt) { return 4; }

// An operator asks for a workspace of 64 bytes a tensor, and fails its first call when a scalar is 13.
aclnnStatus flexnpu_aclnn_first(uint32_t op, const AclnnArg* args, uint32_t n, uint64_t* workspace,
                                aclOpExecutor** out) {
    {
        std::unique_lock lock(mutex);
        blocked_first++;
        changed.wait(lock, [op] { return blocking_first != int64_t(op); });
        blocked_first--;
    }
    auto* e = new aclOpExecutor{op, {}};
    executors++;
    for (uint32_t i = 0; i < n; i++) {
        if ((args[i].kind == 'T' || args[i].kind == 't') && args[i].p) {
            e->addresses.push_back(reinterpret_cast<uint64_t>(static_cast<aclTensor*>(args[i].p)->data));
        }
        if (args[i].kind == 'S' && args[i].p && static_cast<aclScalar*>(args[i].p)->value[0] == 13) {
            delete e;
            executors--;
            return fail(161002, "a scalar is 13");
        }
    }
    *workspace = 64 * e->addresses.size();
    *out = e;
    return 0;
}
aclnnStatus aclDestroyAclOpExecutor(aclOpExecutor* e) {
    executors--;
    delete e;
    return 0;
}
aclnnStatus flexnpu_aclnn_second(uint32_t op, void*, uint64_t size, aclOpExecutor* e, aclrtStream s) {
    const auto& a = e->addresses;
    log({'l', op, s, a.empty() ? 0 : a[0], a.size() < 2 ? 0 : a[1], size});
    const bool bad = failing == int64_t(op);
    aclDestroyAclOpExecutor(e);
    return bad ? fail(507000, "the launch fails") : 0;
}

// ---- kernels of a program's own ----

// A function's handle lies in its binary, which must not have been unloaded when it is launched.
struct OwnBinary {
    const uint8_t* data;
    char functions[16];
};
aclError aclrtBinaryLoadFromData(const void* data, size_t, const aclrtBinaryLoadOptions*,
                                 aclrtBinHandle* out) {
    const auto* p = static_cast<const uint8_t*>(data);
    if (p[0] == 0xff) return fail(acl::INVALID_PARAM, "not a binary");
    memory++;
    *out = new OwnBinary{p, {}};
    return 0;
}
aclError aclrtBinaryUnLoad(aclrtBinHandle binary) {
    memory--;
    delete static_cast<OwnBinary*>(binary);
    return 0;
}
aclError aclrtBinaryGetFunctionByEntry(aclrtBinHandle binary, uint64_t entry, aclrtFuncHandle* out) {
    auto* b = static_cast<OwnBinary*>(binary);
    if (entry >= sizeof(b->functions)) return fail(acl::KERNEL_NOT_FOUND, "no such kernel");
    b->functions[entry] = 1;
    *out = &b->functions[entry];
    return 0;
}
aclError aclrtBinaryGetFunction(const aclrtBinHandle binary, const char* name, aclrtFuncHandle* out) {
    return aclrtBinaryGetFunctionByEntry(binary, strlen(name), out);
}
aclError aclrtLaunchKernelWithHostArgs(aclrtFuncHandle function, uint32_t blocks, aclrtStream s,
                                       aclrtLaunchKernelCfg*, void* arguments, size_t bytes,
                                       aclrtPlaceHolderInfo*, size_t) {
    if (*static_cast<const char*>(function) != 1) abort();
    log({'k', blocks, s, bytes >= 8 ? *static_cast<const uint64_t*>(arguments) : 0, 0, bytes});
    return 0;
}
aclError aclrtLaunchKernel(aclrtFuncHandle function, uint32_t blocks, const void* arguments, size_t bytes,
                           aclrtStream s) {
    if (*static_cast<const char*>(function) != 1) abort();
    log({'k', blocks, s, reinterpret_cast<uint64_t>(arguments), 1, bytes});
    return 0;
}

}  // extern "C"
