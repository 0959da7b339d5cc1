// Captures through client library and data plane, over a vendor that logs what each graph captures.
#include <atomic>
#include <cstring>
#include <thread>

#include "flexnpu/wire/futex.hpp"
#include "graphs_fixture.hpp"

using namespace flexnpu;
using namespace flexnpu::test;

TEST_CASE("a graph holds what was captured, in order, and nothing else") {
    Memory a(4096), b(4096);
    StreamOf s, other;
    GraphOf graph;
    const uint64_t calls = mock().count();
    CHECK(status_of(s.s) == acl::CAPTURE_NONE);
    REQUIRE(client().aclmdlRICaptureBegin(s.s, acl::CAPTURE_GLOBAL) == 0);
    aclmdlRI model = nullptr;
    CHECK(status_of(s.s, &model) == acl::CAPTURE_ACTIVE);
    CHECK(status_of(other.s) == acl::CAPTURE_NONE);
    uint32_t id = 0;
    CHECK(client().aclmdlRIGetId(model, &id) == 0);
    CHECK(id > 1000);  // the vendor's
    CHECK(client().aclmdlRICaptureBegin(s.s, acl::CAPTURE_GLOBAL) == acl::RT_STREAM_CAPTURED);
    REQUIRE(abs(a.p, b.p, 100, s.s) == 0);
    REQUIRE(abs(b.p, a.p, 100, other.s) == 0);
    REQUIRE(client().aclrtMemsetAsync(a.p, 64, 7, 64, s.s) == 0);
    REQUIRE(client().aclrtMemcpyAsync(a.p, 64, b.p, 64, acl::DEVICE_TO_DEVICE, s.s) == 0);
    REQUIRE(client().aclrtValueWrite(a.p, 5, 1, s.s) == 0);
    REQUIRE(client().aclrtValueWait(a.p, 5, 1, s.s) == 0);
    const uint64_t launches = counter("launches");
    REQUIRE(client().aclmdlRICaptureEnd(s.s, &graph.g) == 0);
    CHECK(graph.g == model);
    CHECK(status_of(s.s) == acl::CAPTURE_NONE);
    const auto got = captured(calls);
    CHECK(kinds(got) == "lmcvV");
    CHECK(got[0].a == number(a.p));
    CHECK(got[0].bytes == 128);  // the workspace that it needs: the graph's
    CHECK(got[3].op == 1);
    CHECK(got[3].b == 5);
    // Captured operators are not launched, nor in flight.
    for (const auto& l : running().plane.lanes()) {
        if (l.stream == number(s.s)) CHECK(l.launched == 0);
    }
    for (int i = 0; i < 3; i++) REQUIRE(client().aclmdlRIExecuteAsync(graph.g, i % 2 ? other.s : s.s) == 0);
    REQUIRE(client().aclrtSynchronizeDevice() == 0);
    int replays = 0;
    for (const MockCall& c : mock().since(calls)) replays += c.what == 'x';
    CHECK(replays == 3);
    CHECK(counter("launches") <= launches + 1);  // the other stream's
    for (const auto& l : running().plane.lanes()) {
        if (l.stream == number(s.s)) CHECK(l.launched == 2);
    }
    CHECK(mock().mock_nodes(got[0].model) == 5);
}

TEST_CASE("other streams join by events, and nothing of the daemon's enters a capture") {
    Memory a(1 << 16), b(1 << 16);
    StreamOf s, side;
    EventOf fork, join;
    GraphOf graph;
    const uint64_t calls = mock().count();
    // Work that the daemon still has fences and markers for.
    for (int i = 0; i < 200; i++) REQUIRE(abs(a.p, b.p, 16, side.s) == 0);
    REQUIRE(client().aclmdlRICaptureBegin(s.s, acl::CAPTURE_THREAD_LOCAL) == 0);
    REQUIRE(client().aclrtRecordEvent(fork.e, s.s) == 0);
    CHECK(status_of(side.s) == acl::CAPTURE_NONE);
    REQUIRE(client().aclrtStreamWaitEvent(side.s, fork.e) == 0);
    aclmdlRI of_side = nullptr, of_main = nullptr;
    CHECK(status_of(side.s, &of_side) == acl::CAPTURE_ACTIVE);
    CHECK(status_of(s.s, &of_main) == acl::CAPTURE_ACTIVE);
    CHECK(of_side == of_main);
    for (int i = 0; i < 300; i++) {
        REQUIRE(abs(a.p, b.p, 16, side.s) == 0);
        REQUIRE(abs(b.p, a.p, 17, s.s) == 0);
    }
    REQUIRE(client().aclrtRecordEvent(join.e, side.s) == 0);
    REQUIRE(client().aclrtStreamWaitEvent(s.s, join.e) == 0);
    CHECK(client().aclmdlRICaptureEnd(side.s, &graph.g) == acl::RT_CAPTURE_UNMATCHED);
    CHECK(status_of(s.s) == acl::CAPTURE_ACTIVE);
    REQUIRE(client().aclmdlRICaptureEnd(s.s, &graph.g) == 0);
    const auto got = captured(calls);
    size_t launches = 0, records = 0, waits = 0;
    for (const MockCall& c : got) {
        launches += c.what == 'l';
        records += c.what == 'r';
        waits += c.what == 'w';
    }
    CHECK(launches == 600);
    CHECK(records == 2);
    CHECK(waits == 2);
    CHECK(got.size() == 604);
    // Both run again.
    REQUIRE(abs(a.p, b.p, 16, side.s) == 0);
    REQUIRE(client().aclrtSynchronizeStream(side.s) == 0);
    REQUIRE(client().aclrtSynchronizeStream(s.s) == 0);
}

TEST_CASE("a hundred captures hold every launch while the gate holds other lanes and other threads work") {
    Memory a(1 << 20), b(1 << 20);
    StreamOf s, prefill, decode;
    uint32_t prefill_lane = 0, decode_lane = 0, lane = 0;
    for (const auto& l : running().plane.lanes()) {
        if (l.stream == number(prefill.s)) prefill_lane = l.lane;
        if (l.stream == number(decode.s)) decode_lane = l.lane;
        if (l.stream == number(s.s)) lane = l.lane;
    }
    REQUIRE(running().plane.set_lane(prefill_lane, gate::Phase::Prefill, 0));
    REQUIRE(running().plane.set_lane(lane, gate::Phase::Prefill,
                                     0));  // captures in a lane that the gate may hold
    REQUIRE(running().plane.set_lane(decode_lane, gate::Phase::Decode, 1000));
    gate::Settings settings;
    settings.enabled = true;
    settings.window_us = 1;
    settings.max_hold_us = 200;
    settings.lease_until_ns = wire::now_ns() + 60'000'000'000ull;
    running().plane.set_gate(settings);
    std::atomic<bool> stop{false};
    const auto work = [&](aclrtStream stream) {
        Memory x(1 << 16), y(1 << 16);
        for (int i = 0; !stop; i++) {
            if (abs(x.p, y.p, 1000 + i % 8, stream) != 0) break;
            if (i % 8 == 7) {
                client().aclrtSynchronizeStream(stream);
                void* more = nullptr;  // memory comes and goes amid the captures
                if (client().aclrtMalloc(&more, 4096, 0) == 0) client().aclrtFree(more);
            }
        }
        client().aclrtSynchronizeStream(stream);
    };
    std::thread first(work, prefill.s), second(work, decode.s);
    const uint64_t held = counter("gate_held");
    int whole = 0;
    constexpr int kLaunches = 40;
    for (int round = 0; round < 100; round++) {
        const uint64_t calls = mock().count();
        GraphOf graph;
        if (client().aclmdlRICaptureBegin(s.s, acl::CAPTURE_THREAD_LOCAL) != 0) continue;
        for (int i = 0; i < kLaunches; i++) {
            if (abs(a.p, b.p, 100 + i, s.s) != 0) break;
            if (i % 10 == 5) {
                void* more = nullptr;
                REQUIRE(client().aclrtMalloc(&more, 4096, 0) == 0);
                REQUIRE(client().aclrtFree(more) == 0);
            }
        }
        if (client().aclmdlRICaptureEnd(s.s, &graph.g) != 0) {
            MESSAGE(std::string(client().aclGetRecentErrMsg()));
            continue;
        }
        whole += kinds(captured(calls)) == std::string(kLaunches, 'l');
        client().aclmdlRIExecuteAsync(graph.g, s.s);
        client().aclrtSynchronizeStream(s.s);
    }
    stop = true;
    first.join();
    second.join();
    CHECK(whole == 100);
    CHECK(counter("gate_held") > held);
    running().plane.set_gate({});
}

TEST_CASE("what cannot be captured is told by the capture's end, and the stream goes on") {
    Memory a(4096), b(4096);
    StreamOf s, other;
    EventOf outside;
    GraphOf graph;
    REQUIRE(client().aclrtRecordEvent(outside.e, other.s) == 0);
    // An event from outside of the capture.
    REQUIRE(client().aclmdlRICaptureBegin(s.s, acl::CAPTURE_RELAXED) == 0);
    REQUIRE(client().aclrtStreamWaitEvent(s.s, outside.e) == 0);
    CHECK(client().aclmdlRICaptureEnd(s.s, &graph.g) == acl::RT_CAPTURE_DEPENDENCY);
    CHECK(graph.g == nullptr);
    CHECK(status_of(s.s) == acl::CAPTURE_NONE);
    // A synchronise of a stream that captures fails, and so does the capture.
    REQUIRE(client().aclmdlRICaptureBegin(s.s, acl::CAPTURE_RELAXED) == 0);
    CHECK(client().aclrtSynchronizeStream(s.s) == acl::RT_CAPTURE_MODE_NOT_SUPPORT);
    CHECK(status_of(s.s) == acl::CAPTURE_INVALIDATED);
    CHECK(client().aclmdlRICaptureEnd(s.s, &graph.g) == acl::RT_CAPTURE_INVALIDATED);
    // Memory of nobody.
    REQUIRE(client().aclmdlRICaptureBegin(s.s, acl::CAPTURE_RELAXED) == 0);
    REQUIRE(client().aclrtMemsetAsync(reinterpret_cast<void*>(0x1000), 64, 0, 64, s.s) == 0);
    CHECK(client().aclmdlRICaptureEnd(s.s, &graph.g) == acl::RT_PARAM_INVALID);
    CHECK(client().aclrtSynchronizeStream(s.s) == 0);
    // The default stream, and streams that do not capture.
    CHECK(client().aclmdlRICaptureBegin(nullptr, acl::CAPTURE_RELAXED) == acl::RT_CAPTURE_IMPLICIT);
    CHECK(client().aclmdlRICaptureEnd(s.s, &graph.g) == acl::RT_STREAM_NOT_CAPTURED);
    CHECK(client().aclmdlRICaptureTaskGrpBegin(s.s) == acl::RT_STREAM_NOT_CAPTURED);
    CHECK(client().aclmdlRIExecuteAsync(reinterpret_cast<aclmdlRI>(7), s.s) == acl::RT_INVALID_HANDLE);
    REQUIRE(abs(a.p, b.p, 100, s.s) == 0);
    CHECK(client().aclrtSynchronizeStream(s.s) == 0);
    CHECK(mock().mock_held().models == 0);
}

TEST_CASE("unsafe calls follow the capture's mode and the thread's") {
    Memory a(4096);
    StreamOf s;
    char bytes[64] = {};
    const auto unsafe = [&] { return client().aclrtMemset(a.p, 64, 0, 64); };
    const auto elsewhere = [&](aclmdlRICaptureMode mode) {
        int r = -1;
        std::thread([&] {
            client().aclmdlRICaptureThreadExchangeMode(&mode);
            r = client().aclrtMemcpy(a.p, 64, bytes, 64, acl::HOST_TO_DEVICE);
        }).join();
        return r;
    };
    const auto capture = [&](aclmdlRICaptureMode mode) {
        REQUIRE(client().aclmdlRICaptureBegin(s.s, mode) == 0);
    };
    const auto end = [&] {
        GraphOf graph;
        return client().aclmdlRICaptureEnd(s.s, &graph.g);
    };
    capture(acl::CAPTURE_RELAXED);
    CHECK(unsafe() == 0);
    CHECK(elsewhere(acl::CAPTURE_GLOBAL) == 0);
    CHECK(end() == 0);

    capture(acl::CAPTURE_THREAD_LOCAL);
    CHECK(elsewhere(acl::CAPTURE_GLOBAL) == 0);
    CHECK(end() == 0);
    capture(acl::CAPTURE_THREAD_LOCAL);
    CHECK(unsafe() == acl::RT_CAPTURE_MODE_NOT_SUPPORT);
    CHECK(status_of(s.s) == acl::CAPTURE_INVALIDATED);
    CHECK(end() == acl::RT_CAPTURE_INVALIDATED);

    capture(acl::CAPTURE_GLOBAL);
    CHECK(elsewhere(acl::CAPTURE_RELAXED) == 0);
    CHECK(elsewhere(acl::CAPTURE_THREAD_LOCAL) == 0);
    // What torch_npu does around its memset.
    aclmdlRICaptureMode mode = acl::CAPTURE_RELAXED;
    CHECK(client().aclmdlRICaptureThreadExchangeMode(&mode) == 0);
    CHECK(mode == acl::CAPTURE_GLOBAL);
    CHECK(unsafe() == 0);
    CHECK(client().aclmdlRICaptureThreadExchangeMode(&mode) == 0);
    CHECK(mode == acl::CAPTURE_RELAXED);
    CHECK(end() == 0);
    capture(acl::CAPTURE_GLOBAL);
    CHECK(elsewhere(acl::CAPTURE_GLOBAL) == acl::RT_CAPTURE_MODE_NOT_SUPPORT);
    CHECK(end() == acl::RT_CAPTURE_INVALIDATED);
    capture(acl::CAPTURE_GLOBAL);
    int wrong = 0;
    std::thread([&] { wrong = end(); }).join();
    CHECK(wrong == acl::RT_CAPTURE_WRONG_THREAD);
    CHECK(end() == 0);
    CHECK(unsafe() == 0);
}
