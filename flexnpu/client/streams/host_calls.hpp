// Host functions in streams: the daemon says when a stream has reached one; it runs here.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "flexnpu/wire/layout.hpp"

namespace flexnpu::client {

class Session;

using HostFunction = void (*)(void*);

// The callbacks of one thread that subscribed to streams (aclrtSubscribeReport).
class ReportQueue {
public:
    // `returned` is called once: when the callback has run (0), or will not.
    struct Report {
        HostFunction function;
        void* argument;
        std::function<void(int32_t)> returned;
    };
    // False when no stream is subscribed any more.
    bool push(Report report);
    void subscribe();
    // With its last stream gone, what waits is given up.
    void unsubscribe();
    bool closed() const;
    // Runs one callback on the calling thread: 0, RT_REPORT_TIMEOUT, RT_THREAD_SUBSCRIBE (closed),
    // RT_INTERNAL (the daemon is gone).
    int32_t process(int64_t timeout_ms);
    // The session of one of its streams has ended.
    void session_ended();

private:
    mutable std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<Report> reports_;
    uint32_t streams_ = 0;
    bool gone_ = false;
};

// A session's host functions.
class HostCalls {
public:
    explicit HostCalls(Session& session) : session_(session) {}

    // Posts a record for `function` in the stream. `callback`: for the thread that is subscribed to the
    // stream when the stream gets there; else for a thread of ours.
    int32_t launch(uint64_t stream, HostFunction function, void* argument, bool callback, bool block);

    int32_t subscribe(uint64_t thread, uint64_t stream);
    int32_t unsubscribe(uint64_t thread, uint64_t stream);
    bool subscribed(uint64_t stream);
    // A stream is destroyed: its subscription ends.
    void forget(uint64_t stream);

private:
    struct Launched {
        HostFunction function;
        void* argument;
        uint64_t stream;
        bool callback;
    };
    struct Job {
        HostFunction function;
        void* argument;
        uint32_t slot, ticket;
    };
    // Under mutex_. False with the error recorded.
    bool start();
    void receive();
    void take(const wire::HostCall& call);
    void returned(uint32_t slot, uint32_t ticket, int32_t status);
    void run(Job job);
    void serve();

    Session& session_;
    std::mutex mutex_;
    bool started_ = false, ended_ = false;
    uint64_t next_ = 0;
    std::unordered_map<uint64_t, Launched> launched_;
    std::unordered_map<uint64_t, std::shared_ptr<ReportQueue>> queues_;  // by stream
    // Threads that run host functions: one more whenever all are busy, since a function may wait for
    // another's. No more than the daemon has slots.
    std::mutex jobs_mutex_;
    std::condition_variable jobs_ready_;
    std::deque<Job> jobs_;
    size_t idle_ = 0, threads_ = 0;
    bool over_ = false;  // no job will come
};

}  // namespace flexnpu::client
