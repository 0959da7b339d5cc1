#include "flexnpu/daemon/threads.hpp"

#include <pthread.h>

#include <system_error>
#include <utility>
#include <vector>

#include "flexnpu/wire/futex.hpp"

namespace flexnpu::daemon {

namespace {

// How long no thread is asked for after the system has refused one.
constexpr uint64_t kRetryNs = 500'000'000;

}  // namespace

// ---- the pool ----

Threads::Threads(Bounds bounds, std::function<void()> at_start)
    : bounds_(bounds), at_start_(std::move(at_start)) {
    try {
        std::lock_guard lock(mutex_);
        while (threads_.size() < bounds_.least) spawn_locked({});
    } catch (...) {
        {
            std::lock_guard lock(mutex_);
            stop_ = true;
        }
        ready_.notify_all();
        for (Thread& t : threads_) t.thread.join();
        throw;
    }
}

Threads::~Threads() {
    std::unique_lock lock(mutex_);
    rested_.wait(lock, [this] { return line_.empty() && handed_.empty() && idle_ == alive(); });
    stop_ = true;
    lock.unlock();
    ready_.notify_all();
    for (Thread& t : threads_) t.thread.join();
}

// Where the system gives no more threads, one group must not have them all.
bool Threads::may_run(const Group& group) const {
    size_t share = group.share_;
    if (no_more_until_) share = std::min(share, std::max<size_t>(1, alive() / 2));
    return group.running_ < share;
}

// Whether a thread is idle, or another may be asked for.
bool Threads::available_locked() const {
    if (idle_ > handed_.size()) return true;
    return alive() < bounds_.most && !no_more_until_;
}

bool Threads::give_locked(const Work& work) {
    if (idle_ > handed_.size()) {
        handed_.push_back(work);
        work.group->running_++;
        ready_.notify_one();
        return true;
    }
    try {
        spawn_locked(work);
    } catch (...) {
        refused_++;
        no_more_until_ = wire::now_ns() + kRetryNs;
        return false;
    }
    work.group->running_++;
    return true;
}

void Threads::spawn_locked(const Work& work) {
    Thread& slot = threads_.emplace_back();
    try {
        slot.thread = std::thread([this, &slot, work = Work(work)]() mutable {
            pthread_setname_np(pthread_self(), "flexnpu-serve");
            run_guarded("flexnpu-serve", at_start_);
            serve(std::move(work));
            std::lock_guard lock(mutex_);
            slot.ended = true;
            ended_++;
            rested_.notify_all();
        });
    } catch (...) {
        threads_.pop_back();
        throw;
    }
    most_seen_ = std::max(most_seen_, alive());
}

// The next job in line whose group may have another thread.
bool Threads::next_locked(Work* out) {
    for (auto at = line_.begin(); at != line_.end(); ++at) {
        Group& group = **at;
        if (!may_run(group)) continue;
        *out = {*at, std::move(group.waiting_.front())};
        group.waiting_.pop_front();
        in_line_.fetch_sub(1, std::memory_order_relaxed);
        if (group.waiting_.empty()) {
            group.listed_ = false;
            line_.erase(at);
        } else {
            line_.splice(line_.end(), line_, at);
        }
        return true;
    }
    return false;
}

// Gives the line what threads there are.
void Threads::pump_locked() {
    // A thread that the system gives again ends the time of halves.
    if (no_more_until_ && !line_.empty() && alive() < bounds_.most && wire::now_ns() >= no_more_until_) {
        try {
            spawn_locked({});
            no_more_until_ = 0;
        } catch (...) {
            refused_++;
            no_more_until_ = wire::now_ns() + kRetryNs;
        }
    }
    Work work;
    while (!line_.empty() && available_locked() && next_locked(&work)) {
        if (give_locked(work)) continue;
        // Back to the front: nobody who came later may pass.
        if (!std::exchange(work.group->listed_, true)) line_.push_front(work.group);
        work.group->waiting_.push_front(std::move(work.job));
        in_line_.fetch_add(1, std::memory_order_relaxed);
        return;
    }
}

void Threads::serve(Work work) {
    std::unique_lock lock(mutex_, std::defer_lock);
    for (;;) {
        if (work.job) {
            run_guarded("a vendor's call", work.job, work.group->failed_);
            work.job = nullptr;  // what it holds ends here, not under the lock
            lock.lock();
            work.group->running_--;
        } else {
            lock.lock();
        }
        if (next_locked(&work)) {
            work.group->running_++;
            lock.unlock();
            continue;
        }
        work.group.reset();
        idle_++;
        rested_.notify_all();
        const bool called = ready_.wait_for(lock, std::chrono::milliseconds(bounds_.idle_ms),
                                            [this] { return stop_ || !handed_.empty(); });
        idle_--;
        if (!handed_.empty()) {
            work = std::move(handed_.front());
            handed_.pop_front();
        } else if (stop_ || (!called && alive() > bounds_.least)) {
            return;
        }
        lock.unlock();
    }
}

void Threads::join_ended_locked(std::unique_lock<std::mutex>& lock) {
    if (ended_ == 0) return;
    std::list<Thread> ended;
    for (auto at = threads_.begin(); at != threads_.end();) {
        const auto next = std::next(at);
        if (at->ended) ended.splice(ended.end(), threads_, at);
        at = next;
    }
    ended_ = 0;
    lock.unlock();
    for (Thread& t : ended) t.thread.join();
    lock.lock();
}

void Threads::run(const std::shared_ptr<Group>& group, Job job) {
    std::unique_lock lock(mutex_);
    join_ended_locked(lock);
    group->waiting_.push_back(std::move(job));
    if (!group->listed_) {
        try {
            line_.push_back(group);
        } catch (...) {
            group->waiting_.pop_back();
            throw;
        }
        group->listed_ = true;
    }
    in_line_.fetch_add(1, std::memory_order_relaxed);
    pump_locked();
    if (group->listed_) queued_++;
}

bool Threads::try_run(const std::shared_ptr<Group>& group, Job job) {
    std::unique_lock lock(mutex_);
    join_ended_locked(lock);
    return line_.empty() && may_run(*group) && group->running_ < (group->share_ + 1) / 2 &&
           available_locked() && give_locked({group, std::move(job)});
}

void Threads::retry() {
    if (!wanted()) return;
    std::lock_guard lock(mutex_);
    pump_locked();
}

void Threads::counters(std::map<std::string, uint64_t>* out) const {
    std::lock_guard lock(mutex_);
    (*out)["threads"] = alive();
    (*out)["threads_most"] = most_seen_;
    (*out)["threads_refused"] = refused_;
    (*out)["calls_queued"] = queued_;
    (*out)["exceptions_caught"] = wire::caught_exceptions;
}

// ---- a customer's line ----

struct Worker::Line {
    explicit Line(const Threads::Group& g) : failed(g.failed()) {}
    const std::function<void()> failed;
    std::mutex mutex;
    std::condition_variable empty;
    std::deque<Threads::Job> jobs;
    std::atomic<bool> there{false};  // whether there are jobs
    bool running = false;            // a thread serves it, or will
};

Worker::Worker(Threads& threads, std::shared_ptr<Threads::Group> group)
    : threads_(&threads), group_(std::move(group)), line_(std::make_shared<Line>(*group_)) {}

Worker::~Worker() {
    if (!line_) return;
    std::unique_lock lock(line_->mutex);
    line_->empty.wait(lock, [this] { return !line_->running; });
}

void Worker::post(Threads::Job job) {
    if (!line_) return;
    {
        std::lock_guard lock(line_->mutex);
        line_->jobs.push_back(std::move(job));
        line_->there.store(true, std::memory_order_release);
        if (std::exchange(line_->running, true)) return;
    }
    try {
        threads_->run(group_, [line = line_] { drain(line); });
    } catch (...) {
        std::lock_guard lock(line_->mutex);
        line_->running = false;
        line_->jobs.pop_front();
        line_->empty.notify_all();
        throw;
    }
}

bool Worker::try_post(Threads::Job job) {
    if (!line_) return true;
    {
        std::lock_guard lock(line_->mutex);
        if (line_->running) return false;
        line_->running = true;
    }
    bool taken = false;
    try {
        taken = threads_->try_run(group_, [line = line_, job = std::move(job)] {
            run_guarded("a vendor's call", job, line->failed);
            drain(line);
        });
    } catch (...) {
    }
    if (taken) return true;
    {
        std::lock_guard lock(line_->mutex);
        if (line_->jobs.empty()) {
            line_->running = false;
            line_->empty.notify_all();
            return false;
        }
    }
    // Somebody has posted meanwhile, and counts on a thread.
    threads_->run(group_, [line = line_] { drain(line); });
    return false;
}

size_t Worker::depth() const {
    if (!line_) return 0;
    std::lock_guard lock(line_->mutex);
    return line_->jobs.size();
}

bool Worker::idle() const {
    if (!line_) return true;
    std::lock_guard lock(line_->mutex);
    return !line_->running;
}

void Worker::drain(const std::shared_ptr<Line>& line) {
    static constexpr uint64_t kSpinNs = 20'000;
    std::unique_lock lock(line->mutex);
    for (;;) {
        if (line->jobs.empty()) {
            line->running = false;
            line->empty.notify_all();
            return;
        }
        auto job = std::move(line->jobs.front());
        line->jobs.pop_front();
        line->there.store(!line->jobs.empty(), std::memory_order_relaxed);
        lock.unlock();
        run_guarded("a vendor's call", job, line->failed);
        job = nullptr;
        // The next chunk of a copy comes within microseconds: sooner than a thread wakes up.
        for (const uint64_t until = wire::now_ns() + kSpinNs;
             !line->there.load(std::memory_order_acquire) && wire::now_ns() < until;)
            wire::cpu_relax();
        lock.lock();
    }
}

}  // namespace flexnpu::daemon
