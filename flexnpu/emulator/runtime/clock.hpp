// The one clock of the emulated device: CLOCK_MONOTONIC in nanoseconds, the same in every process of the
// machine.
#pragma once

#include <chrono>
#include <cstdint>

namespace flexnpu::emulator {

using Clock = std::chrono::steady_clock;

inline uint64_t now_ns() {
    return uint64_t(
        std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch()).count());
}

inline Clock::time_point time_point(uint64_t ns) {
    return Clock::time_point(std::chrono::duration_cast<Clock::duration>(std::chrono::nanoseconds(ns)));
}

}  // namespace flexnpu::emulator
