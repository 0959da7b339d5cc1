#include "flexnpu/client/memory/peer.hpp"

#include <algorithm>
#include <memory>

#include "flexnpu/client/error.hpp"

namespace flexnpu::client {

namespace {

// Between two devices a copy goes through this process, by pieces that stay in its cache.
constexpr size_t kPiece = size_t(4) << 20;

int32_t relay(uint8_t* to, const uint8_t* from, size_t bytes) {
    const size_t piece = std::min(bytes, kPiece);
    const std::unique_ptr<uint8_t[]> buffer(new uint8_t[piece]);
    for (size_t done = 0; done < bytes;) {
        const size_t n = std::min(piece, bytes - done);
        {
            OnDevice source(wire::tagged_device(reinterpret_cast<uint64_t>(from)));
            if (int32_t e = aclrtMemcpy(buffer.get(), n, from + done, n, acl::DEVICE_TO_HOST)) return e;
        }
        OnDevice target(wire::tagged_device(reinterpret_cast<uint64_t>(to)));
        if (int32_t e = aclrtMemcpy(to + done, n, buffer.get(), n, acl::HOST_TO_DEVICE)) return e;
        done += n;
    }
    return 0;
}

int32_t check_holder(const void* p) {
    if (Session::holder(reinterpret_cast<uint64_t>(p))) return 0;
    return fail(acl::RT_PARAM_INVALID, "aclrtMemcpy: %p is not device memory of this process", p);
}

}  // namespace

int32_t copy_elsewhere(void* to, bool to_device, const void* from, bool from_device, size_t bytes, bool now,
                       aclrtStream stream) {
    if (to_device) {
        if (int32_t e = check_holder(to)) return e;
    }
    if (from_device) {
        if (int32_t e = check_holder(from)) return e;
    }
    if (!now) {
        if (int32_t e = aclrtSynchronizeStream(stream)) return e;
    }
    const int target = wire::tagged_device(reinterpret_cast<uint64_t>(to)),
              source = wire::tagged_device(reinterpret_cast<uint64_t>(from));
    if (to_device && from_device && target != source)
        return relay(static_cast<uint8_t*>(to), static_cast<const uint8_t*>(from), bytes);
    OnDevice there(to_device ? target : source);
    return aclrtMemcpy(
        to, bytes, from, bytes,
        to_device ? (from_device ? acl::DEVICE_TO_DEVICE : acl::HOST_TO_DEVICE) : acl::DEVICE_TO_HOST);
}

int32_t fill_elsewhere(void* to, size_t room, int32_t value, size_t bytes, bool now, aclrtStream stream) {
    if (int32_t e = check_holder(to)) return e;
    if (!now) {
        if (int32_t e = aclrtSynchronizeStream(stream)) return e;
    }
    OnDevice there(wire::tagged_device(reinterpret_cast<uint64_t>(to)));
    return aclrtMemset(to, room, value, bytes);
}

}  // namespace flexnpu::client
