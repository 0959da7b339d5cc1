// Streams that want to be told when something that they wait for may have happened.
#pragma once

#include <algorithm>
#include <mutex>
#include <vector>

#include "flexnpu/emulator/runtime/event.hpp"

namespace flexnpu::emulator {

class WakeList {
public:
    void add(Waiter* waiter) {
        std::lock_guard lock(mutex_);
        waiters_.push_back(waiter);
    }
    // After it returns nobody wakes the waiter from here.
    void remove(Waiter* waiter) {
        std::lock_guard lock(mutex_);
        if (auto at = std::find(waiters_.begin(), waiters_.end(), waiter); at != waiters_.end()) {
            waiters_.erase(at);
        }
    }
    void wake_all() {
        std::lock_guard lock(mutex_);
        for (Waiter* waiter : waiters_) {
            waiter->wake();
        }
    }

private:
    std::mutex mutex_;
    std::vector<Waiter*> waiters_;
};

}  // namespace flexnpu::emulator
