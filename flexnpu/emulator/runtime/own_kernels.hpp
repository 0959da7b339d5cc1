// Kernels of a program's own (aclrtBinaryLoad*).
//
// The emulated device has no instruction set. A binary for it is text: the line "flexnpu-emu-kernels 1", then
// a line for each kernel, its name and what it does; its entry is the line's number, from 0. Kernels get
// their arguments as 8-byte words:
//
//     scale   out, in, n, factor (float32 in the low half): out[i] = in[i] * factor, n elements of float32
//     sum     out, list, count, n: out[i] = list[0][i] + ... + list[count - 1][i]; `list` is an array of
//     addresses, mostly a place holder's
//
// An address that is no device memory of this process stops the stream with RT_AICORE_EXCEPTION, as the
// chip's memory unit does.
#pragma once

#include <cstddef>
#include <cstdint>

#include "acl.gen.h"
#include "flexnpu/api/kernel_types.hpp"

namespace flexnpu::emulator {

aclError launch_own_kernel(const char* name, aclrtFuncHandle function, uint32_t blocks, aclrtStream stream,
                           const void* arguments, size_t size, const aclrtPlaceHolderInfo* place_holders,
                           size_t count);

}  // namespace flexnpu::emulator
