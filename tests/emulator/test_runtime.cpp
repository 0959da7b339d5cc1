// The emulated runtime in compute mode, through its exported functions.
#include <doctest/doctest.h>

#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <future>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "support.hpp"

using namespace flexnpu;
using namespace flexnpu::emulator::test;
using namespace std::chrono_literals;

namespace {

// A kernel's body that waits for the test to let it go, but not for ever.
struct Gate {
    std::promise<void> open;
    std::shared_future<void> opened = open.get_future().share();
    std::function<int()> body() {
        return [opened = opened] { return opened.wait_for(20s) == std::future_status::ready ? 0 : 507000; };
    }
};

void* device_memory(size_t size) {
    void* p = nullptr;
    REQUIRE(aclrtMalloc(&p, size, 0) == 0);
    return p;
}

}  // namespace

TEST_CASE("tasks of a stream run in order and the caller does not wait") {
    StreamOwner stream;
    Gate gate;
    std::vector<int> order;
    REQUIRE(launch(stream, 1, gate.body()) == 0);
    for (int i = 0; i < 1000; ++i) {
        REQUIRE(launch(stream, 1, [&order, i] {
                    order.push_back(i);
                    return 0;
                }) == 0);
    }
    aclrtStreamStatus status = -1;
    CHECK(aclrtStreamQuery(stream, &status) == 0);
    CHECK(status == acl::STREAM_NOT_READY);
    CHECK(order.empty());
    gate.open.set_value();
    CHECK(aclrtSynchronizeStream(stream) == 0);
    CHECK(order.size() == 1000);
    CHECK(std::is_sorted(order.begin(), order.end()));
    CHECK(aclrtStreamQuery(stream, &status) == 0);
    CHECK(status == acl::STREAM_COMPLETE);
}

TEST_CASE("a wait for an event holds a stream back until the record before it") {
    StreamOwner first, second;
    EventOwner event;
    Gate gate;
    std::atomic<int> step{0};
    REQUIRE(launch(first, 1, gate.body()) == 0);
    REQUIRE(launch(first, 1, [&] {
                step = 1;
                return 0;
            }) == 0);
    REQUIRE(aclrtRecordEvent(event, first) == 0);
    REQUIRE(aclrtStreamWaitEvent(second, event) == 0);
    int seen = -1;
    REQUIRE(launch(second, 1, [&] {
                seen = step;
                return 0;
            }) == 0);
    aclrtEventRecordedStatus recorded = -1;
    CHECK(aclrtQueryEventStatus(event, &recorded) == 0);
    CHECK(recorded == acl::EVENT_RECORDED_NOT_READY);
    aclrtEventWaitStatus waited = -1;
    CHECK(aclrtQueryEventWaitStatus(event, &waited) == 0);
    CHECK(waited == acl::EVENT_WAIT_NOT_READY);
    CHECK(aclrtSynchronizeEventWithTimeout(event, 5) == acl::RT_WAIT_TIMEOUT);
    gate.open.set_value();
    CHECK(aclrtSynchronizeEvent(event) == 0);
    CHECK(aclrtSynchronizeStream(second) == 0);
    CHECK(seen == 1);
    CHECK(aclrtQueryEventStatus(event, &recorded) == 0);
    CHECK(recorded == acl::EVENT_RECORDED_COMPLETE);
    CHECK(aclrtQueryEventWaitStatus(event, &waited) == 0);
    CHECK(waited == acl::EVENT_WAIT_COMPLETE);
}

TEST_CASE("an event that was never recorded holds nobody up, and is not complete") {
    StreamOwner stream;
    EventOwner event;
    CHECK(aclrtStreamWaitEvent(stream, event) == 0);
    CHECK(aclrtSynchronizeStream(stream) == 0);
    CHECK(aclrtSynchronizeEvent(event) == 0);
    aclrtEventRecordedStatus recorded = -1;
    CHECK(aclrtQueryEventStatus(event, &recorded) == 0);
    CHECK(recorded == acl::EVENT_RECORDED_NOT_READY);
    uint64_t us = 0;
    CHECK(aclrtEventGetTimestamp(event, &us) == 107006);
}

TEST_CASE("a wait is for the record before it, not for a later one") {
    StreamOwner first, second;
    EventOwner event;
    Gate gate;
    REQUIRE(aclrtRecordEvent(event, first) == 0);
    REQUIRE(aclrtSynchronizeStream(first) == 0);
    REQUIRE(aclrtStreamWaitEvent(second, event) == 0);
    REQUIRE(launch(first, 1, gate.body()) == 0);
    REQUIRE(aclrtRecordEvent(event, first) == 0);
    CHECK(aclrtSynchronizeStreamWithTimeout(second, 2000) == 0);
    gate.open.set_value();
    CHECK(aclrtSynchronizeStream(first) == 0);
}

TEST_CASE("an event can be destroyed while streams hold it") {
    StreamOwner first, second;
    Gate gate;
    aclrtEvent event = nullptr;
    REQUIRE(aclrtCreateEvent(&event) == 0);
    REQUIRE(launch(first, 1, gate.body()) == 0);
    REQUIRE(aclrtRecordEvent(event, first) == 0);
    REQUIRE(aclrtStreamWaitEvent(second, event) == 0);
    CHECK(aclrtDestroyEvent(event) == 0);
    CHECK(aclrtDestroyEvent(event) == acl::RT_INVALID_HANDLE);
    CHECK(aclrtRecordEvent(event, first) == acl::RT_INVALID_HANDLE);
    gate.open.set_value();
    CHECK(aclrtSynchronizeStream(second) == 0);
}

TEST_CASE("whatever the order of calls, a stream sees what was recorded before the event it waited for") {
    constexpr int kStreams = 6, kEvents = 12;
    std::mt19937 random(11);
    StreamOwner streams[kStreams];
    EventOwner events[kEvents];
    struct Recorded {
        int stream = -1;
        int count = 0;
    } recorded[kEvents];
    std::atomic<int> counters[kStreams] = {};
    int launched[kStreams] = {};
    std::atomic<int> violations{0};
    for (int step = 0; step < 6000; ++step) {
        int s = int(random() % kStreams), e = int(random() % kEvents);
        switch (random() % 8) {
            case 0:
                REQUIRE(aclrtRecordEvent(events[e], streams[s]) == 0);
                recorded[e] = {s, launched[s]};
                break;
            case 1:
            case 2: {
                REQUIRE(aclrtStreamWaitEvent(streams[s], events[e]) == 0);
                Recorded seen = recorded[e];
                if (seen.stream >= 0) {
                    REQUIRE(launch(streams[s], 0.1, [&counters, &violations, seen] {
                                violations += counters[seen.stream].load() < seen.count;
                                return 0;
                            }) == 0);
                }
                break;
            }
            case 3:
                if (step % 50 == 0) {
                    REQUIRE(aclrtSynchronizeEvent(events[e]) == 0);
                    violations += recorded[e].stream >= 0 && counters[recorded[e].stream] < recorded[e].count;
                }
                break;
            default:
                ++launched[s];
                REQUIRE(launch(streams[s], 0.1, [&counters, &violations, s, n = launched[s]] {
                            violations += ++counters[s] != n;
                            return 0;
                        }) == 0);
        }
    }
    CHECK(aclrtSynchronizeDevice() == 0);
    CHECK(violations == 0);
    for (int s = 0; s < kStreams; ++s) {
        CHECK(counters[s] == launched[s]);
    }
}

TEST_CASE("timeouts of synchronise") {
    StreamOwner stream;
    Gate gate;
    REQUIRE(launch(stream, 1, gate.body()) == 0);
    CHECK(aclrtSynchronizeStreamWithTimeout(stream, 10) == acl::RT_WAIT_TIMEOUT);
    CHECK(aclrtSynchronizeDeviceWithTimeout(10) == acl::RT_WAIT_TIMEOUT);
    CHECK(aclrtSynchronizeStreamWithTimeout(stream, 0) == acl::RT_PARAM_INVALID);
    gate.open.set_value();
    CHECK(aclrtSynchronizeStreamWithTimeout(stream, -1) == 0);
    CHECK(aclrtSynchronizeDevice() == 0);
}

TEST_CASE("many threads on one stream and on their own") {
    StreamOwner shared;
    std::atomic<int> ran{0};
    std::vector<std::thread> threads;
    std::atomic<int> failures{0};
    for (int t = 0; t < 4; ++t) {
        threads.emplace_back([&] {
            if (aclrtSetDevice(0) != 0) {
                failures++;
            }
            StreamOwner own;
            for (int i = 0; i < 200; ++i) {
                failures += launch(shared, 0.1, [&] {
                                ran++;
                                return 0;
                            }) != 0;
                failures += launch(own, 0.1, [&] {
                                ran++;
                                return 0;
                            }) != 0;
                if (i % 20 == 0) {
                    failures += aclrtSynchronizeStream(own) != 0;
                    failures += aclrtSynchronizeStream(shared) != 0;
                }
            }
            failures += aclrtSynchronizeStream(own) != 0;
            failures += aclrtResetDevice(0) != 0;
        });
    }
    for (auto& thread : threads) {
        thread.join();
    }
    CHECK(aclrtSynchronizeStream(shared) == 0);
    CHECK(failures == 0);
    CHECK(ran == 4 * 200 * 2);
}

TEST_CASE("copies in every direction, synchronous and asynchronous") {
    constexpr size_t n = 1 << 20;
    std::vector<uint8_t> from(n), to(n);
    std::iota(from.begin(), from.end(), 1);
    void *a = device_memory(n), *b = device_memory(n);
    StreamOwner stream;
    CHECK(aclrtMemcpy(a, n, from.data(), n, acl::HOST_TO_DEVICE) == 0);
    CHECK(aclrtMemcpy(b, n, a, n, acl::DEVICE_TO_DEVICE) == 0);
    CHECK(aclrtMemcpy(to.data(), n, b, n, acl::DEVICE_TO_HOST) == 0);
    CHECK(from == to);
    // The pageable source of an asynchronous copy may change after the call.
    std::vector<uint8_t> changing(n, 3);
    CHECK(aclrtMemcpyAsync(a, n, changing.data(), n, acl::HOST_TO_DEVICE, stream) == 0);
    std::fill(changing.begin(), changing.end(), 9);
    CHECK(aclrtMemcpyAsync(b, n, a, n, acl::MEMCPY_DEFAULT, stream) == 0);
    CHECK(aclrtMemcpyAsync(to.data(), n, b, n, acl::DEVICE_TO_HOST, stream) == 0);
    CHECK(aclrtSynchronizeStream(stream) == 0);
    CHECK(to == std::vector<uint8_t>(n, 3));
    CHECK(aclrtMemset(a, n, 5, n) == 0);
    CHECK(aclrtMemsetAsync(b, n, 6, n, stream) == 0);
    CHECK(aclrtSynchronizeStream(stream) == 0);
    CHECK(aclrtMemcpy(to.data(), n, a, n, acl::DEVICE_TO_HOST) == 0);
    CHECK(to == std::vector<uint8_t>(n, 5));
    CHECK(aclrtMemcpy(to.data(), n, b, n, acl::DEVICE_TO_HOST) == 0);
    CHECK(to == std::vector<uint8_t>(n, 6));
    // Rows of 3 bytes out of a pitch of 5 into a pitch of 4.
    std::vector<uint8_t> rows(15), back(12, 0);
    std::iota(rows.begin(), rows.end(), 0);
    CHECK(aclrtMemcpy2d(a, 5, rows.data(), 5, 5, 3, acl::HOST_TO_DEVICE) == 0);
    CHECK(aclrtMemcpy2d(back.data(), 4, a, 5, 3, 3, acl::DEVICE_TO_HOST) == 0);
    CHECK(back == std::vector<uint8_t>{0, 1, 2, 0, 5, 6, 7, 0, 10, 11, 12, 0});
    CHECK(aclrtFree(a) == 0);
    CHECK(aclrtFree(b) == 0);
}

TEST_CASE("addresses outside an allocation are refused, in whole and in part") {
    uint8_t host[64] = {};
    void* p = device_memory(4096);
    void* beside = device_memory(4096);
    auto* bytes = static_cast<uint8_t*>(p);
    CHECK(aclrtMemcpy(bytes + 4090, 64, host, 64, acl::HOST_TO_DEVICE) == acl::RT_PARAM_INVALID);
    CHECK(aclrtMemcpy(host, 64, bytes + 4090, 64, acl::DEVICE_TO_HOST) == acl::RT_PARAM_INVALID);
    CHECK(aclrtMemcpy(p, 32, host, 64, acl::HOST_TO_DEVICE) == acl::RT_PARAM_INVALID);
    CHECK(aclrtMemcpy(p, 64, p, 64, acl::HOST_TO_DEVICE) == acl::RT_PARAM_INVALID);
    CHECK(aclrtMemcpy(host, 64, host, 64, acl::DEVICE_TO_HOST) == acl::RT_PARAM_INVALID);
    CHECK(aclrtMemcpy(reinterpret_cast<void*>(0x1000), 64, host, 64, acl::HOST_TO_DEVICE) ==
          acl::RT_PARAM_INVALID);
    CHECK(aclrtMemcpy(p, 64, host, 64, 99) == acl::RT_PARAM_INVALID);
    CHECK(aclrtMemcpy(p, 64, nullptr, 64, acl::HOST_TO_DEVICE) == acl::INVALID_PARAM);
    CHECK(aclrtMemcpy(p, 64, reinterpret_cast<void*>(0x10), 64, acl::HOST_TO_DEVICE) ==
          acl::RT_PARAM_INVALID);
    CHECK(aclrtMemcpy(reinterpret_cast<void*>(UINTPTR_MAX - 80), 64, p, 64, acl::DEVICE_TO_HOST) ==
          acl::RT_PARAM_INVALID);
    CHECK(aclrtMemset(reinterpret_cast<void*>(0x10), 8, 0, 8) == acl::RT_PARAM_INVALID);
    CHECK(aclrtMemset(host, 64, 3, 64) == 0);
    CHECK(host[63] == 3);
    CHECK(aclrtMemset(bytes + 4095, 8, 0, 8) == acl::RT_PARAM_INVALID);
    CHECK(aclrtMemcpyAsync(bytes + 4090, 64, host, 64, acl::HOST_TO_DEVICE, nullptr) ==
          acl::RT_PARAM_INVALID);
    CHECK(std::string(aclGetRecentErrMsg()).find("not within device memory") != std::string::npos);
    CHECK(aclrtFree(bytes + 512) == acl::RT_PARAM_INVALID);
    CHECK(aclrtFree(beside) == 0);
    CHECK(aclrtFree(beside) == acl::RT_PARAM_INVALID);
    CHECK(aclrtMemcpy(beside, 64, host, 64, acl::HOST_TO_DEVICE) == acl::RT_PARAM_INVALID);
    CHECK(aclrtFree(nullptr) == acl::INVALID_PARAM);
    CHECK(aclrtFree(p) == 0);
}

TEST_CASE("memory ends at the modelled size and comes back") {
    size_t free_before = 0, total = 0, free_now = 0;
    REQUIRE(aclrtGetMemInfo(acl::MEM_HBM, &free_before, &total) == 0);
    CHECK(total == 1ull << 30);
    std::vector<void*> held;
    void* p = nullptr;
    while (aclrtMalloc(&p, 64 << 20, 0) == 0) {
        held.push_back(p);
        REQUIRE(held.size() <= 16);
    }
    CHECK(held.size() == 16);
    CHECK(p == nullptr);
    CHECK(aclrtMalloc(&p, 1, 0) == acl::RT_MEMORY_ALLOCATION);
    CHECK(std::string(aclGetRecentErrMsg()).find("out of memory") != std::string::npos);
    CHECK(aclrtGetMemInfo(acl::MEM_HBM, &free_now, &total) == 0);
    CHECK(free_now == 0);
    for (void* q : held) {
        CHECK(aclrtFree(q) == 0);
    }
    CHECK(aclrtGetMemInfo(acl::MEM_HBM, &free_now, &total) == 0);
    CHECK(free_now == free_before);
    CHECK(aclrtMalloc(&p, SIZE_MAX, 0) == acl::RT_MEMORY_ALLOCATION);
    CHECK(aclrtMalloc(&p, 0, 0) == acl::INVALID_PARAM);
}

TEST_CASE("host memory and pointer attributes") {
    struct {
        uint32_t id;
        int32_t type;
        uint32_t page;
        uint32_t rest[4];
    } attributes;
    auto type_of = [&](const void* p) {
        REQUIRE(aclrtPointerGetAttributes(p, reinterpret_cast<aclrtPtrAttributes*>(&attributes)) == 0);
        return attributes.type;
    };
    void* pinned = nullptr;
    REQUIRE(aclrtMallocHost(&pinned, 1000) == 0);
    void* p = device_memory(1000);
    int local = 0;
    CHECK(type_of(pinned) == 0);
    CHECK(type_of(p) == 1);
    CHECK(type_of(&local) == 2);
    CHECK(aclrtFreeHost(p) == acl::RT_PARAM_INVALID);
    CHECK(aclrtFree(pinned) == acl::RT_PARAM_INVALID);
    CHECK(aclrtFreeHost(pinned) == 0);
    CHECK(aclrtFreeHost(pinned) == acl::RT_PARAM_INVALID);
    std::vector<char> registered(8192);
    void* mapped = nullptr;
    CHECK(aclrtHostRegister(registered.data(), registered.size(), 0, &mapped) == 0);
    CHECK(mapped != nullptr);
    CHECK(aclrtHostRegister(registered.data(), registered.size(), 0, &mapped) == acl::RT_PARAM_INVALID);
    CHECK(type_of(registered.data() + 100) == 0);
    CHECK(aclrtHostUnregister(registered.data()) == 0);
    CHECK(aclrtHostUnregister(registered.data()) == acl::RT_PARAM_INVALID);
    CHECK(aclrtFree(p) == 0);
}

TEST_CASE("an error on the device comes out at the next synchronise, once") {
    StreamOwner stream;
    std::atomic<int> ran{0};
    REQUIRE(launch(stream, 1, [] { return flexnpu_emu_fail(507015, "aclnnTest broke on purpose"); }) == 0);
    REQUIRE(launch(stream, 1, [&] {
                ran++;
                return 0;
            }) == 0);
    CHECK(aclrtSynchronizeStream(stream) == 507015);
    CHECK(std::string(aclGetRecentErrMsg()).find("broke on purpose") != std::string::npos);
    CHECK(aclrtGetLastError(0) == 507015);
    CHECK(aclrtGetLastError(0) == 0);
    CHECK(ran == 1);
    CHECK(aclrtSynchronizeStream(stream) == 0);
    // With the failure mode set the rest of the stream is skipped.
    Gate gate;
    CHECK(aclrtSetStreamFailureMode(stream, 1) == 0);
    REQUIRE(launch(stream, 1, gate.body()) == 0);
    REQUIRE(launch(stream, 1, [] { return 507015; }) == 0);
    REQUIRE(launch(stream, 1, [&] {
                ran++;
                return 0;
            }) == 0);
    gate.open.set_value();
    CHECK(aclrtSynchronizeDevice() == 507015);
    CHECK(ran == 1);
}

TEST_CASE("errors and messages belong to the thread") {
    CHECK(aclrtDestroyEvent(reinterpret_cast<aclrtEvent>(0x40)) == acl::RT_INVALID_HANDLE);
    std::string other = "unset";
    aclError other_last = -1;
    std::thread([&] {
        other = aclGetRecentErrMsg() ? "a message" : "";
        other_last = aclrtPeekAtLastError(0);
    }).join();
    CHECK(other.empty());
    CHECK(other_last == 0);
    CHECK(aclrtPeekAtLastError(0) == acl::RT_INVALID_HANDLE);
    CHECK(std::string(aclGetRecentErrMsg()).find("is not an event") != std::string::npos);
    CHECK(aclGetRecentErrMsg() == nullptr);
}

TEST_CASE("an aborted stream skips what has not begun and hangs nobody") {
    StreamOwner stream, other;
    EventOwner event;
    Gate gate;
    std::atomic<int> ran{0};
    std::atomic<bool> begun{false};
    REQUIRE(launch(stream, 1, [&, body = gate.body()] {
                begun = true;
                return body();
            }) == 0);
    REQUIRE(launch(stream, 1, [&] {
                ran++;
                return 0;
            }) == 0);
    REQUIRE(aclrtRecordEvent(event, stream) == 0);
    REQUIRE(aclrtStreamWaitEvent(other, event) == 0);
    while (!begun) {
        std::this_thread::sleep_for(1ms);
    }
    CHECK(aclrtStreamAbort(stream) == 0);
    gate.open.set_value();
    CHECK(aclrtSynchronizeStream(stream) == acl::RT_STREAM_ABORT);
    CHECK(aclrtSynchronizeStream(other) == 0);
    CHECK(aclrtSynchronizeEvent(event) == acl::RT_STREAM_ABORT);
    CHECK(aclrtStreamAbort(nullptr) == acl::RT_PARAM_INVALID);
    REQUIRE(aclrtRecordEvent(event, stream) == 0);
    CHECK(aclrtSynchronizeEvent(event) == 0);
    CHECK(ran == 0);
    CHECK(launch(stream, 1, [&] {
              ran++;
              return 0;
          }) == 0);
    CHECK(aclrtSynchronizeStream(stream) == 0);
    CHECK(ran == 1);
}

TEST_CASE("a stream's wait for an event ends at its timeout, and the next synchronise tells") {
    StreamOwner stream, other;
    EventOwner event;
    Gate gate;
    REQUIRE(launch(stream, 1, gate.body()) == 0);
    REQUIRE(aclrtRecordEvent(event, stream) == 0);
    CHECK(aclrtStreamWaitEventWithTimeout(other, event, 0) == acl::RT_PARAM_INVALID);
    auto begin = std::chrono::steady_clock::now();
    REQUIRE(aclrtStreamWaitEventWithTimeout(other, event, 20) == 0);
    CHECK(aclrtSynchronizeStream(other) == acl::RT_WAIT_TIMEOUT);
    CHECK(std::chrono::steady_clock::now() - begin >= 20ms);
    CHECK(aclrtSynchronizeStream(other) == 0);
    REQUIRE(aclrtStreamWaitEventWithTimeout(other, event, 60'000) == 0);
    gate.open.set_value();
    CHECK(aclrtSynchronizeStream(other) == 0);
}

TEST_CASE("a stream that stops on failure tells a query, too") {
    StreamOwner stream, careless;
    REQUIRE(aclrtSetStreamFailureMode(stream, 1) == 0);
    std::atomic<int> ran{0};
    for (aclrtStream s : {aclrtStream(stream), aclrtStream(careless)}) {
        REQUIRE(launch(s, 1, [] { return 507015; }) == 0);
        REQUIRE(launch(s, 1, [&] {
                    ran++;
                    return 0;
                }) == 0);
    }
    int32_t status = -1;
    while (aclrtStreamQuery(careless, &status) == 0 && status != acl::STREAM_COMPLETE) {
        std::this_thread::sleep_for(1ms);
    }
    CHECK(aclrtSynchronizeStream(careless) == 507015);
    while (aclrtStreamQuery(stream, &status) == 0) {
        std::this_thread::sleep_for(1ms);
    }
    CHECK(aclrtStreamQuery(stream, &status) == 507015);
    CHECK(aclrtSynchronizeStream(stream) == 507015);
    CHECK(aclrtStreamQuery(stream, &status) == 0);
    CHECK(ran == 1);
}

TEST_CASE("host functions run in the stream's order and may use the runtime") {
    StreamOwner stream;
    struct State {
        std::vector<int> order;
        aclError inner = -1;
    } state;
    REQUIRE(launch(stream, 1, [&] {
                state.order.push_back(1);
                return 0;
            }) == 0);
    auto* function = +[](void* argument) {
        auto& s = *static_cast<State*>(argument);
        s.order.push_back(2);
        void* p = nullptr;
        s.inner = aclrtSetDevice(0) | aclrtMalloc(&p, 512, 0) | aclrtFree(p) | aclrtResetDevice(0);
    };
    REQUIRE(aclrtLaunchHostFunc(stream, reinterpret_cast<aclrtHostFunc>(function), &state) == 0);
    REQUIRE(launch(stream, 1, [&] {
                state.order.push_back(3);
                return 0;
            }) == 0);
    CHECK(aclrtSynchronizeStream(stream) == 0);
    CHECK(state.order == std::vector<int>{1, 2, 3});
    CHECK(state.inner == 0);
}

TEST_CASE("callbacks run on the thread that subscribed") {
    StreamOwner stream;
    auto* nothing = +[](void*) {};
    CHECK(aclrtLaunchCallback(reinterpret_cast<aclrtCallback>(nothing), nullptr, 1, stream) == 107015);
    struct State {
        std::thread::id thread;
        std::atomic<int> ran{0};
    } state;
    std::promise<uint64_t> id;
    std::atomic<bool> stop{false};
    std::vector<aclError> ends;
    std::thread reporter([&] {
        id.set_value(uint64_t(pthread_self()));
        while (!stop) {
            aclError error = aclrtProcessReport(20);
            if (error == 107012) {
                std::this_thread::sleep_for(1ms);
            } else if (error != 0 && error != 507012) {
                ends.push_back(error);
            }
        }
    });
    uint64_t thread = id.get_future().get();
    REQUIRE(aclrtSubscribeReport(thread, stream) == 0);
    auto* function = +[](void* argument) {
        auto& s = *static_cast<State*>(argument);
        s.thread = std::this_thread::get_id();
        s.ran++;
    };
    int seen_after = -1;
    REQUIRE(aclrtLaunchCallback(reinterpret_cast<aclrtCallback>(function), &state, 1, stream) == 0);
    REQUIRE(launch(stream, 1, [&] {
                seen_after = state.ran;
                return 0;
            }) == 0);
    CHECK(aclrtSynchronizeStreamWithTimeout(stream, 10000) == 0);
    CHECK(seen_after == 1);  // a blocking callback holds the stream
    CHECK(state.thread == reporter.get_id());
    REQUIRE(aclrtLaunchCallback(reinterpret_cast<aclrtCallback>(function), &state, 0, stream) == 0);
    CHECK(aclrtSynchronizeStreamWithTimeout(stream, 10000) == 0);
    for (int i = 0; i < 2000 && state.ran < 2; ++i) {
        std::this_thread::sleep_for(1ms);
    }
    CHECK(state.ran == 2);
    CHECK(aclrtUnSubscribeReport(thread, stream) == 0);
    CHECK(aclrtUnSubscribeReport(thread, stream) == 107012);
    stop = true;
    reporter.join();
    CHECK(ends.empty());
}

TEST_CASE("a stream destroyed by force drops its tasks; without force it runs them") {
    std::atomic<int> ran{0}, destroyed{0};
    aclrtStream stream = nullptr;
    REQUIRE(aclrtCreateStream(&stream) == 0);
    for (int i = 0; i < 100; ++i) {
        REQUIRE(launch(stream, 1, [&] {
                    ran++;
                    return 0;
                }) == 0);
    }
    CHECK(aclrtDestroyStream(stream) == 0);
    CHECK(ran == 100);
    REQUIRE(aclrtCreateStream(&stream) == 0);
    auto counter = std::shared_ptr<int>(new int, [&](int* p) {
        destroyed++;
        delete p;
    });
    REQUIRE(launch(stream, 1, [] {
                std::this_thread::sleep_for(20ms);
                return 0;
            }) == 0);
    for (int i = 0; i < 100; ++i) {
        REQUIRE(launch(stream, 1, [&ran, counter] {
                    ran++;
                    return 0;
                }) == 0);
    }
    counter.reset();
    CHECK(aclrtDestroyStreamForce(stream) == 0);
    CHECK(ran == 100);
    CHECK(destroyed == 1);  // what the kernels held is released although they never ran
    CHECK(aclrtSynchronizeStream(stream) == acl::RT_INVALID_HANDLE);
}

TEST_CASE("a full stream holds the caller back and lets it go on") {
    StreamOwner stream;
    Gate gate;
    std::atomic<int> ran{0};
    REQUIRE(launch(stream, 1, gate.body()) == 0);
    std::atomic<int> launched{0};
    aclrtContext context = nullptr;
    REQUIRE(aclrtGetCurrentContext(&context) == 0);
    std::thread producer([&] {
        aclrtSetCurrentContext(context);
        for (int i = 0; i < 5000; ++i) {
            launch(stream, 0.01, [&] {
                ran++;
                return 0;
            });
            launched++;
        }
    });
    for (int i = 0; i < 10000 && launched < 4095; ++i) {
        std::this_thread::sleep_for(1ms);
    }
    std::this_thread::sleep_for(20ms);
    CHECK(launched <= 4097);
    CHECK(launched >= 4095);
    gate.open.set_value();
    producer.join();
    CHECK(aclrtSynchronizeStream(stream) == 0);
    CHECK(ran == 5000);
}

TEST_CASE("a stream waits for a value in device memory") {
    auto* word = static_cast<uint64_t*>(device_memory(8));
    StreamOwner waiter, writer;
    REQUIRE(aclrtMemset(word, 8, 0, 8) == 0);
    std::atomic<bool> passed{false};
    REQUIRE(aclrtValueWait(word, 5, 0, waiter) == 0);
    REQUIRE(launch(waiter, 1, [&] {
                passed = true;
                return 0;
            }) == 0);
    CHECK(aclrtSynchronizeStreamWithTimeout(waiter, 20) == acl::RT_WAIT_TIMEOUT);
    CHECK(!passed);
    REQUIRE(aclrtValueWrite(word, 5, 0, writer) == 0);
    CHECK(aclrtSynchronizeStreamWithTimeout(waiter, 5000) == 0);
    CHECK(passed);
    CHECK(aclrtFree(word) == 0);
}

TEST_CASE("devices, contexts and reference counts") {
    std::thread([] {
        int32_t device = -1;
        aclrtStream stream = nullptr;
        void* p = nullptr;
        CHECK(aclrtGetDevice(&device) == acl::RT_CONTEXT_NULL);
        CHECK(aclrtCreateStream(&stream) == acl::RT_CONTEXT_NULL);
        CHECK(aclrtMalloc(&p, 512, 0) == acl::RT_CONTEXT_NULL);
        CHECK(aclrtSynchronizeStream(nullptr) == acl::RT_CONTEXT_NULL);
        CHECK(aclrtSetDevice(2) == acl::RT_INVALID_DEVICE);
        CHECK(aclrtSetDevice(-1) == acl::RT_INVALID_DEVICE);
        CHECK(aclrtResetDevice(1) == acl::RT_INVALID_DEVICE);
        REQUIRE(aclrtSetDevice(1) == 0);
        REQUIRE(aclrtSetDevice(1) == 0);
        CHECK(aclrtGetDevice(&device) == 0);
        CHECK(device == 1);
        REQUIRE(aclrtMalloc(&p, 512, 0) == 0);
        REQUIRE(aclrtCreateStream(&stream) == 0);
        aclrtContext own = nullptr, primary = nullptr;
        REQUIRE(aclrtGetCurrentContext(&primary) == 0);
        REQUIRE(aclrtCreateContext(&own, 1) == 0);
        CHECK(own != primary);
        aclrtContext current = nullptr;
        CHECK(aclrtGetCurrentContext(&current) == 0);
        CHECK(current == own);
        CHECK(aclrtDestroyContext(primary) == acl::RT_PARAM_INVALID);
        CHECK(aclrtSetCurrentContext(primary) == 0);
        CHECK(aclrtDestroyContext(own) == 0);
        CHECK(aclrtSetCurrentContext(own) == acl::RT_INVALID_HANDLE);
        CHECK(aclrtResetDevice(1) == 0);
        CHECK(launch(stream, 1) == 0);  // one reference is left
        CHECK(aclrtResetDevice(1) == 0);
        CHECK(launch(stream, 1) == acl::RT_CONTEXT_NULL);
        CHECK(aclrtFree(p) == acl::RT_PARAM_INVALID);
        CHECK(aclrtGetDevice(&device) == acl::RT_CONTEXT_NULL);
    }).join();
    int32_t active = -1;
    CHECK(aclrtGetPrimaryCtxState(0, nullptr, &active) == 0);
    CHECK(active == 1);
    CHECK(aclrtGetPrimaryCtxState(1, nullptr, &active) == 0);
    CHECK(active == 0);
}

TEST_CASE("a stream is used by threads of its device") {
    StreamOwner stream;
    aclrtEvent event = nullptr;
    REQUIRE(aclrtCreateEventWithFlag(&event, acl::EVENT_SYNC) == 0);
    REQUIRE(aclrtRecordEvent(event, stream) == 0);
    void* word = device_memory(8);
    std::thread([&] {
        for (const int32_t expected : {acl::RT_CONTEXT_NULL, acl::RT_STREAM_CONTEXT}) {
            CHECK(launch(stream, 1) == expected);
            CHECK(aclrtMemsetAsync(word, 8, 0, 8, stream) == expected);
            CHECK(aclrtRecordEvent(event, stream) == expected);
            CHECK(aclrtStreamWaitEvent(stream, event) == expected);
            CHECK(aclrtSynchronizeStream(stream) == expected);
            CHECK(aclrtDestroyStream(stream) == expected);
            CHECK(aclrtMemset(word, 8, 0, 8) == (expected == acl::RT_CONTEXT_NULL ? expected : 0));
            REQUIRE(aclrtSetDevice(1) == 0);
        }
        StreamOwner mine;
        CHECK(aclrtRecordEvent(event, mine) == acl::RT_STREAM_CONTEXT);
        CHECK(aclrtResetEvent(event, mine) == acl::RT_STREAM_CONTEXT);
        CHECK(aclrtStreamWaitEvent(mine, event) == 0);
        CHECK(aclrtSynchronizeStream(mine) == 0);
        CHECK(aclrtResetDevice(1) == 0);
        REQUIRE(aclrtResetDevice(1) == 0);
    }).join();
    CHECK(launch(stream, 1) == 0);
    CHECK(aclrtSynchronizeStream(stream) == 0);
    CHECK(aclrtDestroyEvent(event) == 0);
    CHECK(aclrtFree(word) == 0);
}

TEST_CASE("what is not a kernel of the emulated device is refused") {
    StreamOwner stream;
    char junk[sizeof(emulator::Kernel)] = {};
    CHECK(aclrtLaunchKernelWithHostArgs(nullptr, 1, stream, nullptr, junk, sizeof(junk), nullptr, 0) ==
          acl::KERNEL_NOT_FOUND);
    CHECK(aclrtLaunchKernelWithHostArgs(nullptr, 1, stream, nullptr, junk, 8, nullptr, 0) ==
          acl::KERNEL_NOT_FOUND);
    CHECK(aclrtLaunchKernelWithHostArgs(nullptr, 1, stream, nullptr, nullptr, 0, nullptr, 0) ==
          acl::INVALID_PARAM);
}

TEST_CASE("a function without a body says its name") {
    CHECK(aclmdlRIAddCondTask(nullptr, nullptr, 0) == acl::API_NOT_SUPPORTED);
    CHECK(std::string(aclGetRecentErrMsg()).find("aclmdlRIAddCondTask") != std::string::npos);
}

#ifndef __SANITIZE_THREAD__  // ThreadSanitizer does not support threads in a forked child
TEST_CASE("a forked child starts anew and leaves the parent's device alone") {
    size_t free_before = 0, total = 0, free_after = 0;
    void* p = device_memory(1 << 20);
    StreamOwner stream;
    REQUIRE(launch(stream, 1) == 0);
    REQUIRE(aclrtGetMemInfo(acl::MEM_HBM, &free_before, &total) == 0);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        bool good = aclrtSynchronizeStream(stream) != 0;  // the parent's handle
        good = good && aclrtFree(p) != 0;
        good = good && aclInit(nullptr) == 0 && aclrtSetDevice(0) == 0;
        aclrtStream own = nullptr;
        good =
            good && aclrtCreateStream(&own) == 0 && launch(own, 1) == 0 && aclrtSynchronizeStream(own) == 0;
        size_t free_there = 0;
        good = good && aclrtGetMemInfo(acl::MEM_HBM, &free_there, &total) == 0 && free_there == free_before;
        good = good && aclFinalize() == 0;
        _exit(good ? 0 : 1);
    }
    int status = -1;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(status == 0);
    CHECK(aclrtSynchronizeStream(stream) == 0);
    CHECK(aclrtGetMemInfo(acl::MEM_HBM, &free_after, &total) == 0);
    CHECK(free_after == free_before);
    CHECK(aclrtFree(p) == 0);
}
#endif
