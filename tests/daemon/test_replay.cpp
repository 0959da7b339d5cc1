// Graphs after their capture: updates, replays, descriptions and ends.
#include <atomic>
#include <chrono>
#include <cstring>
#include <fstream>
#include <sstream>
#include <thread>
#include <tuple>

#include "flexnpu/wire/futex.hpp"
#include "graphs_fixture.hpp"

using namespace flexnpu;
using namespace flexnpu::test;

TEST_CASE("task groups are updated without an answer, and updates run in their stream's order") {
    Memory a(4096), b(4096), flag(64);
    StreamOf s, updates;
    GraphOf graph;
    REQUIRE(client().aclmdlRICaptureBegin(s.s, acl::CAPTURE_GLOBAL) == 0);
    aclrtTaskGrp group = nullptr;
    CHECK(client().aclmdlRICaptureTaskGrpEnd(s.s, &group) == acl::RT_TASK_GROUP_STATUS);
    REQUIRE(client().aclrtValueWait(flag.p, 1, 0, s.s) == 0);
    REQUIRE(client().aclmdlRICaptureTaskGrpBegin(s.s) == 0);
    REQUIRE(abs(a.p, b.p, 8, s.s) == 0);
    REQUIRE(client().aclmdlRICaptureTaskGrpEnd(s.s, &group) == 0);
    REQUIRE(client().aclmdlRICaptureEnd(s.s, &graph.g) == 0);
    const uint64_t calls = mock().count(), launches = counter("launches");
    constexpr int kSteps = 20;
    for (int i = 0; i < kSteps; i++) {
        REQUIRE(client().aclmdlRIExecuteAsync(graph.g, s.s) == 0);
        REQUIRE(client().aclmdlRICaptureTaskUpdateBegin(updates.s, group) == 0);
        REQUIRE(abs(a.p, b.p, 8 + i, updates.s) == 0);
        REQUIRE(client().aclmdlRICaptureTaskUpdateEnd(updates.s) == 0);
        REQUIRE(client().aclrtValueWrite(flag.p, 1, 0, updates.s) == 0);
    }
    REQUIRE(client().aclrtSynchronizeDevice() == 0);
    std::string order;
    for (const MockCall& c : mock().since(calls)) {
        if (std::strchr("uUlv", c.what)) order += c.what;
        if (c.what == 'l') CHECK(c.model != nullptr);
        if (c.what == 'r') CHECK(c.model == nullptr);  // no event of the daemon's within an update
    }
    std::string expected;
    for (int i = 0; i < kSteps; i++) expected += "ulUv";
    CHECK(order == expected);
    CHECK(counter("launches") == launches);  // an update launches nothing
    // A forged group is refused here, and the launch behind a refused begin does not run by itself.
    CHECK(client().aclmdlRICaptureTaskUpdateBegin(updates.s, reinterpret_cast<aclrtTaskGrp>(12345)) ==
          acl::RT_INVALID_HANDLE);
    REQUIRE(client().aclmdlRICaptureTaskUpdateBegin(updates.s, group) == 0);
    REQUIRE(client().aclmdlRICaptureTaskUpdateBegin(updates.s, group) == 0);
    CHECK(client().aclmdlRICaptureTaskUpdateEnd(updates.s) == 0);
    CHECK(client().aclrtSynchronizeStream(updates.s) == acl::RT_TASK_GROUP_STATUS);
    CHECK(client().aclrtSynchronizeStream(updates.s) == 0);
}

TEST_CASE(
    "an update that the vendor refuses, or that an abort cuts in two, runs nothing, and its events hang "
    "nobody") {
    Memory a(4096), b(4096);
    StreamOf s, updates, other;
    EventOf e;
    GraphOf graph;
    REQUIRE(client().aclmdlRICaptureBegin(s.s, acl::CAPTURE_GLOBAL) == 0);
    aclrtTaskGrp group = nullptr;
    REQUIRE(client().aclmdlRICaptureTaskGrpBegin(s.s) == 0);
    REQUIRE(abs(a.p, b.p, 8, s.s) == 0);
    REQUIRE(client().aclmdlRICaptureTaskGrpEnd(s.s, &group) == 0);
    REQUIRE(client().aclmdlRICaptureEnd(s.s, &graph.g) == 0);
    uint64_t calls = mock().count();
    const auto updated = [&] {
        std::string order;
        for (const MockCall& c : mock().since(calls)) {
            if (std::strchr("ulU", c.what)) order += c.what;
        }
        return order;
    };

    mock().mock_fail_update(1);
    REQUIRE(client().aclmdlRICaptureTaskUpdateBegin(updates.s, group) == 0);
    REQUIRE(abs(a.p, b.p, 8, updates.s) == 0);
    REQUIRE(client().aclrtRecordEvent(e.e, updates.s) == 0);
    REQUIRE(client().aclmdlRICaptureTaskUpdateEnd(updates.s) == 0);
    CHECK(client().aclrtSynchronizeEventWithTimeout(e.e, 5000) == 0);
    REQUIRE(client().aclrtStreamWaitEvent(other.s, e.e) == 0);
    CHECK(client().aclrtSynchronizeStreamWithTimeout(other.s, 5000) == 0);
    CHECK(client().aclrtSynchronizeStream(updates.s) == acl::RT_TASK_GROUP_STATUS);
    CHECK(updated() == "");
    mock().mock_fail_update(0);

    // The begin is dropped, what comes after the abort is not.
    std::atomic<bool> entered{false}, open{false}, left{false};
    std::tuple flags{&entered, &open, &left};
    const auto hold = +[](void* p) {
        auto [in, out, over] = *static_cast<decltype(flags)*>(p);
        *in = true;
        while (!*out) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        *over = true;
    };
    REQUIRE(client().aclrtLaunchHostFunc(updates.s, reinterpret_cast<aclrtHostFunc>(hold), &flags) == 0);
    REQUIRE(eventually([&] { return entered.load(); }));
    REQUIRE(client().aclmdlRICaptureTaskUpdateBegin(updates.s, group) == 0);
    REQUIRE(abs(a.p, b.p, 8, updates.s) == 0);
    CHECK(client().aclrtStreamAbort(updates.s) == 0);
    REQUIRE(abs(a.p, b.p, 8, updates.s) == 0);
    REQUIRE(client().aclmdlRICaptureTaskUpdateEnd(updates.s) == 0);
    CHECK(client().aclrtSynchronizeStream(updates.s) == acl::RT_STREAM_ABORT);
    CHECK(updated() == "");
    open = true;
    REQUIRE(client().aclmdlRICaptureTaskUpdateBegin(updates.s, group) == 0);
    REQUIRE(abs(a.p, b.p, 8, updates.s) == 0);
    REQUIRE(client().aclmdlRICaptureTaskUpdateEnd(updates.s) == 0);
    CHECK(client().aclrtSynchronizeStream(updates.s) == 0);
    CHECK(updated() == "ulU");
    CHECK(eventually([&] { return left.load(); }));
}

TEST_CASE("a replay of operators whose memory is gone is refused by name") {
    Memory a(4096), kept(4096), unrelated(4096);
    StreamOf s;
    GraphOf graph;
    REQUIRE(client().aclmdlRICaptureBegin(s.s, acl::CAPTURE_RELAXED) == 0);
    REQUIRE(abs(a.p, kept.p, 100, s.s) == 0);
    REQUIRE(client().aclmdlRICaptureEnd(s.s, &graph.g) == 0);
    REQUIRE(client().aclrtFree(std::exchange(unrelated.p, nullptr)) == 0);
    REQUIRE(client().aclmdlRIExecuteAsync(graph.g, s.s) == 0);
    CHECK(client().aclrtSynchronizeStream(s.s) == 0);
    REQUIRE(client().aclrtFree(std::exchange(a.p, nullptr)) == 0);
    const uint64_t replays = counter("graph_replays"), refused = counter("refused");
    REQUIRE(client().aclmdlRIExecuteAsync(graph.g, s.s) == 0);
    CHECK(client().aclrtSynchronizeStream(s.s) == acl::RT_PARAM_INVALID);
    CHECK(std::string(client().aclGetRecentErrMsg()).find("which this process has freed") !=
          std::string::npos);
    CHECK(counter("graph_replays") == replays);
    CHECK(counter("refused") == refused + 1);
}

TEST_CASE("captured copies keep pageable bytes and read pinned memory at replay") {
    constexpr size_t n = 3000, large = 3 << 20;
    Memory a(large), b(large);
    StreamOf s;
    GraphOf graph;
    std::vector<uint8_t> pageable(large, 1);
    void* pinned = nullptr;
    REQUIRE(client().aclrtMallocHost(&pinned, n) == 0);
    const uint64_t calls = mock().count();
    REQUIRE(client().aclmdlRICaptureBegin(s.s, acl::CAPTURE_RELAXED) == 0);
    REQUIRE(client().aclrtMemcpyAsync(a.p, n, pageable.data(), n, acl::HOST_TO_DEVICE, s.s) == 0);
    REQUIRE(client().aclrtMemcpyAsync(a.p, large, pageable.data(), large, acl::HOST_TO_DEVICE, s.s) == 0);
    REQUIRE(client().aclrtMemcpyAsync(b.p, n, pinned, n, acl::HOST_TO_DEVICE, s.s) == 0);
    CHECK(client().aclrtMemcpyAsync(pageable.data(), n, a.p, n, acl::DEVICE_TO_HOST, s.s) ==
          acl::RT_CAPTURE_MODE_NOT_SUPPORT);
    REQUIRE(client().aclmdlRICaptureEnd(s.s, &graph.g) == 0);
    REQUIRE(client().aclrtFreeHost(pinned) == 0);  // the graph keeps it
    // Staging blocks and inline buffers are used by others meanwhile.
    std::vector<uint8_t> other(large, 9);
    for (int i = 0; i < 64; i++)
        REQUIRE(client().aclrtMemcpy(b.p, large, other.data(), large, acl::HOST_TO_DEVICE) == 0);
    size_t pageable_bytes = 0;
    for (const MockCall& c : captured(calls)) {
        REQUIRE(c.what == 'c');
        const auto* from = reinterpret_cast<const uint8_t*>(c.b);
        if (c.a >= number(a.p) && c.a < number(a.p) + large) {
            pageable_bytes += c.bytes;
            CHECK(std::all_of(from, from + c.bytes, [](uint8_t v) { return v == 1; }));
        } else {
            [[maybe_unused]] volatile uint8_t still_mapped = *from;
        }
    }
    CHECK(pageable_bytes == n + large);
}

TEST_CASE("a real event is recorded by replays, and its waits and records keep the program's order") {
    Memory a(1 << 20), b(4096);
    StreamOf held, waiter, s;
    EventOf real(acl::EVENT_EXTERNAL), gone(acl::EVENT_EXTERNAL);
    GraphOf graph;
    REQUIRE(client().aclmdlRICaptureBegin(s.s, acl::CAPTURE_RELAXED) == 0);
    REQUIRE(abs(a.p, b.p, 100, s.s) == 0);
    REQUIRE(client().aclrtRecordEvent(real.e, s.s) == 0);
    REQUIRE(client().aclrtStreamWaitEvent(waiter.s, real.e) == 0);
    CHECK(status_of(waiter.s) == acl::CAPTURE_NONE);  // a real event takes nobody into the capture
    REQUIRE(client().aclmdlRICaptureEnd(s.s, &graph.g) == 0);
    uint32_t lane = 0, decode = 0;
    StreamOf steps;
    for (const auto& l : running().plane.lanes()) {
        if (l.stream == number(held.s)) lane = l.lane;
        if (l.stream == number(steps.s)) decode = l.lane;
    }
    REQUIRE(running().plane.set_lane(lane, gate::Phase::Prefill, 0));
    REQUIRE(running().plane.set_lane(decode, gate::Phase::Decode, 1));
    gate::Settings settings;
    settings.enabled = true;
    settings.window_us = 1;
    settings.max_hold_us = 100;
    settings.lease_until_ns = wire::now_ns() + 60'000'000'000ull;
    running().plane.set_gate(settings);
    const uint64_t calls = mock().count();
    constexpr int kRounds = 50;
    for (int i = 0; i < kRounds; i++) {
        REQUIRE(abs(b.p, b.p, 10, steps.s) == 0);
        // The gate holds the lane of the replay, so the replay, and so the wait of its event.
        for (int k = 0; k < 3; k++) REQUIRE(abs(a.p, a.p, 100000, held.s) == 0);
        REQUIRE(client().aclmdlRIExecuteAsync(graph.g, held.s) == 0);
        REQUIRE(client().aclrtStreamWaitEvent(waiter.s, real.e) == 0);
        REQUIRE(client().aclrtResetEvent(real.e, waiter.s) == 0);
        REQUIRE(client().aclrtMemsetAsync(b.p, 1, 1, 1, waiter.s) == 0);
    }
    REQUIRE(client().aclrtSynchronizeDevice() == 0);
    std::string order;
    void* vendors_event = nullptr;
    for (const MockCall& c : mock().since(calls)) {
        if (std::strchr("xwm", c.what)) order += c.what;
        if (c.what != 'w') continue;
        if (!vendors_event) vendors_event = reinterpret_cast<void*>(c.a);
        CHECK(number(vendors_event) == c.a);  // one and the same
    }
    std::string expected;
    for (int i = 0; i < kRounds; i++) expected += "xwm";
    CHECK(order == expected);
    running().plane.set_gate({});
}

TEST_CASE("a graph's description crosses whole") {
    StreamOf s;
    GraphOf graph;
    REQUIRE(client().aclmdlRICaptureBegin(s.s, acl::CAPTURE_RELAXED) == 0);
    REQUIRE(client().aclmdlRICaptureEnd(s.s, &graph.g) == 0);
    const std::string path = running().directory + "/graph.json";
    REQUIRE(client().aclmdlRIDebugJsonPrint(graph.g, path.c_str(), 3) == 0);
    std::ifstream file(path);
    std::stringstream text;
    text << file.rdbuf();
    CHECK(text.str().size() > 5000);
    CHECK(text.str().find("\"flags\": 3") != std::string::npos);
    CHECK(text.str().ends_with("\"}\n"));
    CHECK(client().aclmdlRIDebugJsonPrint(graph.g, "/nowhere/graph.json", 0) == acl::INVALID_PARAM);
}

TEST_CASE("a graph that is being replayed cannot go, one that is aborted can") {
    StreamOf s;
    GraphOf graph;
    REQUIRE(client().aclmdlRICaptureBegin(s.s, acl::CAPTURE_RELAXED) == 0);
    REQUIRE(client().aclmdlRICaptureEnd(s.s, &graph.g) == 0);
    mock().mock_stick(1);
    REQUIRE(client().aclmdlRIExecuteAsync(graph.g, s.s) == 0);
    int32_t status = -1;
    CHECK(eventually(
        [&] { return client().aclrtStreamQuery(s.s, &status) == 0 && status == acl::STREAM_NOT_READY; }));
    CHECK(client().aclmdlRIDestroy(graph.g) == 107037);
    CHECK(client().aclmdlRIAbort(graph.g) == 0);
    mock().mock_stick(0);
    CHECK(client().aclrtSynchronizeStream(s.s) == 0);
}

TEST_CASE("a session that ends amid a capture and amid a replay leaves nothing") {
    // Left to the daemon's end, with the session still open: a graph, a capture under way with what it keeps,
    // a replay that never ends.
    aclrtStream capturing = nullptr, replaying = nullptr;
    aclrtEvent event = nullptr;
    void* a = nullptr;
    REQUIRE(client().aclrtCreateStream(&capturing) == 0);
    REQUIRE(client().aclrtCreateStream(&replaying) == 0);
    REQUIRE(client().aclrtCreateEventWithFlag(&event, 0) == 0);
    REQUIRE(client().aclrtMalloc(&a, 4096, 0) == 0);
    aclmdlRI graph = nullptr;
    REQUIRE(client().aclmdlRICaptureBegin(replaying, acl::CAPTURE_RELAXED) == 0);
    REQUIRE(abs(a, a, 100, replaying) == 0);
    REQUIRE(client().aclmdlRICaptureEnd(replaying, &graph) == 0);
    mock().mock_stick(1);
    REQUIRE(client().aclmdlRIExecuteAsync(graph, replaying) == 0);
    REQUIRE(client().aclmdlRICaptureBegin(capturing, acl::CAPTURE_RELAXED) == 0);
    std::vector<uint8_t> bytes(4096, 1);
    REQUIRE(client().aclrtMemcpyAsync(a, 4096, bytes.data(), 4096, acl::HOST_TO_DEVICE, capturing) == 0);
    REQUIRE(abs(a, a, 100, capturing) == 0);
    REQUIRE(client().aclrtRecordEvent(event, capturing) == 0);
    CHECK(eventually([&] { return mock().mock_held().models == 2 && mock().mock_held().host >= 1; }));
    running().plane.stop();
    const MockHeld held = mock().mock_held();
    CHECK(held.models == 0);
    CHECK(held.streams == 0);
    CHECK(held.events == 0);
    CHECK(held.memory == 0);
    CHECK(held.host == 0);
    CHECK(held.tensors == 0);
    CHECK(held.executors == 0);
}
