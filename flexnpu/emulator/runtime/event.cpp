#include "flexnpu/emulator/runtime/event.hpp"

#include <algorithm>
#include <thread>

namespace flexnpu::emulator {

uint64_t Event::next_record() {
    std::lock_guard lock(mutex_);
    pending_.push_back(++recorded_);
    if (between.slot != nullptr && !between.theirs) {
        between.slot->recorded = recorded_;
    }
    return recorded_;
}

uint64_t Event::current() const {
    std::lock_guard lock(mutex_);
    if (between.theirs) {
        return between.slot->id.load() == between.id ? between.slot->recorded.load() : 0;
    }
    return recorded_ > reset_ ? recorded_ : 0;
}

void Event::complete(uint64_t record, uint64_t device_ns, bool aborted) {
    std::lock_guard lock(mutex_);
    if (aborted) {
        aborted_ = record;
    }
    std::erase(pending_, record);
    Completed& slot = completed_[record % kKept];
    if (record >= slot.record) {
        slot = {record, device_ns};
    }
    if (record >= reached_) {
        reached_ = record;
        reached_ns_ = device_ns;
        if (between.slot != nullptr) {
            between.slot->completed = record;
        }
    }
    changed_.notify_all();
    for (Waiter* waiter : waiters_) {
        waiter->wake();
    }
}

void Event::reset(uint64_t record) {
    std::lock_guard lock(mutex_);
    reset_ = std::max(reset_, record == kExternalRecord ? reached_ : record);
    changed_.notify_all();
}

bool Event::is_complete_locked(uint64_t record) const {
    if (between.theirs) {
        // Nobody waits for an owner that has destroyed the event, or has ended.
        const DevicePage::IpcEvent& slot = *between.slot;
        return slot.id.load() != between.id || slot.completed.load() >= record ||
               !SharedDevice::owner_lives(slot);
    }
    if (record == kExternalRecord) {
        return reached_ > reset_;
    }
    return record <= recorded_ && std::find(pending_.begin(), pending_.end(), record) == pending_.end();
}

bool Event::is_complete(uint64_t record) const {
    std::lock_guard lock(mutex_);
    return is_complete_locked(record);
}

bool Event::recorded_and_complete() const {
    std::lock_guard lock(mutex_);
    if (between.theirs) {
        return between.slot->recorded.load() > 0 && is_complete_locked(between.slot->recorded.load());
    }
    return recorded_ > reset_ && is_complete_locked(recorded_);
}

std::optional<uint64_t> Event::timestamp_locked(uint64_t record) const {
    if (record == kExternalRecord) {
        return reached_ > reset_ ? std::optional(reached_ns_) : std::nullopt;
    }
    const Completed& slot = completed_[record % kKept];
    return record != 0 && slot.record == record ? std::optional(slot.device_ns) : std::nullopt;
}

std::optional<uint64_t> Event::timestamp() const {
    std::lock_guard lock(mutex_);
    return recorded_ > reset_ && is_complete_locked(recorded_) ? timestamp_locked(recorded_) : std::nullopt;
}

std::optional<uint64_t> Event::timestamp(uint64_t record) const {
    std::lock_guard lock(mutex_);
    return timestamp_locked(record);
}

bool Event::wait(uint64_t record, std::optional<Clock::time_point> deadline) {
    // Another process does not wake us.
    while (between.theirs && !is_complete(record)) {
        if (deadline && Clock::now() >= *deadline) {
            return false;
        }
        std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    if (between.theirs) {
        return true;
    }
    std::unique_lock lock(mutex_);
    auto done = [&] { return is_complete_locked(record) || reset_ >= record; };
    if (!deadline) {
        changed_.wait(lock, done);
        return true;
    }
    return changed_.wait_until(lock, *deadline, done);
}

bool Event::aborted(uint64_t record) const {
    std::lock_guard lock(mutex_);
    return record != 0 && record == aborted_;
}

void Event::add_waiter(Waiter* waiter) {
    std::lock_guard lock(mutex_);
    waiters_.push_back(waiter);
}

void Event::remove_waiter(Waiter* waiter) {
    std::lock_guard lock(mutex_);
    std::erase(waiters_, waiter);
}

}  // namespace flexnpu::emulator
