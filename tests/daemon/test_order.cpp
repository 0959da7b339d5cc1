// Order and errors through client library and data plane: host functions, timeouts, aborts, events that wait,
// errors by thread.
#include <doctest/doctest.h>

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <future>
#include <mutex>
#include <thread>

#include "client_fixture.hpp"

using namespace flexnpu;
using namespace flexnpu::test;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

namespace {

struct EventOf {
    aclrtEvent e = nullptr;
    EventOf() { REQUIRE(client().aclrtCreateEvent(&e) == 0); }
    ~EventOf() { CHECK(client().aclrtDestroyEvent(e) == 0); }
};

bool eventually(const std::function<bool()>& f) {
    for (int i = 0; i < 2000; i++) {
        if (f()) return true;
        std::this_thread::sleep_for(milliseconds(2));
    }
    return false;
}

// A host function that waits until it is let go.
struct Gatekeeper {
    std::atomic<int> entered{0}, left{0};
    std::atomic<bool> open{false};
    std::atomic<std::thread::id> thread;
    static void run(void* p) {
        auto& g = *static_cast<Gatekeeper*>(p);
        g.thread = std::this_thread::get_id();
        g.entered++;
        while (!g.open) std::this_thread::sleep_for(milliseconds(1));
        g.left++;
    }
    // None of them looks at what is gone.
    ~Gatekeeper() {
        eventually([this] { return left == entered; });
    }
};
auto hold(aclrtStream s, Gatekeeper& g) {
    return client().aclrtLaunchHostFunc(s, reinterpret_cast<aclrtHostFunc>(&Gatekeeper::run), &g);
}

int memsets_since(uint64_t from) {
    int n = 0;
    for (const MockCall& c : mock().since(from)) n += c.what == 'm';
    return n;
}

int32_t stream_status(aclrtStream s) {
    int32_t status = -1;
    CHECK(client().aclrtStreamQuery(s, &status) == 0);
    return status;
}
int32_t event_status(aclrtEvent e) {
    int32_t status = -1;
    CHECK(client().aclrtQueryEventStatus(e, &status) == 0);
    return status;
}
int32_t wait_status(aclrtEvent e) {
    int32_t status = -1;
    CHECK(client().aclrtQueryEventWaitStatus(e, &status) == 0);
    return status;
}

template <class F>
double seconds(F f) {
    const auto start = Clock::now();
    f();
    return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

TEST_CASE("a host function holds its stream, on a thread that is not the caller's, and no other stream") {
    Memory a(64);
    StreamOf s, other;
    EventOf e;
    Gatekeeper g;
    const uint64_t from = mock().count();
    REQUIRE(client().aclrtMemsetAsync(a.p, 1, 1, 1, s.s) == 0);
    REQUIRE(hold(s.s, g) == 0);
    REQUIRE(client().aclrtMemsetAsync(a.p, 1, 2, 1, s.s) == 0);
    REQUIRE(client().aclrtRecordEvent(e.e, s.s) == 0);
    REQUIRE(client().aclrtStreamWaitEvent(other.s, e.e) == 0);
    REQUIRE(eventually([&] { return g.entered == 1; }));
    CHECK(g.thread != std::this_thread::get_id());
    CHECK(memsets_since(from) == 1);
    CHECK(stream_status(s.s) == acl::STREAM_NOT_READY);
    CHECK(event_status(e.e) == acl::EVENT_RECORDED_NOT_READY);
    CHECK(wait_status(e.e) == acl::EVENT_WAIT_NOT_READY);
    float ms = 0;
    uint64_t t = 0;
    CHECK(client().aclrtEventElapsedTime(&ms, e.e, e.e) == acl::RT_EVENT_TIMESTAMP_INVALID);
    CHECK(client().aclrtEventGetTimestamp(e.e, &t) == acl::RT_EVENT_TIMESTAMP_INVALID);
    {
        StreamOf third;
        CHECK(client().aclrtMemsetAsync(a.p, 1, 3, 1, third.s) == 0);
        CHECK(client().aclrtSynchronizeStream(third.s) == 0);
        CHECK(memsets_since(from) == 2);
    }
    g.open = true;
    CHECK(client().aclrtSynchronizeStream(other.s) == 0);
    CHECK(g.left == 1);
    CHECK(event_status(e.e) == acl::EVENT_RECORDED_COMPLETE);
    CHECK(wait_status(e.e) == acl::EVENT_WAIT_COMPLETE);
    CHECK(client().aclrtSynchronizeStream(s.s) == 0);
    CHECK(memsets_since(from) == 3);
}

TEST_CASE("a host function waits for the stream, and runs in its order") {
    StreamOf s;
    Gatekeeper g;
    g.open = true;
    mock().mock_hold(1);
    REQUIRE(hold(s.s, g) == 0);
    std::this_thread::sleep_for(milliseconds(20));
    CHECK(g.entered == 0);
    mock().mock_hold(0);
    CHECK(client().aclrtSynchronizeStream(s.s) == 0);
    CHECK(g.left == 1);
    // Locked for the thread sanitizer, which does not see that what goes through shared memory has an order.
    std::mutex mutex;
    std::vector<int> order;
    struct One {
        std::mutex* mutex;
        std::vector<int>* order;
        int number;
    };
    std::vector<One> many;
    for (int i = 0; i < 300; i++) many.push_back({&mutex, &order, i});
    for (One& one : many) {
        auto* f = +[](void* p) {
            auto& o = *static_cast<One*>(p);
            std::lock_guard lock(*o.mutex);
            o.order->push_back(o.number);
        };
        REQUIRE(client().aclrtLaunchHostFunc(s.s, reinterpret_cast<aclrtHostFunc>(f), &one) == 0);
    }
    CHECK(client().aclrtSynchronizeStream(s.s) == 0);
    std::lock_guard lock(mutex);
    REQUIRE(order.size() == 300);
    CHECK(std::is_sorted(order.begin(), order.end()));
}

TEST_CASE("functions of more streams than the daemon has slots all run") {
    std::vector<std::unique_ptr<StreamOf>> streams;
    Gatekeeper g;
    for (int i = 0; i < 80; i++) streams.push_back(std::make_unique<StreamOf>());
    for (auto& s : streams) REQUIRE(hold(s->s, g) == 0);
    CHECK(eventually([&] { return g.entered == 64; }));
    g.open = true;
    for (auto& s : streams) CHECK(client().aclrtSynchronizeStream(s->s) == 0);
    CHECK(g.left == 80);
}

TEST_CASE("callbacks run on the thread that subscribed, and a blocking one holds the stream") {
    Memory a(64);
    StreamOf s;
    Gatekeeper g;
    auto callback = [&](bool block) {
        return client().aclrtLaunchCallback(reinterpret_cast<aclrtCallback>(&Gatekeeper::run), &g, block,
                                            s.s);
    };
    CHECK(callback(true) == acl::RT_STREAM_NO_CALLBACK);
    CHECK(client().aclrtProcessReport(5) == acl::RT_THREAD_SUBSCRIBE);
    CHECK(client().aclrtProcessReport(0) == acl::INVALID_PARAM);
    std::atomic<int> timeouts{0}, ran{0};
    std::promise<uint64_t> id;
    std::promise<void> go;
    std::thread reporter([&] {
        id.set_value(uint64_t(pthread_self()));
        go.get_future().wait();
        for (;;) {
            const int e = client().aclrtProcessReport(20);
            if (e == 0)
                ran++;
            else if (e == acl::RT_REPORT_TIMEOUT)
                timeouts++;
            else
                break;
        }
    });
    const uint64_t thread = id.get_future().get();
    CHECK(client().aclrtUnSubscribeReport(thread, s.s) == acl::RT_THREAD_SUBSCRIBE);
    REQUIRE(client().aclrtSubscribeReport(thread, s.s) == 0);
    CHECK(client().aclrtSubscribeReport(thread, s.s) == acl::RT_PARAM_INVALID);
    go.set_value();
    const uint64_t from = mock().count();
    REQUIRE(callback(true) == 0);
    REQUIRE(client().aclrtMemsetAsync(a.p, 1, 1, 1, s.s) == 0);
    REQUIRE(eventually([&] { return g.entered == 1; }));
    CHECK(g.thread == reporter.get_id());
    CHECK(memsets_since(from) == 0);
    g.open = true;
    CHECK(client().aclrtSynchronizeStream(s.s) == 0);
    CHECK(memsets_since(from) == 1);
    // One that does not block: the stream goes on while it runs.
    g.open = false;
    REQUIRE(callback(false) == 0);
    REQUIRE(client().aclrtMemsetAsync(a.p, 1, 1, 1, s.s) == 0);
    CHECK(client().aclrtSynchronizeStream(s.s) == 0);
    CHECK(memsets_since(from) == 2);
    CHECK(eventually([&] { return g.entered == 2; }));
    g.open = true;
    CHECK(eventually([&] { return ran == 2 && timeouts > 0; }));
    CHECK(client().aclrtUnSubscribeReport(thread, s.s) == 0);
    reporter.join();
}

TEST_CASE("a client that processes no reports holds up its own stream only, until it unsubscribes") {
    Memory a(64);
    StreamOf s, other;
    Gatekeeper g;
    const auto thread = uint64_t(pthread_self());
    REQUIRE(client().aclrtSubscribeReport(thread, s.s) == 0);
    const uint64_t from = mock().count();
    for (int i = 0; i < 1000; i++) {  // more than fit in the session's page
        REQUIRE(client().aclrtLaunchCallback(reinterpret_cast<aclrtCallback>(&Gatekeeper::run), &g, 0, s.s) ==
                0);
    }
    CHECK(client().aclrtSynchronizeStream(s.s) == 0);
    REQUIRE(client().aclrtLaunchCallback(reinterpret_cast<aclrtCallback>(&Gatekeeper::run), &g, 1, s.s) == 0);
    REQUIRE(client().aclrtMemsetAsync(a.p, 1, 1, 1, s.s) == 0);
    CHECK(client().aclrtMemsetAsync(a.p, 1, 1, 1, other.s) == 0);
    CHECK(client().aclrtSynchronizeStream(other.s) == 0);
    CHECK(client().aclrtSynchronizeStreamWithTimeout(s.s, 30) == acl::RT_WAIT_TIMEOUT);
    CHECK(memsets_since(from) == 1);
    CHECK(client().aclrtUnSubscribeReport(thread, s.s) == 0);
    CHECK(client().aclrtSynchronizeStream(s.s) == 0);
    CHECK(memsets_since(from) == 2);
    CHECK(g.entered == 0);
    CHECK(client().aclrtProcessReport(5) == acl::RT_THREAD_SUBSCRIBE);
}

TEST_CASE("timeouts are measured from the call, whatever holds the lane") {
    Memory a(64);
    StreamOf s, other;
    EventOf e;
    Gatekeeper g;
    REQUIRE(hold(s.s, g) == 0);
    REQUIRE(client().aclrtRecordEvent(e.e, s.s) == 0);
    auto times_out = [](const std::function<int()>& f) {
        const double took = seconds([&] { CHECK(f() == acl::RT_WAIT_TIMEOUT); });
        CHECK(took >= 0.03);
        CHECK(took < 60.0);  // a hang guard: what holds the lane is let go only later
    };
    times_out([&] { return client().aclrtSynchronizeStreamWithTimeout(s.s, 30); });
    times_out([&] { return client().aclrtSynchronizeEventWithTimeout(e.e, 30); });
    times_out([&] { return client().aclrtSynchronizeDeviceWithTimeout(30); });
    for (int ms : {0, -2}) {
        CHECK(client().aclrtSynchronizeStreamWithTimeout(s.s, ms) == acl::RT_PARAM_INVALID);
        CHECK(client().aclrtSynchronizeEventWithTimeout(e.e, ms) == acl::RT_PARAM_INVALID);
        CHECK(client().aclrtSynchronizeDeviceWithTimeout(ms) == acl::RT_PARAM_INVALID);
        CHECK(client().aclrtStreamWaitEventWithTimeout(other.s, e.e, ms) == acl::RT_PARAM_INVALID);
    }
    // A wait in a stream: the stream goes on, and its next synchronise tells.
    const uint64_t from = mock().count();
    times_out([&] {
        REQUIRE(client().aclrtStreamWaitEventWithTimeout(other.s, e.e, 30) == 0);
        REQUIRE(client().aclrtMemsetAsync(a.p, 1, 1, 1, other.s) == 0);
        return client().aclrtSynchronizeStream(other.s);
    });
    CHECK(memsets_since(from) == 1);
    CHECK(client().aclrtSynchronizeStream(other.s) == 0);
    CHECK(wait_status(e.e) == acl::EVENT_WAIT_COMPLETE);
    // The same by the process's own setting, which the vendor is not told.
    CHECK(client().aclrtSetOpWaitTimeout(1) == 0);
    CHECK(seconds([&] {
              REQUIRE(client().aclrtStreamWaitEvent(other.s, e.e) == 0);
              CHECK(client().aclrtSetOpWaitTimeout(0) == 0);
              CHECK(client().aclrtSynchronizeStream(other.s) == acl::RT_WAIT_TIMEOUT);
          }) > 0.9);
    g.open = true;
    CHECK(client().aclrtSynchronizeStreamWithTimeout(s.s, 10'000) == 0);
    CHECK(client().aclrtSynchronizeEventWithTimeout(e.e, 10'000) == 0);
    CHECK(client().aclrtSynchronizeDeviceWithTimeout(-1) == 0);
    // Of the device, not of our lane.
    mock().mock_hold(1);
    times_out([&] { return client().aclrtSynchronizeStreamWithTimeout(s.s, 30); });
    times_out([&] { return client().aclrtSynchronizeEventWithTimeout(e.e, 30); });
    mock().mock_hold(0);
}

TEST_CASE("timeouts that a process sets for its operators stay its own") {
    uint64_t actual = 0;
    CHECK(client().aclrtSetOpExecuteTimeOutV2(2'500'000, &actual) == 0);  // the mock, asked, would refuse
    CHECK(actual == 2'500'000);
    uint32_t ms = 0;
    CHECK(client().aclrtGetOpExecuteTimeout(&ms) == 0);
    CHECK(ms == 2500);
    CHECK(client().aclrtSetOpExecuteTimeOutWithMs(1500) == 0);
    CHECK(client().aclrtGetOpExecuteTimeout(&ms) == 0);
    CHECK(ms == 1500);
    CHECK(client().aclrtSetOpExecuteTimeOut(3) == 0);
    CHECK(client().aclrtGetOpExecuteTimeout(&ms) == 0);
    CHECK(ms == 3000);
}

TEST_CASE("an abort drops what the lane holds, hangs nobody, and leaves other streams alone") {
    Memory a(64);
    StreamOf s, other;
    EventOf e, f;
    Gatekeeper g, never;
    REQUIRE(hold(s.s, g) == 0);
    REQUIRE(eventually([&] { return g.entered == 1; }));
    const uint64_t from = mock().count();
    for (int i = 0; i < 10; i++) REQUIRE(client().aclrtMemsetAsync(a.p, 1, 1, 1, s.s) == 0);
    REQUIRE(hold(s.s, never) == 0);
    REQUIRE(client().aclrtRecordEvent(e.e, s.s) == 0);
    REQUIRE(client().aclrtStreamWaitEvent(other.s, e.e) == 0);
    REQUIRE(client().aclrtMemsetAsync(a.p, 1, 2, 1, other.s) == 0);
    int waited = 0;
    std::thread waiter([&] { waited = client().aclrtSynchronizeStream(s.s); });
    std::this_thread::sleep_for(milliseconds(50));
    CHECK(memsets_since(from) == 0);
    CHECK(client().aclrtStreamAbort(s.s) == 0);
    waiter.join();
    CHECK(waited == acl::RT_STREAM_ABORT);
    CHECK(client().aclrtSynchronizeEvent(e.e) == acl::RT_STREAM_ABORT);
    CHECK(std::string(client().aclGetRecentErrMsg()).find("aborted") != std::string::npos);
    CHECK(client().aclrtSynchronizeStream(other.s) == 0);
    CHECK(memsets_since(from) == 1);  // the other stream's
    int aborts = 0;
    for (const MockCall& c : mock().since(from)) aborts += c.what == 'a';
    CHECK(aborts == 1);
    // The stream is as new, though the function has not returned yet.
    REQUIRE(client().aclrtMemsetAsync(a.p, 1, 3, 1, s.s) == 0);
    REQUIRE(client().aclrtRecordEvent(e.e, s.s) == 0);
    CHECK(client().aclrtSynchronizeEvent(e.e) == 0);
    CHECK(client().aclrtSynchronizeStream(s.s) == 0);
    CHECK(memsets_since(from) == 2);
    g.open = true;
    CHECK(eventually([&] { return g.left == 1; }));
    CHECK(never.entered == 0);
    CHECK(client().aclrtStreamAbort(nullptr) == acl::RT_PARAM_INVALID);
    // Nobody waits: the next synchronise tells, once.
    Gatekeeper h;
    REQUIRE(hold(s.s, h) == 0);
    REQUIRE(eventually([&] { return h.entered == 1; }));
    REQUIRE(client().aclrtRecordEvent(f.e, s.s) == 0);
    CHECK(client().aclrtDeviceTaskAbort(0, 1000) == 0);
    CHECK(client().aclrtSynchronizeStream(s.s) == acl::RT_STREAM_ABORT);
    CHECK(client().aclrtSynchronizeStream(s.s) == 0);
    CHECK(client().aclrtSynchronizeStream(other.s) == 0);
    h.open = true;
    CHECK(eventually([&] { return h.left == 1; }));
}

TEST_CASE("a stream destroyed by force does not wait for its functions") {
    aclrtStream s = nullptr;
    REQUIRE(client().aclrtCreateStream(&s) == 0);
    Gatekeeper g;
    REQUIRE(hold(s, g) == 0);
    REQUIRE(eventually([&] { return g.entered == 1; }));
    CHECK(client().aclrtDestroyStreamForce(s) == 0);
    CHECK(g.left == 0);
    g.open = true;
    CHECK(eventually([&] { return g.left == 1; }));
}

TEST_CASE("a wait means the record before it, across re-records, resets and destruction") {
    Memory a(64);
    StreamOf s, other, third;
    Gatekeeper g, h;
    aclrtEvent e = nullptr;
    REQUIRE(client().aclrtCreateEvent(&e) == 0);
    const uint64_t from = mock().count();
    // Never recorded: nobody waits.
    REQUIRE(client().aclrtStreamWaitEvent(other.s, e) == 0);
    CHECK(client().aclrtSynchronizeEvent(e) == 0);
    REQUIRE(hold(s.s, g) == 0);
    REQUIRE(client().aclrtRecordEvent(e, s.s) == 0);
    REQUIRE(client().aclrtStreamWaitEvent(other.s, e) == 0);  // the first record
    REQUIRE(client().aclrtMemsetAsync(a.p, 1, 1, 1, other.s) == 0);
    REQUIRE(hold(third.s, h) == 0);
    REQUIRE(client().aclrtRecordEvent(e, third.s) == 0);  // the second, of another stream
    REQUIRE(client().aclrtDestroyEvent(e) == 0);
    REQUIRE(eventually([&] { return g.entered && h.entered; }));
    CHECK(memsets_since(from) == 0);
    h.open = true;
    CHECK(client().aclrtSynchronizeStream(third.s) == 0);
    CHECK(memsets_since(from) == 0);  // the second record is none of its business
    g.open = true;
    CHECK(client().aclrtSynchronizeStream(other.s) == 0);
    CHECK(memsets_since(from) == 1);
}

TEST_CASE("memory is not given back while a stream that was destroyed still uses it") {
    aclrtStream s = nullptr;
    void* p = nullptr;
    REQUIRE(client().aclrtCreateStream(&s) == 0);
    REQUIRE(client().aclrtMalloc(&p, 4096, 0) == 0);
    const int64_t streams = mock().mock_held().streams;
    mock().mock_hold(1);
    REQUIRE(client().aclrtMemsetAsync(p, 4096, 1, 4096, s) == 0);
    const uint64_t from = mock().count();
    std::thread destroys([&] { CHECK(client().aclrtDestroyStream(s) == 0); });
    usleep(100'000);  // by now it has left the table of streams, and waits for the memset
    std::atomic<bool> freed{false};
    std::thread frees([&] {
        CHECK(client().aclrtFree(p) == 0);
        freed = true;
    });
    usleep(100'000);
    CHECK(!freed);
    for (const MockCall& c : mock().since(from))
        CHECK((c.what != 'f' || c.a != reinterpret_cast<uint64_t>(p)));
    mock().mock_hold(0);
    destroys.join();
    frees.join();
    CHECK(mock().mock_held().streams == streams - 1);
}

TEST_CASE("a thread's errors are its own") {
    CHECK(client().aclrtSynchronizeStream(&client()) == acl::RT_INVALID_HANDLE);
    std::thread([&] {
        CHECK(client().aclrtPeekAtLastError(0) == 0);
        CHECK(client().aclGetRecentErrMsg() == nullptr);
        Memory a(64);
        CHECK(client().aclrtFree(static_cast<char*>(a.p) + 1) ==
              acl::RT_PARAM_INVALID);  // told by the daemon
        CHECK(client().aclrtPeekAtLastError(0) == acl::RT_PARAM_INVALID);
        CHECK(client().aclrtGetLastError(0) == acl::RT_PARAM_INVALID);
        CHECK(client().aclrtGetLastError(0) == 0);
        CHECK(std::string(client().aclGetRecentErrMsg()).find("aclrtFree") == 0);
    }).join();
    CHECK(client().aclrtPeekAtLastError(0) == acl::RT_INVALID_HANDLE);
    CHECK(std::string(client().aclGetRecentErrMsg()).find("aclrtSynchronizeStream") == 0);
    CHECK(client().aclGetRecentErrMsg() == nullptr);
    CHECK(client().aclrtGetLastError(0) == acl::RT_INVALID_HANDLE);
}

TEST_CASE("after long waits a short one is answered at its end") {
    StreamOf s;
    // From the hold to the answer.
    const auto wait = [&](int ms) {
        mock().mock_hold(1);
        std::thread release([ms] {
            std::this_thread::sleep_for(milliseconds(ms));
            mock().mock_hold(0);
        });
        const auto begin = Clock::now();
        CHECK(client().aclrtSynchronizeStream(s.s) == 0);
        const auto took = Clock::now() - begin;
        release.join();
        return took;
    };
    auto shortest = Clock::duration::max();
    // On a busy host one answer or another is late.
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 4; i++) wait(200);
        shortest = std::min(shortest, wait(1));
    }
    CHECK(shortest < milliseconds(90));
}

TEST_CASE("the daemon's end reaches who waits for a report") {
    aclrtStream s = nullptr;
    REQUIRE(client().aclrtCreateStream(&s) == 0);
    REQUIRE(client().aclrtSubscribeReport(uint64_t(pthread_self()), s) == 0);
    Gatekeeper g;
    g.open = true;
    REQUIRE(hold(s, g) == 0);  // begins the thread that looks after it
    REQUIRE(client().aclrtSynchronizeStream(s) == 0);
    std::thread end([] { running().plane.stop(); });
    CHECK(client().aclrtProcessReport(-1) == acl::RT_INTERNAL);  // or it would wait for ever
    end.join();
}
