// Streams: tasks run in order, on a worker thread of the stream, in the device's time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "flexnpu/emulator/kernel.hpp"
#include "flexnpu/emulator/runtime/callbacks.hpp"
#include "flexnpu/emulator/runtime/copy.hpp"
#include "flexnpu/emulator/runtime/event.hpp"
#include "flexnpu/emulator/runtime/profile.hpp"
#include "flexnpu/emulator/runtime/shared_device.hpp"
#include "flexnpu/emulator/runtime/task_log.hpp"

namespace flexnpu::emulator {

enum class TaskKind : uint8_t {
    Kernel,
    Copy,  // memcpy, or memset when source is null
    EventRecord,
    EventWait,
    EventReset,
    HostFunction,  // runs on the stream's own thread
    Callback,      // runs on the thread that subscribed
    ValueWrite,
    ValueWait,
    Replay,       // of a captured graph
    GraphUpdate,  // new arguments for tasks of a graph
};

struct Replay;
struct TaskUpdate;

struct Task {
    TaskKind kind = TaskKind::Kernel;
    uint64_t submit_ns = 0;
    uint64_t number = 0;  // in its stream, from 1
    Kernel kernel;
    CopyWork copy;
    Engine engine = kHostToDevice;
    std::shared_ptr<void> staging;  // keeps a copied source alive
    std::shared_ptr<Event> event;
    uint64_t record = 0;
    uint64_t deadline_ns = 0;  // EventWait; 0: none
    HostFunction function = nullptr;
    void* argument = nullptr;
    bool blocking = false;
    uint64_t value = 0;
    uint32_t flag = 0;
    std::shared_ptr<Replay> replay;
    std::shared_ptr<TaskUpdate> update;
};

// What a stream needs of its device.
struct DeviceModel {
    const Profile& profile;
    SharedDevice& shared;
    Mode mode;
    std::shared_ptr<void> keep = nullptr;  // what owns the others, if anything must be kept for them
    std::shared_ptr<TaskLog> log = nullptr;
};

class Stream : public Waiter, public std::enable_shared_from_this<Stream> {
public:
    Stream(DeviceModel model, int32_t id, uint32_t priority, uint32_t flags);
    ~Stream() override;

    const int32_t id;
    const uint32_t priority;
    const uint32_t flags;
    void* handle = nullptr;   // set once, by the table
    DevicePlace place;        // among the device's streams; given back by shut_down()
    void* context = nullptr;  // the handle of the context that it belongs to
    int32_t device = 0;
    std::atomic<uint32_t> overflow_switch{0};
    std::atomic<uint64_t> failure_mode{0};  // 1: after an error the rest is skipped

    // What happens to tasks that are called on the stream: they run, or are taken by a capture or a task
    // update. Written under the captures' lock.
    enum class Divert : uint8_t { None, Capture, Update };
    std::atomic<Divert> divert{Divert::None};

    // Appends a task; blocks while the stream is full. Unless it is done the task is untouched.
    enum class Enqueued { Done, Ending, NoThread };
    Enqueued enqueue(Task&& task);

    enum class Wait { Done, TimedOut };
    // Waits for everything enqueued before the call.
    Wait synchronize(std::optional<Clock::time_point> deadline);
    bool idle() const { return completed_.load() >= enqueued_.load(); }
    // The first asynchronous error since the last call, with its message; 0 when there was none.
    int32_t take_error(std::string* message);
    // The same, and leaves it; only of a stream that stops after a failure, for calls that are refused then.
    int32_t stopped_by(std::string* message) const;

    // Skips everything that has been enqueued and not begun; the error is what synchronise then reports (0:
    // nothing).
    void abort(int32_t error, const char* message);
    // Lets what was enqueued run (or skips it) and ends the worker.
    void shut_down(bool skip);

    void wake() override;

    // Callbacks go here; null when nobody subscribed.
    std::shared_ptr<ReportQueue> report_queue() const;
    void set_report_queue(std::shared_ptr<ReportQueue> queue);

private:
    bool start_worker();
    void work();
    void run(Task& task);
    void skip(Task& task);
    void run_kernel(Task& task);
    // These leave device_ns_ at the end of what began at `ready` at the soonest; `number` is of the task that
    // it belongs to.
    void execute(const Kernel& kernel, uint64_t ready, double static_share, uint64_t number);
    void meet(const Kernel& kernel, uint64_t ready, uint64_t number);
    void compute(const Kernel& kernel, uint64_t ready, double static_share);
    void copy(const CopyWork& work, Engine engine, uint64_t ready);
    void run_replay(Task& task);
    class ReplayRun;  // replay.cpp
    void run_callback(Task& task, std::shared_ptr<ReportQueue> queue);
    void wait_event(Task& task);
    void wait_value(Task& task);
    // Whether the word that a ValueWait task names has its value; always in time mode, where memory is not
    // touched.
    bool value_there(const Task& task) const;
    void write_value(const Task& task);
    void set_error(int32_t error, std::string message);
    bool skipping(const Task& task) const;
    // Lets the device's time run ahead of the clock by kAhead at most.
    void follow_clock(uint64_t number);
    // Sleeps until `done` holds, the task is aborted, or the time has come.
    void wait_until(uint64_t number, std::optional<uint64_t> deadline_ns, const std::function<bool()>& done);

    DeviceModel model_;
    TaskLines log_;           // the worker's own
    uint64_t device_ns_ = 0;  // device time at which the last task ended; the worker's own

    mutable std::mutex mutex_;
    std::condition_variable work_;    // the worker: there are tasks
    std::condition_variable wakeup_;  // the worker inside a task: time, event or abort
    std::condition_variable done_;    // others: tasks have completed, or there is room
    std::deque<Task> queue_;
    bool idle_ = false;  // the worker waits for tasks
    bool stopping_ = false;
    bool woken_ = false;  // since the worker last looked
    std::thread worker_;
    std::atomic<uint64_t> enqueued_{0};
    std::atomic<uint64_t> completed_{0};
    std::atomic<uint64_t> notify_at_{UINT64_MAX};  // the smallest number that somebody waits for
    std::atomic<uint64_t> skip_until_{0};          // tasks up to this number are skipped
    int32_t error_ = 0;
    std::string error_message_;
    std::atomic<bool> failed_{false};
    std::shared_ptr<ReportQueue> report_queue_;
};

}  // namespace flexnpu::emulator
