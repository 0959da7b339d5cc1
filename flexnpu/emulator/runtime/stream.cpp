#include "flexnpu/emulator/runtime/stream.hpp"

#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <algorithm>
#include <cstring>
#include <system_error>
#include <utility>

#include "flexnpu/emulator/runtime/errors.hpp"
#include "flexnpu/emulator/runtime/graph.hpp"
#include "flexnpu/emulator/runtime/replay.hpp"

namespace flexnpu::emulator {

namespace {

// How far device time may run ahead of the clock before the worker sleeps. Operators of a few microseconds
// then need no sleep of their own and still have exact times; a completion shows at most this much too early,
// never in the sum.
constexpr uint64_t kAheadNs = 50'000;
// A sleep ends this much before its target: about what waking up takes.
constexpr uint64_t kWakeNs = 25'000;

// The stream whose worker the calling thread is.
thread_local const Stream* t_current = nullptr;

}  // namespace

Stream::Stream(DeviceModel model, int32_t id, uint32_t priority, uint32_t flags)
    : id(id), priority(priority), flags(flags), model_(std::move(model)), log_(model_.log) {}

Stream::~Stream() {
    if (worker_.joinable()) {
        worker_.detach();  // only when the worker itself lets go of the last reference
    }
}

Stream::Enqueued Stream::enqueue(Task&& task) {
    std::unique_lock lock(mutex_);
    if (queue_.size() >= model_.profile.stream_depth && t_current != this) {
        done_.wait(lock, [&] { return queue_.size() < model_.profile.stream_depth || stopping_; });
    }
    if (stopping_) {
        return Enqueued::Ending;
    }
    if (!worker_.joinable() && !start_worker()) {
        return Enqueued::NoThread;
    }
    task.submit_ns = now_ns();
    task.number = enqueued_.load() + 1;
    if (task.replay) {
        task.replay->ticket =
            task.replay->graph->next_ticket();  // here: turns follow the order of the queues
    }
    enqueued_.store(task.number);
    queue_.push_back(std::move(task));
    bool wake_worker = idle_;
    lock.unlock();
    if (wake_worker) {
        work_.notify_one();
    }
    return Enqueued::Done;
}

// False: the system gives no thread.
bool Stream::start_worker() {
    // The program's signals stay with the program's threads.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
        worker_ = std::thread([self = shared_from_this()] { self->work(); });
    } catch (const std::system_error&) {
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return worker_.joinable();
}

void Stream::work() {
    t_current = this;
    prctl(PR_SET_TIMERSLACK, 1);
    pthread_setname_np(pthread_self(), ("npu-stream-" + std::to_string(id)).substr(0, 15).c_str());
    std::unique_lock lock(mutex_);
    for (;;) {
        if (queue_.empty() && log_.pending()) {
            // Before it rests, what it has done can be read.
            lock.unlock();
            log_.flush();
            lock.lock();
        }
        idle_ = true;
        work_.wait(lock, [&] { return !queue_.empty() || stopping_; });
        idle_ = false;
        if (queue_.empty()) {
            return;
        }
        Task task = std::move(queue_.front());
        queue_.pop_front();
        bool was_full = queue_.size() + 1 == model_.profile.stream_depth;
        lock.unlock();
        uint64_t number = task.number;
        if (skipping(task)) {
            skip(task);
        } else {
            run(task);
        }
        task = Task{};
        completed_.store(number);
        if (number >= notify_at_.load()) {
            std::lock_guard notify_lock(mutex_);
            done_.notify_all();
        } else if (was_full) {
            done_.notify_all();
        }
        lock.lock();
    }
}

bool Stream::skipping(const Task& task) const {
    return task.number <= skip_until_.load() || (failed_.load() && failure_mode.load() == 1);
}

// What others wait for happens even when the task does not run: nobody may hang on a stream that was aborted.
void Stream::skip(Task& task) {
    switch (task.kind) {
        case TaskKind::Kernel:
            if (task.kernel.destroy != nullptr) {
                task.kernel.destroy(task.kernel.self);
            }
            break;
        case TaskKind::EventRecord:
            task.event->complete(task.record, std::max(device_ns_, task.submit_ns),
                                 task.number <= skip_until_.load());
            break;
        case TaskKind::EventReset: task.event->reset(task.record); break;
        case TaskKind::EventWait: task.event->pending_waits.fetch_sub(1); break;
        case TaskKind::Replay: abandon(*task.replay, std::max(device_ns_, task.submit_ns)); break;
        default: break;
    }
}

void Stream::run(Task& task) {
    switch (task.kind) {
        case TaskKind::Kernel: run_kernel(task); break;
        case TaskKind::Copy:
            copy(task.copy, task.engine, std::max(device_ns_, task.submit_ns));
            follow_clock(task.number);
            break;
        case TaskKind::EventRecord:
            device_ns_ = std::max(device_ns_, task.submit_ns);
            task.event->complete(task.record, device_ns_);
            break;
        case TaskKind::EventWait: wait_event(task); break;
        case TaskKind::EventReset: task.event->reset(task.record); break;
        case TaskKind::HostFunction:
            follow_clock(task.number);
            task.function(task.argument);
            device_ns_ = now_ns();
            break;
        case TaskKind::Callback: run_callback(task, report_queue()); break;
        case TaskKind::ValueWrite: write_value(task); break;
        case TaskKind::ValueWait: wait_value(task); break;
        case TaskKind::Replay: run_replay(task); break;
        case TaskKind::GraphUpdate: task.update->apply(); break;
    }
}

void Stream::run_kernel(Task& task) {
    execute(task.kernel, std::max(device_ns_, task.submit_ns), 1, task.number);
    if (task.kernel.destroy != nullptr) {
        task.kernel.destroy(task.kernel.self);
    }
    follow_clock(task.number);
}

void Stream::execute(const Kernel& kernel, uint64_t ready, double static_share, uint64_t number) {
    if (kernel.meet != nullptr) {
        meet(kernel, ready, number);
    } else {
        compute(kernel, ready, static_share);
    }
}

void Stream::compute(const Kernel& kernel, uint64_t ready, double static_share) {
    uint64_t duration = model_.profile.kernel_ns(kernel.cost, static_share);
    uint64_t start = model_.shared.reserve(kCompute, ready, duration);
    if (model_.mode == kModeCompute && kernel.has_body && kernel.run != nullptr) {
        uint64_t begin = now_ns();
        int error = kernel.run(kernel.self);
        uint64_t real = now_ns() - begin;
        if (real > duration) {
            model_.shared.extend(kCompute, real - duration);
            duration = real;
        }
        if (error != 0) {
            std::string message = take_message();
            set_error(error, message.empty() ? std::string(kernel.name) + " failed on the device" : message);
        }
    }
    if (kernel.cost.cube_flops > 0) {
        model_.shared.count_cube(duration);
    }
    device_ns_ = start + duration;
    log_.add(device, id, start, device_ns_, kernel.name);
}

void Stream::copy(const CopyWork& work, Engine engine, uint64_t ready) {
    uint64_t duration = model_.profile.copy_ns(copy_direction(engine), work.bytes());
    uint64_t start = model_.shared.reserve(engine, ready, duration);
    uint64_t begin = now_ns();
    work.perform(model_.mode, engine);
    uint64_t real = now_ns() - begin;
    if (real > duration) {
        model_.shared.extend(engine, real - duration);
        duration = real;
    }
    device_ns_ = start + duration;
    log_.add(device, id, start, device_ns_, copy_name(engine));
}

void Stream::run_callback(Task& task, std::shared_ptr<ReportQueue> queue) {
    follow_clock(task.number);
    if (!queue || queue->closed()) {
        set_error(kStreamNoCallback, "a callback was launched on a stream that no thread subscribed to");
        return;
    }
    auto report = std::make_shared<Report>();
    report->function = task.function;
    report->argument = task.argument;
    queue->push(report, task.blocking ? this : nullptr);
    if (task.blocking) {
        wait_until(task.number, std::nullopt, [&] { return report->done.load() || queue->closed(); });
        queue->forget(this);
        device_ns_ = std::max(device_ns_, now_ns());
    }
}

void Stream::wait_event(Task& task) {
    Event& event = *task.event;
    if (!event.is_complete(task.record)) {
        event.add_waiter(this);
        std::optional<uint64_t> deadline;
        if (task.deadline_ns != 0) {
            deadline = task.deadline_ns;
        }
        bool over = false;
        // Another process does not wake this one: its events are looked at.
        while (event.between.theirs && !over && !event.is_complete(task.record) &&
               (!deadline || now_ns() < *deadline)) {
            const uint64_t look = now_ns() + 100'000;
            wait_until(task.number, deadline ? std::min(look, *deadline) : look,
                       [&] { return event.is_complete(task.record); });
            over = skipping(task);
        }
        if (!event.between.theirs) {
            wait_until(task.number, deadline, [&] { return event.is_complete(task.record); });
        }
        event.remove_waiter(this);
        if (task.deadline_ns != 0 && now_ns() >= task.deadline_ns && !event.is_complete(task.record)) {
            set_error(acl::RT_WAIT_TIMEOUT, "a stream's wait for an event was not over in time");
        }
    }
    // Of a record so old that its time is forgotten, it is known that it lies in the past.
    device_ns_ = std::max(device_ns_, event.timestamp(task.record).value_or(0));
    event.pending_waits.fetch_sub(1);
    follow_clock(task.number);
}

bool Stream::value_there(const Task& task) const {
    if (model_.mode != kModeCompute) {
        return true;
    }
    uint64_t value = std::atomic_ref(*static_cast<uint64_t*>(task.argument)).load();
    switch (task.flag) {
        case 0: return int64_t(value - task.value) >= 0;
        case 1: return value == task.value;
        case 2: return (value & task.value) != 0;
        default: return ~(value | task.value) != 0;
    }
}

void Stream::write_value(const Task& task) {
    if (model_.mode == kModeCompute) {
        std::atomic_ref(*static_cast<uint64_t*>(task.argument)).store(task.value);
        value_waiters().wake_all();
    }
}

// Told of writes by aclrtValueWrite; nothing tells when a program or a kernel writes to device memory, so it
// also looks again now and then.
void Stream::wait_value(Task& task) {
    if (model_.mode != kModeCompute) {
        return;
    }
    value_waiters().add(this);
    uint64_t pause = 20'000;
    while (!value_there(task) && !skipping(task)) {
        wait_until(task.number, now_ns() + pause, [&] { return value_there(task); });
        pause = std::min<uint64_t>(pause * 2, 1'000'000);
    }
    value_waiters().remove(this);
    device_ns_ = std::max(device_ns_, now_ns());
}

void Stream::follow_clock(uint64_t number) {
    if (device_ns_ > now_ns() + kAheadNs) {
        wait_until(number, device_ns_ - kWakeNs, [] { return false; });
    }
}

// `done` is asked without the stream's lock: it may take the lock of what calls wake().
void Stream::wait_until(uint64_t number, std::optional<uint64_t> deadline_ns,
                        const std::function<bool()>& done) {
    for (;;) {
        {
            std::lock_guard lock(mutex_);
            woken_ = false;
        }
        if (number <= skip_until_.load() || done()) {
            return;
        }
        std::unique_lock lock(mutex_);
        auto stirred = [&] { return woken_ || number <= skip_until_.load(); };
        if (!deadline_ns) {
            wakeup_.wait(lock, stirred);
        } else if (!wakeup_.wait_until(lock, time_point(*deadline_ns), stirred)) {
            return;
        }
    }
}

void Stream::wake() {
    std::lock_guard lock(mutex_);
    woken_ = true;
    wakeup_.notify_all();
}

Stream::Wait Stream::synchronize(std::optional<Clock::time_point> deadline) {
    uint64_t target = enqueued_.load();
    if (completed_.load() >= target || t_current == this) {
        return Wait::Done;
    }
    std::unique_lock lock(mutex_);
    auto done = [&] {
        if (completed_.load() >= target) {
            return true;
        }
        // Stored before `completed_` is read again: either this thread sees the completion or the worker sees
        // this.
        notify_at_.store(std::min(notify_at_.load(), target));
        return completed_.load() >= target;
    };
    bool in_time = true;
    if (deadline) {
        in_time = done_.wait_until(lock, *deadline, done);
    } else {
        done_.wait(lock, done);
    }
    // Others that still wait store their own number again when this wakes them.
    notify_at_.store(UINT64_MAX);
    done_.notify_all();
    return in_time ? Wait::Done : Wait::TimedOut;
}

void Stream::set_error(int32_t error, std::string message) {
    std::lock_guard lock(mutex_);
    failed_ = true;
    if (error_ == 0) {
        error_ = error;
        error_message_ = std::move(message);
    }
}

int32_t Stream::take_error(std::string* message) {
    std::lock_guard lock(mutex_);
    *message = std::move(error_message_);
    error_message_.clear();
    failed_ = false;
    return std::exchange(error_, 0);
}

int32_t Stream::stopped_by(std::string* message) const {
    std::lock_guard lock(mutex_);
    if (error_ == 0 || failure_mode.load() != 1) {
        return 0;
    }
    *message = error_message_;
    return error_;
}

void Stream::abort(int32_t error, const char* message) {
    if (error != 0) {
        set_error(error, message);
    }
    std::lock_guard lock(mutex_);
    skip_until_.store(enqueued_.load());
    wakeup_.notify_all();
}

void Stream::shut_down(bool skip_rest) {
    {
        std::unique_lock lock(mutex_);
        stopping_ = true;
        if (skip_rest) {
            skip_until_.store(enqueued_.load());
            wakeup_.notify_all();
        }
        work_.notify_all();
        done_.notify_all();
        place = {};
        if (!worker_.joinable()) {
            return;
        }
    }
    if (t_current == this) {
        worker_.detach();  // a host function destroys its own stream: the worker ends after it
    } else {
        worker_.join();
    }
}

std::shared_ptr<ReportQueue> Stream::report_queue() const {
    std::lock_guard lock(mutex_);
    return report_queue_;
}

void Stream::set_report_queue(std::shared_ptr<ReportQueue> queue) {
    std::lock_guard lock(mutex_);
    report_queue_ = std::move(queue);
}

}  // namespace flexnpu::emulator
