// Device memory and host memory.
#include <sys/mman.h>
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "acl.gen.h"
#include "flexnpu/emulator/runtime/lookup.hpp"
#include "flexnpu/emulator/runtime/runtime.hpp"

// Answer of aclrtPointerGetAttributes.
struct aclrtPtrAttributes {
    aclrtMemLocation location;
    uint32_t page_size;
    uint32_t reserved[4];
};

namespace emu = flexnpu::emulator;
namespace acl = flexnpu::acl;
using emu::append;
using emu::fail;
using emu::find_stream;
using emu::Runtime;

namespace {

enum : int32_t { kLocationHost = 0, kLocationDevice = 1, kLocationUnregistered = 2 };
constexpr size_t kHostAlignment = 4096;

int32_t allocate(const char* function, void** p, size_t size) {
    if (p == nullptr) {
        return fail(acl::INVALID_PARAM, "%s: the output is null", function);
    }
    *p = nullptr;
    if (size == 0) {
        return fail(acl::INVALID_PARAM, "%s: a size of 0", function);
    }
    auto context = Runtime::get().current_context();
    if (!context) {
        return fail(acl::RT_CONTEXT_NULL, "%s: this thread has no device: call aclrtSetDevice first",
                    function);
    }
    *p = context->device->memory.allocate(size);
    if (*p == nullptr) {
        emu::SharedDevice& shared = context->device->shared;
        uint64_t used = shared.used();
        return fail(acl::RT_MEMORY_ALLOCATION,
                    "%s: device %d is out of memory: %zu bytes asked for, %llu of %llu bytes are free",
                    function, context->device->index, size,
                    static_cast<unsigned long long>(shared.capacity() - std::min(used, shared.capacity())),
                    static_cast<unsigned long long>(shared.capacity()));
    }
    return acl::SUCCESS;
}

int32_t release(const char* function, void* p) {
    if (p == nullptr) {
        return fail(acl::INVALID_PARAM, "%s: null pointer", function);
    }
    auto device = Runtime::get().owner(p);
    if (!device || !device->memory.release(p)) {
        return fail(acl::RT_PARAM_INVALID, "%s: %p is not an allocation of device memory", function, p);
    }
    return acl::SUCCESS;
}

}  // namespace

extern "C" {

aclError aclrtMalloc(void** p, size_t size, aclrtMemMallocPolicy) { return allocate("aclrtMalloc", p, size); }
aclError aclrtMallocAlign32(void** p, size_t size, aclrtMemMallocPolicy) {
    return allocate("aclrtMallocAlign32", p, size);
}
aclError aclrtMallocCached(void** p, size_t size, aclrtMemMallocPolicy) {
    return allocate("aclrtMallocCached", p, size);
}
aclError aclrtMallocWithCfg(void** p, size_t size, aclrtMemMallocPolicy, aclrtMallocConfig*) {
    return allocate("aclrtMallocWithCfg", p, size);
}
aclError aclrtMallocForTaskScheduler(void** p, size_t size, aclrtMemMallocPolicy, aclrtMallocConfig*) {
    return allocate("aclrtMallocForTaskScheduler", p, size);
}
aclError aclrtFree(void* p) { return release("aclrtFree", p); }
aclError aclrtFreeWithDevSync(void* p) {
    auto device = Runtime::get().owner(p);
    if (device) {
        for (const auto& stream : Runtime::get().streams(device->index)) {
            stream->synchronize(std::nullopt);
        }
    }
    return release("aclrtFreeWithDevSync", p);
}
aclError aclrtMemFlush(void*, size_t) { return acl::SUCCESS; }
aclError aclrtMemInvalidate(void*, size_t) { return acl::SUCCESS; }

aclError aclrtMemGetAddressRange(void* p, void** base, size_t* size) {
    auto block = Runtime::get().device_block(p);
    if (!block) {
        return fail(acl::RT_PARAM_INVALID, "aclrtMemGetAddressRange: %p is not device memory", p);
    }
    if (base != nullptr) {
        *base = block->base;
    }
    if (size != nullptr) {
        *size = block->size;
    }
    return acl::SUCCESS;
}

aclError aclrtGetMemInfo(aclrtMemAttr attribute, size_t* free, size_t* total) {
    if (free == nullptr || total == nullptr) {
        return fail(acl::INVALID_PARAM, "aclrtGetMemInfo: an output is null");
    }
    auto context = Runtime::get().current_context();
    if (!context) {
        return fail(acl::RT_CONTEXT_NULL, "aclrtGetMemInfo: this thread has no device");
    }
    *free = *total = 0;
    if (attribute == acl::MEM_HBM || attribute == acl::MEM_HBM_HUGE || attribute == acl::MEM_HBM_NORMAL) {
        emu::SharedDevice& shared = context->device->shared;
        *total = shared.capacity();
        *free = *total - std::min(shared.used(), shared.capacity());
    }
    return acl::SUCCESS;
}

aclError aclrtMallocHost(void** p, size_t size) {
    if (p == nullptr || size == 0) {
        return fail(acl::INVALID_PARAM, "aclrtMallocHost: the output is null or the size 0");
    }
    *p = std::aligned_alloc(kHostAlignment, (size + kHostAlignment - 1) / kHostAlignment * kHostAlignment);
    if (*p == nullptr) {
        return fail(acl::RT_MEMORY_ALLOCATION, "aclrtMallocHost: no host memory for %zu bytes", size);
    }
    Runtime::get().add_host(*p, size, true);
    return acl::SUCCESS;
}
aclError aclrtMallocHostWithCfg(void** p, uint64_t size, aclrtMallocConfig*) {
    return aclrtMallocHost(p, size);
}

aclError aclrtFreeHost(void* p) {
    if (p == nullptr || !Runtime::get().remove_host(p, true)) {
        return fail(acl::RT_PARAM_INVALID, "aclrtFreeHost: %p is not from aclrtMallocHost", p);
    }
    std::free(p);
    return acl::SUCCESS;
}
aclError aclrtFreeHostWithDevSync(void* p) {
    for (const auto& stream : Runtime::get().streams(-1)) {
        stream->synchronize(std::nullopt);
    }
    return aclrtFreeHost(p);
}

aclError aclrtHostRegister(void* p, uint64_t size, aclrtHostRegisterType, void** device_pointer) {
    if (p == nullptr || size == 0) {
        return fail(acl::INVALID_PARAM, "aclrtHostRegister: the address is null or the size 0");
    }
    if (Runtime::get().is_device_address(p) || Runtime::get().knows_host(p)) {
        return fail(acl::RT_PARAM_INVALID, "aclrtHostRegister: %p is registered already or device memory", p);
    }
    Runtime::get().add_host(p, size, false);
    if (device_pointer != nullptr) {
        *device_pointer = p;
    }
    return acl::SUCCESS;
}
aclError aclrtHostRegisterV2(void* p, uint64_t size, uint32_t) {
    return aclrtHostRegister(p, size, 0, nullptr);
}
aclError aclrtHostUnregister(void* p) {
    if (p == nullptr) {
        return fail(acl::INVALID_PARAM, "aclrtHostUnregister: null pointer");
    }
    if (!Runtime::get().remove_host(p, false)) {
        return fail(acl::RT_PARAM_INVALID, "aclrtHostUnregister: %p is not registered", p);
    }
    return acl::SUCCESS;
}
aclError aclrtHostGetDevicePointer(void* p, void** device_pointer, uint32_t) {
    if (device_pointer == nullptr || !Runtime::get().knows_host(p)) {
        return fail(acl::RT_PARAM_INVALID, "aclrtHostGetDevicePointer: %p is not registered", p);
    }
    *device_pointer = p;
    return acl::SUCCESS;
}

aclError aclrtPointerGetAttributes(const void* p, aclrtPtrAttributes* attributes) {
    if (p == nullptr || attributes == nullptr) {
        return fail(acl::INVALID_PARAM, "aclrtPointerGetAttributes: an argument is null");
    }
    *attributes = {};
    auto device = Runtime::get().owner(p);
    if (device && Runtime::get().device_block(p)) {
        attributes->location = {uint32_t(device->index), kLocationDevice};
        attributes->page_size = uint32_t(emu::Arena::kPage);
    } else if (Runtime::get().knows_host(p)) {
        attributes->location = {0, kLocationHost};
        attributes->page_size = kHostAlignment;
    } else {
        attributes->location = {0, kLocationUnregistered};
    }
    return acl::SUCCESS;
}
}
