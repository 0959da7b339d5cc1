// Deadlines of CLOCK_MONOTONIC, in the vendor's terms.
#pragma once

#include <algorithm>
#include <cstdint>

#include "flexnpu/wire/futex.hpp"

namespace flexnpu::daemon {

// How long is left, ms: at least 1.
inline int32_t left_ms(int64_t deadline_ns) {
    const int64_t left = deadline_ns - int64_t(wire::now_ns());
    return left <= 0 ? 1 : int32_t(std::min<int64_t>((left + 999'999) / 1'000'000, INT32_MAX));
}

}  // namespace flexnpu::daemon
