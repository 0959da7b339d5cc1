// Streams, events and host functions of the emulated runtime in compute mode, through its exported functions.
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
