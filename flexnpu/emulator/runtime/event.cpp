#include "flexnpu/emulator/runtime/event.hpp"

#include <algorithm>

namespace flexnpu::emulator {

uint64_t Event::current() const {
    uint64_t recorded = recorded_.load();
    return recorded > reset_.load() ? recorded : 0;
}

void Event::complete(uint64_t record, uint64_t device_ns) {
    std::lock_guard lock(mutex_);
    if (record > completed_.load()) {  // two streams may record one event; the later call counts
        timestamp_.store(device_ns);
        completed_.store(record);
    }
    changed_.notify_all();
    for (Waiter* waiter : waiters_) {
        waiter->wake();
    }
}

void Event::reset(uint64_t record) {
    std::lock_guard lock(mutex_);
    reset_.store(std::max(reset_.load(), record));
    changed_.notify_all();
}

bool Event::recorded_and_complete() const {
    uint64_t record = current();
    return record != 0 && is_complete(record);
}

std::optional<uint64_t> Event::timestamp() const {
    std::lock_guard lock(mutex_);
    uint64_t record = current();
    if (record == 0 || !is_complete(record)) {
        return std::nullopt;
    }
    return timestamp_.load();
}

bool Event::wait(uint64_t record, std::optional<Clock::time_point> deadline) {
    std::unique_lock lock(mutex_);
    auto done = [&] { return is_complete(record) || reset_.load() >= record; };
    if (!deadline) {
        changed_.wait(lock, done);
        return true;
    }
    return changed_.wait_until(lock, *deadline, done);
}

void Event::add_waiter(Waiter* waiter) {
    std::lock_guard lock(mutex_);
    waiters_.push_back(waiter);
}

void Event::remove_waiter(Waiter* waiter) {
    std::lock_guard lock(mutex_);
    waiters_.erase(std::remove(waiters_.begin(), waiters_.end(), waiter), waiters_.end());
}

}  // namespace flexnpu::emulator
