#include "flexnpu/emulator/runtime/fork.hpp"

#include <pthread.h>

namespace flexnpu::emulator {

namespace {

// Recursive, so that a thread which forks inside a NoFork (a host callback, say) does not lock itself out.
std::recursive_mutex& fork_mutex() {
    static auto* mutex = new std::recursive_mutex;
    return *mutex;
}

void (*forget_state)() = nullptr;

}  // namespace

NoFork::NoFork() { fork_mutex().lock(); }
NoFork::~NoFork() { fork_mutex().unlock(); }

void install_fork_handlers(void (*forget)()) {
    static std::once_flag once;
    std::call_once(once, [forget] {
        forget_state = forget;
        pthread_atfork([] { fork_mutex().lock(); }, [] { fork_mutex().unlock(); },
                       [] {
                           // Owned by the forking thread, whose id changed: make it anew instead of unlocking
                           // it.
                           new (&fork_mutex()) std::recursive_mutex;
                           forget_state();
                       });
    });
}

}  // namespace flexnpu::emulator
