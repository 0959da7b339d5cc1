// The emulated runtime in time mode: device time follows the profile exactly, and nothing is computed.
#include <doctest/doctest.h>

#include <unistd.h>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <future>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "support.hpp"

using namespace flexnpu;
using namespace flexnpu::emulator::test;
using namespace std::chrono_literals;

namespace {

// What the process's threads do meanwhile, by what the kernel says of them: a thread that spins is runnable
// whenever one looks, one that polls wakes up again and again. Neither depends on how fast the host is.
class Rest {
public:
    Rest() : before_(wakeups_so_far()), looks_at_([this](const std::stop_token& stop) { look(stop); }) {}
    void end() {
        looks_at_.request_stop();
        looks_at_.join();
        wakeups_ = wakeups_so_far() - before_;
    }
    int looks() const { return looks_; }
    int busy_looks() const { return busy_looks_; }  // with a thread that runs or wants to
    long wakeups() const { return wakeups_; }       // of all threads that there were all the time

private:
    // The text of a file of each thread's.
    static std::vector<std::string> texts(const char* name, pid_t but = 0) {
        std::vector<std::string> found;
        for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
            if (task.path().filename() != std::to_string(but)) {
                std::ifstream file(task.path() / name);
                found.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
            }
        }
        return found;
    }
    static long wakeups_so_far() {
        long sum = 0;
        for (const std::string& text : texts("status")) {
            const std::string field = "\nvoluntary_ctxt_switches:";
            const size_t at = text.find(field);
            sum += at == std::string::npos ? 0 : std::stol(text.substr(at + field.size()));
        }
        return sum;
    }
    void look(const std::stop_token& stop) {
        while (!stop.stop_requested()) {
            const auto stats = texts("stat", gettid());
            ++looks_;
            busy_looks_ += std::any_of(stats.begin(), stats.end(), [](const std::string& text) {
                const size_t name_end = text.rfind(')');
                return name_end != std::string::npos && text.compare(name_end, 3, ") R") == 0;
            });
            std::this_thread::sleep_for(10ms);
        }
    }

    const long before_;
    long wakeups_ = 0;
    int looks_ = 0, busy_looks_ = 0;
    std::jthread looks_at_;
};

size_t resident_bytes() {
    std::ifstream file("/proc/self/statm");
    size_t total = 0, resident = 0;
    file >> total >> resident;
    return resident * 4096;
}

float elapsed_ms(aclrtEvent from, aclrtEvent to) {
    float ms = -1;
    REQUIRE(aclrtEventElapsedTime(&ms, from, to) == 0);
    return ms;
}

// Holds a stream until all of a test's work has been launched, and keeps the device busy for a moment after
// that: what follows then takes the model's time, however slow the host launches.
class Held {
public:
    explicit Held(aclrtStream stream) {
        auto* opened = new std::shared_future<void>(open_.get_future().share());
        auto wait = [](void* argument) {
            auto* future = static_cast<std::shared_future<void>*>(argument);
            future->wait();
            delete future;
        };
        REQUIRE(aclrtLaunchHostFunc(stream, reinterpret_cast<aclrtHostFunc>(+wait), opened) == 0);
        REQUIRE(launch(stream, kBusyUs) == 0);
    }
    void release() { open_.set_value(); }

    static constexpr double kBusyUs = 50000;

private:
    std::promise<void> open_;
};

}  // namespace

TEST_CASE("operators in a busy stream take exactly the model's time") {
    StreamOwner stream;
    EventOwner begin, middle, end;
    Held held(stream);
    REQUIRE(aclrtRecordEvent(begin, stream) == 0);
    for (int i = 0; i < 500; ++i) {
        REQUIRE(launch(stream, 7) == 0);
    }
    REQUIRE(aclrtRecordEvent(middle, stream) == 0);
    REQUIRE(launch(stream, 3000) == 0);
    REQUIRE(aclrtRecordEvent(end, stream) == 0);
    held.release();
    REQUIRE(aclrtSynchronizeStream(stream) == 0);
    CHECK(elapsed_ms(begin, middle) == doctest::Approx(3.5).epsilon(1e-5));
    CHECK(elapsed_ms(middle, end) == doctest::Approx(3.0).epsilon(1e-5));
}

TEST_CASE("streams share one compute engine; copies have their own") {
    StreamOwner first, second, copies;
    EventOwner begin, end_first, end_second, copy_begin, copy_end;
    std::vector<char> host(1 << 20);
    void* p = nullptr;
    REQUIRE(aclrtMalloc(&p, host.size(), 0) == 0);
    uint64_t busy_before = 0, busy_after = 0;
    REQUIRE(flexnpu_emu_device_busy_ns(0, &busy_before) == 0);
    Held held(first);
    REQUIRE(aclrtRecordEvent(begin, first) == 0);
    REQUIRE(aclrtStreamWaitEvent(second, begin) == 0);
    REQUIRE(aclrtStreamWaitEvent(copies, begin) == 0);
    REQUIRE(aclrtRecordEvent(copy_begin, copies) == 0);
    REQUIRE(aclrtMemcpyAsync(p, host.size(), host.data(), 1000000, acl::HOST_TO_DEVICE, copies) == 0);
    REQUIRE(aclrtRecordEvent(copy_end, copies) == 0);
    for (int i = 0; i < 10; ++i) {
        REQUIRE(launch(first, 1000) == 0);
        REQUIRE(launch(second, 1000) == 0);
    }
    REQUIRE(aclrtRecordEvent(end_first, first) == 0);
    REQUIRE(aclrtRecordEvent(end_second, second) == 0);
    held.release();
    REQUIRE(aclrtSynchronizeDevice() == 0);
    REQUIRE(flexnpu_emu_device_busy_ns(0, &busy_after) == 0);
    float last = std::max(elapsed_ms(begin, end_first), elapsed_ms(begin, end_second));
    CHECK(last == doctest::Approx(20.0).epsilon(1e-4));
    // Who gets the engine when depends on which of the two the host runs first; neither takes less than its
    // ten.
    CHECK(std::min(elapsed_ms(begin, end_first), elapsed_ms(begin, end_second)) > 9.99f);
    CHECK(elapsed_ms(copy_begin, copy_end) == doctest::Approx(1.0).epsilon(1e-4));
    CHECK(busy_after - busy_before == 70'000'000);
    REQUIRE(aclrtFree(p) == 0);
}

TEST_CASE("a replay takes its launch and the longest way through the graph") {
    StreamOwner main, side;
    EventOwner fork, join, begin, middle, end;
    constexpr size_t kBytes = 4 << 20;
    void* p = nullptr;
    REQUIRE(aclrtMalloc(&p, 2 * kBytes, 0) == 0);
    aclmdlRI line = nullptr, branches = nullptr;
    REQUIRE(aclmdlRICaptureBegin(main, acl::CAPTURE_GLOBAL) == 0);
    for (int i = 0; i < 100; ++i) {
        REQUIRE(launch(main, 7) == 0);
    }
    REQUIRE(aclmdlRICaptureEnd(main, &line) == 0);
    // A copy of 4 MiB, read and written at 10^12 bytes a second (8.4 us), beside ten operators of 2 us, then
    // one of 3.
    REQUIRE(aclmdlRICaptureBegin(main, acl::CAPTURE_GLOBAL) == 0);
    REQUIRE(aclrtRecordEvent(fork, main) == 0);
    REQUIRE(aclrtStreamWaitEvent(side, fork) == 0);
    REQUIRE(aclrtMemcpyAsync(p, kBytes, static_cast<char*>(p) + kBytes, kBytes, acl::DEVICE_TO_DEVICE,
                             side) == 0);
    for (int i = 0; i < 10; ++i) {
        REQUIRE(launch(main, 2) == 0);
    }
    REQUIRE(aclrtRecordEvent(join, side) == 0);
    REQUIRE(aclrtStreamWaitEvent(main, join) == 0);
    REQUIRE(launch(main, 3) == 0);
    REQUIRE(aclmdlRICaptureEnd(main, &branches) == 0);
    Held held(main);
    REQUIRE(aclrtRecordEvent(begin, main) == 0);
    for (int i = 0; i < 3; ++i) {
        REQUIRE(aclmdlRIExecuteAsync(line, main) == 0);
    }
    REQUIRE(aclrtRecordEvent(middle, main) == 0);
    REQUIRE(aclmdlRIExecuteAsync(branches, main) == 0);
    REQUIRE(aclrtRecordEvent(end, main) == 0);
    held.release();
    REQUIRE(aclrtSynchronizeStream(main) == 0);
    CHECK(elapsed_ms(begin, middle) == doctest::Approx(3 * (5 + 100 * 7) / 1e3).epsilon(1e-5));
    CHECK(elapsed_ms(middle, end) == doctest::Approx((5 + 10 * 2 + 3) / 1e3).epsilon(1e-4));
    CHECK(aclmdlRIDestroy(line) == 0);
    CHECK(aclmdlRIDestroy(branches) == 0);
    CHECK(aclrtFree(p) == 0);
}

TEST_CASE("the caller's clock agrees with the device's") {
    StreamOwner stream;
    Held held(stream);
    for (int i = 0; i < 200; ++i) {
        REQUIRE(launch(stream, 500) == 0);
    }
    // Launching does not wait: it would have waited for ever.
    auto begin = std::chrono::steady_clock::now();
    held.release();
    REQUIRE(aclrtSynchronizeStream(stream) == 0);
    auto ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
    CHECK(ms > 149.9);   // at most 50 us early
    CHECK(ms < 60'000);  // and late only by the machine's own noise: a hang guard
}

TEST_CASE("nothing is computed and device memory stays untouched") {
    size_t before = resident_bytes();
    void* p = nullptr;
    constexpr size_t size = 900u << 20;
    REQUIRE(aclrtMalloc(&p, size, 0) == 0);
    StreamOwner stream;
    std::atomic<int> ran{0};
    REQUIRE(launch(stream, 10, [&] {
                ran++;
                return 0;
            }) == 0);
    REQUIRE(aclrtMemset(p, size, 1, size) == 0);
    std::vector<char> host(4096, 'x');
    REQUIRE(aclrtMemcpy(p, size, host.data(), host.size(), acl::HOST_TO_DEVICE) == 0);
    REQUIRE(aclrtMemcpyAsync(host.data(), host.size(), p, host.size(), acl::DEVICE_TO_HOST, stream) == 0);
    REQUIRE(aclrtSynchronizeStream(stream) == 0);
    CHECK(ran == 0);
    CHECK(host == std::vector<char>(4096, 0));
    CHECK(resident_bytes() < before + (32 << 20));
    REQUIRE(aclrtFree(p) == 0);
}

TEST_CASE("an idle device and a waiting one neither spin nor poll") {
    StreamOwner stream, other;
    REQUIRE(launch(stream, 1) == 0);
    REQUIRE(aclrtSynchronizeStream(stream) == 0);
    Rest rest;
    std::this_thread::sleep_for(300ms);  // idle
    REQUIRE(launch(stream, 300000) == 0);
    EventOwner event;
    REQUIRE(aclrtRecordEvent(event, stream) == 0);
    REQUIRE(aclrtStreamWaitEvent(other, event) == 0);
    REQUIRE(aclrtSynchronizeStream(other) == 0);  // a kernel in flight, a stream and a thread that wait
    rest.end();
    CHECK(rest.looks() > 10);
    CHECK(rest.busy_looks() <= rest.looks() / 2);
    CHECK(rest.wakeups() < 100);
}

TEST_CASE("a reserved engine is not lost when launches are aborted") {
    StreamOwner stream;
    for (int i = 0; i < 600; ++i) {
        REQUIRE(launch(stream, 500'000) == 0);
    }
    std::this_thread::sleep_for(5ms);
    REQUIRE(aclrtStreamAbort(stream) == 0);
    auto begin = std::chrono::steady_clock::now();
    CHECK(aclrtSynchronizeStream(stream) == acl::RT_STREAM_ABORT);
    CHECK(std::chrono::steady_clock::now() - begin < 120s);  // not 300 s: one kernel was in flight
}
