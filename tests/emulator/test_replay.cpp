// Replay and update of captured graphs in compute mode, through the exported functions.
#include <doctest/doctest.h>

#include <unistd.h>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <fstream>
#include <future>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "graph_support.hpp"

using namespace flexnpu;
using namespace flexnpu::emulator::test;
using namespace std::chrono_literals;

TEST_CASE("a destroyed graph ends the replays in flight, and gives its kernels back once") {
    StreamOwner stream;
    std::atomic<int> runs{0};
    auto token = std::make_shared<int>(0);
    aclmdlRI graph = capture(stream, [&] {
        for (int i = 0; i < 5; ++i) {
            REQUIRE(launch(stream, 1, [&runs, token] {
                        std::this_thread::sleep_for(1ms);
                        ++runs;
                        return 0;
                    }) == 0);
        }
    });
    for (int i = 0; i < 4; ++i) {
        REQUIRE(aclmdlRIExecuteAsync(graph, stream) == 0);
    }
    CHECK(aclmdlRIDestroy(graph) == 0);
    CHECK(token.use_count() == 6);
    CHECK(aclrtSynchronizeStream(stream) == 0);
    CHECK(runs == 20);
    CHECK(token.use_count() == 1);
}

TEST_CASE("replays of one graph from several streams never overlap") {
    StreamOwner first, second, third;
    std::atomic<int> inside{0}, overlaps{0}, runs{0};
    aclmdlRI graph = capture(first, [&] {
        for (int i = 0; i < 3; ++i) {
            REQUIRE(launch(first, 0.1, [&] {
                        overlaps += inside.fetch_add(1) != 0;
                        ++runs;
                        --inside;
                        return 0;
                    }) == 0);
        }
    });
    std::vector<std::thread> threads;
    for (aclrtStream stream : {first.handle, second.handle, third.handle}) {
        threads.emplace_back([&, stream] {
            aclrtSetDevice(0);
            for (int i = 0; i < 334; ++i) {
                REQUIRE(aclmdlRIExecuteAsync(graph, stream) == 0);
            }
            REQUIRE(aclrtSynchronizeStream(stream) == 0);
        });
    }
    for (auto& thread : threads) {
        thread.join();
    }
    CHECK(runs == 3 * 3 * 334);
    CHECK(overlaps == 0);
    CHECK(aclmdlRIDestroy(graph) == 0);
}

TEST_CASE("a task update changes the arguments for what has not run yet, and nothing when it does not fit") {
    StreamOwner stream, updates;
    std::vector<int> seen;
    auto number = [&](int value) {
        return [&seen, value] {
            seen.push_back(value);
            return 0;
        };
    };
    aclrtTaskGrp group = nullptr;
    aclmdlRI graph = capture(stream, [&] {
        REQUIRE(launch(stream, 1, number(0)) == 0);
        CHECK(aclmdlRICaptureTaskGrpEnd(stream, &group) == acl::RT_TASK_GROUP_STATUS);
        REQUIRE(aclmdlRICaptureTaskGrpBegin(stream) == 0);
        CHECK(aclmdlRICaptureTaskGrpBegin(stream) == acl::RT_TASK_GROUP_STATUS);
        REQUIRE(launch(stream, 1, number(1)) == 0);
        REQUIRE(launch(stream, 1, number(2)) == 0);
        REQUIRE(aclmdlRICaptureTaskGrpEnd(stream, &group) == 0);
        CHECK(aclmdlRICaptureTaskUpdateBegin(updates, group) == acl::RT_MODEL_CAPTURED);
        REQUIRE(launch(stream, 1, number(3)) == 0);
    });
    auto replay = [&] {
        seen.clear();
        REQUIRE(aclmdlRIExecuteAsync(graph, stream) == 0);
        REQUIRE(aclrtSynchronizeStream(stream) == 0);
        return seen;
    };
    CHECK(replay() == std::vector{0, 1, 2, 3});
    REQUIRE(aclmdlRICaptureTaskUpdateBegin(updates, group) == 0);
    CHECK(aclmdlRICaptureTaskUpdateBegin(updates, group) == acl::RT_TASK_GROUP_STATUS);
    CHECK(aclmdlRICaptureTaskUpdateBegin(stream, group) == acl::RT_TASK_GROUP_STATUS);
    REQUIRE(launch(updates, 1, number(11)) == 0);
    REQUIRE(launch(updates, 1, number(12)) == 0);
    REQUIRE(aclmdlRICaptureTaskUpdateEnd(updates) == 0);
    REQUIRE(aclrtSynchronizeStream(updates) == 0);
    CHECK(seen == std::vector{0, 1, 2, 3});  // an update runs nothing
    CHECK(replay() == std::vector{0, 11, 12, 3});

    REQUIRE(aclmdlRICaptureTaskUpdateBegin(updates, group) == 0);
    REQUIRE(launch(updates, 1, number(21)) == 0);
    CHECK(aclmdlRICaptureTaskUpdateEnd(updates) == acl::RT_INTERNAL);  // one too few
    REQUIRE(aclmdlRICaptureTaskUpdateBegin(updates, group) == 0);
    REQUIRE(launch(updates, 1, number(21)) == 0);
    REQUIRE(launch(updates, 1, number(22)) == 0);
    CHECK(launch(updates, 1, number(23)) == acl::RT_INTERNAL);  // one too many
    CHECK(aclmdlRICaptureTaskUpdateEnd(updates) == acl::RT_INTERNAL);
    CHECK(aclmdlRICaptureTaskUpdateEnd(updates) == acl::RT_TASK_GROUP_STATUS);
    CHECK(replay() == std::vector{0, 11, 12, 3});

    CHECK(aclmdlRIDestroy(graph) == 0);
    CHECK(aclmdlRICaptureTaskUpdateBegin(updates, group) == acl::RT_PARAM_INVALID);
    CHECK(aclmdlRICaptureTaskUpdateBegin(updates, nullptr) == acl::RT_PARAM_INVALID);
    // A group that is not ended, and a task on another stream of the capture amid one.
    REQUIRE(aclmdlRICaptureBegin(stream, acl::CAPTURE_GLOBAL) == 0);
    REQUIRE(aclmdlRICaptureTaskGrpBegin(stream) == 0);
    CHECK(aclmdlRICaptureEnd(stream, &graph) == acl::RT_TASK_GROUP_STATUS);
}

TEST_CASE("a graph waits for an external event, and takes the update that comes before its record") {
    StreamOwner stream, updates;
    External event;
    std::atomic<int> seen{0};
    aclrtTaskGrp group = nullptr;
    aclmdlRI graph = capture(stream, [&] {
        REQUIRE(aclrtStreamWaitEvent(stream, event) == 0);
        REQUIRE(aclrtResetEvent(event, stream) == 0);
        REQUIRE(aclmdlRICaptureTaskGrpBegin(stream) == 0);
        REQUIRE(launch(stream, 1, [&] {
                    seen = -1;
                    return 0;
                }) == 0);
        REQUIRE(aclmdlRICaptureTaskGrpEnd(stream, &group) == 0);
    });
    CHECK(nodes_of(graph) == 3);
    for (int step = 1; step <= 50; ++step) {
        REQUIRE(aclmdlRIExecuteAsync(graph, stream) == 0);
        if (step == 1) {
            CHECK(aclrtSynchronizeStreamWithTimeout(stream, 20) == acl::RT_WAIT_TIMEOUT);
        }
        REQUIRE(aclmdlRICaptureTaskUpdateBegin(updates, group) == 0);
        REQUIRE(launch(updates, 1, [&seen, step] {
                    seen = step;
                    return 0;
                }) == 0);
        REQUIRE(aclmdlRICaptureTaskUpdateEnd(updates) == 0);
        REQUIRE(aclrtRecordEvent(event, updates) == 0);
        REQUIRE(aclrtSynchronizeStream(stream) == 0);
        REQUIRE(seen == step);
    }
    CHECK(aclmdlRIDestroy(graph) == 0);
}

TEST_CASE("an external event outside a graph is a flag too: a wait may be called before the record") {
    StreamOwner first, second;
    External event;
    std::atomic<int> step{0};
    int seen = -1;
    for (int round = 1; round <= 3; ++round) {
        REQUIRE(aclrtStreamWaitEvent(first, event) == 0);
        REQUIRE(aclrtResetEvent(event, first) == 0);
        REQUIRE(launch(first, 1, [&] {
                    seen = step;
                    return 0;
                }) == 0);
        CHECK(aclrtSynchronizeStreamWithTimeout(first, 5) == acl::RT_WAIT_TIMEOUT);
        REQUIRE(launch(second, 1, [&, round] {
                    step = round;
                    return 0;
                }) == 0);
        REQUIRE(aclrtRecordEvent(event, second) == 0);
        REQUIRE(aclrtSynchronizeStreamWithTimeout(first, 10'000) == 0);
        CHECK(seen == round);
    }
}

TEST_CASE("an external record in a graph is one of each replay") {
    StreamOwner stream, other;
    External event;
    std::atomic<int> runs{0};
    aclmdlRI graph = capture(stream, [&] {
        REQUIRE(launch(stream, 1, [&] {
                    std::this_thread::sleep_for(2ms);
                    ++runs;
                    return 0;
                }) == 0);
        REQUIRE(aclrtRecordEvent(event, stream) == 0);
    });
    for (int i = 1; i <= 5; ++i) {
        REQUIRE(aclmdlRIExecuteAsync(graph, stream) == 0);
        REQUIRE(aclrtSynchronizeEvent(event) == 0);
        CHECK(runs == i);
    }
    CHECK(aclmdlRIDestroy(graph) == 0);
}

TEST_CASE("words of memory order the branches of a graph, whatever order they were captured in") {
    StreamOwner main, side;
    EventOwner fork, join;
    Memory flag(64), result(64);
    aclmdlRI graph = capture(main, [&] {
        REQUIRE(aclrtRecordEvent(fork, main) == 0);
        REQUIRE(launch(main, 1) == 0);
        REQUIRE(aclrtStreamWaitEvent(side, fork) == 0);
        REQUIRE(aclrtValueWait(flag.p, 7, 1, main) == 0);
        REQUIRE(aclrtValueWrite(result.p, 1, 0, main) == 0);
        REQUIRE(launch(side, 1) == 0);
        REQUIRE(aclrtValueWrite(flag.p, 7, 0, side) == 0);
        REQUIRE(aclrtRecordEvent(join, side) == 0);
        REQUIRE(aclrtStreamWaitEvent(main, join) == 0);
    });
    REQUIRE(aclmdlRIExecuteAsync(graph, main) == 0);
    REQUIRE(aclrtSynchronizeStreamWithTimeout(main, 10'000) == 0);
    CHECK(flag.word() == 7);
    CHECK(result.word() == 1);
    CHECK(aclmdlRIDestroy(graph) == 0);
}

TEST_CASE("a replay that waits can be aborted, by its graph or its stream") {
    StreamOwner stream;
    Memory flag(64);
    External event;
    int ran = 0;
    aclmdlRI graph = capture(stream, [&] {
        REQUIRE(aclrtValueWait(flag.p, 1, 1, stream) == 0);
        REQUIRE(launch(stream, 1, [&] {
                    ++ran;
                    return 0;
                }) == 0);
        REQUIRE(aclrtRecordEvent(event, stream) == 0);
    });
    for (int how = 0; how < 2; ++how) {
        REQUIRE(aclmdlRIExecuteAsync(graph, stream) == 0);
        REQUIRE(aclmdlRIExecuteAsync(graph, stream) == 0);
        std::this_thread::sleep_for(5ms);
        CHECK((how == 0 ? aclmdlRIAbort(graph) : aclrtStreamAbort(stream)) == 0);
        CHECK(aclrtSynchronizeStreamWithTimeout(stream, 10'000) == acl::RT_STREAM_ABORT);
        CHECK(aclrtSynchronizeEventWithTimeout(event, 10'000) == 0);
        CHECK(ran == 0);
    }
    flag.set(1);
    REQUIRE(aclmdlRIExecuteAsync(graph, stream) == 0);
    CHECK(aclrtSynchronizeStream(stream) == 0);
    CHECK(ran == 1);
    CHECK(aclmdlRIDestroy(graph) == 0);
}

TEST_CASE("meetings with other ranks keep the order of the capture, whatever branch is ready first") {
    StreamOwner main, side;
    EventOwner fork, join;
    static std::vector<int> order;
    order.clear();
    auto meet = [](aclrtStream stream, intptr_t number) {
        emulator::Kernel kernel;
        kernel.name = "meeting";
        kernel.self = reinterpret_cast<void*>(number);
        kernel.meet = [](void* self, emulator::Meeting*) {
            order.push_back(int(reinterpret_cast<intptr_t>(self)));
            return 0;
        };
        return aclrtLaunchKernelWithHostArgs(nullptr, 1, stream, nullptr, &kernel, sizeof(kernel), nullptr,
                                             0);
    };
    aclmdlRI graph = capture(main, [&] {
        REQUIRE(aclrtRecordEvent(fork, main) == 0);
        REQUIRE(aclrtStreamWaitEvent(side, fork) == 0);
        REQUIRE(launch(main, 500) == 0);
        REQUIRE(meet(main, 1) == 0);
        REQUIRE(meet(side, 2) == 0);  // could begin 500 us before the other
        REQUIRE(aclrtRecordEvent(join, side) == 0);
        REQUIRE(aclrtStreamWaitEvent(main, join) == 0);
    });
    REQUIRE(aclmdlRIExecuteAsync(graph, main) == 0);
    REQUIRE(aclrtSynchronizeStream(main) == 0);
    CHECK(order == std::vector{1, 2});
    // That order does not join a stream that is not joined.
    REQUIRE(aclmdlRICaptureBegin(main, acl::CAPTURE_GLOBAL) == 0);
    REQUIRE(aclrtRecordEvent(fork, main) == 0);
    REQUIRE(aclrtStreamWaitEvent(side, fork) == 0);
    REQUIRE(meet(side, 1) == 0);
    REQUIRE(meet(main, 2) == 0);
    aclmdlRI none = nullptr;
    CHECK(aclmdlRICaptureEnd(main, &none) == acl::RT_STREAM_UNJOINED);
    CHECK(aclmdlRIDestroy(graph) == 0);
}

TEST_CASE("host functions and callbacks of a graph run at each replay") {
    StreamOwner stream;
    std::atomic<int> functions{0}, callbacks{0};
    std::atomic<bool> stop{false};
    std::promise<uint64_t> ready;
    std::thread reporter([&] {
        aclrtSetDevice(0);
        ready.set_value(uint64_t(pthread_self()));
        while (!stop) {
            aclrtProcessReport(20);
        }
    });
    uint64_t thread = ready.get_future().get();
    REQUIRE(aclrtSubscribeReport(thread, stream) == 0);
    auto count_one = [](void* counter) { ++*static_cast<std::atomic<int>*>(counter); };
    aclmdlRI graph = capture(stream, [&] {
        REQUIRE(aclrtLaunchHostFunc(stream, reinterpret_cast<aclrtHostFunc>(+count_one), &functions) == 0);
        REQUIRE(aclrtLaunchCallback(reinterpret_cast<aclrtCallback>(+count_one), &callbacks, 1, stream) == 0);
    });
    for (int i = 1; i <= 3; ++i) {
        REQUIRE(aclmdlRIExecuteAsync(graph, stream) == 0);
        REQUIRE(aclrtSynchronizeStream(stream) == 0);
        CHECK(functions == i);
        CHECK(callbacks == i);
    }
    CHECK(aclmdlRIDestroy(graph) == 0);
    CHECK(aclrtUnSubscribeReport(thread, stream) == 0);
    stop = true;
    reporter.join();
}

TEST_CASE("a stream that stops at a failure skips the rest of the graph") {
    StreamOwner stream;
    External event;
    int ran = 0;
    aclmdlRI graph = capture(stream, [&] {
        REQUIRE(launch(stream, 1, [] { return 507015; }) == 0);
        REQUIRE(launch(stream, 1, [&] {
                    ++ran;
                    return 0;
                }) == 0);
        REQUIRE(aclrtRecordEvent(event, stream) == 0);
    });
    REQUIRE(aclrtSetStreamFailureMode(stream, 1) == 0);
    REQUIRE(aclmdlRIExecuteAsync(graph, stream) == 0);
    CHECK(aclrtSynchronizeStream(stream) == 507015);
    CHECK(ran == 0);
    CHECK(aclrtSynchronizeEventWithTimeout(event, 10'000) == 0);
    CHECK(aclmdlRIDestroy(graph) == 0);
}

TEST_CASE("an operator's error in a replay reaches the next synchronise of the stream") {
    StreamOwner stream;
    aclmdlRI graph = capture(stream, [&] { REQUIRE(launch(stream, 1, [] { return 507015; }) == 0); });
    REQUIRE(aclmdlRIExecuteAsync(graph, stream) == 0);
    CHECK(aclrtSynchronizeStream(stream) == 507015);
    CHECK(aclrtSynchronizeStream(stream) == 0);
    CHECK(aclmdlRIDestroy(graph) == 0);
}
