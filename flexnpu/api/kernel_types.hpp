// Structures and constants of kernels of a program's own (aclrtBinary*, aclrtLaunchKernel*), declared from
// documented facts.
#pragma once

#include <cstddef>
#include <cstdint>

#include "acl.gen.h"

// 16 bytes of value, whichever option it is.
struct aclrtBinaryLoadOption {
    int32_t type;
    uint32_t value[4];
};
struct aclrtBinaryLoadOptions {
    aclrtBinaryLoadOption* options;
    uint32_t count, reserved;  // releases differ in the count's width; the upper half is 0
};
struct aclrtLaunchKernelAttr {
    int32_t id;
    uint32_t value[4];
};
struct aclrtLaunchKernelCfg {
    aclrtLaunchKernelAttr* attributes;
    uint32_t count, reserved;
};
// In host arguments: the eight bytes at `address` become the device address of what stands at `data`.
struct aclrtPlaceHolderInfo {
    uint32_t address;
    uint32_t data;
};
static_assert(sizeof(aclrtBinaryLoadOption) == 20 && sizeof(aclrtLaunchKernelAttr) == 20 &&
              sizeof(aclrtPlaceHolderInfo) == 8);

namespace flexnpu::kernel {

enum Attribute : int32_t {
    SCHEDULE_MODE = 1,
    LOCAL_MEMORY_SIZE = 2,
    ENGINE_TYPE = 3,
    BLOCKS_OFFSET = 4,
    TASK_PREFETCH = 5,
    DATA_DUMP = 6,
    TIMEOUT = 7,
    TIMEOUT_US = 8,
};

// What one program's binaries may take of the daemon's host memory, and what one launch may carry.
inline constexpr uint64_t kMaxBinaryBytes = uint64_t(256) << 20;
inline constexpr uint64_t kMaxArgumentBytes = 32 << 10;
inline constexpr uint32_t kMaxAttributes = 16, kMaxPlaceHolders = 512, kMaxOptions = 16, kMaxName = 1024;

}  // namespace flexnpu::kernel
