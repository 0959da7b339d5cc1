// The daemon's end of the functions of class `forward` (generated: daemon_handlers.gen.cpp).
#pragma once

#include <cstdint>

#include "acl.gen.h"
#include "fn_ids.gen.h"

namespace flexnpu::api {

// Which argument of a forwarded function is a device's number as the program counts, or -1.
constexpr int device_argument(uint16_t function) {
    switch (function) {
        case FN_aclGetDeviceCapability:
        case FN_aclrtDeviceGetUuid:
        case FN_aclrtGetDeviceInfo:
        case FN_aclrtGetDeviceResLimit:
        case FN_aclrtGetDeviceUtilizationRate:
        case FN_aclrtQueryDeviceStatus:
        case FN_aclrtResetDeviceResLimit:
        case FN_aclrtSetDeviceResLimit: return 0;
        default: return -1;
    }
}

// What a generated handler needs of the session that called.
class ForwardContext {
public:
    virtual ~ForwardContext() = default;
    // The vendor's stream behind a client's handle; false if the session holds no such stream.
    virtual bool stream(uint64_t handle, void** vendor_stream) = 0;
    // The vendor's function, or null where this CANN lacks it.
    virtual void* vendor(FnId fn) = 0;
};

// Calls the vendor's function `fn` with the words `in`; writes the words of its outputs to `out` (`written`
// tells how many). Returns the vendor's ACL error, or INVALID_PARAM for a malformed call, RT_INVALID_HANDLE
// for a foreign stream, API_NOT_SUPPORTED for a function of another class or one that the vendor lacks.
aclError handle_forward(uint16_t fn, const uint64_t* in, uint32_t in_words, uint64_t* out, uint32_t out_words,
                        uint32_t* written, ForwardContext& ctx);

}  // namespace flexnpu::api
