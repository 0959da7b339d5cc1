// Copies in batches and cache hints.
#include "acl.gen.h"
#include "flexnpu/emulator/kernel.hpp"
#include "flexnpu/emulator/runtime/lookup.hpp"

namespace acl = flexnpu::acl;
using flexnpu::emulator::fail;
using flexnpu::emulator::find_stream;
using flexnpu::emulator::Stream;

namespace {

// One copy after the other: the direction of each follows from its addresses.
aclError copy_batch(const char* function, void** to, size_t* room, void** from, size_t* bytes, size_t n,
                    size_t* failed, bool now, aclrtStream stream) {
    if (to == nullptr || room == nullptr || from == nullptr || bytes == nullptr || n == 0) {
        return fail(acl::INVALID_PARAM, "%s: null pointer, or nothing to copy", function);
    }
    for (size_t i = 0; i < n; i++) {
        const aclError error =
            now ? aclrtMemcpy(to[i], room[i], from[i], bytes[i], acl::MEMCPY_DEFAULT)
                : aclrtMemcpyAsync(to[i], room[i], from[i], bytes[i], acl::MEMCPY_DEFAULT, stream);
        if (error != 0) {
            if (failed != nullptr) {
                *failed = i;
            }
            return error;
        }
    }
    return acl::SUCCESS;
}

}  // namespace

extern "C" {

aclError aclrtMemcpyBatch(void** to, size_t* room, void** from, size_t* bytes, size_t n,
                          aclrtMemcpyBatchAttr*, size_t*, size_t, size_t* failed) {
    return copy_batch("aclrtMemcpyBatch", to, room, from, bytes, n, failed, true, nullptr);
}
aclError aclrtMemcpyBatchAsync(void** to, size_t* room, void** from, size_t* bytes, size_t n,
                               aclrtMemcpyBatchAttr*, size_t*, size_t, size_t* failed, aclrtStream stream) {
    return copy_batch("aclrtMemcpyBatchAsync", to, room, from, bytes, n, failed, false, stream);
}
aclError aclrtMemcpyBatchV2(void** to, size_t* room, void** from, size_t* bytes, size_t n,
                            aclrtMemcpyBatchAttr*, size_t*, size_t) {
    return copy_batch("aclrtMemcpyBatchV2", to, room, from, bytes, n, nullptr, true, nullptr);
}
aclError aclrtMemcpyBatchAsyncV2(void** to, size_t* room, void** from, size_t* bytes, size_t n,
                                 aclrtMemcpyBatchAttr*, size_t*, size_t, aclrtStream stream) {
    return copy_batch("aclrtMemcpyBatchAsyncV2", to, room, from, bytes, n, nullptr, false, stream);
}

// A hint to the cache: it is checked, and changes nothing that the model has (its memory has no cache
// levels).
aclError aclrtCmoAsync(void* address, size_t size, aclrtCmoType, aclrtStream handle) {
    std::shared_ptr<Stream> stream;
    if (int32_t error = find_stream("aclrtCmoAsync", handle, &stream)) {
        return error;
    }
    if (address == nullptr || size == 0) {
        return fail(acl::INVALID_PARAM, "aclrtCmoAsync: null address, or size 0");
    }
    if (!flexnpu_emu_is_device_range(address, size)) {
        return fail(acl::RT_PARAM_INVALID, "aclrtCmoAsync: %p..+%zu is not device memory", address, size);
    }
    return acl::SUCCESS;
}
}
