// Forking a process that uses the device. As with CANN, a child cannot use what its parent opened; here it
// starts anew.
#pragma once

#include <mutex>

namespace flexnpu::emulator {

// While one exists no thread of the process can fork.
class NoFork {
public:
    NoFork();
    ~NoFork();
    NoFork(const NoFork&) = delete;
    NoFork& operator=(const NoFork&) = delete;
};

// Installs the handlers, once: in a child `forget` is called.
void install_fork_handlers(void (*forget)());

}  // namespace flexnpu::emulator
