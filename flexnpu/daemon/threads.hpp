// Threads that all sessions share, for vendor calls that may block.
//
// There are as many as calls block at one time, up to a bound, whatever the number of lanes and rings. Who
// gives them work belongs to a group with a share of its own: what is beyond a share, or beyond the bound,
// waits in line and keeps nobody else waiting. Where the system gives no more threads, those that are there
// serve everybody, and a group gets half of them at most.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "flexnpu/wire/guard.hpp"

namespace flexnpu::daemon {

using wire::guarded;
using wire::run_guarded;
using wire::start_thread;

class Threads {
public:
    using Job = std::function<void()>;

    struct Bounds {
        size_t most = 1024;
        size_t least = 4;  // started at once, and kept
        uint64_t idle_ms = 10'000;
    };

    // `at_start` runs first on each thread. Throws std::system_error when not even the least can be had.
    Threads(Bounds bounds, std::function<void()> at_start);
    // Waits for every job.
    ~Threads();
    Threads(const Threads&) = delete;
    Threads& operator=(const Threads&) = delete;

    // Who gives work. Any thread may use one.
    class Group {
    public:
        // `share`: how many of its jobs run at one time. `failed` is called, on the job's thread, when an
        // exception has left one of its jobs.
        Group(size_t share, std::function<void()> failed) : share_(share), failed_(std::move(failed)) {}

        const std::function<void()>& failed() const { return failed_; }

    private:
        friend class Threads;
        const size_t share_;
        const std::function<void()> failed_;
        size_t running_ = 0;
        std::deque<Job> waiting_;
        bool listed_ = false;  // among the groups in line
    };

    // Runs the job, now or when there is a thread for it.
    void run(const std::shared_ptr<Group>& group, Job job);
    // Runs it now, or not at all: false. For what can do without a thread: it takes half of a share at most.
    bool try_run(const std::shared_ptr<Group>& group, Job job);
    // Whether somebody waits in line for a thread: who can do without one should give it back.
    bool wanted() const { return in_line_.load(std::memory_order_relaxed) > 0; }
    // Asks the system again for threads that it has refused, if somebody waits for one.
    void retry();

    void counters(std::map<std::string, uint64_t>* out) const;

private:
    struct Work {
        std::shared_ptr<Group> group;
        Job job;
    };
    struct Thread {
        std::thread thread;
        bool ended = false;
    };
    size_t alive() const { return threads_.size() - ended_; }
    bool may_run(const Group& group) const;
    bool available_locked() const;
    bool give_locked(const Work& work);
    void spawn_locked(const Work& work);
    void pump_locked();
    bool next_locked(Work* out);
    void serve(Work work);
    void join_ended_locked(std::unique_lock<std::mutex>& lock);

    const Bounds bounds_;
    const std::function<void()> at_start_;
    mutable std::mutex mutex_;
    std::condition_variable ready_, rested_;
    std::deque<Work> handed_;                 // to threads that are idle
    std::list<std::shared_ptr<Group>> line_;  // groups whose jobs wait
    std::atomic<size_t> in_line_{0};
    std::list<Thread> threads_;
    size_t ended_ = 0;  // of these, to be joined
    size_t idle_ = 0, most_seen_ = 0;
    uint64_t no_more_until_ = 0;  // when to ask the system again
    uint64_t refused_ = 0, queued_ = 0;
    bool stop_ = false;
};

// Jobs of one customer, one after the other, on threads of the pool.
class Worker {
public:
    Worker(Threads& threads, std::shared_ptr<Threads::Group> group);
    // One that forgets what it is given.
    Worker() = default;
    // Waits until everything is done.
    ~Worker();
    Worker(const Worker&) = delete;
    Worker& operator=(const Worker&) = delete;

    void post(Threads::Job job);
    // Runs it at once if nothing is before it and there is a thread; else false.
    bool try_post(Threads::Job job);
    size_t depth() const;
    bool idle() const;  // everything is done

private:
    struct Line;
    static void drain(const std::shared_ptr<Line>& line);
    Threads* threads_ = nullptr;
    std::shared_ptr<Threads::Group> group_;
    std::shared_ptr<Line> line_;
};

}  // namespace flexnpu::daemon
