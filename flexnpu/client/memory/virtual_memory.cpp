// Virtual memory: reserved addresses, physical memory, mapping. The daemon holds both; here is only what the
// process must know itself.
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

// Asks; the answer's word goes to *out, and whom it asked to *asked. Whose an address or a handle is, the
// same answers for it; without one the thread's device does, or any: torch_npu tries whether addresses can be
// reserved before it chooses a device. `at` if a device was named instead.
aclError ask(const wire::VirtualMemory& v, wire::VirtualMemory::Call call, uint64_t* out = nullptr,
             Session** asked = nullptr, Session* at = nullptr) {
    const uint64_t named = v.address ? v.address : v.handle;
    Session* holder = at ? at : named ? Session::holder(named) : Session::any();
    Channel* c = holder ? holder->mine() : Session::any_channel();
    if (aclError e = flexnpu::client::question(c, wire::Kind::virtual_memory, v, call)) return e;
    if (out) *out = c->words()[0];
    if (asked) *asked = &c->session();
    return 0;
}

aclError check(const char* function, const aclrtPhysicalMemProp* p, wire::VirtualMemory* v) {
    if (!p) return fail(acl::INVALID_PARAM, "%s: the properties are null", function);
    if (p->location.type != acl::LOCATION_DEVICE) {
        return fail(acl::API_NOT_SUPPORTED, "%s: location type %d: FlexNPU interposes device memory only",
                    function, p->location.type);
    }
    v->memory = p->memory;
    v->handle_type = p->handle_type;
    v->allocation_type = p->allocation_type;
    return 0;
}

aclError reserve(const char* function, void** p, size_t bytes, size_t alignment, uint64_t flags) {
    if (!p || bytes == 0) return fail(acl::INVALID_PARAM, "%s: the output is null, or size 0", function);
    *p = nullptr;
    // What the vendor reserves is aligned to its granularity; CANN asks for 0 here.
    if (alignment > (size_t(2) << 20) || (alignment & (alignment - 1)) != 0)
        return fail(acl::RT_PARAM_INVALID, "%s: alignment %zu", function, alignment);
    wire::VirtualMemory v{};
    v.bytes = bytes;
    v.flags = flags;
    uint64_t address = 0;
    Session* asked = nullptr;
    if (aclError e = ask(v, wire::VirtualMemory::Call::reserve, &address, &asked)) return e;
    *p = reinterpret_cast<void*>(address | asked->tag());
    return 0;
}

// Whether all of it is virtual memory with something behind; *holder is whose.
aclError check_mapped(const void* p, size_t bytes, Session** holder) {
    wire::VirtualMemory v{};
    v.address = number(p);
    v.bytes = bytes;
    return ask(v, wire::VirtualMemory::Call::mapped, nullptr, holder);
}

bool is_of(const aclrtMemLocation& location, const Session& s) {
    return location.type == acl::LOCATION_DEVICE && location.id == uint32_t(s.device());
}

}  // namespace

extern "C" {

aclError aclrtReserveMemAddress(void** p, size_t bytes, size_t alignment, void*, uint64_t flags) {
    return reserve("aclrtReserveMemAddress", p, bytes, alignment, flags);
}
aclError aclrtReserveMemAddressNoUCMemory(void** p, size_t bytes, size_t alignment, void*, uint64_t flags) {
    return reserve("aclrtReserveMemAddressNoUCMemory", p, bytes, alignment, flags);
}
aclError aclrtReleaseMemAddress(void* p) {
    wire::VirtualMemory v{};
    v.address = number(p);
    return ask(v, wire::VirtualMemory::Call::release);
}

aclError aclrtMallocPhysical(aclrtDrvMemHandle* handle, size_t bytes, const aclrtPhysicalMemProp* properties,
                             uint64_t flags) {
    if (!handle || bytes == 0)
        return fail(acl::INVALID_PARAM, "aclrtMallocPhysical: the output is null, or size 0");
    *handle = nullptr;
    wire::VirtualMemory v{};
    if (aclError e = check("aclrtMallocPhysical", properties, &v)) return e;
    v.bytes = bytes;
    v.flags = flags;
    // The location's device, whichever the thread's is.
    const uint32_t device = properties->location.id;
    const int n = Session::count();
    if (device >= uint32_t(n)) {
        return fail(acl::RT_INVALID_DEVICE,
                    "aclrtMallocPhysical: device %u does not exist: FlexNPU serves %d here", device, n);
    }
    Session* at = Session::of(int(device));
    if (!at) return flexnpu::client::last_error();
    uint64_t out = 0;
    if (aclError e = ask(v, wire::VirtualMemory::Call::allocate, &out, nullptr, at)) return e;
    *handle = reinterpret_cast<aclrtDrvMemHandle>(out);
    return 0;
}
aclError aclrtFreePhysical(aclrtDrvMemHandle handle) {
    wire::VirtualMemory v{};
    v.handle = number(handle);
    return ask(v, wire::VirtualMemory::Call::free);
}

aclError aclrtMapMem(void* p, size_t bytes, size_t offset, aclrtDrvMemHandle handle, uint64_t flags) {
    wire::VirtualMemory v{};
    v.address = number(p);
    v.bytes = bytes;
    v.offset = offset;
    v.handle = number(handle);
    v.flags = flags;
    Session* asked = nullptr;
    if (aclError e = ask(v, wire::VirtualMemory::Call::map, nullptr, &asked)) return e;
    asked->memory.add({number(p), bytes});
    return 0;
}
aclError aclrtUnmapMem(void* p) {
    wire::VirtualMemory v{};
    v.address = number(p);
    // Before the daemon unmaps: another thread may map there as soon as it has.
    Session* holder = Session::holder(number(p));
    DeviceRange range;
    const bool known = holder && holder->memory.remove(number(p), &range);
    const aclError e = ask(v, wire::VirtualMemory::Call::unmap);
    if (e && known) holder->memory.add(range);
    return e;
}

aclError aclrtMemRetainAllocationHandle(void* p, aclrtDrvMemHandle* handle) {
    if (!handle) return fail(acl::INVALID_PARAM, "aclrtMemRetainAllocationHandle: the output is null");
    *handle = nullptr;
    wire::VirtualMemory v{};
    v.address = number(p);
    uint64_t out = 0;
    if (aclError e = ask(v, wire::VirtualMemory::Call::retain, &out)) return e;
    *handle = reinterpret_cast<aclrtDrvMemHandle>(out);
    return 0;
}

// The device of the memory reads and writes all that is mapped: there is nothing to change, and no daemon
// reaches another's device.
aclError aclrtMemSetAccess(void* p, size_t bytes, aclrtMemAccessDesc* wanted, size_t n) {
    if (!wanted || n == 0 || bytes == 0)
        return fail(acl::INVALID_PARAM, "aclrtMemSetAccess: the list is null or empty, or size 0");
    Session* holder = nullptr;
    if (aclError e = check_mapped(p, bytes, &holder)) return e;
    for (size_t i = 0; i < n; i++) {
        if (!is_of(wanted[i].location, *holder)) {
            return fail(acl::API_NOT_SUPPORTED,
                        "aclrtMemSetAccess: location type %d, %u: memory is for the device that has it",
                        wanted[i].location.type, wanted[i].location.id);
        }
        if (wanted[i].access != acl::ACCESS_READ_WRITE) {
            return fail(acl::API_NOT_SUPPORTED,
                        "aclrtMemSetAccess: access %d: a device reads and writes all that is mapped",
                        wanted[i].access);
        }
    }
    return 0;
}
aclError aclrtMemGetAccess(void* p, aclrtMemLocation* location, uint64_t* access) {
    if (!location || !access) return fail(acl::INVALID_PARAM, "aclrtMemGetAccess: an argument is null");
    Session* holder = nullptr;
    if (aclError e = check_mapped(p, 1, &holder)) return e;
    *access = is_of(*location, *holder) ? acl::ACCESS_READ_WRITE : acl::ACCESS_NONE;
    return 0;
}

aclError aclrtMemGetAllocationGranularity(aclrtPhysicalMemProp* properties, aclrtMemGranularityOptions option,
                                          size_t* granularity) {
    if (!granularity) return fail(acl::INVALID_PARAM, "aclrtMemGetAllocationGranularity: the output is null");
    wire::VirtualMemory v{};
    if (aclError e = check("aclrtMemGetAllocationGranularity", properties, &v)) return e;
    v.option = option;
    uint64_t out = 0;
    if (aclError e = ask(v, wire::VirtualMemory::Call::granularity, &out)) return e;
    *granularity = out;
    return 0;
}

aclError aclrtMemGetAddressRange(void* p, void** base, size_t* bytes) {
    Session* s = Session::holder(number(p));
    DeviceRange range;
    if (!s || !s->memory.find(number(p), &range))
        return fail(acl::RT_PARAM_INVALID, "aclrtMemGetAddressRange: %p is not device memory", p);
    if (base) *base = reinterpret_cast<void*>(range.address);
    if (bytes) *bytes = range.bytes;
    return 0;
}

}  // extern "C"
