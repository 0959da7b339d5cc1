// Virtual memory: reserved addresses, physical memory, mapping one into the other.
#include "acl.gen.h"
#include "flexnpu/emulator/runtime/lookup.hpp"
#include "flexnpu/emulator/runtime/runtime.hpp"

namespace emu = flexnpu::emulator;
namespace acl = flexnpu::acl;
using emu::Arena;
using emu::fail;
using emu::PhysicalMemory;
using emu::Runtime;
using Answer = emu::AddressSpace::Answer;

namespace {

// Two million reservations' worth of addresses: a program that asks for more is wrong, not large.
constexpr uint64_t kMostReserved = uint64_t(1) << 44;

int32_t physical(const char* function, aclrtDrvMemHandle handle, std::shared_ptr<PhysicalMemory>* memory) {
    *memory = Runtime::get().physical_memory.get(handle);
    if (!*memory) {
        return fail(acl::RT_INVALID_HANDLE, "%s: %p is not a handle of physical memory", function, handle);
    }
    return acl::SUCCESS;
}

int32_t check_properties(const char* function, const aclrtPhysicalMemProp* properties) {
    if (properties == nullptr) {
        return fail(acl::INVALID_PARAM, "%s: the properties are null", function);
    }
    if (properties->location.type != acl::LOCATION_DEVICE) {
        return fail(acl::API_NOT_SUPPORTED,
                    "%s: location type %d: the emulated device has device memory only", function,
                    properties->location.type);
    }
    return acl::SUCCESS;
}

int32_t reserve(const char* function, void** p, size_t size, size_t alignment, void* hint, uint64_t flags) {
    if (p == nullptr || size == 0 || size > kMostReserved) {
        return fail(acl::INVALID_PARAM, "%s: the output is null, or %zu bytes", function, size);
    }
    *p = nullptr;
    if (flags > 1 || (alignment != 0 && Arena::kGranularity % alignment != 0)) {
        return fail(acl::RT_PARAM_INVALID, "%s: flags 0x%llx, alignment %zu", function,
                    static_cast<unsigned long long>(flags), alignment);
    }
    *p = Runtime::get().addresses.reserve(size, hint);
    if (*p == nullptr) {
        return fail(acl::RT_MEMORY_ALLOCATION, "%s: no room for %zu bytes of addresses", function, size);
    }
    return acl::SUCCESS;
}

int32_t answer(const char* function, Answer result, void* p) {
    switch (result) {
        case Answer::Done: return acl::SUCCESS;
        case Answer::Unknown:
            return fail(acl::RT_PARAM_INVALID, "%s: %p is not reserved, or not mapped", function, p);
        case Answer::Busy:
            return fail(acl::RT_PARAM_INVALID, "%s: memory is mapped at %p already", function, p);
        case Answer::OutOfRange: return fail(acl::RT_PARAM_INVALID, "%s: more than the memory has", function);
        case Answer::NoRoom: break;
    }
    return fail(acl::RT_MEMORY_ALLOCATION, "%s: the host cannot map %p (see vm.max_map_count)", function, p);
}

}  // namespace

extern "C" {

aclError aclrtReserveMemAddress(void** p, size_t size, size_t alignment, void* hint, uint64_t flags) {
    return reserve("aclrtReserveMemAddress", p, size, alignment, hint, flags);
}
aclError aclrtReserveMemAddressNoUCMemory(void** p, size_t size, size_t alignment, void* hint,
                                          uint64_t flags) {
    return reserve("aclrtReserveMemAddressNoUCMemory", p, size, alignment, hint, flags);
}
aclError aclrtReleaseMemAddress(void* p) {
    return answer("aclrtReleaseMemAddress", Runtime::get().addresses.release(p), p);
}

aclError aclrtMemGetAllocationGranularity(aclrtPhysicalMemProp* properties, aclrtMemGranularityOptions option,
                                          size_t* granularity) {
    if (int32_t error = check_properties("aclrtMemGetAllocationGranularity", properties)) {
        return error;
    }
    if (granularity == nullptr || option < acl::GRANULARITY_MINIMUM ||
        option > acl::GRANULARITY_RECOMMENDED) {
        return fail(acl::INVALID_PARAM, "aclrtMemGetAllocationGranularity: the output is null, or option %d",
                    option);
    }
    *granularity = Arena::kGranularity;
    return acl::SUCCESS;
}

aclError aclrtMallocPhysical(aclrtDrvMemHandle* handle, size_t size, const aclrtPhysicalMemProp* properties,
                             uint64_t flags) {
    if (int32_t error = check_properties("aclrtMallocPhysical", properties)) {
        return error;
    }
    if (handle == nullptr || flags != 0 || size == 0 || size % Arena::kGranularity != 0) {
        return fail(
            acl::RT_PARAM_INVALID,
            "aclrtMallocPhysical: the output is null, or flags 0x%llx, or %zu bytes, not a multiple of %llu",
            static_cast<unsigned long long>(flags), size,
            static_cast<unsigned long long>(Arena::kGranularity));
    }
    *handle = nullptr;
    // The device of the properties may be another than the thread's.
    auto device = Runtime::get().open_device(int32_t(properties->location.id));
    if (!device) {
        return acl::RT_INVALID_DEVICE;
    }
    auto memory = PhysicalMemory::allocate(device, size);
    if (!memory) {
        return fail(acl::RT_MEMORY_ALLOCATION,
                    "aclrtMallocPhysical: device %d is out of memory: %zu bytes asked for", device->index,
                    size);
    }
    *handle = Runtime::get().physical_memory.add(std::move(memory));
    return *handle != nullptr ? int32_t(acl::SUCCESS)
                              : fail(acl::RT_INTERNAL, "aclrtMallocPhysical: no more handles");
}

aclError aclrtFreePhysical(aclrtDrvMemHandle handle) {
    std::shared_ptr<PhysicalMemory> memory;
    if (int32_t error = physical("aclrtFreePhysical", handle, &memory)) {
        return error;
    }
    // The last handle may not go before the mappings do; one of several may.
    if (!Runtime::get().physical_memory.has_another(handle) &&
        Runtime::get().addresses.is_mapped(memory.get())) {
        return fail(acl::RT_PARAM_INVALID,
                    "aclrtFreePhysical: the memory is still mapped: call aclrtUnmapMem first");
    }
    Runtime::get().physical_memory.remove(handle);
    return acl::SUCCESS;
}

aclError aclrtMapMem(void* p, size_t size, size_t offset, aclrtDrvMemHandle handle, uint64_t flags) {
    std::shared_ptr<PhysicalMemory> memory;
    if (int32_t error = physical("aclrtMapMem", handle, &memory)) {
        return error;
    }
    if (flags != 0 || (reinterpret_cast<uint64_t>(p) | size | offset) % Arena::kGranularity != 0) {
        return fail(acl::RT_PARAM_INVALID, "aclrtMapMem: flags, or %p, %zu or %zu not a multiple of %llu", p,
                    size, offset, static_cast<unsigned long long>(Arena::kGranularity));
    }
    return answer("aclrtMapMem", Runtime::get().addresses.map(p, size, offset, std::move(memory)), p);
}

aclError aclrtUnmapMem(void* p) { return answer("aclrtUnmapMem", Runtime::get().addresses.unmap(p), p); }

aclError aclrtMemRetainAllocationHandle(void* p, aclrtDrvMemHandle* handle) {
    if (handle == nullptr) {
        return fail(acl::INVALID_PARAM, "aclrtMemRetainAllocationHandle: the output is null");
    }
    *handle = nullptr;
    auto memory = Runtime::get().addresses.mapped_at(p);
    if (!memory) {
        return fail(acl::RT_PARAM_INVALID, "aclrtMemRetainAllocationHandle: nothing is mapped at %p", p);
    }
    *handle = Runtime::get().physical_memory.add(std::move(memory));
    return *handle != nullptr ? int32_t(acl::SUCCESS)
                              : fail(acl::RT_INTERNAL, "aclrtMemRetainAllocationHandle: no more handles");
}

aclError aclrtMemSetAccess(void* p, size_t size, aclrtMemAccessDesc* wanted, size_t n) {
    if (wanted == nullptr || n == 0 || size == 0) {
        return fail(acl::INVALID_PARAM, "aclrtMemSetAccess: the list is null or empty, or size 0");
    }
    auto memory = Runtime::get().addresses.mapped_at(p);
    if (!memory || !Runtime::get().addresses.contains_range(p, size)) {
        return fail(acl::RT_PARAM_INVALID, "aclrtMemSetAccess: not all of %p (%zu bytes) is mapped", p, size);
    }
    for (size_t i = 0; i < n; ++i) {
        const aclrtMemLocation& location = wanted[i].location;
        if (location.type != acl::LOCATION_DEVICE || int32_t(location.id) != memory->device->index) {
            return fail(acl::API_NOT_SUPPORTED,
                        "aclrtMemSetAccess: location type %d, %u: the emulated device's memory is for itself",
                        location.type, location.id);
        }
        if (wanted[i].access != acl::ACCESS_READ_WRITE) {
            return fail(acl::API_NOT_SUPPORTED,
                        "aclrtMemSetAccess: access %d: a device reads and writes all that is mapped",
                        wanted[i].access);
        }
    }
    return acl::SUCCESS;
}
aclError aclrtMemGetAccess(void* p, aclrtMemLocation* location, uint64_t* access) {
    if (location == nullptr || access == nullptr) {
        return fail(acl::INVALID_PARAM, "aclrtMemGetAccess: an argument is null");
    }
    auto memory = Runtime::get().addresses.mapped_at(p);
    if (!memory) {
        return fail(acl::RT_PARAM_INVALID, "aclrtMemGetAccess: nothing is mapped at %p", p);
    }
    const bool own = location->type == acl::LOCATION_DEVICE && int32_t(location->id) == memory->device->index;
    *access = own ? acl::ACCESS_READ_WRITE : acl::ACCESS_NONE;
    return acl::SUCCESS;
}

aclError aclrtMemGetAllocationPropertiesFromHandle(aclrtDrvMemHandle handle,
                                                   aclrtPhysicalMemProp* properties) {
    std::shared_ptr<PhysicalMemory> memory;
    if (int32_t error = physical("aclrtMemGetAllocationPropertiesFromHandle", handle, &memory)) {
        return error;
    }
    if (properties == nullptr) {
        return fail(acl::INVALID_PARAM, "aclrtMemGetAllocationPropertiesFromHandle: the output is null");
    }
    *properties = {};
    properties->memory = acl::MEM_HBM_HUGE;
    properties->location = {uint32_t(memory->device->index), acl::LOCATION_DEVICE};
    return acl::SUCCESS;
}
}
