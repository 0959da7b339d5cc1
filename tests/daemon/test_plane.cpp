// Client library and data plane in one process, over a vendor that logs what it is asked to do.
#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <numeric>
#include <thread>

#include "client_fixture.hpp"
#include "flexnpu/wire/futex.hpp"

using namespace flexnpu;
using namespace flexnpu::test;

namespace {

struct EventOf {
    aclrtEvent e = nullptr;
    EventOf() { REQUIRE(client().aclrtCreateEventWithFlag(&e, 0) == 0); }
    ~EventOf() { CHECK(client().aclrtDestroyEvent(e) == 0); }
};

// The daemon's number of the stream.
uint32_t lane_of(const StreamOf& s) {
    for (const auto& l : running().plane.lanes()) {
        if (l.stream == reinterpret_cast<uint64_t>(s.s)) return l.lane;
    }
    FAIL("the daemon does not know the stream");
    return 0;
}

struct Tensor {
    aclTensor* t;
    Tensor(void* data, std::vector<int64_t> dims, int64_t offset = 0) {
        std::vector<int64_t> strides(dims.size(), 1);
        for (size_t i = dims.size(); i-- > 1;) strides[i - 1] = strides[i] * dims[i];
        t = client().aclCreateTensor(dims.data(), dims.size(), acl::FLOAT, strides.data(), offset, acl::ND,
                                     dims.data(), dims.size(), data);
    }
    ~Tensor() { client().aclDestroyTensor(t); }
};

int abs(void* from, void* to, int64_t n, aclrtStream s, int64_t offset = 0) {
    Tensor a(from, {n}, offset), b(to, {n});
    uint64_t workspace = 0;
    aclOpExecutor* e = nullptr;
    if (int r = client().aclnnAbsGetWorkspaceSize(a.t, b.t, &workspace, &e)) return r;
    Memory ws(workspace);
    const int r = client().aclnnAbs(ws.p, workspace, e, s);
    client().aclrtSynchronizeStream(nullptr);
    return r;
}

bool eventually(const std::function<bool()>& f) {
    for (int i = 0; i < 500; i++) {
        if (f()) return true;
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return false;
}

}  // namespace

TEST_CASE("the device's name and text answers come from the vendor") {
    CHECK(client().aclInit(nullptr) == 0);
    CHECK(client().aclInit(nullptr) == acl::REPEAT_INITIALIZE);
    CHECK(client().aclrtSetDevice(0) == 0);
    CHECK(client().aclrtSetDevice(1) == acl::RT_INVALID_DEVICE);
    CHECK(client().aclrtGetLastError(0) == acl::RT_INVALID_DEVICE);
    CHECK(client().aclrtGetLastError(0) == 0);
    CHECK(std::string(client().aclrtGetSocName()) == "Mock910");
    char package[] = "ops", version[128];
    CHECK(client().aclsysGetVersionStr(package, version) == 0);
    CHECK(std::string(version) == "ops 1.0");
    CHECK(client().aclGetCompileoptSize(3) == 4);
    size_t free = 0, total = 0;
    CHECK(client().aclrtGetMemInfo(1, &free, &total) == 0);
    CHECK(total == size_t(1) << 21);
    aclrtRunMode mode = 0;
    CHECK(client().aclrtGetRunMode(&mode) == 0);  // forwarded
    CHECK(mode == 1);
    CHECK(client().aclmdlRIBuildBegin(nullptr, 0) == acl::API_NOT_SUPPORTED);
    CHECK(std::string(client().aclGetRecentErrMsg()).find("aclmdlRIBuildBegin") != std::string::npos);
}

TEST_CASE("copies of every size and way keep every byte") {
    StreamOf s;
    const size_t sizes[] = {
        1, 7, 2048, 2049, 4096, 4097, wire::kBlockBytes, wire::kBlockBytes + 1, 9 * wire::kBlockBytes + 5};
    for (size_t n : sizes) {
        CAPTURE(n);
        Memory device(n), other(n);
        std::vector<uint8_t> from(n), to(n);
        for (size_t i = 0; i < n; i++) from[i] = uint8_t(i * 7 + n);
        REQUIRE(client().aclrtMemcpy(device.p, n, from.data(), n, acl::HOST_TO_DEVICE) == 0);
        REQUIRE(client().aclrtMemcpy(to.data(), n, device.p, n, acl::DEVICE_TO_HOST) == 0);
        CHECK(from == to);
        for (auto& b : from) b ^= 0x5a;
        REQUIRE(client().aclrtMemcpyAsync(device.p, n, from.data(), n, acl::HOST_TO_DEVICE, s.s) == 0);
        const auto want = from;
        std::fill(from.begin(), from.end(), 0);  // pageable memory is free again when the call returns
        REQUIRE(client().aclrtMemcpyAsync(other.p, n, device.p, n, acl::DEVICE_TO_DEVICE, s.s) == 0);
        REQUIRE(client().aclrtMemcpyAsync(to.data(), n, other.p, n, acl::DEVICE_TO_HOST, s.s) == 0);
        CHECK(to == want);
        void* pinned = nullptr;
        REQUIRE(client().aclrtMallocHost(&pinned, n) == 0);
        std::memset(pinned, 0, n);
        REQUIRE(client().aclrtMemcpyAsync(pinned, n, other.p, n, acl::DEVICE_TO_HOST, s.s) == 0);
        REQUIRE(client().aclrtSynchronizeStream(s.s) == 0);
        CHECK(std::memcmp(pinned, want.data(), n) == 0);
        REQUIRE(client().aclrtMemset(other.p, n, 3, n) == 0);
        REQUIRE(client().aclrtMemcpy(other.p, n, pinned, n, acl::MEMCPY_DEFAULT) == 0);
        REQUIRE(client().aclrtMemcpy(to.data(), n, other.p, n, acl::MEMCPY_DEFAULT) == 0);
        CHECK(to == want);
        CHECK(client().aclrtFreeHost(pinned) == 0);
    }
    char room[2];
    CHECK(client().aclrtMemcpy(room, 1, sizes, 2, acl::HOST_TO_HOST) == acl::RT_PARAM_INVALID);
}

TEST_CASE("more copies than there are staging blocks wait for room") {
    StreamOf s;
    const size_t n = wire::kBlockBytes;
    Memory device(n);
    std::vector<uint8_t> from(n, 1);
    for (uint32_t i = 0; i < 3 * wire::kBlocks; i++) {
        REQUIRE(client().aclrtMemcpyAsync(device.p, n, from.data(), n, acl::HOST_TO_DEVICE, s.s) == 0);
    }
    CHECK(client().aclrtSynchronizeStream(s.s) == 0);
}

TEST_CASE("a first call asks the daemon once a shape") {
    Memory a(4096), b(4096);
    StreamOf s;
    const uint64_t shapes = counter("shapes_defined");
    const uint64_t calls = mock().count();
    for (int i = 0; i < 10; i++) REQUIRE(abs(a.p, b.p, 100, s.s) == 0);
    CHECK(counter("shapes_defined") == shapes + 1);
    REQUIRE(abs(a.p, b.p, 101, s.s) == 0);
    CHECK(counter("shapes_defined") == shapes + 2);
    REQUIRE(client().aclrtSynchronizeStream(s.s) == 0);
    int launches = 0;
    for (const MockCall& c : mock().since(calls)) {
        if (c.what != 'l') continue;
        launches++;
        CHECK(c.a == reinterpret_cast<uint64_t>(a.p));
        CHECK(c.b == reinterpret_cast<uint64_t>(b.p));
    }
    CHECK(launches == 11);
}

TEST_CASE("more shapes than the cache holds") {
    Memory a(1 << 20), b(1 << 20);
    StreamOf s;
    for (int64_t i = 1; i <= 20000; i++) {
        Tensor x(a.p, {i}), y(b.p, {i});
        uint64_t workspace = 0;
        aclOpExecutor* e = nullptr;
        REQUIRE(client().aclnnNegGetWorkspaceSize(x.t, y.t, &workspace, &e) == 0);
        REQUIRE(client().aclnnNeg(nullptr, 0, e, s.s) ==
                0);  // less than it needs: the daemon has a workspace of its own
    }
    CHECK(client().aclrtSynchronizeStream(s.s) == 0);
}

TEST_CASE("executors that are never launched pin their shapes, and are refused when there are too many") {
    Memory a(1 << 20), b(1 << 20);
    std::vector<aclOpExecutor*> made;
    int r = 0;
    for (int64_t i = 1; i <= 40000 && r == 0; i++) {
        Tensor x(a.p, {1, i}), y(b.p, {1, i});
        uint64_t workspace = 0;
        aclOpExecutor* e = nullptr;
        r = client().aclnnNegGetWorkspaceSize(x.t, y.t, &workspace, &e);
        if (r == 0) made.push_back(e);
    }
    CHECK(r == acl::RT_INTERNAL);
    for (aclOpExecutor* e : made) CHECK(client().aclDestroyAclOpExecutor(e) == 0);
    StreamOf s;
    CHECK(abs(a.p, b.p, 100, s.s) == 0);
}

TEST_CASE("values are part of a shape, and a first call's error is the vendor's") {
    Memory a(4096), b(4096);
    StreamOf s;
    Tensor x(a.p, {8}), y(b.p, {8});
    auto adds = [&](int64_t value, bool launch) {
        aclScalar* v = client().aclCreateScalar(&value, acl::INT64);
        uint64_t workspace = 0;
        aclOpExecutor* e = nullptr;
        const int r = client().aclnnAddsGetWorkspaceSize(x.t, v, v, y.t, &workspace, &e);
        if (r == 0 && launch)
            CHECK(client().aclnnAdds(nullptr, 0, e, s.s) == 0);
        else if (r == 0)
            CHECK(client().aclDestroyAclOpExecutor(e) == 0);
        client().aclDestroyScalar(v);
        return r;
    };
    auto refused = [&] { return std::string(client().aclGetRecentErrMsg()) == "mock: a scalar is 13"; };
    CHECK(adds(13, false) == 161002);
    CHECK(refused());
    CHECK(adds(1, true) == 0);
    CHECK(adds(13, false) == 161002);
    CHECK(adds(2, true) == 0);
    CHECK(client().aclrtSynchronizeStream(s.s) == 0);
    // By now the answer is foreseen: the error comes with the launch's synchronise, and again with each
    // launch.
    for (int i = 0; i < 2; i++) {
        CHECK(adds(13, true) == 0);
        CHECK(client().aclrtSynchronizeStream(s.s) == 161002);
        CHECK(refused());
    }
    CHECK(adds(1, true) == 0);
    CHECK(client().aclrtSynchronizeStream(s.s) == 0);
}

TEST_CASE("a repeatable executor launches again, with other addresses") {
    Memory a(4096), b(4096), c(4096);
    StreamOf s;
    Tensor x(a.p, {8}), y(b.p, {8});
    uint64_t workspace = 0;
    aclOpExecutor* e = nullptr;
    REQUIRE(client().aclnnAbsGetWorkspaceSize(x.t, y.t, &workspace, &e) == 0);
    REQUIRE(client().aclSetAclOpExecutorRepeatable(e) == 0);
    const uint64_t calls = mock().count();
    CHECK(client().aclnnAbs(nullptr, 0, e, s.s) == 0);
    CHECK(client().aclSetTensorAddr(e, 1, y.t, c.p) == 0);
    CHECK(client().aclSetTensorAddr(e, 2, y.t, c.p) != 0);
    CHECK(client().aclnnAbs(nullptr, 0, e, s.s) == 0);
    CHECK(client().aclrtSynchronizeStream(s.s) == 0);
    CHECK(client().aclDestroyAclOpExecutor(e) == 0);
    CHECK(client().aclDestroyAclOpExecutor(e) != 0);
    std::vector<uint64_t> to;
    for (const MockCall& m : mock().since(calls)) {
        if (m.what == 'l') to.push_back(m.b);
    }
    CHECK(to == std::vector<uint64_t>{reinterpret_cast<uint64_t>(b.p), reinterpret_cast<uint64_t>(c.p)});
}

TEST_CASE("foreign addresses and forged handles are refused, and counted") {
    Memory a(4096), b(4096);
    StreamOf s;
    const uint64_t refused = counter("refused");
    char* p = static_cast<char*>(a.p);
    CHECK(client().aclrtFree(p + 1) == acl::RT_PARAM_INVALID);
    CHECK(client().aclrtMemset(p + 1, 4096, 0, 4096) == acl::RT_PARAM_INVALID);
    CHECK(client().aclrtMemcpy(p + 4095, 2, "xy", 2, acl::HOST_TO_DEVICE) == acl::RT_PARAM_INVALID);
    int here = 0;
    CHECK(client().aclrtMemcpy(&here, 4, &here, 4, acl::DEVICE_TO_DEVICE) == acl::RT_PARAM_INVALID);
    // Of a kind of shape that has not been seen: by the first call.
    auto first = [](void* from, void* to, int64_t n, int64_t offset) {
        Tensor x(from, {1, 1, 1, n}, offset), y(to, {1, 1, 1, n});
        uint64_t workspace = 0;
        aclOpExecutor* e = nullptr;
        return client().aclnnAbsGetWorkspaceSize(x.t, y.t, &workspace, &e);
    };
    CHECK(first(p, &here, 10, 0) == acl::RT_PARAM_INVALID);   // not device memory
    CHECK(first(p, b.p, 1025, 0) == acl::RT_PARAM_INVALID);   // longer than its memory
    CHECK(first(p, b.p, 1000, 25) == acl::RT_PARAM_INVALID);  // by its offset
    CHECK(counter("refused") == refused + 7);
    // Of one that has been: with the next synchronise, as an asynchronous error.
    CHECK(abs(p, b.p, 1024, s.s) == 0);
    CHECK(client().aclrtSynchronizeStream(s.s) == 0);
    for (auto [to, n, offset] :
         {std::tuple<void*, int64_t, int64_t>{&here, 1024, 0}, {b.p, 1025, 0}, {b.p, 1000, 25}}) {
        CHECK(abs(p, to, n, s.s, offset) == 0);
        CHECK(client().aclrtSynchronizeStream(s.s) == acl::RT_PARAM_INVALID);
        CHECK(std::string(client().aclGetRecentErrMsg()).find("aclnnAbs: tensor ") == 0);
        CHECK(client().aclrtSynchronizeStream(s.s) == 0);
    }
    CHECK(counter("refused") == refused + 10);
    CHECK(client().aclrtSynchronizeStream(p) == acl::RT_INVALID_HANDLE);
    CHECK(client().aclrtRecordEvent(s.s, s.s) == acl::RT_INVALID_HANDLE);
    aclrtStream stale = nullptr;
    REQUIRE(client().aclrtCreateStream(&stale) == 0);
    REQUIRE(client().aclrtDestroyStream(stale) == 0);
    StreamOf again;  // in the same slot
    CHECK(client().aclrtSynchronizeStream(stale) == acl::RT_INVALID_HANDLE);
    CHECK(client().aclrtDestroyStream(stale) == acl::RT_INVALID_HANDLE);
    CHECK(client().aclnnAbs(nullptr, 0, nullptr, s.s) != 0);
}

TEST_CASE("a failed launch is reported by the next synchronise of its stream") {
    Memory a(4096), b(4096);
    StreamOf s, other;
    const int op = api::find_op("aclnnAbs");
    mock().mock_fail_launch(op);
    REQUIRE(abs(a.p, b.p, 10, s.s) == 0);
    CHECK(client().aclrtSynchronizeStream(other.s) == 0);
    CHECK(client().aclrtSynchronizeStream(s.s) == 507000);
    CHECK(std::string(client().aclGetRecentErrMsg()) == "mock: the launch fails");
    mock().mock_fail_launch(-1);
    CHECK(client().aclrtSynchronizeStream(s.s) == 0);
}

TEST_CASE("calls of several threads reach the vendor in program order") {
    StreamOf s;
    constexpr int kThreads = 4, kTurns = 2000;
    Memory device(kThreads * kTurns);
    const uint64_t calls = mock().count();
    std::atomic<int> turn{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; t++) {
        threads.emplace_back([&, t] {
            for (int i = t; i < kTurns; i += kThreads) {
                while (turn.load(std::memory_order_acquire) != i) std::this_thread::yield();
                client().aclrtMemsetAsync(static_cast<char*>(device.p) + i, 1, i & 0x7f, 1, s.s);
                turn.store(i + 1, std::memory_order_release);
            }
        });
    }
    for (auto& t : threads) t.join();
    REQUIRE(client().aclrtSynchronizeStream(s.s) == 0);
    uint64_t next = reinterpret_cast<uint64_t>(device.p);
    for (const MockCall& c : mock().since(calls)) {
        if (c.what == 'm') CHECK(c.a == next++);
    }
    CHECK(next == reinterpret_cast<uint64_t>(device.p) + kTurns);
}

TEST_CASE("what a decode lane waits for is not held, nor what that waits for") {
    Memory a(1 << 20), b(1 << 20);
    StreamOf first, second, decode;
    EventOf begun, done;
    const auto operator_on = [&](const StreamOf& s) {
        Tensor x(a.p, {100000}), y(b.p, {100000});
        uint64_t workspace = 0;
        aclOpExecutor* ex = nullptr;
        REQUIRE(client().aclnnAbsGetWorkspaceSize(x.t, y.t, &workspace, &ex) == 0);
        REQUIRE(client().aclnnAbs(nullptr, 0, ex, s.s) == 0);
    };
    REQUIRE(running().plane.set_lane(lane_of(first), gate::Phase::Prefill, 0));
    REQUIRE(running().plane.set_lane(lane_of(second), gate::Phase::Prefill, 0));
    const uint32_t decode_lane = lane_of(decode);
    bool late = false;  // whether the phase is told only when the lane waits already
    SUBCASE("a lane known to decode") {}
    SUBCASE("a lane told to decode while it waits") { late = true; }
    if (!late) REQUIRE(running().plane.set_lane(decode_lane, gate::Phase::Decode, 1));
    StreamOf other;  // keeps the policy on, and is amid a step that is past its target
    REQUIRE(running().plane.set_lane(lane_of(other), gate::Phase::Decode, 1));
    gate::Settings settings;
    settings.enabled = true;
    settings.window_us = 1;
    settings.max_hold_us = settings.decode_idle_us = 600e6;
    settings.lease_until_ns = wire::now_ns() + 600'000'000'000ull;
    running().plane.set_gate(settings);
    const uint64_t inherited = counter("gate_inherited");
    operator_on(other);
    for (int k = 0; k < 3; k++) operator_on(first);
    REQUIRE(client().aclrtRecordEvent(begun.e, first.s) == 0);
    for (int k = 0; k < 3; k++) operator_on(first);  // nobody waits for these
    REQUIRE(client().aclrtStreamWaitEvent(second.s, begun.e) == 0);
    for (int k = 0; k < 3; k++) operator_on(second);
    REQUIRE(client().aclrtRecordEvent(done.e, second.s) == 0);
    REQUIRE(client().aclrtStreamWaitEvent(decode.s, done.e) == 0);
    if (late) REQUIRE(running().plane.set_lane(decode_lane, gate::Phase::Decode, 1));
    CHECK(client().aclrtSynchronizeStream(decode.s) == 0);
    CHECK(counter("gate_inherited") - inherited <= 6);
    uint64_t queued = 0;
    for (const auto& l : running().plane.lanes()) {
        if (l.stream == reinterpret_cast<uint64_t>(first.s)) queued = l.queued;
    }
    CHECK(queued == 3);
    running().plane.set_gate({});
    CHECK(client().aclrtSynchronizeStream(first.s) == 0);
}

TEST_CASE("a wait never reaches the vendor before its record, however the gate delays the recording lane") {
    Memory a(1 << 20), b(1 << 20);
    StreamOf slow, fast, decode;
    aclrtEvent e = nullptr;
    REQUIRE(client().aclrtCreateEventWithFlag(&e, 0) == 0);
    REQUIRE(running().plane.set_lane(lane_of(slow), gate::Phase::Prefill, 0));
    REQUIRE(running().plane.set_lane(lane_of(decode), gate::Phase::Decode, 1000));
    gate::Settings settings;
    settings.enabled = true;
    settings.window_us = 1;
    settings.max_hold_us = 200;
    settings.lease_until_ns = wire::now_ns() + 60'000'000'000ull;
    running().plane.set_gate(settings);
    const uint64_t calls = mock().count();
    constexpr int kRounds = 200;
    for (int i = 0; i < kRounds; i++) {
        for (int k = 0; k < 3; k++) {
            Tensor x(a.p, {100000 + i}), y(b.p, {100000 + i});
            uint64_t workspace = 0;
            aclOpExecutor* ex = nullptr;
            REQUIRE(client().aclnnAbsGetWorkspaceSize(x.t, y.t, &workspace, &ex) == 0);
            REQUIRE(client().aclnnAbs(nullptr, 0, ex, slow.s) == 0);
        }
        REQUIRE(client().aclrtMemsetAsync(a.p, 1, i & 0xff, 1, slow.s) == 0);
        REQUIRE(client().aclrtRecordEvent(e, slow.s) == 0);
        REQUIRE(client().aclrtStreamWaitEvent(fast.s, e) == 0);
        REQUIRE(client().aclrtMemsetAsync(b.p, 1, i & 0xff, 1, fast.s) == 0);
        int32_t status = -1;
        REQUIRE(client().aclrtQueryEventStatus(e, &status) == 0);
        if (status == acl::EVENT_RECORDED_COMPLETE) {
            // Then the vendor has seen the record.
            int records = 0;
            for (const MockCall& c : mock().since(calls))
                records += c.what == 'm' && c.a == reinterpret_cast<uint64_t>(a.p);
            CHECK(records == i + 1);
        }
    }
    REQUIRE(client().aclrtSynchronizeStream(fast.s) == 0);
    REQUIRE(client().aclrtSynchronizeStream(slow.s) == 0);
    int before = 0, after = 0;
    for (const MockCall& c : mock().since(calls)) {
        if (c.what != 'm') continue;
        if (c.a == reinterpret_cast<uint64_t>(a.p))
            before++;
        else
            CHECK(++after <= before);
    }
    CHECK(before == kRounds);
    CHECK(after == kRounds);
    CHECK(counter("gate_held") > 0);
    running().plane.set_gate({});
    CHECK(client().aclrtDestroyEvent(e) == 0);
}

TEST_CASE("a lane does not fill the vendor's stream, and goes on when the device has caught up") {
    StreamOf s, other;
    Memory a(4096);
    mock().mock_hold(1);
    const uint64_t calls = mock().count();
    constexpr uint64_t kMany = 5000;
    for (uint64_t i = 0; i < kMany; i++) REQUIRE(client().aclrtMemsetAsync(a.p, 1, 1, 1, s.s) == 0);
    auto given = [&] {
        uint64_t n = 0;
        for (const MockCall& c : mock().since(calls)) n += c.what == 'm';
        return n;
    };
    CHECK(client().aclrtMemset(a.p, 4096, 1, 4096) == 0);  // everything before has been read
    CHECK(given() >= 256);
    CHECK(given() <= 1024);
    // Another lane is not held up.
    const uint64_t before = given();
    CHECK(client().aclrtMemsetAsync(a.p, 1, 1, 1, other.s) == 0);
    CHECK(eventually([&] { return given() == before + 1; }));
    mock().mock_hold(0);
    CHECK(client().aclrtSynchronizeStream(s.s) == 0);
    CHECK(given() == kMany + 1);
}

TEST_CASE("a synchronise waits for the device, others go on") {
    StreamOf s;
    Memory a(4096);
    mock().mock_hold(1);
    std::atomic<bool> done{false};
    std::thread waiter([&] {
        CHECK(client().aclrtSynchronizeStream(s.s) == 0);
        done = true;
    });
    CHECK(client().aclrtSynchronizeStreamWithTimeout(s.s, 20) == acl::RT_WAIT_TIMEOUT);
    int32_t status = -1;
    CHECK(client().aclrtStreamQuery(s.s, &status) == 0);
    CHECK(status == acl::STREAM_NOT_READY);
    CHECK(client().aclrtMemset(a.p, 4096, 1, 4096) == 0);
    CHECK(!done);
    mock().mock_hold(0);
    waiter.join();
    CHECK(done);
}

TEST_CASE("the daemon's end is an error for who waits and for who comes") {
    aclrtStream s = nullptr;
    REQUIRE(client().aclrtCreateStream(&s) == 0);
    mock().mock_hold(1);
    std::thread waiter([&] {
        const auto start = std::chrono::steady_clock::now();
        // Answered or not, according to who was first; not after an hour, and the bound is a hang guard.
        client().aclrtSynchronizeStreamWithTimeout(s, 3'600'000);
        CHECK(std::chrono::steady_clock::now() - start < std::chrono::minutes(30));
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    std::thread release([] {
        std::this_thread::sleep_for(std::chrono::milliseconds(300));
        mock().mock_hold(0);
    });
    running().plane.stop();
    waiter.join();
    release.join();
    CHECK(client().aclrtSynchronizeStream(s) == acl::RT_INTERNAL);
    CHECK(std::string(client().aclGetRecentErrMsg()).find("was stopped") != std::string::npos);
    // A ring that nobody empties any more ends in an error as well.
    int r = 0;
    for (int i = 0; i < 100'000 && r == 0; i++) r = client().aclrtMemsetAsync(&r, 1, 0, 1, s);
    CHECK(r == acl::RT_INTERNAL);
    CHECK(eventually([] {
        const MockHeld h = mock().mock_held();
        return h.streams == 0 && h.events == 0 && h.memory == 0 && h.host == 0 && h.executors == 0;
    }));
}
