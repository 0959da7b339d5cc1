// Initialisation, devices, contexts, peers. A context is an object of this process: each daemon has one of
// its own on its device.
#include "flexnpu/client/devices.hpp"

#include <algorithm>
#include <mutex>
#include <set>
#include <vector>

#include "acl.gen.h"
#include "flexnpu/api/forward.hpp"
#include "flexnpu/client/error.hpp"
#include "flexnpu/client/session/session.hpp"

namespace flexnpu::client {

namespace {

// Never deleted, so that a thread may still hold one that another has destroyed, and be told so.
struct Context {
    int32_t device;
    bool primary;
    std::atomic<bool> live{true};
    std::vector<uint64_t> streams;
};

struct Device {
    Context* primary = nullptr;
    int32_t references = 0;  // aclrtSetDevice less aclrtResetDevice
};

struct Process {
    std::mutex mutex;
    bool initialised = false;
    Device devices[wire::kMaxDevices];
    std::set<Context*> contexts;
    bool peers[wire::kMaxDevices][wire::kMaxDevices] =
        {};  // aclrtDeviceEnablePeerAccess: of the device, to the peer
};
// Replaced in a child of fork().
Process* process = new Process;

__attribute__((tls_model("initial-exec"))) thread_local Context* current = nullptr;

Context* live_context() {
    return current && current->live.load(std::memory_order_acquire) ? current : nullptr;
}

int32_t no_context(const char* function) {
    return fail(acl::RT_CONTEXT_NULL, "%s: this thread has no device; call aclrtSetDevice first", function);
}

// Whether there are devices, but ASCEND_RT_VISIBLE_DEVICES names none: after Session::count() has said 0. A
// launcher's main program starts so.
bool sees_none() { return last_error() == acl::RT_INVALID_DEVICE; }

int32_t check_device(const char* function, int64_t device) {
    const int n = Session::count();
    if (n == 0) return last_error();
    if (device < 0 || device >= n) {
        return fail(acl::RT_INVALID_DEVICE, "%s: device %lld does not exist: FlexNPU serves %d here",
                    function, static_cast<long long>(device), n);
    }
    return 0;
}

void enter(Context* c) {
    current = c;
    Session::use(c ? c->device : -1);
}

// Under the lock.
Context* new_context(int32_t device, bool primary) {
    auto* c = new Context{device, primary, true, {}};
    process->contexts.insert(c);
    return c;
}

void end_context(Context* c) {
    c->live.store(false, std::memory_order_release);
    process->contexts.erase(c);
}

// Ends what the program has on a device, as the last aclrtResetDevice does. Under the lock.
void close_device(int32_t device) {
    std::vector<Context*> ended;
    std::copy_if(process->contexts.begin(), process->contexts.end(), std::back_inserter(ended),
                 [&](Context* c) { return c->device == device; });
    for (Context* c : ended) end_context(c);
    process->devices[device] = {};
    Session::close(device);
}

aclError finalize(const char* function) {
    {
        std::lock_guard lock(process->mutex);
        if (!process->initialised) return fail(acl::REPEAT_FINALIZE, "%s: not initialised", function);
        process->initialised = false;
    }
    for (int32_t d = 0; d < wire::kMaxDevices; d++) {
        Session* s = Session::opened(d);
        if (!s) continue;
        if (Channel* c = s->mine()) c->call(wire::Kind::sync_device, wire::StreamOp{0, -1});
        std::lock_guard lock(process->mutex);
        close_device(d);
    }
    if (!live_context()) enter(nullptr);
    return 0;
}

aclError reset(const char* function, int32_t device, bool force) {
    if (int32_t e = check_device(function, device)) return e;
    if (Session* s = Session::opened(device)) {
        if (Channel* c = s->mine()) c->call(wire::Kind::sync_device, wire::StreamOp{0, -1});
    }
    std::lock_guard lock(process->mutex);
    Device& d = process->devices[device];
    if (d.references == 0) return fail(acl::RT_INVALID_DEVICE, "%s: device %d is not set", function, device);
    if (--d.references > 0 && !force) return 0;
    close_device(device);
    if (!live_context()) enter(nullptr);
    return 0;
}

aclError same_number(const char* function, int32_t from, int32_t* to) {
    if (!to) return fail(acl::INVALID_PARAM, "%s: the output is null", function);
    if (int32_t e = check_device(function, from)) return e;
    *to = from;
    return 0;
}

aclError peer_access(const char* function, int32_t peer, bool enable) {
    if (int32_t e = check_device(function, peer)) return e;
    Context* c = live_context();
    if (!c) return no_context(function);
    std::lock_guard lock(process->mutex);
    process->peers[c->device][peer] = enable;
    return 0;
}

}  // namespace

Channel* channel_for(uint16_t function, const uint64_t* in, uint32_t words) {
    if (const int at = api::device_argument(function); at >= 0 && uint32_t(at) < words) {
        if (check_device(api::kFnNames[function], int32_t(in[at]))) return nullptr;
        Session* s = Session::of(int32_t(in[at]));
        return s ? s->mine() : nullptr;
    }
    return Session::any_channel();
}

int32_t check_stream(const Session& session, const char* function, uint64_t stream) {
    if (stream == 0 || session.streams.has(stream)) return 0;
    void* p = reinterpret_cast<void*>(stream);
    if (Session* other = Session::holder(stream); other && other->streams.has(stream)) {
        return fail(acl::RT_STREAM_CONTEXT, "%s: stream %p is of device %d, this thread's device is %d",
                    function, p, other->device(), session.device());
    }
    return fail(acl::RT_INVALID_HANDLE, "%s: %p is not a stream", function, p);
}

void add_to_context(uint64_t stream) {
    Context* c = live_context();
    if (!c || c->primary) return;
    std::lock_guard lock(process->mutex);
    c->streams.push_back(stream);
}

void forget_contexts() {
    current = nullptr;
    process = new Process;  // the old one's lock may be held by a thread that is gone
}

}  // namespace flexnpu::client

using namespace flexnpu::client;
namespace acl = flexnpu::acl;
namespace wire = flexnpu::wire;

extern "C" {

aclError aclInit(const char*) {
    const int n = Session::count();
    if (n == 0 && !sees_none()) return last_error();
    // Where there is one device a program learns here that nobody serves it; of several it may want only
    // some.
    if (n == 1 && !Session::of(0)) return last_error();
    std::lock_guard lock(process->mutex);
    if (process->initialised) return fail(acl::REPEAT_INITIALIZE, "aclInit: already initialised");
    process->initialised = true;
    return 0;
}
aclError aclFinalize() { return finalize("aclFinalize"); }
aclError aclFinalizeReference(uint64_t* count) {
    if (count) *count = 0;
    return finalize("aclFinalizeReference");
}

aclError aclrtGetDeviceCount(uint32_t* count) {
    if (!count) return fail(acl::INVALID_PARAM, "aclrtGetDeviceCount: count is null");
    const int n = Session::count();
    if (n == 0 && !sees_none()) return last_error();
    *count = uint32_t(n);
    return 0;
}
aclError aclrtSetDevice(int32_t device) {
    if (int32_t e = check_device("aclrtSetDevice", device)) return e;
    if (!Session::of(device)) return last_error();
    std::lock_guard lock(process->mutex);
    Device& d = process->devices[device];
    if (!d.primary) d.primary = new_context(device, true);
    d.references++;
    enter(d.primary);
    return 0;
}
aclError aclrtGetDevice(int32_t* device) {
    if (!device) return fail(acl::INVALID_PARAM, "aclrtGetDevice: device is null");
    Context* c = live_context();
    if (!c) return no_context("aclrtGetDevice");
    *device = c->device;
    return 0;
}
aclError aclrtResetDevice(int32_t device) { return reset("aclrtResetDevice", device, false); }
aclError aclrtResetDeviceForce(int32_t device) { return reset("aclrtResetDeviceForce", device, true); }
aclError aclrtGetPrimaryCtxState(int32_t device, uint32_t* flags, int32_t* active) {
    if (int32_t e = check_device("aclrtGetPrimaryCtxState", device)) return e;
    if (flags) *flags = 0;
    std::lock_guard lock(process->mutex);
    if (active) *active = process->devices[device].references > 0 ? 1 : 0;
    return 0;
}

aclError aclrtCreateContext(aclrtContext* context, int32_t device) {
    if (!context) return fail(acl::INVALID_PARAM, "aclrtCreateContext: context is null");
    if (int32_t e = check_device("aclrtCreateContext", device)) return e;
    if (!Session::of(device)) return last_error();
    std::lock_guard lock(process->mutex);
    Context* c = new_context(device, false);
    enter(c);
    *context = c;
    return 0;
}
aclError aclrtDestroyContext(aclrtContext context) {
    auto* c = static_cast<Context*>(context);
    std::vector<uint64_t> streams;
    {
        std::lock_guard lock(process->mutex);
        if (!process->contexts.count(c))
            return fail(acl::RT_INVALID_HANDLE, "aclrtDestroyContext: %p is not a context", context);
        if (c->primary)
            return fail(acl::RT_PARAM_INVALID,
                        "aclrtDestroyContext: the default context of device %d ends with aclrtResetDevice",
                        c->device);
        streams.swap(c->streams);
        end_context(c);
    }
    if (Session* s = Session::opened(c->device)) {
        Channel* channel = s->mine();
        for (uint64_t stream : streams) {
            if (channel && s->streams.remove(stream))
                channel->call(wire::Kind::destroy_stream, wire::StreamOp{stream, -1});
        }
    }
    if (current == c) enter(nullptr);
    return 0;
}
aclError aclrtSetCurrentContext(aclrtContext context) {
    auto* c = static_cast<Context*>(context);
    std::lock_guard lock(process->mutex);
    if (!process->contexts.count(c))
        return fail(acl::RT_INVALID_HANDLE, "aclrtSetCurrentContext: %p is not a context", context);
    enter(c);
    return 0;
}
aclError aclrtGetCurrentContext(aclrtContext* context) {
    if (!context) return fail(acl::INVALID_PARAM, "aclrtGetCurrentContext: context is null");
    Context* c = live_context();
    if (!c) return no_context("aclrtGetCurrentContext");
    *context = c;
    return 0;
}
aclError aclrtCtxGetCurrentDefaultStream(aclrtStream* stream) {
    if (!stream) return fail(acl::INVALID_PARAM, "aclrtCtxGetCurrentDefaultStream: stream is null");
    if (!live_context()) return no_context("aclrtCtxGetCurrentDefaultStream");
    *stream = nullptr;
    return 0;
}

// Peers. Memory of another device is reached by copies, which go through this process; an operator reaches
// its own device's only.

aclError aclrtDeviceCanAccessPeer(int32_t* can, int32_t device, int32_t peer) {
    if (!can) return fail(acl::INVALID_PARAM, "aclrtDeviceCanAccessPeer: the output is null");
    for (int32_t d : {device, peer}) {
        if (int32_t e = check_device("aclrtDeviceCanAccessPeer", d)) return e;
    }
    *can = device != peer ? 1 : 0;
    return 0;
}
aclError aclrtDeviceEnablePeerAccess(int32_t peer, uint32_t) {
    return peer_access("aclrtDeviceEnablePeerAccess", peer, true);
}
aclError aclrtDeviceDisablePeerAccess(int32_t peer) {
    return peer_access("aclrtDeviceDisablePeerAccess", peer, false);
}
aclError aclrtDevicePeerAccessStatus(int32_t device, int32_t peer, int32_t* status) {
    if (!status) return fail(acl::INVALID_PARAM, "aclrtDevicePeerAccessStatus: the output is null");
    for (int32_t d : {device, peer}) {
        if (int32_t e = check_device("aclrtDevicePeerAccessStatus", d)) return e;
    }
    std::lock_guard lock(process->mutex);
    *status = process->peers[device][peer] ? 1 : 0;
    return 0;
}

// The devices' numbers are the program's own, 0 to n - 1, by whichever name it calls them.
aclError aclrtGetLogicDevIdByUserDevId(const int32_t from, int32_t* const to) {
    return same_number("aclrtGetLogicDevIdByUserDevId", from, to);
}
aclError aclrtGetUserDevIdByLogicDevId(const int32_t from, int32_t* const to) {
    return same_number("aclrtGetUserDevIdByLogicDevId", from, to);
}
aclError aclrtGetLogicDevIdByPhyDevId(const int32_t from, int32_t* const to) {
    return same_number("aclrtGetLogicDevIdByPhyDevId", from, to);
}
aclError aclrtGetPhyDevIdByLogicDevId(const int32_t from, int32_t* const to) {
    return same_number("aclrtGetPhyDevIdByLogicDevId", from, to);
}
aclError aclrtGetPhyDevIdByUserDevId(const int32_t from, int32_t* const to) {
    return same_number("aclrtGetPhyDevIdByUserDevId", from, to);
}
aclError aclrtGetUserDevIdByPhyDevId(const int32_t from, int32_t* const to) {
    return same_number("aclrtGetUserDevIdByPhyDevId", from, to);
}

}  // extern "C"
