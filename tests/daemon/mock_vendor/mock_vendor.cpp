#include "mock_vendor.hpp"

#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <sys/mman.h>
#include <vector>

#include "acl.gen.h"
#include "fn_ids.gen.h"
#include "flexnpu/api/host_objects.hpp"

namespace acl = flexnpu::acl;
namespace api = flexnpu::api;

struct aclOpExecutor {
    uint32_t op;
    std::vector<uint64_t> addresses;
};

namespace {

struct Stream {
    int id;
};
struct Event {
    uint64_t at = 0;  // number of the record, 0: never recorded
};

std::mutex mutex;
std::condition_variable changed;
std::vector<MockCall> calls;
bool held = false;
bool logging = true;
std::atomic<int64_t> failing{-1};
std::atomic<int64_t> streams{0}, events{0}, memory{0}, host{0}, tensors{0}, executors{0};
thread_local char message[256];

void log(MockCall call) {
    std::lock_guard lock(mutex);
    if (logging) calls.push_back(call);
}

int fail(int code, const char* text) {
    snprintf(message, sizeof(message), "mock: %s", text);
    return code;
}

int wait_free(int32_t ms) {
    std::unique_lock lock(mutex);
    if (ms < 0) {
        changed.wait(lock, [] { return !held; });
        return 0;
    }
    return changed.wait_for(lock, std::chrono::milliseconds(ms), [] { return !held; }) ? 0 : fail(acl::RT_WAIT_TIMEOUT, "timed out");
}

}  // namespace

extern "C" {

FLEXNPU_EXPORT uint64_t mock_calls(uint64_t from, MockCall* out, uint64_t room) {
    std::lock_guard lock(mutex);
    for (uint64_t i = from; i < calls.size() && i - from < room; i++) out[i - from] = calls[i];
    return calls.size();
}
FLEXNPU_EXPORT MockHeld mock_held(void) { return {streams, events, memory, host, tensors, executors}; }
FLEXNPU_EXPORT void mock_hold(int on) {
    {
        std::lock_guard lock(mutex);
        held = on;
    }
    changed.notify_all();
}
FLEXNPU_EXPORT void mock_log(int on) {
    std::lock_guard lock(mutex);
    logging = on;
}
FLEXNPU_EXPORT void mock_fail_launch(int64_t op) { failing = op; }

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
aclError aclrtMallocAlign32(void** p, size_t bytes, aclrtMemMallocPolicy policy) { return aclrtMalloc(p, bytes, policy); }
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
aclError aclrtGetMemInfo(aclrtMemAttr, size_t* free, size_t* total) { return *free = 1 << 20, *total = 1 << 21, 0; }
aclError aclrtMemcpy(void* to, size_t, const void* from, size_t bytes, aclrtMemcpyKind) {
    memmove(to, from, bytes);
    return 0;
}
aclError aclrtMemcpyAsync(void* to, size_t, const void* from, size_t bytes, aclrtMemcpyKind, aclrtStream stream) {
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

// Addresses are real and always readable; mapping is not looked at, so that what reaches it has passed the daemon's own checks.
constexpr size_t kMockReservation = size_t(1) << 26;
aclError aclrtReserveMemAddress(void** p, size_t bytes, size_t, void*, uint64_t) {
    if (bytes > kMockReservation) return fail(acl::RT_MEMORY_ALLOCATION, "no addresses");
    memory++;
    *p = mmap(nullptr, kMockReservation, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
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
aclError aclrtMemGetAllocationGranularity(aclrtPhysicalMemProp*, aclrtMemGranularityOptions, size_t* bytes) { return *bytes = 4096, 0; }

aclError aclrtCreateStreamWithConfig(aclrtStream* out, uint32_t, uint32_t) {
    *out = new Stream{int(++streams)};
    return 0;
}
aclError aclrtDestroyStream(aclrtStream s) {
    streams--;
    delete static_cast<Stream*>(s);
    return 0;
}
aclError aclrtSynchronizeStream(aclrtStream s) {
    log({'s', 0, s, 0, 0, 0});
    return wait_free(-1);
}
aclError aclrtSynchronizeStreamWithTimeout(aclrtStream s, int32_t ms) {
    log({'s', 0, s, 0, 0, 0});
    return wait_free(ms);
}
aclError aclrtStreamQuery(aclrtStream, aclrtStreamStatus* status) {
    std::lock_guard lock(mutex);
    *status = held ? acl::STREAM_NOT_READY : acl::STREAM_COMPLETE;
    return 0;
}
aclError aclrtStreamAbort(aclrtStream s) {
    log({'a', 0, s, 0, 0, 0});
    return 0;
}
aclError aclrtStreamGetId(aclrtStream s, int32_t* id) { return *id = static_cast<Stream*>(s)->id, 0; }
aclError aclrtStreamWaitEvent(aclrtStream s, aclrtEvent e) {
    log({'w', 0, s, reinterpret_cast<uint64_t>(e), static_cast<Event*>(e)->at, 0});
    return 0;
}
aclError aclrtStreamWaitEventWithTimeout(aclrtStream s, aclrtEvent e, int32_t) { return aclrtStreamWaitEvent(s, e); }

aclError aclrtCreateEventWithFlag(aclrtEvent* out, uint32_t) {
    events++;
    *out = new Event;
    return 0;
}
aclError aclrtCreateEventExWithFlag(aclrtEvent* out, uint32_t flags) { return aclrtCreateEventWithFlag(out, flags); }
aclError aclrtDestroyEvent(aclrtEvent e) {
    events--;
    delete static_cast<Event*>(e);
    return 0;
}
aclError aclrtRecordEvent(aclrtEvent e, aclrtStream s) {
    std::lock_guard lock(mutex);
    if (logging) calls.push_back({'r', 0, s, reinterpret_cast<uint64_t>(e), 0, 0});
    static_cast<Event*>(e)->at = logging ? calls.size() : 1;
    return 0;
}
aclError aclrtResetEvent(aclrtEvent, aclrtStream) { return 0; }
aclError aclrtSynchronizeEvent(aclrtEvent) { return wait_free(-1); }
aclError aclrtSynchronizeEventWithTimeout(aclrtEvent, int32_t ms) { return wait_free(ms); }
aclError aclrtQueryEventStatus(aclrtEvent e, aclrtEventRecordedStatus* status) {
    std::lock_guard lock(mutex);
    *status = !held && static_cast<Event*>(e)->at ? acl::EVENT_RECORDED_COMPLETE : acl::EVENT_RECORDED_NOT_READY;
    return 0;
}
aclError aclrtQueryEventWaitStatus(aclrtEvent, aclrtEventWaitStatus* status) { return *status = acl::EVENT_WAIT_COMPLETE, 0; }
aclError aclrtEventElapsedTime(float* ms, aclrtEvent, aclrtEvent) { return *ms = 0.01f, 0; }
aclError aclrtEventGetTimestamp(aclrtEvent e, uint64_t* t) { return *t = static_cast<Event*>(e)->at, 0; }

aclError aclsysGetVersionStr(char* package, char* out) { return snprintf(out, 64, "%s 1.0", package), 0; }
aclError aclsysGetVersionNum(char*, int32_t* out) { return *out = 7, 0; }
aclError aclGetCompileopt(aclCompileOpt, char* out, size_t) { return strcpy(out, "yes"), 0; }
size_t aclGetCompileoptSize(aclCompileOpt) { return 4; }

// An operator asks for a workspace of 64 bytes a tensor, and fails its first call when a scalar is 13.
aclnnStatus flexnpu_aclnn_first(uint32_t op, const AclnnArg* args, uint32_t n, uint64_t* workspace, aclOpExecutor** out) {
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

}  // extern "C"
