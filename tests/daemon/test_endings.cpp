// What ends while something else is amid: captures, updates, graphs, events and sessions, message by message.
#include <doctest/doctest.h>

#include <functional>

#include "flexnpu/api/hccl_types.hpp"
#include "flexnpu/wire/meta.hpp"
#include "fuzz/raw_client.hpp"
#include "plane_fixture.hpp"

using namespace flexnpu;
using namespace flexnpu::test;
using wire::Kind;

namespace {

int64_t soon(uint64_t ms = 5000) { return int64_t(wire::now_ns() + ms * 1'000'000); }

// A session with a stream that waits for a function of its own until release().
struct Client : RawClient {
    Objects objects;
    uint64_t held = 0, events = 1;
    explicit Client(const Running& r) : RawClient(r.path()) {
        open();
        objects = furnish(*this);
        held = stream();
    }
    uint64_t stream() {
        REQUIRE(call(Kind::create_stream, wire::CreateStream{0, 0}) == 0);
        return word();
    }
    uint64_t event(uint32_t flags) {
        const uint64_t handle = wire::make_handle(wire::HandleKind::event, uint32_t(events++), 1);
        REQUIRE(call(Kind::create_event, wire::CreateEvent{handle, flags, 0}) == 0);
        return handle;
    }
    void hold() { say(Kind::host_func, wire::HostFunc{held, 1, 1, 0}); }
    void release() { function_returned(function_given(0)); }
    // Until its record in the held stream is dispatched, so when the function has returned, the stream waits.
    void block(uint64_t stream, uint64_t event) {
        say(Kind::record_event, wire::EventOp{event, held, 0});
        say(Kind::wait_event, wire::EventOp{event, stream, -1});
    }
    // A graph with one task group of one operator; both handles.
    std::pair<uint64_t, uint64_t> graph(uint64_t stream) {
        REQUIRE(call(Kind::capture_begin, wire::StreamOp{stream, 0}) == 0);
        REQUIRE(call(Kind::group_begin, wire::StreamOp{stream, 0}) == 0);
        say(Kind::memset, wire::Memset{stream, objects.memory, 64, 64, 1, 0});
        REQUIRE(call(Kind::group_end, wire::StreamOp{stream, 0}) == 0);
        const uint64_t group = word();
        REQUIRE(call(Kind::capture_end, wire::CaptureEnd{stream, 0}) == 0);
        return {word(), group};
    }
};

}  // namespace

TEST_CASE("what follows a capture's end waits for the vendor's, and is no part of it") {
    Running running;
    Client c(running);
    const uint64_t s = c.objects.stream, event = c.event(0);
    const uint64_t from = mock().count();
    c.hold();
    c.block(s, event);
    c.say(Kind::capture_begin, wire::StreamOp{s, 0}, ++c.request);
    c.say(Kind::memset, wire::Memset{s, c.objects.memory, 64, 64, 1, 0});
    const uint32_t end = ++c.request;
    c.say(Kind::capture_end, wire::CaptureEnd{s, 0}, end);
    // The vendor's end is a worker's: those that did not wait would overtake it.
    for (int i = 0; i < 50; i++) c.say(Kind::memset, wire::Memset{s, c.objects.memory, 64, 64, 2, 0});
    c.release();
    REQUIRE(c.answered(end, 5'000'000'000));
    REQUIRE(c.ring.header().status == 0);
    REQUIRE(c.call(Kind::sync_stream, wire::StreamOp{s, soon()}) == 0);
    std::string order;
    for (const MockCall& call : mock().since(from)) {
        if (std::strchr("BEm", call.what)) order += call.what;
        if (call.what == 'm') CHECK((call.model != nullptr) == (call.b == 1));
    }
    CHECK(order == "BmE" + std::string(50, 'm'));
}

TEST_CASE("a graph does not go while a stream updates it, and one that goes is not updated") {
    Running running;
    Client c(running);
    const uint64_t s = c.objects.stream, updater = c.stream(), event = c.event(0);
    const auto [graph, group] = c.graph(s);
    c.say(Kind::update_begin, wire::GraphOp{group, updater});
    CHECK(c.call(Kind::destroy_graph, wire::GraphOp{graph, 0}) == acl::RT_TASK_GROUP_STATUS);
    c.say(Kind::memset, wire::Memset{updater, c.objects.memory, 64, 64, 3, 0});
    c.say(Kind::update_end, wire::StreamOp{updater, 0});
    CHECK(c.call(Kind::sync_stream, wire::StreamOp{updater, soon()}) == 0);
    // Its destruction waits for a stream; an update that comes meanwhile is too late, and runs nothing.
    const uint64_t from = mock().count();
    c.hold();
    c.block(s, event);
    const uint32_t destruction = ++c.request;
    c.say(Kind::destroy_graph, wire::GraphOp{graph, 0}, destruction);
    c.say(Kind::update_begin, wire::GraphOp{group, updater});
    c.say(Kind::memset, wire::Memset{updater, c.objects.memory, 64, 64, 4, 0});
    c.say(Kind::update_end, wire::StreamOp{updater, 0});
    c.say(Kind::memset, wire::Memset{updater, c.objects.memory, 64, 64, 5, 0});
    CHECK(c.call(Kind::sync_stream, wire::StreamOp{updater, soon()}) == acl::RT_INVALID_HANDLE);
    c.release();
    REQUIRE(c.answered(destruction, 5'000'000'000));
    CHECK(c.ring.header().status == 0);
    CHECK(c.call(Kind::destroy_graph, wire::GraphOp{graph, 0}) == acl::RT_INVALID_HANDLE);
    std::vector<uint64_t> memsets;
    for (const MockCall& call : mock().since(from)) {
        CHECK(call.what != 'u');
        if (call.what == 'm') memsets.push_back(call.b);
    }
    CHECK(memsets == std::vector<uint64_t>{5});
}

TEST_CASE("a communicator that goes is not found by what comes behind") {
    Running running;
    Client c(running);
    wire::Communicator question{};
    question.call = wire::Communicator::initialise;
    question.ranks = 1;
    Bytes b;
    append(b, question);
    b.resize(b.size() + wire::round8(sizeof(HcclRootInfo)));
    REQUIRE(c.call(Kind::communicator, b) == 0);
    wire::Collective barrier{};
    barrier.of = wire::Collective::barrier;
    barrier.communicator = question.communicator = c.word();
    barrier.stream = c.held;
    c.hold();
    c.say(Kind::collective, barrier);
    question.call = wire::Communicator::destroy;
    const uint32_t destruction = ++c.request;
    c.say(Kind::communicator, question, destruction);
    c.say(Kind::collective, barrier);
    c.release();
    REQUIRE(c.answered(destruction, 5'000'000'000));
    CHECK(c.ring.header().status == 0);
    CHECK(c.call(Kind::sync_stream, wire::StreamOp{c.held, soon()}) == acl::RT_INVALID_HANDLE);
    CHECK(running.plane.counters().at("collectives") == 1);
}

TEST_CASE("an abort of a capture leaves an external event's record in another stream alone") {
    Running running;
    Client c(running);
    const uint64_t s = c.objects.stream, plain = c.event(0), real = c.event(acl::EVENT_EXTERNAL);
    c.hold();
    c.say(Kind::record_event, wire::EventOp{real, c.held, 0});
    c.block(s, plain);
    c.say(Kind::capture_begin, wire::StreamOp{s, 0}, ++c.request);
    c.say(Kind::record_event, wire::EventOp{real, s, 0});
    CHECK(c.call(Kind::abort_stream, wire::StreamOp{s, 0}) == 0);
    CHECK(c.call(Kind::sync_event, wire::EventOp{real, 0, soon(100)}) == acl::RT_WAIT_TIMEOUT);
    c.release();
    CHECK(c.call(Kind::sync_event, wire::EventOp{real, 0, soon()}) == 0);
}

TEST_CASE("the daemon's end leaves no event, whatever waits for it") {
    const int64_t events = mock().mock_held().events;
    {
        Running running;
        Client c(running);
        const uint64_t s = c.objects.stream;
        c.hold();
        for (const uint32_t flags : {uint32_t(acl::EVENT_IPC), uint32_t(acl::EVENT_EXTERNAL), uint32_t(0)}) {
            const uint64_t event = c.event(flags);
            // Records of the held stream, each with a wait, and somebody who asks for each.
            for (int i = 0; i < 3; i++) {
                c.block(s, event);
                c.say(Kind::sync_event, wire::EventOp{event, 0, -1}, ++c.request);
            }
        }
        CHECK(c.call(Kind::query_stream, wire::StreamOp{s, 0}) == 0);
        running.plane.stop();
        CHECK(mock().mock_held().events == events);
    }
    CHECK(mock().mock_held().streams == 0);
}

TEST_CASE("a long chain of records of an external event ends without a stack as long") {
    Running running;
    Client c(running);
    const uint64_t real = c.event(acl::EVENT_EXTERNAL);
    c.hold();
    for (int i = 0; i < 60'000; i++) c.say(Kind::record_event, wire::EventOp{real, c.held, 0});
    CHECK(c.call(Kind::query_stream, wire::StreamOp{c.held, 0}) == 0);
    running.plane.stop();
    CHECK(mock().mock_held().events == 0);
}
