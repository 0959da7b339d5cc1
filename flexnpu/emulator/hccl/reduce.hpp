// Reducing rows of elements, in the order of the ranks.
#pragma once

#include <cstdint>
#include <vector>

namespace flexnpu::emulator::hccl {

// Whether elements of this type (an HcclDataType) can be reduced: integers of 8 to 64 bits, float16,
// bfloat16, float32 and float64.
bool can_reduce(int32_t dtype);

// out[i] = inputs[0][i] op inputs[1][i] op ..., from left to right, for `count` elements. `out` may be one of
// the inputs. 16-bit floats are accumulated in float32 and rounded once; integers wrap.
void reduce_rows(int32_t dtype, int32_t op, const std::vector<const void*>& inputs, void* out,
                 uint64_t count);

}  // namespace flexnpu::emulator::hccl
