// Host callbacks that a program's own thread runs: aclrtSubscribeReport, aclrtLaunchCallback,
// aclrtProcessReport.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>

#include "flexnpu/emulator/runtime/clock.hpp"
#include "flexnpu/emulator/runtime/event.hpp"

namespace flexnpu::emulator {

using HostFunction = void (*)(void*);

struct Report {
    HostFunction function;
    void* argument;
    // Woken when the callback has run; then `done` is set.
    std::atomic<bool> done{false};
};

// The callbacks waiting for one thread.
class ReportQueue {
public:
    // `waiter` (may be null) is woken when the report has run, or will never run because the queue was
    // closed.
    void push(std::shared_ptr<Report> report, Waiter* waiter);
    // A waiter that gives up must not be woken later.
    void forget(Waiter* waiter);

    enum class Result { Ran, TimedOut, Closed };
    // Runs one callback on the calling thread.
    Result process(std::optional<Clock::time_point> deadline);

    // One more, one fewer stream reports here; with none left the queue is closed.
    void subscribe();
    void unsubscribe();
    // Takes no lock: a stream asks while it holds its own, which a wake-up takes under this queue's.
    bool closed() const { return subscriptions_.load() == 0; }

private:
    struct Entry {
        std::shared_ptr<Report> report;
        Waiter* waiter;
    };
    mutable std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<Entry> entries_;
    Waiter* running_ = nullptr;  // the waiter of the callback that runs now
    std::atomic<uint32_t> subscriptions_{0};
};

}  // namespace flexnpu::emulator
