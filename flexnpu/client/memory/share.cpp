// Memory shared between programs: export keys, shareable handles. The daemon keeps both; nothing is copied.
#include <cstring>

#include "acl.gen.h"
#include "flexnpu/client/memory/question.hpp"

namespace acl = flexnpu::acl;
namespace wire = flexnpu::wire;
using flexnpu::client::Channel;
using flexnpu::client::DeviceRange;
using flexnpu::client::fail;
using flexnpu::client::number;
using flexnpu::client::Session;

namespace {

// Asks; the answer's words stay in the channel. Whose the address or the handle `named` is, the same answers
// for it; without one, and for keys, the thread's device does.
aclError ask(const wire::Share& w, wire::Share::Call call, Channel** channel, uint64_t named = 0) {
    Session* holder = named ? Session::holder(named) : nullptr;
    *channel = holder ? holder->mine() : Session::channel();
    return flexnpu::client::question(*channel, wire::Kind::share, w, call);
}

aclError take_key(const char* function, const char* key, wire::Share* w) {
    if (!key) return fail(acl::INVALID_PARAM, "%s: the key is null", function);
    const size_t n = strnlen(key, sizeof(w->key) + 1);
    if (n > sizeof(w->key)) return fail(acl::RT_PARAM_INVALID, "%s: not a key of this device", function);
    std::memcpy(w->key, key, n);
    return 0;
}

// In as many messages as the list needs.
aclError allow(const char* function, wire::Share w, wire::Share::Call call, const int32_t* processes,
               size_t n) {
    if (!processes || n == 0)
        return fail(acl::INVALID_PARAM, "%s: the list of processes is null or empty", function);
    for (size_t done = 0; done < n; done += w.count) {
        w.count = uint32_t(std::min<size_t>(n - done, wire::Share::kProcesses));
        std::memcpy(w.processes, processes + done, w.count * sizeof(int32_t));
        Channel* c = nullptr;
        if (aclError e = ask(w, call, &c)) return e;
    }
    return 0;
}

aclError export_physical(const char* function, aclrtDrvMemHandle handle, uint64_t flags, uint64_t* out) {
    if (!out) return fail(acl::INVALID_PARAM, "%s: the output is null", function);
    wire::Share w{};
    w.handle = number(handle);
    w.flags = flags;
    Channel* c = nullptr;
    if (aclError e = ask(w, wire::Share::Call::export_physical, &c, w.handle)) return e;
    *out = c->words()[0];
    return 0;
}

aclError import_physical(const char* function, uint64_t shareable, aclrtDrvMemHandle* out) {
    if (!out) return fail(acl::INVALID_PARAM, "%s: the output is null", function);
    wire::Share w{};
    w.handle = shareable;
    Channel* c = nullptr;
    if (aclError e = ask(w, wire::Share::Call::import_physical, &c)) return e;
    *out = reinterpret_cast<aclrtDrvMemHandle>(c->words()[0]);
    return 0;
}

// The second versions also serve handles between hosts, which one daemon cannot.
aclError check_type(const char* function, aclrtMemSharedHandleType type, const void* handle) {
    if (!handle) return fail(acl::INVALID_PARAM, "%s: the handle is null", function);
    if (type == acl::SHARE_FABRIC)
        return fail(acl::API_NOT_SUPPORTED, "%s: FlexNPU does not share memory between hosts", function);
    return type == acl::SHARE_DEFAULT ? 0 : fail(acl::RT_PARAM_INVALID, "%s: handle type %d", function, type);
}

}  // namespace

extern "C" {

aclError aclrtIpcMemGetExportKey(void* p, size_t bytes, char* key, size_t room, uint64_t flags) {
    if (!key || room < sizeof(wire::Share::key) + 1) {
        return fail(acl::INVALID_PARAM, "aclrtIpcMemGetExportKey: a key needs %zu bytes",
                    sizeof(wire::Share::key) + 1);
    }
    wire::Share w{};
    w.address = number(p);
    w.bytes = bytes;
    w.flags = flags;
    Channel* c = nullptr;
    if (aclError e = ask(w, wire::Share::Call::export_memory, &c, w.address)) return e;
    std::memcpy(key, c->words(), sizeof(w.key));
    key[sizeof(w.key)] = '\0';
    return 0;
}
aclError aclrtIpcMemSetImportPid(const char* key, int32_t* processes, size_t n) {
    wire::Share w{};
    if (aclError e = take_key("aclrtIpcMemSetImportPid", key, &w)) return e;
    return allow("aclrtIpcMemSetImportPid", w, wire::Share::Call::allow_memory, processes, n);
}
aclError aclrtIpcMemImportByKey(void** p, const char* key, uint64_t) {
    if (!p) return fail(acl::INVALID_PARAM, "aclrtIpcMemImportByKey: the output is null");
    *p = nullptr;
    wire::Share w{};
    if (aclError e = take_key("aclrtIpcMemImportByKey", key, &w)) return e;
    Channel* c = nullptr;
    if (aclError e = ask(w, wire::Share::Call::import_memory, &c)) return e;
    const DeviceRange range{c->words()[0] | c->session().tag(), c->words()[1]};
    DeviceRange known;
    if (!c->session().memory.find(range.address, &known)) c->session().memory.add(range);
    *p = reinterpret_cast<void*>(range.address);
    return 0;
}
aclError aclrtIpcMemClose(const char* key) {
    wire::Share w{};
    if (aclError e = take_key("aclrtIpcMemClose", key, &w)) return e;
    Channel* c = nullptr;
    if (aclError e = ask(w, wire::Share::Call::close_memory, &c)) return e;
    DeviceRange range;
    if (const uint64_t address = c->words()[0])
        c->session().memory.remove(address | c->session().tag(), &range);
    return 0;
}

aclError aclrtMemExportToShareableHandle(aclrtDrvMemHandle handle, aclrtMemHandleType, uint64_t flags,
                                         uint64_t* shareable) {
    return export_physical("aclrtMemExportToShareableHandle", handle, flags, shareable);
}
aclError aclrtMemExportToShareableHandleV2(aclrtDrvMemHandle handle, uint64_t flags,
                                           aclrtMemSharedHandleType type, void* shareable) {
    if (aclError e = check_type("aclrtMemExportToShareableHandleV2", type, shareable)) return e;
    return export_physical("aclrtMemExportToShareableHandleV2", handle, flags,
                           static_cast<uint64_t*>(shareable));
}
aclError aclrtMemSetPidToShareableHandle(uint64_t shareable, int32_t* processes, size_t n) {
    wire::Share w{};
    w.handle = shareable;
    return allow("aclrtMemSetPidToShareableHandle", w, wire::Share::Call::allow_physical, processes, n);
}
aclError aclrtMemSetPidToShareableHandleV2(void* shareable, aclrtMemSharedHandleType type, int32_t* processes,
                                           size_t n) {
    if (aclError e = check_type("aclrtMemSetPidToShareableHandleV2", type, shareable)) return e;
    wire::Share w{};
    w.handle = *static_cast<uint64_t*>(shareable);
    return allow("aclrtMemSetPidToShareableHandleV2", w, wire::Share::Call::allow_physical, processes, n);
}
aclError aclrtMemImportFromShareableHandle(uint64_t shareable, int32_t, aclrtDrvMemHandle* handle) {
    return import_physical("aclrtMemImportFromShareableHandle", shareable, handle);
}
aclError aclrtMemImportFromShareableHandleV2(void* shareable, aclrtMemSharedHandleType type, uint64_t,
                                             aclrtDrvMemHandle* handle) {
    if (aclError e = check_type("aclrtMemImportFromShareableHandleV2", type, shareable)) return e;
    return import_physical("aclrtMemImportFromShareableHandleV2", *static_cast<uint64_t*>(shareable), handle);
}

// The handle's 64 bytes are the key's.
aclError aclrtIpcGetEventHandle(aclrtEvent event, aclrtIpcEventHandle* handle) {
    if (!handle) return fail(acl::INVALID_PARAM, "aclrtIpcGetEventHandle: the output is null");
    wire::Share w{};
    w.handle = number(event);
    Channel* c = nullptr;
    if (aclError e = ask(w, wire::Share::Call::export_event, &c, w.handle)) return e;
    std::memcpy(handle->bytes, c->words(), sizeof(handle->bytes));
    return 0;
}
aclError aclrtIpcOpenEventHandle(aclrtIpcEventHandle handle, aclrtEvent* event) {
    if (!event) return fail(acl::INVALID_PARAM, "aclrtIpcOpenEventHandle: the output is null");
    *event = nullptr;
    Channel* c = Session::channel();
    if (!c) return flexnpu::client::last_error();
    Session& s = c->session();
    wire::Share w{};
    std::memcpy(w.key, handle.bytes, sizeof(w.key));
    w.handle = s.event_numbers.take();
    if (!w.handle) return fail(acl::RT_MEMORY_ALLOCATION, "aclrtIpcOpenEventHandle: too many events");
    if (aclError e = ask(w, wire::Share::Call::open_event, &c)) {
        s.event_numbers.give_back(w.handle);
        return e;
    }
    s.events.add(w.handle);
    *event = reinterpret_cast<aclrtEvent>(w.handle);
    return 0;
}

}  // extern "C"
