// What becomes of a replay that never runs.
#pragma once

#include <cstdint>

namespace flexnpu::emulator {

struct Replay;

// Others may wait for its events and for its turn to pass: neither may hang.
void abandon(Replay& replay, uint64_t device_ns);

}  // namespace flexnpu::emulator
