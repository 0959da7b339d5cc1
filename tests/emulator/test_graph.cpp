// Capture of graphs in compute mode, through the exported functions.
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
