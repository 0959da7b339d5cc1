// Waits for a lane's completion markers and reports them.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "flexnpu/daemon/vendor.hpp"

namespace flexnpu::daemon {

class Markers {
public:
    struct Marker {
        void* end;
        void* start;        // with `start`, the device time between the two is measured
        uint64_t ticket;    // 0: a fence of the lane, not an operator
        bool call = false;  // the lane's next host function
    };
    // `done` is called on this object's thread with the time in us, or -1.
    Markers(Vendor& vendor, int32_t device, std::function<void(const Marker&, double)> done)
        : vendor_(vendor), done_(std::move(done)), thread_([this, device] {
              vendor_.enter(device);
              run();
          }) {}
    ~Markers() {
        {
            std::lock_guard lock(mutex_);
            stop_ = true;
        }
        ready_.notify_one();
        thread_.join();
    }
    void add(const Marker& m) {
        {
            std::lock_guard lock(mutex_);
            queue_.push_back(m);
        }
        ready_.notify_one();
    }

private:
    void run() {
        std::unique_lock lock(mutex_);
        for (;;) {
            ready_.wait(lock, [this] { return stop_ || !queue_.empty(); });
            if (queue_.empty()) return;
            const Marker m = queue_.front();
            queue_.pop_front();
            const bool stop = stop_;
            lock.unlock();
            double us = -1;
            if (!stop) {
                const bool ok = vendor_.aclrtSynchronizeEvent(m.end) == 0;
                float ms = 0;
                if (ok && m.start && vendor_.aclrtEventElapsedTime(&ms, m.start, m.end) == 0)
                    us = double(ms) * 1000;
            }
            done_(m, us);
            lock.lock();
        }
    }
    Vendor& vendor_;
    std::function<void(const Marker&, double)> done_;
    std::mutex mutex_;
    std::condition_variable ready_;
    std::deque<Marker> queue_;
    bool stop_ = false;
    std::thread thread_;
};

}  // namespace flexnpu::daemon
