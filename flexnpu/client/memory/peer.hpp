// Copies and fills that reach memory of another device than the thread's.
#pragma once

#include <cstddef>
#include <cstdint>

#include "acl.gen.h"
#include "flexnpu/client/session/session.hpp"

namespace flexnpu::client {

// While it lives, the thread's calls go to `device`.
class OnDevice {
public:
    explicit OnDevice(int device) : before_(Session::current()) { Session::use(device); }
    ~OnDevice() { Session::use(before_); }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

private:
    int before_;
};

// Copies `bytes`; which sides are device memory is known. In the order of `stream` unless `now`, for which
// the caller waits: two daemons share no stream.
int32_t copy_elsewhere(void* to, bool to_device, const void* from, bool from_device, size_t bytes, bool now,
                       aclrtStream stream);
int32_t fill_elsewhere(void* to, size_t room, int32_t value, size_t bytes, bool now, aclrtStream stream);

}  // namespace flexnpu::client
