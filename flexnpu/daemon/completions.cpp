#include "flexnpu/daemon/completions.hpp"

#include <sys/prctl.h>

#include <algorithm>
#include <utility>

#include "flexnpu/wire/futex.hpp"

namespace flexnpu::daemon {

namespace {

// Between two looks at lanes without a thread: this long at least, and four times what a look takes.
constexpr uint64_t kLeastPauseNs = 200'000;
constexpr uint64_t kPauses = 4;

}  // namespace

class Completions::Lane {
public:
    Lane(std::shared_ptr<Threads::Group> g, Done d) : group(std::move(g)), done(std::move(d)) {}
    const std::shared_ptr<Threads::Group> group;
    const Done done;
    // Under the mutex of all.
    enum class By : uint8_t { nobody, thread, looks };
    By by = By::nobody;  // who sees to the oldest marker
    bool closed = false;
    std::deque<Marker> markers;
};

Completions::Completions(Vendor& vendor, Threads& threads, std::function<void()> enter)
    : vendor_(vendor), threads_(threads) {
    thread_ = start_thread("flexnpu-looks", [this, enter = std::move(enter)] {
        prctl(PR_SET_TIMERSLACK, 1);
        enter();
        look_round();
    });
}

Completions::~Completions() {
    {
        std::lock_guard lock(mutex_);
        stop_ = true;
    }
    asked_.notify_all();
    thread_.join();
}

std::shared_ptr<Completions::Lane> Completions::lane(std::shared_ptr<Threads::Group> group, Done done) {
    return std::make_shared<Lane>(std::move(group), std::move(done));
}

void Completions::add(const std::shared_ptr<Lane>& lane, const Marker& marker) {
    {
        std::lock_guard lock(mutex_);
        lane->markers.push_back(marker);
        if (lane->by != Lane::By::nobody) return;
        lane->by = Lane::By::thread;
    }
    if (hand_over(lane)) return;
    std::lock_guard lock(mutex_);
    lane->by = Lane::By::nobody;  // if there is no memory
    look_later_locked(lane);
}

bool Completions::hand_over(const std::shared_ptr<Lane>& lane) {
    try {
        return threads_.try_run(lane->group, [this, lane] { wait(lane); });
    } catch (...) {
        return false;  // no memory for the job: it is looked at
    }
}

void Completions::look_later_locked(const std::shared_ptr<Lane>& lane) {
    looked_at_.push_back(lane);
    lane->by = Lane::By::looks;
    without_thread_++;
    if (looked_at_.size() == 1) asked_.notify_one();
}

void Completions::report(Lane& lane, const Marker& m, bool reached) {
    float ms = 0;
    double us = -1;
    if (reached && m.start && vendor_.aclrtEventElapsedTime(&ms, m.start, m.end) == 0) us = double(ms) * 1000;
    run_guarded("a completion", [&] { lane.done(m, us); });
}

// On a thread of the pool, until the lane has no markers left.
void Completions::wait(const std::shared_ptr<Lane>& lane) {
    Lock lock(mutex_);
    while (!lane->markers.empty()) {
        const Marker m = lane->markers.front();
        const bool closed = lane->closed;
        lock.unlock();
        const int32_t e = closed ? 0 : vendor_.aclrtSynchronizeEventWithTimeout(m.end, kSliceMs);
        lock.lock();
        if (e == acl::RT_WAIT_TIMEOUT) {
            if (!threads_.wanted() || lane->closed) continue;
            try {
                return look_later_locked(lane);
            } catch (...) {
                continue;  // no memory for it: the wait goes on here
            }
        }
        lane->markers.pop_front();
        lock.unlock();
        report(*lane, m, e == 0 && !closed);
        lock.lock();
    }
    lane->by = Lane::By::nobody;
    let_go_.notify_all();
}

// Reports what the lane's stream has reached.
void Completions::look(Lane& lane, Lock& lock) {
    while (!lane.markers.empty()) {
        const Marker m = lane.markers.front();
        const bool closed = lane.closed;
        lock.unlock();
        int32_t status = acl::EVENT_RECORDED_NOT_READY;
        const int32_t e = closed ? 0 : vendor_.aclrtQueryEventStatus(m.end, &status);
        const bool over = closed || e != 0 || status == acl::EVENT_RECORDED_COMPLETE;
        if (over) report(lane, m, e == 0 && !closed);
        lock.lock();
        if (!over) return;
        lane.markers.pop_front();
    }
}

// On the thread of our own.
void Completions::look_round() {
    Lock lock(mutex_);
    for (;;) {
        asked_.wait(lock, [this] { return stop_ || !looked_at_.empty(); });
        if (stop_ && looked_at_.empty()) return;
        const uint64_t began = wire::now_ns();
        // In place: this thread needs no memory. Others only append.
        const size_t n = looked_at_.size();
        size_t kept = 0;
        bool threads = true;
        for (size_t i = 0; i < n; i++) {
            std::shared_ptr<Lane> lane = looked_at_[i];
            look(*lane, lock);
            if (lane->markers.empty()) {
                lane->by = Lane::By::nobody;
                let_go_.notify_all();
                continue;
            }
            // A thread that has become free takes one of those that have waited longest.
            if (threads && !lane->closed) {
                lane->by = Lane::By::thread;
                lock.unlock();
                threads = !threads_.wanted() && hand_over(lane);
                lock.lock();
                if (threads) continue;
                lane->by = Lane::By::looks;
            }
            looked_at_[kept++] = std::move(lane);
        }
        looked_at_.erase(looked_at_.begin() + ptrdiff_t(kept), looked_at_.begin() + ptrdiff_t(n));
        // Who comes next is another lane than this time.
        if (looked_at_.size() > 1) std::rotate(looked_at_.begin(), looked_at_.begin() + 1, looked_at_.end());
        const uint64_t pause = std::max(kLeastPauseNs, kPauses * (wire::now_ns() - began));
        asked_.wait_for(lock, std::chrono::nanoseconds(pause), [this] { return stop_; });
    }
}

void Completions::close(const std::shared_ptr<Lane>& lane) {
    Lock lock(mutex_);
    lane->closed = true;
    let_go_.wait(lock, [&] { return lane->by == Lane::By::nobody; });
}

void Completions::counters(std::map<std::string, uint64_t>* out) const {
    std::lock_guard lock(mutex_);
    (*out)["lanes_without_thread"] = without_thread_;
}

}  // namespace flexnpu::daemon
