// Other threads and a dispatching thread that is late: nobody takes that for an answer, nothing that was
// given up happens later, and everybody else is served.
#include <doctest/doctest.h>

#include <algorithm>
#include <functional>
#include <thread>

#include "fuzz/raw_client.hpp"
#include "plane_fixture.hpp"

using namespace flexnpu;
using namespace flexnpu::test;
using wire::Ask;
using wire::Kind;

namespace {

daemon::Limits limits() {
    daemon::Limits l = Running::limits();
    l.call_ms = 300;
    return l;
}

void until(const char* what, const std::function<bool()>& holds) {
    for (int i = 0; i < 10'000 && !holds(); i++) usleep(2000);
    if (!holds()) die(what);
}

wire::Request request(Ask ask, uint64_t bytes = 0, uint32_t region = 0) {
    wire::Request r{};
    r.magic = wire::kMagic;
    r.version = wire::kVersion;
    r.ask = ask;
    r.region = region;
    r.bytes = bytes;
    r.table_hash = api::kTableHash;
    return r;
}

void send(RawClient& c, const wire::Request& r) { REQUIRE(c.send_raw(&r, sizeof(r))); }

// The acceptor has read what was sent before on other connections: it answers this one.
void acceptor_serves(const Running& r) {
    RawClient c(r.path());
    wire::Request wrong = request(Ask::hello);
    wrong.table_hash++;
    send(c, wrong);
    wire::Answer answer;
    std::vector<daemon::Fd> fds;
    REQUIRE(c.receive(&answer, &fds));
    CHECK(answer.status != 0);
}

// A client's question keeps the dispatching thread from its first moment to its last.
struct Stall {
    Running& running;
    RawClient client;
    uint32_t question = 0;
    explicit Stall(Running& r) : running(r), client(r.path()) {
        client.open();
        mock().mock_close_memory(1);
        question = ++client.request;
        client.say(Kind::mem_info, wire::MemInfo{0, 0}, question);
        until("the dispatching thread does not come to the question", [&] {
            client.knock();
            return mock().mock_memory_waits() > 0;
        });
    }
    void end() {
        mock().mock_close_memory(0);
        REQUIRE(client.answered(question, 20'000'000'000));
        CHECK(client.ring.header().status == 0);
        until("the dispatching thread does not come round", [&] {
            try {
                return !running.plane.sessions().empty();
            } catch (const daemon::PlaneTimeout&) {
                return false;
            }
        });
    }
    ~Stall() { mock().mock_close_memory(0); }
};

}  // namespace

TEST_CASE("a late dispatching thread is said to be late, and is not taken for an empty daemon") {
    Running running(limits());
    RawClient other(running.path());
    other.open();
    REQUIRE(other.call(Kind::create_stream, wire::CreateStream{0, 0}) == 0);
    REQUIRE(running.plane.lanes().size() == 1);
    const uint32_t lane = running.plane.lanes()[0].lane;
    Stall stall(running);
    const uint64_t asked = wire::now_ns();
    CHECK_THROWS_AS(running.plane.sessions(), daemon::PlaneTimeout);
    CHECK_THROWS_AS(running.plane.lanes(), daemon::PlaneTimeout);
    CHECK_THROWS_AS(running.plane.counters(), daemon::PlaneTimeout);
    // What was known is still known, with its time.
    const daemon::Snapshot known = running.plane.snapshot(std::chrono::milliseconds(1));
    CHECK(known.taken_ns < asked);
    CHECK(known.sessions.size() >= 1);
    CHECK(known.lanes.size() == 1);
    CHECK(known.counters.at("sessions_opened") >= 1);
    // What could not be set says so, and is not set later.
    CHECK_THROWS_AS(running.plane.set_lane(lane, gate::Phase::Prefill, 0), daemon::PlaneTimeout);
    CHECK_THROWS_AS(running.plane.set_gate({}, {{lane, gate::Phase::Decode}}, 5.0), daemon::PlaneTimeout);
    stall.end();
    CHECK(running.plane.sessions().size() == 2);
    REQUIRE(running.plane.lanes().size() == 1);
    CHECK(running.plane.lanes()[0].phase == gate::Phase::Unknown);
    CHECK(running.plane.set_gate({}, {{lane, gate::Phase::Decode}}, 5.0).empty());
    CHECK(running.plane.lanes()[0].phase == gate::Phase::Decode);
    // All or nothing.
    CHECK(running.plane.set_gate({}, {{lane, gate::Phase::Prefill}, {lane + 7, gate::Phase::Prefill}}) ==
          std::vector<uint32_t>{lane + 7});
    CHECK(running.plane.lanes()[0].phase == gate::Phase::Decode);
}

TEST_CASE("after a call to a late thread no other waits, until the thread has come round") {
    struct Counter {
        int count = 0;
        int add(int n) { return count += n; }
    } counter;
    constexpr auto kShort = std::chrono::milliseconds(20), kLong = std::chrono::milliseconds(3'600'000);
    daemon::Inbox inbox;
    inbox.take_calls(true);
    for (int round = 0; round < 3; ++round) {
        counter.count = 0;
        const auto late = inbox.call(kShort, counter, &Counter::add, 1);
        REQUIRE_FALSE(late);
        CHECK(late.error() == daemon::CallError::timed_out);
        for (int i = 0; i < 100; ++i) {
            const auto again = inbox.call(kLong, counter, &Counter::add, 1);
            REQUIRE_FALSE(again);
            CHECK(again.error() == daemon::CallError::timed_out);
        }
        // The thread comes round: one job is left, and it was cancelled.
        const auto jobs = inbox.take();
        CHECK(jobs.size() == 1);
        for (const auto& job : jobs) job();
        CHECK(counter.count == 0);
        std::jthread serves([&](const std::stop_token& stop) {
            while (!stop.stop_requested()) {
                for (const auto& job : inbox.take()) job();
                std::this_thread::yield();
            }
        });
        auto on_time = inbox.call(kLong, counter, &Counter::add, 5);
        REQUIRE(on_time);
        CHECK(on_time.value() == 5);
    }
}

TEST_CASE("new clients wait for a late dispatching thread, and one that goes meanwhile leaves no session") {
    Running running(limits());
    const uint64_t pinned = mock().mock_held().pinned;
    {
        Stall stall(running);
        RawClient waits(running.path());
        send(waits, request(Ask::hello));
        {
            RawClient goes(running.path());
            send(goes, request(Ask::hello));
            acceptor_serves(running);
            until("no memory for the two", [&] {
                return mock().mock_held().pinned == pinned + 3 * wire::kBlocks * wire::kBlockBytes;
            });
        }
        until("who has gone has left memory behind",
              [&] { return mock().mock_held().pinned == pinned + 2 * wire::kBlocks * wire::kBlockBytes; });
        wire::Answer answer;
        std::vector<daemon::Fd> fds;
        CHECK_FALSE(waits.receive(&answer, &fds, 0));  // neither refused nor told that the daemon stops
        stall.end();
        REQUIRE(waits.receive(&answer, &fds));
        CHECK(answer.status == 0);
        CHECK(fds.size() == 2);
        CHECK(running.plane.sessions().size() == 2);
        CHECK(running.plane.counters().at("sessions_opened") == 2);
    }
    until("a session is left", [&] { return running.plane.sessions().empty(); });
}

TEST_CASE("host memory and rings that are asked for and given back meanwhile are answered in their order") {
    Running running(limits());
    RawClient c(running.path());
    c.open();
    wire::Answer answer;
    std::vector<daemon::Fd> fds;
    REQUIRE(c.ask(Ask::host_memory, &answer, &fds, 1 << 20));
    REQUIRE(answer.status == 0);
    const uint32_t region = answer.number;
    Stall stall(running);
    send(c, request(Ask::free_host_memory, 0, region));
    send(c, request(Ask::new_ring));
    send(c, request(Ask::host_memory, 1 << 16));
    send(c, request(Ask::free_host_memory, 0, region));
    RawClient next(running.path());
    send(next, request(Ask::hello));
    // Others are answered while these wait.
    acceptor_serves(running);
    acceptor_serves(running);
    CHECK_FALSE(c.receive(&answer, &fds, 0));
    stall.end();
    fds.clear();
    REQUIRE(c.receive(&answer, &fds));
    CHECK(answer.status == 0);
    CHECK(fds.empty());
    REQUIRE(c.receive(&answer, &fds));
    CHECK(answer.status == 0);
    CHECK(fds.size() == 1);
    fds.clear();
    REQUIRE(c.receive(&answer, &fds));
    CHECK(answer.status == 0);
    CHECK(fds.size() == 1);
    CHECK(answer.number != region);
    REQUIRE(c.receive(&answer, &fds));
    CHECK(answer.status == acl::RT_PARAM_INVALID);  // it was given back before
    REQUIRE(next.receive(&answer, &fds));
    CHECK(answer.status == 0);
    CHECK(c.call(Kind::mem_info, wire::MemInfo{0, 0}) == 0);
}

TEST_CASE("a plane that stops tells those who wait to become sessions") {
    Running running(limits());
    auto stall = std::make_unique<Stall>(running);
    RawClient waits(running.path());
    send(waits, request(Ask::hello));
    acceptor_serves(running);
    std::thread stopper([&] { running.plane.stop(); });
    wire::Answer answer;
    std::vector<daemon::Fd> fds;
    CHECK(waits.receive(&answer, &fds));
    CHECK(answer.status == acl::RT_INTERNAL);
    CHECK(std::string(answer.message).find("stop") != std::string::npos);
    mock().mock_close_memory(0);
    stopper.join();
    CHECK(mock().mock_held().pinned == 0);
}

TEST_CASE("a stream that is destroyed while its session ends is not looked for in what is left of it") {
    Running running(limits());
    const auto before = mock().mock_held();
    auto c = std::make_unique<RawClient>(running.path());
    c->open();
    const Objects objects = furnish(*c);
    mock().mock_hold(1);
    // A copy that has lent a block of the staging area, and whose end is not known.
    c->say(Kind::copy, wire::Copy{objects.stream, objects.memory, 0, 4096, wire::Place::device,
                                  wire::Place::staging, 0, 3, 77, 0});
    c->say(Kind::destroy_stream, wire::StreamOp{objects.stream, -1}, ++c->request);
    REQUIRE(c->call(Kind::mem_info, wire::MemInfo{0, 0}) == 0);
    {
        Stall stall(running);
        c.reset();
        // The dispatching thread first hears that the client has gone, and then is kept again.
        stall.end();
        until("the session does not end", [&] { return running.plane.sessions().size() == 1; });
        mock().mock_close_memory(1);
        stall.client.say(Kind::mem_info, wire::MemInfo{0, 0}, ++stall.client.request);
        until("no second stall", [&] {
            stall.client.knock();
            return mock().mock_memory_waits() > 0;
        });
        mock().mock_hold(0);
        until("the session's memory is left",
              [&] { return mock().mock_held().pinned == before.pinned + wire::kBlocks * wire::kBlockBytes; });
        mock().mock_close_memory(0);
        REQUIRE(stall.client.answered(stall.client.request, 20'000'000'000));
    }
    until("a stream is left", [&] { return mock().mock_held().streams == before.streams; });
}

TEST_CASE("a stream that never ends does not keep a session that has ended, nor those behind it") {
    daemon::Limits l = limits();
    l.end_ms = 20;
    Running running(l);
    const auto before = mock().mock_held();
    {
        RawClient c(running.path());
        c.open();
        const Objects objects = furnish(c);
        const uint64_t from = mock().count();
        c.say(Kind::memset, wire::Memset{objects.stream, objects.memory, 64, 64, 1, 0});
        REQUIRE(c.call(Kind::sync_stream, wire::StreamOp{objects.stream, -1}) == 0);
        void* stream = mock().since(from).at(0).stream;
        mock().mock_stop_stream(stream, 1);
        const uint64_t waits = mock().count();
        c.say(Kind::memset, wire::Memset{objects.stream, objects.memory, 64, 64, 1, 0});
        c.say(Kind::sync_stream, wire::StreamOp{objects.stream, -1}, ++c.request);
        // Another that is stuck while it is destroyed.
        RawClient second(running.path());
        second.open();
        const Objects others = furnish(second);
        const uint64_t then = mock().count();
        second.say(Kind::memset, wire::Memset{others.stream, others.memory, 64, 64, 1, 0});
        REQUIRE(second.call(Kind::sync_stream, wire::StreamOp{others.stream, -1}) == 0);
        const auto of_second = mock().since(then);
        void* destroyed = std::find_if(of_second.begin(), of_second.end(), [](const MockCall& m) {
                              return m.what == 'm';
                          })->stream;
        mock().mock_stop_stream(destroyed, 1);
        second.say(Kind::destroy_stream, wire::StreamOp{others.stream, -1}, ++second.request);
        until("nobody waits for the streams", [&] {
            const auto calls = mock().since(waits);
            const auto waited = [&](void* s) {
                return std::any_of(calls.begin(), calls.end(),
                                   [s](const MockCall& m) { return m.what == 's' && m.stream == s; });
            };
            return waited(stream) && waited(destroyed);
        });
    }
    {
        RawClient next(running.path());
        next.open();
        furnish(next);
    }
    until("something of the two is left", [&] {
        const auto held = mock().mock_held();
        return held.streams == before.streams && held.memory == before.memory && held.pinned == before.pinned;
    });
}
