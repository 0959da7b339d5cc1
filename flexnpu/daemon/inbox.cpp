#include "flexnpu/daemon/inbox.hpp"

#include <sys/eventfd.h>
#include <unistd.h>

namespace flexnpu::daemon {

Inbox::Inbox() : wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

void Inbox::put(Job job) {
    std::lock_guard lock(mutex_);
    jobs_.push_back(std::move(job));
    has_jobs_.store(true, std::memory_order_seq_cst);
}

void Inbox::wake() {
    if (doze_.load(std::memory_order_seq_cst) == wire::kAwake) return;
    const uint64_t one = 1;
    [[maybe_unused]] ssize_t n = write(wake_.get(), &one, sizeof(one));
}

bool Inbox::put_call(Job job) {
    {
        std::lock_guard lock(mutex_);
        if (!takes_calls_) return false;
        jobs_.push_back(std::move(job));
        has_jobs_.store(true, std::memory_order_seq_cst);
    }
    wake();
    return true;
}

void Inbox::take_calls(bool on) {
    std::lock_guard lock(mutex_);
    takes_calls_ = on;
}

std::optional<uint64_t> Inbox::takes() const {
    std::lock_guard lock(mutex_);
    if (late_) return std::nullopt;
    return takes_;
}

void Inbox::set_late(uint64_t takes) {
    std::lock_guard lock(mutex_);
    if (takes == takes_) late_ = true;
}

std::vector<Inbox::Job> Inbox::take() {
    std::vector<Job> jobs;
    if (!has_jobs_.load(std::memory_order_acquire)) return jobs;
    std::lock_guard lock(mutex_);
    jobs.swap(jobs_);
    late_ = false;
    ++takes_;
    has_jobs_.store(false, std::memory_order_relaxed);
    return jobs;
}

}  // namespace flexnpu::daemon
