#include "flexnpu/emulator/runtime/callbacks.hpp"

namespace flexnpu::emulator {

void ReportQueue::push(std::shared_ptr<Report> report, Waiter* waiter) {
    std::lock_guard lock(mutex_);
    entries_.push_back({std::move(report), waiter});
    changed_.notify_all();
}

void ReportQueue::forget(Waiter* waiter) {
    std::lock_guard lock(mutex_);
    if (running_ == waiter) {
        running_ = nullptr;
    }
    for (Entry& entry : entries_) {
        if (entry.waiter == waiter) {
            entry.waiter = nullptr;
        }
    }
}

ReportQueue::Result ReportQueue::process(std::optional<Clock::time_point> deadline) {
    std::unique_lock lock(mutex_);
    auto ready = [&] { return !entries_.empty() || subscriptions_ == 0; };
    if (!deadline) {
        changed_.wait(lock, ready);
    } else if (!changed_.wait_until(lock, *deadline, ready)) {
        return Result::TimedOut;
    }
    if (entries_.empty()) {
        return Result::Closed;
    }
    Entry entry = std::move(entries_.front());
    entries_.pop_front();
    running_ = entry.waiter;
    lock.unlock();
    entry.report->function(entry.report->argument);
    entry.report->done = true;
    lock.lock();
    if (running_ != nullptr) {
        running_->wake();
        running_ = nullptr;
    }
    return Result::Ran;
}

void ReportQueue::subscribe() {
    std::lock_guard lock(mutex_);
    ++subscriptions_;
}

void ReportQueue::unsubscribe() {
    std::lock_guard lock(mutex_);
    if (subscriptions_ > 0 && --subscriptions_ == 0) {
        changed_.notify_all();
        for (Entry& entry : entries_) {
            if (entry.waiter != nullptr) {
                entry.waiter->wake();
            }
        }
    }
}

}  // namespace flexnpu::emulator
