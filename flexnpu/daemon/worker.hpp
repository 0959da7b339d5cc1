// A thread that runs jobs in order: for vendor calls that may block.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "flexnpu/wire/futex.hpp"

namespace flexnpu::daemon {

class Worker {
public:
    explicit Worker(std::function<void()> at_start)
        : thread_([this, at_start] {
              at_start();
              run();
          }) {}
    // One without a thread: it forgets what it is given.
    Worker() : forgets_(true) {}
    ~Worker() {
        {
            std::lock_guard lock(mutex_);
            stop_ = true;
        }
        ready_.notify_one();
        if (thread_.joinable()) thread_.join();
    }
    Worker(const Worker&) = delete;
    Worker& operator=(const Worker&) = delete;

    void post(std::function<void()> job) {
        {
            std::lock_guard lock(mutex_);
            if (forgets_) return;
            jobs_.push_back(std::move(job));
            there_.store(true, std::memory_order_release);
        }
        ready_.notify_one();
    }
    size_t depth() const {
        std::lock_guard lock(mutex_);
        return jobs_.size();
    }

private:
    static constexpr uint64_t kSpinNs = 20'000;
    void run() {
        std::unique_lock lock(mutex_);
        for (;;) {
            ready_.wait(lock, [this] { return stop_ || !jobs_.empty(); });
            if (jobs_.empty()) return;  // stopped, and everything done
            auto job = std::move(jobs_.front());
            jobs_.pop_front();
            there_.store(!jobs_.empty(), std::memory_order_relaxed);
            lock.unlock();
            job();
            job = nullptr;
            // The next chunk of a copy comes within microseconds: sooner than a thread wakes up.
            for (const uint64_t until = wire::now_ns() + kSpinNs;
                 !there_.load(std::memory_order_acquire) && wire::now_ns() < until;)
                wire::cpu_relax();
            lock.lock();
        }
    }
    mutable std::mutex mutex_;
    std::condition_variable ready_;
    std::deque<std::function<void()>> jobs_;
    std::atomic<bool> there_{false};  // whether there are jobs
    bool stop_ = false;
    const bool forgets_ = false;
    std::thread thread_;
};

}  // namespace flexnpu::daemon
