// Capture, replay and update of graphs in compute mode, through the exported functions.
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

#include "support.hpp"

using namespace flexnpu;
using namespace flexnpu::emulator::test;
using namespace std::chrono_literals;

namespace {

struct Memory {
    void* p = nullptr;
    explicit Memory(size_t size) {
        REQUIRE(aclrtMalloc(&p, size, 0) == 0);
        REQUIRE(aclrtMemset(p, size, 0, size) == 0);
    }
    ~Memory() { aclrtFree(p); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    uint64_t word() const {
        uint64_t value = 0;
        REQUIRE(aclrtMemcpy(&value, 8, p, 8, acl::DEVICE_TO_HOST) == 0);
        return value;
    }
    void set(uint64_t value) const { REQUIRE(aclrtMemcpy(p, 8, &value, 8, acl::HOST_TO_DEVICE) == 0); }
};

struct External {
    aclrtEvent handle = nullptr;
    External() { REQUIRE(aclrtCreateEventExWithFlag(&handle, acl::EVENT_EXTERNAL) == 0); }
    ~External() { aclrtDestroyEvent(handle); }
    External(const External&) = delete;
    External& operator=(const External&) = delete;
    operator aclrtEvent() const { return handle; }
};

// What `body` enqueues, as a graph.
template <class Body>
aclmdlRI capture(aclrtStream stream, Body&& body, int32_t mode = acl::CAPTURE_GLOBAL) {
    REQUIRE(aclmdlRICaptureBegin(stream, mode) == 0);
    body();
    aclmdlRI graph = nullptr;
    REQUIRE(aclmdlRICaptureEnd(stream, &graph) == 0);
    REQUIRE(graph != nullptr);
    return graph;
}

std::string json_of(aclmdlRI graph) {
    std::string path = "/tmp/flexnpu-graph-" + std::to_string(getpid()) + ".json";
    REQUIRE(aclmdlRIDebugJsonPrint(graph, path.c_str(), 0) == 0);
    std::ifstream file(path);
    std::string text{std::istreambuf_iterator<char>(file), {}};
    unlink(path.c_str());
    return text;
}

size_t count(const std::string& text, const std::string& part) {
    size_t found = 0;
    for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) {
        ++found;
    }
    return found;
}

size_t nodes_of(aclmdlRI graph) { return count(json_of(graph), "\"ph\": \"X\""); }

}  // namespace

TEST_CASE("captured tasks run at the replay, in order, each time") {
    StreamOwner stream;
    std::vector<int> order;
    aclmdlRI graph = capture(stream, [&] {
        for (int i = 0; i < 10; ++i) {
            REQUIRE(launch(stream, 1, [&order, i] {
                        order.push_back(i);
                        return 0;
                    }) == 0);
        }
        int32_t status = -1;
        aclmdlRI during = nullptr;
        CHECK(aclmdlRICaptureGetInfo(stream, &status, &during) == 0);
        CHECK(status == acl::CAPTURE_ACTIVE);
        CHECK(during != nullptr);
        CHECK(aclmdlRIExecuteAsync(during, stream) == acl::RT_MODEL_CAPTURED);
    });
    int32_t status = -1;
    CHECK(aclmdlRICaptureGetInfo(stream, &status, nullptr) == 0);
    CHECK(status == acl::CAPTURE_NONE);
    CHECK(aclrtSynchronizeStream(stream) == 0);
    CHECK(order.empty());
    StreamOwner other;
    for (int replay = 1; replay <= 4; ++replay) {
        if (replay == 4) {
            CHECK(aclmdlRIExecute(graph, 10'000) == 0);  // waits itself
        } else {
            CHECK(aclmdlRIExecuteAsync(graph, replay == 2 ? other : stream) == 0);
            CHECK(aclrtSynchronizeStream(replay == 2 ? other : stream) == 0);
        }
        REQUIRE(order.size() == size_t(10 * replay));
        CHECK(std::is_sorted(order.end() - 10, order.end()));
    }
    CHECK(aclmdlRIDestroy(graph) == 0);
    CHECK(aclmdlRIDestroy(graph) == acl::RT_PARAM_INVALID);
    CHECK(aclmdlRIExecuteAsync(graph, stream) == acl::RT_PARAM_INVALID);
}

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

TEST_CASE("copies and fills in a graph read what is there at the replay") {
    StreamOwner stream;
    Memory from(4096), to(4096);
    uint64_t* host = nullptr;
    REQUIRE(aclrtMallocHost(reinterpret_cast<void**>(&host), 16) == 0);
    aclmdlRI graph = capture(stream, [&] {
        REQUIRE(aclrtMemcpyAsync(from.p, 8, host, 8, acl::HOST_TO_DEVICE, stream) == 0);
        REQUIRE(aclrtMemcpyAsync(to.p, 8, from.p, 8, acl::DEVICE_TO_DEVICE, stream) == 0);
        REQUIRE(aclrtMemsetAsync(static_cast<char*>(to.p) + 4, 1, 0xab, 1, stream) == 0);
        REQUIRE(aclrtMemcpyAsync(host + 1, 8, to.p, 8, acl::DEVICE_TO_HOST, stream) == 0);
    });
    for (uint64_t value : {1ull, 2ull, 3ull}) {
        host[0] = value;
        REQUIRE(aclmdlRIExecuteAsync(graph, stream) == 0);
        REQUIRE(aclrtSynchronizeStream(stream) == 0);
        CHECK(host[1] == (value | 0xabull << 32));
    }
    CHECK(aclmdlRIDestroy(graph) == 0);
    CHECK(aclrtFreeHost(host) == 0);
}

TEST_CASE("events fork a capture to other streams and join it") {
    StreamOwner main, side;
    EventOwner fork, join;
    std::atomic<int> step{0};
    int left = -1, right = -1, after = -1;
    aclmdlRI graph = capture(main, [&] {
        REQUIRE(launch(main, 1, [&] {
                    step = 1;
                    return 0;
                }) == 0);
        REQUIRE(aclrtRecordEvent(fork, main) == 0);
        REQUIRE(aclrtStreamWaitEvent(side, fork) == 0);
        int32_t status = -1;
        CHECK(aclmdlRICaptureGetInfo(side, &status, nullptr) == 0);
        CHECK(status == acl::CAPTURE_ACTIVE);
        REQUIRE(launch(side, 1, [&] {
                    right = step;
                    return 0;
                }) == 0);
        REQUIRE(launch(main, 1, [&] {
                    left = step;
                    return 0;
                }) == 0);
        REQUIRE(aclrtRecordEvent(join, side) == 0);
        REQUIRE(aclrtStreamWaitEvent(main, join) == 0);
        REQUIRE(launch(main, 1, [&] {
                    after = left + right;
                    return 0;
                }) == 0);
    });
    CHECK(nodes_of(graph) == 4);
    CHECK(json_of(graph).find("\"Depends On\": [1, 2]") != std::string::npos);
    REQUIRE(aclmdlRIExecuteAsync(graph, main) == 0);
    REQUIRE(aclrtSynchronizeStream(main) == 0);
    CHECK(after == 2);
    // The side stream is an ordinary one again, the events stay captured until their next ordinary record.
    int ran = 0;
    REQUIRE(launch(side, 1, [&] {
                ran = 1;
                return 0;
            }) == 0);
    CHECK(aclrtSynchronizeStream(side) == 0);
    CHECK(ran == 1);
    CHECK(aclrtSynchronizeEvent(join) == acl::RT_EVENT_CAPTURED);
    CHECK(aclrtRecordEvent(join, side) == 0);
    CHECK(aclrtSynchronizeEvent(join) == 0);
    CHECK(aclmdlRIDestroy(graph) == 0);
}

TEST_CASE("a hundred captures of N launches hold N nodes while another thread launches elsewhere") {
    StreamOwner stream, other;
    std::atomic<bool> stop{false};
    std::atomic<uint64_t> ran{0}, launched{0};
    std::thread noise([&] {
        aclrtSetDevice(0);
        while (!stop) {
            if (launch(other, 1, [&] {
                    ++ran;
                    return 0;
                }) == 0) {
                ++launched;
            }
            std::this_thread::sleep_for(50us);
        }
    });
    int exact = 0;
    for (int i = 0; i < 100; ++i) {
        size_t launches = 1 + size_t(i) * 3;
        std::atomic<size_t> runs{0};
        aclmdlRI graph = capture(stream, [&] {
            for (size_t k = 0; k < launches; ++k) {
                REQUIRE(launch(stream, 0.1, [&] {
                            ++runs;
                            return 0;
                        }) == 0);
            }
        });
        REQUIRE(aclmdlRIExecuteAsync(graph, stream) == 0);
        REQUIRE(aclrtSynchronizeStream(stream) == 0);
        exact += nodes_of(graph) == launches && runs == launches;
        CHECK(aclmdlRIDestroy(graph) == 0);
    }
    stop = true;
    noise.join();
    CHECK(exact == 100);
    CHECK(aclrtSynchronizeStream(other) == 0);
    CHECK(ran == launched);
    CHECK(launched > 10);
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

TEST_CASE("what waits for or asks about a capture fails and invalidates it") {
    StreamOwner stream, side;
    EventOwner event;
    aclmdlRI graph = nullptr;
    aclrtStreamStatus status = 0;
    aclrtEventRecordedStatus recorded = 0;
    using Call = std::function<int32_t()>;
    const std::pair<Call, int32_t> misuses[] = {
        {[&] { return aclrtSynchronizeStream(stream); }, acl::RT_STREAM_CAPTURED},
        {[&] { return aclrtSynchronizeStreamWithTimeout(stream, 5); }, acl::RT_STREAM_CAPTURED},
        {[&] { return aclrtStreamQuery(stream, &status); }, acl::RT_STREAM_CAPTURED},
        {[&] { return aclrtSynchronizeDevice(); }, acl::RT_STREAM_CAPTURED},
        {[&] { return aclrtSynchronizeEvent(event); }, acl::RT_EVENT_CAPTURED},
        {[&] { return aclrtQueryEventStatus(event, &recorded); }, acl::RT_EVENT_CAPTURED},
        {[&] { return aclrtStreamAbort(stream); }, 0},
    };
    for (const auto& [call, error] : misuses) {
        REQUIRE(aclmdlRICaptureBegin(stream, acl::CAPTURE_GLOBAL) == 0);
        REQUIRE(aclrtRecordEvent(event, stream) == 0);
        CHECK(call() == error);
        int32_t now = -1;
        CHECK(aclmdlRICaptureGetInfo(stream, &now, nullptr) == 0);
        CHECK(now == acl::CAPTURE_INVALIDATED);
        CHECK(launch(stream, 1) == acl::RT_CAPTURE_INVALIDATED);
        CHECK(aclmdlRICaptureEnd(stream, &graph) == acl::RT_CAPTURE_INVALIDATED);
        CHECK(graph == nullptr);
        CHECK(launch(stream, 1) == 0);
        CHECK(aclrtSynchronizeStream(stream) == 0);
    }
    SUBCASE("a stream that nobody waits for") {
        REQUIRE(aclmdlRICaptureBegin(stream, acl::CAPTURE_GLOBAL) == 0);
        REQUIRE(aclrtRecordEvent(event, stream) == 0);
        REQUIRE(aclrtStreamWaitEvent(side, event) == 0);
        REQUIRE(launch(side, 1) == 0);
        CHECK(aclmdlRICaptureEnd(side, &graph) == acl::RT_CAPTURE_UNMATCHED);
        CHECK(aclmdlRICaptureEnd(stream, &graph) == acl::RT_STREAM_UNJOINED);
        CHECK(graph == nullptr);
        CHECK(launch(side, 1) == 0);
        CHECK(aclrtSynchronizeStream(side) == 0);
    }
    SUBCASE("work from outside") {
        REQUIRE(aclrtRecordEvent(event, side) == 0);
        REQUIRE(aclmdlRICaptureBegin(stream, acl::CAPTURE_GLOBAL) == 0);
        CHECK(aclrtStreamWaitEvent(stream, event) == acl::RT_CAPTURE_DEPENDENCY);
        CHECK(aclmdlRICaptureEnd(stream, &graph) == acl::RT_CAPTURE_INVALIDATED);
    }
    SUBCASE("an event of another capture") {
        REQUIRE(aclmdlRICaptureBegin(stream, acl::CAPTURE_GLOBAL) == 0);
        REQUIRE(aclmdlRICaptureBegin(side, acl::CAPTURE_GLOBAL) == 0);
        REQUIRE(aclrtRecordEvent(event, stream) == 0);
        CHECK(aclrtStreamWaitEvent(side, event) == acl::RT_CAPTURE_CONFLICT);
        CHECK(aclmdlRICaptureEnd(stream, &graph) == acl::RT_CAPTURE_INVALIDATED);
        CHECK(aclmdlRICaptureEnd(side, &graph) == acl::RT_CAPTURE_INVALIDATED);
    }
    SUBCASE("the stream goes") {
        aclrtStream gone = nullptr;
        REQUIRE(aclrtCreateStream(&gone) == 0);
        REQUIRE(aclmdlRICaptureBegin(gone, acl::CAPTURE_GLOBAL) == 0);
        auto token = std::make_shared<int>(0);
        REQUIRE(launch(gone, 1, [token] { return 0; }) == 0);
        CHECK(aclrtDestroyStream(gone) == 0);
        CHECK(token.use_count() == 1);
    }
    SUBCASE("misplaced calls") {
        CHECK(aclmdlRICaptureBegin(nullptr, acl::CAPTURE_GLOBAL) == acl::RT_CAPTURE_IMPLICIT);
        CHECK(aclmdlRICaptureBegin(stream, 3) == acl::RT_PARAM_INVALID);
        CHECK(aclmdlRICaptureEnd(stream, &graph) == acl::RT_STREAM_NOT_CAPTURED);
        REQUIRE(aclmdlRICaptureBegin(stream, acl::CAPTURE_GLOBAL) == 0);
        CHECK(aclmdlRICaptureBegin(stream, acl::CAPTURE_GLOBAL) == acl::RT_STREAM_CAPTURED);
        auto elsewhere = std::async(std::launch::async, [&] {
            aclrtSetDevice(0);
            return aclmdlRICaptureEnd(stream, &graph);
        });
        CHECK(elsewhere.get() == acl::RT_CAPTURE_WRONG_THREAD);
        CHECK(aclmdlRICaptureEnd(stream, &graph) == 0);
        CHECK(nodes_of(graph) == 0);
        CHECK(aclmdlRIExecuteAsync(graph, stream) == 0);
        CHECK(aclrtSynchronizeStream(stream) == 0);
        CHECK(aclmdlRIDestroy(graph) == 0);
    }
}

TEST_CASE("the modes say which thread may call unsafe functions, which never end the capture") {
    StreamOwner stream;
    Memory memory(64);
    auto unsafe = [&] { return aclrtMemset(memory.p, 64, 0, 64); };
    auto elsewhere = [&](int32_t mode) {
        return std::async(std::launch::async,
                          [&] {
                              aclrtSetDevice(0);
                              int32_t changed = mode;
                              aclmdlRICaptureThreadExchangeMode(&changed);
                              return unsafe();
                          })
            .get();
    };
    const int32_t no = acl::RT_CAPTURE_MODE_NOT_SUPPORT;
    struct Expected {
        int32_t mode, own, other, other_local, other_relaxed;
    };
    for (Expected expected :
         {Expected{acl::CAPTURE_GLOBAL, no, no, 0, 0}, Expected{acl::CAPTURE_THREAD_LOCAL, no, 0, 0, 0},
          Expected{acl::CAPTURE_RELAXED, 0, 0, 0, 0}}) {
        aclmdlRI graph = capture(
            stream,
            [&] {
                CHECK(unsafe() == expected.own);
                CHECK(elsewhere(acl::CAPTURE_GLOBAL) == expected.other);
                CHECK(elsewhere(acl::CAPTURE_THREAD_LOCAL) == expected.other_local);
                CHECK(elsewhere(acl::CAPTURE_RELAXED) == expected.other_relaxed);
                int32_t mode = acl::CAPTURE_RELAXED;
                CHECK(aclmdlRICaptureThreadExchangeMode(&mode) == 0);
                CHECK(mode == acl::CAPTURE_GLOBAL);
                CHECK(unsafe() == 0);
                CHECK(aclmdlRICaptureThreadExchangeMode(&mode) == 0);
                CHECK(mode == acl::CAPTURE_RELAXED);
                uint64_t pageable = 1;
                CHECK(aclrtMemcpyAsync(memory.p, 8, &pageable, 8, acl::HOST_TO_DEVICE, stream) ==
                      expected.own);
                void* more = nullptr;
                CHECK(aclrtMalloc(&more, 64, 0) == 0);
                CHECK(aclrtFree(more) == 0);
            },
            expected.mode);
        CHECK(aclmdlRIDestroy(graph) == 0);
    }
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

TEST_CASE(
    "random forks and joins: what is called after something runs after it, and one graph runs all of it") {
    constexpr size_t kStreams = 5;
    std::vector<std::unique_ptr<StreamOwner>> streams;
    for (size_t i = 0; i < kStreams; ++i) {
        streams.push_back(std::make_unique<StreamOwner>());
    }
    std::mt19937 random(20);
    for (int round = 0; round < 60; ++round) {
        // The model: of each stream and each event, which launches come before.
        std::vector<std::vector<bool>> before;  // of each launch
        std::vector<std::vector<bool>> at(kStreams);
        std::vector<bool> captured(kStreams, false);
        captured[0] = true;
        std::vector<std::unique_ptr<EventOwner>> events;
        std::vector<std::vector<bool>> recorded;
        auto merge = [](std::vector<bool>& into, const std::vector<bool>& from) {
            into.resize(std::max(into.size(), from.size()));
            for (size_t i = 0; i < from.size(); ++i) {
                into[i] = into[i] || from[i];
            }
        };
        std::vector<uint32_t> order;
        auto record = [&](size_t s) {
            events.push_back(std::make_unique<EventOwner>());
            recorded.push_back(at[s]);
            REQUIRE(aclrtRecordEvent(*events.back(), *streams[s]) == 0);
        };
        auto wait = [&](size_t s, size_t e) {
            REQUIRE(aclrtStreamWaitEvent(*streams[s], *events[e]) == 0);
            captured[s] = true;
            merge(at[s], recorded[e]);
        };
        aclmdlRI graph = capture(*streams[0], [&] {
            for (int step = 0; step < 120; ++step) {
                size_t s = random() % kStreams;
                unsigned what = random() % 10;
                if (what < 2 && !events.empty()) {
                    wait(s, random() % events.size());
                } else if (!captured[s]) {
                    continue;
                } else if (what < 4) {
                    record(s);
                } else {
                    auto number = uint32_t(before.size());
                    REQUIRE(launch(*streams[s], double(random() % 20), [&order, number] {
                                order.push_back(number);
                                return 0;
                            }) == 0);
                    before.push_back(at[s]);
                    at[s].resize(number + 1);
                    at[s][number] = true;
                }
            }
            for (size_t s = 1; s < kStreams; ++s) {
                if (captured[s]) {
                    record(s);
                    wait(0, events.size() - 1);
                }
            }
        });
        REQUIRE(nodes_of(graph) == before.size());
        for (int replay = 0; replay < 2; ++replay) {
            order.clear();
            REQUIRE(aclmdlRIExecuteAsync(graph, *streams[random() % kStreams]) == 0);
            REQUIRE(aclrtSynchronizeDevice() == 0);
            REQUIRE(order.size() == before.size());
            std::vector<bool> ran(before.size(), false);
            size_t early = 0;
            for (uint32_t launch : order) {
                for (size_t i = 0; i < before[launch].size(); ++i) {
                    early += before[launch][i] && !ran[i];
                }
                ran[launch] = true;
            }
            CHECK(early == 0);
        }
        CHECK(aclmdlRIDestroy(graph) == 0);
    }
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

TEST_CASE("a graph has an id, a name and a description") {
    StreamOwner stream;
    Memory memory(64);
    aclmdlRI graph = capture(stream, [&] {
        REQUIRE(launch(stream, 1) == 0);
        REQUIRE(aclrtMemsetAsync(memory.p, 64, 0, 64, stream) == 0);
    });
    aclmdlRI second = capture(stream, [] {});
    uint32_t id = 0, other = 0;
    CHECK(aclmdlRIGetId(graph, &id) == 0);
    CHECK(aclmdlRIGetId(second, &other) == 0);
    CHECK(id != other);
    char name[8] = "";
    CHECK(aclmdlRISetName(graph, "decode of four") == 0);
    CHECK(aclmdlRIGetName(graph, sizeof(name), name) == 0);
    CHECK(std::string(name) == "decode ");
    std::string json = json_of(graph);
    CHECK(json.find("\"name\": \"aclnnTest\"") != std::string::npos);
    CHECK(json.find("\"Task Type\": \"MEMSET_ASYNC\"") != std::string::npos);
    CHECK(aclmdlRIDebugJsonPrint(graph, "/nonexistent/graph.json", 0) == acl::RT_PARAM_INVALID);
    CHECK(aclmdlRIDestroy(graph) == 0);
    CHECK(aclmdlRIDestroy(second) == 0);
    CHECK(aclmdlRIAddCondTask(nullptr, stream, 0) == acl::API_NOT_SUPPORTED);
    CHECK(std::string(aclGetRecentErrMsg()).find("aclmdlRIAddCondTask") != std::string::npos);
}
