// How many streams, events, graphs, communicators and binaries a session and a user may have.
#include <doctest/doctest.h>

#include "flexnpu/api/hccl_types.hpp"
#include "flexnpu/api/resource_errors.h"
#include "flexnpu/daemon/holdings.hpp"
#include "fuzz/raw_client.hpp"
#include "plane_fixture.hpp"

using namespace flexnpu;
using namespace flexnpu::test;
using daemon::HeldKind;
using wire::Kind;

namespace {

struct Limited {
    std::string directory = Running::make_directory();
    daemon::Plane plane;
    explicit Limited(daemon::Limits limits)
        : plane(FLEXNPU_MOCK_VENDOR, 0, directory + "/npu0.sock", {}, limits) {
        plane.start();
    }
    ~Limited() {
        plane.stop();
        std::filesystem::remove_all(directory);
    }
    std::string path() const { return directory + "/npu0.sock"; }
    uint64_t counter(const std::string& name) { return plane.counters().at(name); }
};

daemon::Limits limits(HeldKind kind, daemon::Limits::Objects objects) {
    daemon::Limits l;
    l.allow_kernels = 1;
    l.of(kind) = objects;
    return l;
}

template <class F>
bool comes(F condition) {
    for (int i = 0; i < 10'000; i++) {
        if (condition()) return true;
        usleep(2000);
    }
    return false;
}

struct Client : RawClient {
    uint64_t events = 1;
    explicit Client(const std::string& path) : RawClient(path) { open(); }
    int32_t stream() { return call(Kind::create_stream, wire::CreateStream{0, 0}); }
    int32_t event() {
        return call(
            Kind::create_event,
            wire::CreateEvent{wire::make_handle(wire::HandleKind::event, uint32_t(events++), 1), 0, 0});
    }
    uint32_t left(api::FnId function) {
        Bytes p;
        append(p, wire::Forward{function, 1, 1, 0});
        append(p, uint64_t(1));  // that there is somewhere for the answer
        REQUIRE(call(Kind::forward, p) == 0);
        return uint32_t(word());
    }
    bool says(const char* text) { return message().find(text) != std::string::npos; }
};

}  // namespace

TEST_CASE("streams are bounded, and the error names the limit and the option") {
    Limited d(limits(HeldKind::streams, {9, 7, 4}));
    Client one(d.path()), two(d.path());
    uint64_t first = 0;
    for (int i = 0; i < 4; i++) {
        REQUIRE(one.stream() == 0);
        if (i == 0) first = one.word();
    }
    CHECK(one.stream() == acl::RT_NO_STREAM_RESOURCE);
    CHECK(one.says("this program has 4 streams"));
    CHECK(one.says("--max-streams-per-session"));
    // The default stream is one of them.
    CHECK(one.call(Kind::sync_stream, wire::StreamOp{0, -1}) == acl::RT_NO_STREAM_RESOURCE);
    CHECK(one.says("--max-streams-per-session"));
    REQUIRE(one.call(Kind::destroy_stream, wire::StreamOp{first, -1}) == 0);
    CHECK(one.call(Kind::sync_stream, wire::StreamOp{0, -1}) == 0);
    for (int i = 0; i < 3; i++) REQUIRE(two.stream() == 0);
    CHECK(two.stream() == acl::RT_NO_STREAM_RESOURCE);
    CHECK(two.says("--max-streams-per-user"));
    CHECK(d.counter("held_streams") == 7);
    CHECK(d.counter("limited_streams") == 3);
}

TEST_CASE("what a session held is given back when it has ended") {
    Limited d(limits(HeldKind::streams, {4, 4, 4}));
    {
        Client one(d.path());
        for (int i = 0; i < 4; i++) REQUIRE(one.stream() == 0);
    }
    CHECK(comes([&] { return d.counter("held_streams") == 0; }));
    Client two(d.path());
    for (int i = 0; i < 4; i++) CHECK(two.stream() == 0);
}

TEST_CASE("events are bounded, also those that nobody waits for") {
    Limited d(limits(HeldKind::events, {8, 8, 4}));
    Client one(d.path());
    REQUIRE(one.stream() == 0);
    const uint64_t stream = one.word();
    for (int i = 0; i < 4; i++) REQUIRE(one.event() == 0);
    CHECK(one.event() == acl::RT_NO_EVENT_RESOURCE);
    CHECK(one.says("--max-events-per-session"));
    const uint64_t bad = wire::make_handle(wire::HandleKind::event, 900, 1);
    one.say(Kind::create_event, wire::CreateEvent{bad, 0, 0});
    one.say(Kind::record_event, wire::EventOp{bad, stream, 0});
    CHECK(one.call(Kind::sync_stream, wire::StreamOp{stream, -1}) == acl::RT_NO_EVENT_RESOURCE);
    CHECK(one.says("this program has 4 events"));
    CHECK(one.call(Kind::sync_event, wire::EventOp{bad, 0, -1}) == acl::RT_NO_EVENT_RESOURCE);
    const uint64_t good = wire::make_handle(wire::HandleKind::event, 1, 1);
    REQUIRE(one.call(Kind::destroy_event, wire::EventOp{good, 0, 0}) == 0);
    CHECK(one.event() == 0);
}

TEST_CASE("graphs are bounded, and a destroyed one makes room") {
    Limited d(limits(HeldKind::graphs, {8, 8, 2}));
    Client one(d.path());
    REQUIRE(one.stream() == 0);
    const uint64_t stream = one.word();
    uint64_t graph = 0;
    for (int i = 0; i < 2; i++) {
        REQUIRE(one.call(Kind::capture_begin, wire::StreamOp{stream, 0}) == 0);
        REQUIRE(one.call(Kind::capture_end, wire::CaptureEnd{stream, 0}) == 0);
        graph = one.word();
    }
    CHECK(one.call(Kind::capture_begin, wire::StreamOp{stream, 0}) == acl::RT_NO_MODEL_RESOURCE);
    CHECK(one.says("--max-graphs-per-session"));
    REQUIRE(one.call(Kind::destroy_graph, wire::GraphOp{graph, 0}) == 0);
    CHECK(comes([&] { return one.call(Kind::capture_begin, wire::StreamOp{stream, 0}) == 0; }));
}

TEST_CASE("communicators and binaries are bounded") {
    daemon::Limits l = limits(HeldKind::communicators, {8, 8, 1});
    l.of(HeldKind::binaries) = {8, 1, 8};
    Limited d(l);
    Client one(d.path());
    const auto binary = [&one] {
        Bytes p;
        append(p, wire::Kernel{wire::Kernel::begin, 0, 0, 8});
        REQUIRE(one.call(Kind::kernel, p) == 0);
        p.clear();
        append(p, wire::Kernel{wire::Kernel::data, 0, 0, 8});
        append(p, uint64_t(1));
        REQUIRE(one.call(Kind::kernel, p) == 0);
        p.clear();
        append(p, wire::Kernel{wire::Kernel::load, 0, 0, 0});
        return one.call(Kind::kernel, p);
    };
    CHECK(binary() == 0);
    CHECK(binary() == acl::RT_RESOURCE_ALLOC_FAIL);
    CHECK(one.says("--max-binaries-per-user"));
    const auto communicator = [&one] {
        Bytes p;
        append(p, wire::Communicator{0, 0, 1, 0, 0, wire::Communicator::initialise});
        p.resize(wire::round8(sizeof(wire::Communicator) + sizeof(HcclRootInfo)));
        return one.call(Kind::communicator, p);
    };
    CHECK(communicator() == 0);
    const uint64_t handle = one.word();
    CHECK(communicator() == acl::RT_RESOURCE_ALLOC_FAIL);
    CHECK(one.says("--max-communicators-per-session"));
    Bytes p;
    append(p, wire::Communicator{handle, 0, 0, 0, 0, wire::Communicator::destroy});
    REQUIRE(one.call(Kind::communicator, p) == 0);
    CHECK(comes([&] { return communicator() == 0; }));
}

TEST_CASE("a program is told what it may still have") {
    HeldKind kind = HeldKind::streams;
    api::FnId question = api::FN_aclrtGetStreamAvailableNum;
    int32_t (Client::*make)() = &Client::stream;
    SUBCASE("of streams") {}
    SUBCASE("of events") {
        kind = HeldKind::events;
        question = api::FN_aclrtGetEventAvailNum;
        make = &Client::event;
    }
    Limited d(limits(kind, {50, 20, 10}));
    Client one(d.path()), two(d.path());
    CHECK(one.left(question) == 10);
    REQUIRE((one.*make)() == 0);
    CHECK(one.left(question) == 9);
    for (int i = 0; i < 10; i++) CHECK((two.*make)() == 0);
    CHECK(one.left(question) == 9);
    // What one user may have is what both may have together.
    for (int i = 0; i < 9; i++) CHECK((one.*make)() == 0);
    CHECK(one.left(question) == 0);
}
