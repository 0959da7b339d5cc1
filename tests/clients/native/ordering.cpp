// Runs programs of streams, events, threads and host functions, and says what could be seen of their order.
//
//   ordering STREAMS THREADS EVENTS
//
// Prints the streams' handles. Then, for each program on the input (a line a step, "run" at the end), a line
// a step: "STEP CODE STATUS SEEN SEEN" and "end". A step is begun when the one before it has returned, or for
// those in the background has been begun.
//
// Each stream has a cell in device memory, which counts the stream's effects: each effect makes it one more.
// SEEN is what all cells held at one moment, "-" if they were not looked at: of a copy in a stream, when it
// ran; of a host function, when it began and when it ended; of a synchronise or a query, after it had
// returned. One stream more, the last printed, is kept busy with operators all the while: as a decode lane it
// gives the gate a reason to hold others.
#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <future>
#include <iostream>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "benchmarks/native/harness.hpp"

#define OK(name, ...) flexnpu::bench::check(ACL(name)(__VA_ARGS__), #name)

namespace acl = flexnpu::acl;

namespace {

size_t stream_count;
std::vector<aclrtStream> streams;
std::vector<aclTensor*> tensors;
std::vector<aclrtEvent> events;
aclScalar* one;
int32_t* cells;
constexpr size_t kSteps = 512;
int32_t* copies;  // device memory, a row a step

using Seen = std::vector<int32_t>;

Seen look(const int32_t* device) {
    Seen seen(stream_count);
    OK(aclrtMemcpy, seen.data(), seen.size() * 4, device, seen.size() * 4, acl::DEVICE_TO_HOST);
    return seen;
}

struct Step {
    size_t thread = 0;
    std::string what;
    std::vector<uint64_t> arguments;
    bool copied = false;
    std::atomic<int> called{0};  // host functions: 1 begun, 2 over
    uint64_t pause_us = 0;
    int code = 0;
    std::string status = "-";
    Seen first, second;
    uint64_t at(size_t i) const { return arguments.at(i); }
};

void host_function(void* p) {
    auto& step = *static_cast<Step*>(p);
    ACL(aclrtSetDevice)(0);
    step.first = look(cells);
    step.called = 1;
    std::this_thread::sleep_for(std::chrono::microseconds(step.pause_us));
    step.second = look(cells);
    step.called = 2;
}

int add(aclrtStream s, aclTensor* cell) {
    uint64_t workspace = 0;
    aclOpExecutor* executor = nullptr;
    if (int e = ACL(aclnnInplaceAddsGetWorkspaceSize)(cell, one, one, &workspace, &executor)) return e;
    return ACL(aclnnInplaceAdds)(nullptr, 0, executor, s);
}

template <class F>
int query(Step& step, F ask) {
    int32_t status = -1;
    const int e = ask(&status);
    step.status = std::to_string(status);
    step.first = look(cells);
    return e;
}

int run(Step& step, size_t number, const std::function<void()>& begun) {
    const std::string& w = step.what;
    auto stream = [&](size_t i) { return streams.at(step.at(i)); };
    auto event = [&](size_t i) { return events.at(step.at(i)); };
    if (w == "add") return add(stream(0), tensors.at(step.at(0)));
    if (w == "set") return ACL(aclrtMemsetAsync)(cells + step.at(0), 1, int32_t(step.at(1)), 1, stream(0));
    if (w == "put") {
        const auto value = int32_t(step.at(1));
        return ACL(aclrtMemcpyAsync)(cells + step.at(0), 4, &value, 4, acl::HOST_TO_DEVICE, stream(0));
    }
    if (w == "copy") {
        step.copied = true;
        const size_t bytes = stream_count * 4;
        return ACL(aclrtMemcpyAsync)(copies + number * stream_count, bytes, cells, bytes,
                                     acl::DEVICE_TO_DEVICE, stream(0));
    }
    if (w == "host") {
        step.pause_us = step.at(1);
        return ACL(aclrtLaunchHostFunc)(stream(0), reinterpret_cast<aclrtHostFunc>(&host_function), &step);
    }
    if (w == "callback") {
        step.pause_us = step.at(1);
        return ACL(aclrtLaunchCallback)(reinterpret_cast<aclrtCallback>(&host_function), &step,
                                        aclrtCallbackBlockType(step.at(2)), stream(0));
    }
    if (w == "new") {
        aclrtEvent& e = events.at(step.at(0));
        switch (step.at(1)) {
            case 0: return ACL(aclrtCreateEvent)(&e);
            case 1: return ACL(aclrtCreateEventWithFlag)(&e, acl::EVENT_SYNC | acl::EVENT_TIME_LINE);
            default: return ACL(aclrtCreateEventExWithFlag)(&e, acl::EVENT_SYNC | acl::EVENT_TIME_LINE);
        }
    }
    if (w == "delete") return ACL(aclrtDestroyEvent)(std::exchange(events.at(step.at(0)), nullptr));
    if (w == "record") return ACL(aclrtRecordEvent)(event(0), stream(1));
    if (w == "wait") return ACL(aclrtStreamWaitEvent)(stream(1), event(0));
    if (w == "reset") return ACL(aclrtResetEvent)(event(0), stream(1));
    if (w == "query")
        return query(step, [&](int32_t* status) { return ACL(aclrtQueryEventStatus)(event(0), status); });
    if (w == "old_query")
        return query(step, [&](int32_t* status) { return ACL(aclrtQueryEvent)(event(0), status); });
    if (w == "wait_query")
        return query(step, [&](int32_t* status) { return ACL(aclrtQueryEventWaitStatus)(event(0), status); });
    if (w == "stream_query")
        return query(step, [&](int32_t* status) { return ACL(aclrtStreamQuery)(stream(0), status); });
    if (w == "elapsed") {
        float ms = 0;
        const int e = ACL(aclrtEventElapsedTime)(&ms, event(0), event(1));
        step.status = std::to_string(ms);
        return e;
    }
    begun();
    int e;
    if (w == "sync_stream")
        e = ACL(aclrtSynchronizeStream)(stream(0));
    else if (w == "sync_event")
        e = ACL(aclrtSynchronizeEvent)(event(0));
    else if (w == "sync_device")
        e = ACL(aclrtSynchronizeDevice)();
    else
        e = -1;
    step.first = look(cells);
    return e;
}

// A thread of the program: one step at a time.
class Thread {
public:
    Thread() : thread_([this] { serve(); }) { thread_.detach(); }
    // Returns when the step is over, or with `background` begun. A step of this thread that is still under
    // way ends first.
    void take(Step& step, size_t number, bool background) {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return step_ == nullptr; });
        step_ = &step;
        number_ = number;
        begun_ = false;
        changed_.notify_all();
        changed_.wait(lock, [&] { return step_ == nullptr || (background && begun_); });
    }
    void finish() {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return step_ == nullptr; });
    }

private:
    void serve() {
        OK(aclrtSetDevice, 0);
        std::unique_lock lock(mutex_);
        for (;;) {
            changed_.wait(lock, [this] { return step_ != nullptr; });
            Step& step = *step_;
            lock.unlock();
            step.code = run(step, number_, [this] {
                std::lock_guard inner(mutex_);
                begun_ = true;
                changed_.notify_all();
            });
            lock.lock();
            step_ = nullptr;
            changed_.notify_all();
        }
    }
    std::mutex mutex_;
    std::condition_variable changed_;
    Step* step_ = nullptr;
    size_t number_ = 0;
    bool begun_ = false;
    std::thread thread_;
};

void print(const Seen& seen) {
    if (seen.empty()) std::cout << " -";
    for (size_t i = 0; i < seen.size(); i++) std::cout << (i ? ',' : ' ') << seen[i];
}

void run_program(std::vector<std::unique_ptr<Step>>& steps, std::vector<std::unique_ptr<Thread>>& threads) {
    OK(aclrtMemset, cells, stream_count * 4, 0, stream_count * 4);
    for (size_t i = 0; i < steps.size(); i++) {
        if (i % 4 == 0) flexnpu::bench::check(add(streams.back(), tensors.back()), "aclnnInplaceAdds");
        Step& step = *steps[i];
        const bool background = step.what.ends_with('&');
        if (background) step.what.pop_back();
        threads.at(step.thread)->take(step, i, background);
    }
    for (auto& t : threads) t->finish();
    OK(aclrtSynchronizeDevice);
    for (size_t i = 0; i < steps.size(); i++) {
        Step& step = *steps[i];
        if (step.copied) step.first = look(copies + i * stream_count);
        const bool called = step.what == "host" || step.what == "callback";
        for (int ms = 0; called && step.code == 0 && step.called != 2 && ms < 5000; ms++)
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        if (called && step.called != 2) step.status = "lost";
        std::cout << i << ' ' << step.code << ' ' << step.status;
        print(step.first);
        print(step.second);
        std::cout << '\n';
    }
    std::cout << "end";
    print(look(cells));
    std::cout << std::endl;
    for (aclrtEvent& e : events) {
        if (e) OK(aclrtDestroyEvent, std::exchange(e, nullptr));
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 4) {
        std::cerr << "usage: ordering STREAMS THREADS EVENTS\n";
        return 2;
    }
    stream_count = strtoul(argv[1], nullptr, 10);
    OK(aclInit, nullptr);
    OK(aclrtSetDevice, 0);
    void* p = nullptr;
    OK(aclrtMalloc, &p, (stream_count + 1) * 4, 0);
    cells = static_cast<int32_t*>(p);
    OK(aclrtMalloc, &p, kSteps * stream_count * 4, 0);
    copies = static_cast<int32_t*>(p);
    int32_t value = 1;
    one = ACL(aclCreateScalar)(&value, acl::INT32);
    const int64_t dims[] = {1};
    std::promise<uint64_t> reporter;
    std::thread([&reporter] {
        ACL(aclrtSetDevice)(0);
        reporter.set_value(uint64_t(pthread_self()));
        for (;;) {
            if (ACL(aclrtProcessReport)(1000) == acl::RT_THREAD_SUBSCRIBE)
                std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
    }).detach();
    const uint64_t reporting = reporter.get_future().get();
    for (size_t i = 0; i <= stream_count; i++) {
        aclrtStream s = nullptr;
        OK(aclrtCreateStream, &s);
        OK(aclrtSubscribeReport, reporting, s);
        streams.push_back(s);
        tensors.push_back(ACL(aclCreateTensor)(dims, 1, acl::INT32, dims, 0, acl::ND, dims, 1, cells + i));
        std::cout << reinterpret_cast<uint64_t>(s) << ' ';
    }
    std::cout << std::endl;
    std::vector<std::unique_ptr<Thread>> threads;
    for (size_t i = strtoul(argv[2], nullptr, 10); i > 0; i--) threads.push_back(std::make_unique<Thread>());
    events.resize(strtoul(argv[3], nullptr, 10));

    std::vector<std::unique_ptr<Step>> steps;
    std::string line;
    while (std::getline(std::cin, line)) {
        if (line == "run") {
            run_program(steps, threads);
            steps.clear();
            continue;
        }
        std::istringstream words(line);
        auto step = std::make_unique<Step>();
        words >> step->thread >> step->what;
        for (uint64_t n; words >> n;) step->arguments.push_back(n);
        steps.push_back(std::move(step));
        if (steps.size() > kSteps) return 2;
    }
    _exit(0);
}
