// What the dispatching thread is at.
#pragma once

#include <cstdint>

namespace flexnpu::daemon {

struct Session;

struct Turn {
    uint64_t now = 0;            // the clock, read once a record, ns
    Session* serving = nullptr;  // whose work the thread is at, as far as it is known
};

}  // namespace flexnpu::daemon
