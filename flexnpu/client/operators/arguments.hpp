// The arguments of an operator's first call as they travel: metadata, and addresses apart from it.
#pragma once

#include <cstdint>
#include <vector>

#include "acl.gen.h"
#include "flexnpu/wire/meta.hpp"

namespace flexnpu::client {

// One a thread, used again for every call.
struct CallArguments {
    wire::MetaWriter meta;            // the operator's number, then its arguments without their addresses
    std::vector<uint64_t> addresses;  // as the daemon knows them
    uint64_t tag = 0;                 // of the device that the addresses should be on
    uint64_t foreign = 0;             // has a device's bits once a tensor was another's
    uint64_t last = 0;                // an address of such a tensor

    // Takes the arguments of a call of operator `op` on the device of `tag_of_device`. Returns how many were
    // taken: fewer than `n` if the next is not the object that its kind says.
    uint32_t read(uint32_t op, uint64_t tag_of_device, const AclnnArg* args, uint32_t n);
};

}  // namespace flexnpu::client
