// A hostile client beside another: what it names of the other's, what is stale, and what breaks the protocol
// is refused and counted; the other notices nothing, and its memory is the same to the bit.
#include <doctest/doctest.h>

#include <fcntl.h>

#include <filesystem>
#include <functional>

#include "flexnpu/wire/meta.hpp"
#include "fuzz/raw_client.hpp"
#include "plane_fixture.hpp"

using namespace flexnpu;
using namespace flexnpu::test;
using wire::Kind;
using wire::Place;

namespace {

constexpr uint64_t kShown = 1024;

// The one who is to come to no harm.
struct Victim {
    RawClient client;
    Objects objects;
    Bytes pattern;

    explicit Victim(const std::string& path) : client(path) {
        client.open();
        objects = furnish(client);
        REQUIRE(objects.memory);
        REQUIRE(objects.stream);
        REQUIRE(objects.event);
        for (uint64_t i = 0; i < kShown; i++) pattern.push_back(uint8_t(i * 31 + 5));
        Bytes p;
        append(p, wire::Copy{0, objects.memory, 0, kShown, Place::device, Place::inline_data, 0, 0, 0, 1});
        p.insert(p.end(), pattern.begin(), pattern.end());
        REQUIRE(client.call(Kind::copy, p) == 0);
        Bytes record;
        append(record, wire::Record{uint32_t(sizeof(wire::Record) + sizeof(wire::EventOp)),
                                    Kind::record_event, 0, 0, 0, ++client.sequence});
        append(record, wire::EventOp{objects.event, objects.stream, 0});
        REQUIRE(client.put(record));
        check();
    }
    void check() {
        CHECK(client.call(Kind::sync_stream, wire::StreamOp{objects.stream, 10'000}) == 0);
        CHECK(client.call(Kind::sync_event, wire::EventOp{objects.event, 0, 10'000}) == 0);
        const wire::Copy out{0, 0, objects.memory, kShown, Place::inline_data, Place::device, 0, 0, 0, 1};
        REQUIRE(client.call(Kind::copy, out) == 0);
        CHECK(std::memcmp(client.ring.header().data, pattern.data(), kShown) == 0);
    }
};

uint64_t refused(Running& r) { return r.plane.counters().at("refused"); }

// A shape of the first operator that takes one tensor in and one out, for tensors of 16 bytes.
Bytes definition(uint64_t shape, uint64_t address, uint32_t* op) {
    *op = uint32_t(api::find_op("aclnnAbs"));
    wire::MetaWriter w;
    const int64_t dims[] = {4}, strides[] = {1};
    for (int i = 0; i < 2; i++) w.tensor(api::kOps[*op].kinds[i], acl::FLOAT, 2, 0, dims, strides, dims);
    Bytes p;
    append(p, wire::DefineShape{shape, *op, 2, uint32_t(w.bytes().size()), 0});
    append(p, address);
    append(p, address);
    p.insert(p.end(), w.bytes().begin(), w.bytes().end());
    return p;
}

size_t open_files() {
    return size_t(std::distance(std::filesystem::directory_iterator("/proc/self/fd"),
                                std::filesystem::directory_iterator()));
}

// Puts a record as it is, its header included.
void put(RawClient& c, uint32_t size, Kind kind, uint32_t request, const Bytes& payload) {
    Bytes b;
    append(b, wire::Record{size, kind, 0, request, 0, ++c.sequence});
    b.insert(b.end(), payload.begin(), payload.end());
    c.put(b);
}

bool hung_up(RawClient& c) {
    for (int i = 0; i < 1000 && c.alive(); i++) {
        c.knock();
        usleep(2000);
    }
    return !c.alive();
}

}  // namespace

TEST_CASE("what another session holds cannot be named") {
    Running running;
    Victim victim(running.path());
    RawClient c(running.path());
    c.open();
    // It has memory of its own, so that only the other's addresses are wrong, and no stream or event, so that
    // every number of one is.
    REQUIRE(c.call(Kind::malloc, wire::Malloc{4096, 0, 0}) == 0);
    const uint64_t mine = c.word();
    const uint64_t memory = victim.objects.memory, stream = victim.objects.stream,
                   event = victim.objects.event;
    uint32_t op = 0;
    const Bytes theirs = definition(uint64_t(1) << 32 | 7, memory, &op);
    REQUIRE(victim.client.call(Kind::define_shape, theirs) == 0);

    const auto copy = [](uint64_t to, uint64_t from, Place to_place, Place from_place, uint64_t bytes,
                         uint32_t region = 0) {
        Bytes p;
        append(p, wire::Copy{0, to, from, bytes, to_place, from_place, region, 0, 0, 1});
        if (from_place == Place::inline_data) p.resize(p.size() + wire::round8(bytes), 0xee);
        return p;
    };
    const auto plain = [](const auto& payload) {
        Bytes p;
        append(p, payload);
        return p;
    };
    struct Try {
        const char* what;
        Kind kind;
        Bytes payload;
    };
    const Try tries[] = {
        {"read memory", Kind::copy, copy(0, memory, Place::inline_data, Place::device, 8)},
        {"read the middle of memory", Kind::copy,
         copy(0, memory + 512, Place::inline_data, Place::device, 8)},
        {"write memory", Kind::copy, copy(memory, 0, Place::device, Place::inline_data, 8)},
        {"copy from memory", Kind::copy, copy(mine, memory, Place::device, Place::device, 8)},
        {"copy to memory", Kind::copy, copy(memory, mine, Place::device, Place::device, 8)},
        {"memory to staging", Kind::copy, copy(0, memory, Place::staging, Place::device, 64)},
        {"staging to memory", Kind::copy, copy(memory, 0, Place::device, Place::staging, 64)},
        {"read over the end of one's own", Kind::copy,
         copy(0, mine + 4090, Place::inline_data, Place::device, 8)},
        {"a size that wraps", Kind::copy, copy(0, mine, Place::staging, Place::device, ~uint64_t(0))},
        {"set memory", Kind::memset, plain(wire::Memset{0, memory, 8, 8, 0, 1})},
        {"free memory", Kind::free, plain(wire::Free{memory, 0})},
        {"free the middle of one's own", Kind::free, plain(wire::Free{mine + 64, 0})},
        {"synchronise a stream", Kind::sync_stream, plain(wire::StreamOp{stream, 100})},
        {"query a stream", Kind::query_stream, plain(wire::StreamOp{stream, 0})},
        {"abort a stream", Kind::abort_stream, plain(wire::StreamOp{stream, 0})},
        {"destroy a stream", Kind::destroy_stream, plain(wire::StreamOp{stream, 0})},
        {"a stream's number", Kind::stream_id, plain(wire::StreamOp{stream, 0})},
        {"synchronise an event", Kind::sync_event, plain(wire::EventOp{event, 0, 100})},
        {"query an event", Kind::query_event, plain(wire::EventOp{event, 0, 0})},
        {"read an event's time", Kind::event_timestamp, plain(wire::EventOp{event, 0, 0})},
        {"measure between events", Kind::event_elapsed, plain(wire::EventPair{event, event})},
        {"destroy an event", Kind::destroy_event, plain(wire::EventOp{event, 0, 0})},
        {"a shape on another's memory", Kind::define_shape, definition(uint64_t(1) << 32 | 9, memory, &op)},
        {"host memory", Kind::copy, copy(mine, 0, Place::device, Place::host, 8, 1)},
        {"a block of staging that there is not", Kind::copy,
         copy(mine, wire::kBlocks * wire::kBlockBytes - 4, Place::device, Place::staging, 8)},
    };
    for (const Try& t : tries) {
        CAPTURE(t.what);
        const uint64_t before = refused(running);
        CHECK(c.call(t.kind, t.payload) > 0);
        CHECK(refused(running) == before + 1);
        victim.check();
    }

    // Asynchronous ones fail at the next synchronise, and reach nothing.
    REQUIRE(c.call(Kind::create_stream, wire::CreateStream{0, 0}) == 0);
    const uint64_t own = c.word();
    REQUIRE(c.call(Kind::define_shape, definition(uint64_t(1) << 32 | 3, mine, &op)) == 0);
    const auto launch = [&](uint64_t on, uint64_t shape, uint64_t a, uint64_t workspace) {
        Bytes p;
        append(p, wire::Launch{on, workspace, 64, shape, op, 2, 0});
        append(p, a);
        append(p, a);
        return p;
    };
    const Try later[] = {
        {"launch on memory", Kind::launch, launch(own, uint64_t(1) << 32 | 3, memory, mine)},
        {"launch with a workspace", Kind::launch, launch(own, uint64_t(1) << 32 | 3, mine, memory)},
        {"launch of a shape", Kind::launch, launch(own, uint64_t(1) << 32 | 7, mine, mine)},
        {"record an event", Kind::record_event, plain(wire::EventOp{event, own, 0})},
        {"wait for an event", Kind::wait_event, plain(wire::EventOp{event, own, 0})},
        {"reset an event", Kind::reset_event, plain(wire::EventOp{event, own, 0})},
        {"set memory in a stream", Kind::memset, plain(wire::Memset{own, memory, 8, 8, 0, 0})},
    };
    const uint64_t launches = running.plane.counters().at("launches");
    for (const Try& t : later) {
        CAPTURE(t.what);
        const uint64_t before = refused(running);
        put(c, uint32_t(sizeof(wire::Record) + t.payload.size()), t.kind, 0, t.payload);
        CHECK(c.call(Kind::sync_stream, wire::StreamOp{own, 1000}) > 0);
        CHECK(refused(running) == before + 1);
        victim.check();
    }
    CHECK(running.plane.counters().at("launches") == launches);
    // And what is its own still works.
    put(c, uint32_t(sizeof(wire::Record) + launch(own, uint64_t(1) << 32 | 3, mine, mine).size()),
        Kind::launch, 0, launch(own, uint64_t(1) << 32 | 3, mine, mine));
    CHECK(c.call(Kind::sync_stream, wire::StreamOp{own, 1000}) == 0);
    CHECK(running.plane.counters().at("launches") == launches + 1);
    const auto sessions = running.plane.sessions();
    REQUIRE(sessions.size() == 2);
    CHECK(sessions[0].refused == 0);
    CHECK(sessions[1].refused == std::size(tries) + std::size(later));
}

TEST_CASE("stale numbers are told from those that took their place") {
    Running running;
    RawClient c(running.path());
    c.open();
    for (int i = 0; i < 3; i++) {
        REQUIRE(c.call(Kind::create_stream, wire::CreateStream{0, 0}) == 0);
        const uint64_t gone = c.word();
        REQUIRE(c.call(Kind::destroy_stream, wire::StreamOp{gone, 0}) == 0);
        REQUIRE(c.call(Kind::create_stream, wire::CreateStream{0, 0}) == 0);
        const uint64_t now = c.word();
        CHECK(wire::handle_index(now) == wire::handle_index(gone));
        CHECK(c.call(Kind::sync_stream, wire::StreamOp{gone, 100}) > 0);
        CHECK(c.call(Kind::destroy_stream, wire::StreamOp{gone, 100}) > 0);
        CHECK(c.call(Kind::sync_event, wire::EventOp{now, 0, 100}) > 0);  // a stream is no event
        CHECK(c.call(Kind::sync_stream, wire::StreamOp{now, 100}) == 0);
    }
    REQUIRE(c.call(Kind::malloc, wire::Malloc{64, 0, 0}) == 0);
    const uint64_t address = c.word();
    REQUIRE(c.call(Kind::free, wire::Free{address, 0}) == 0);
    CHECK(c.call(Kind::free, wire::Free{address, 0}) > 0);
    CHECK(c.call(Kind::memset, wire::Memset{0, address, 8, 8, 1, 1}) > 0);
}

TEST_CASE("a ring that lies ends its session and no other") {
    Running running;
    Victim victim(running.path());
    const std::pair<const char*, std::function<void(RawClient&)>> lies[] = {
        {"a head beyond the ring",
         [](RawClient& c) { c.ring.header().head.store(c.head + wire::kRingBytes + 8); }},
        {"a head behind", [](RawClient& c) { c.ring.header().head.store(c.head - 8); }},
        {"a head between words", [](RawClient& c) { c.ring.header().head.store(c.head + 12); }},
        {"a head amid a header", [](RawClient& c) { c.ring.header().head.store(c.head + 8); }},
        {"a record smaller than its header", [](RawClient& c) { put(c, 8, Kind::mem_info, 1, {}); }},
        {"a record that is not of words", [](RawClient& c) { put(c, 28, Kind::mem_info, 1, Bytes(8)); }},
        {"a record larger than was written", [](RawClient& c) { put(c, 4096, Kind::mem_info, 1, Bytes(8)); }},
        {"a record larger than any",
         [](RawClient& c) {
             std::memset(c.ring.data(c.head), 0, 64);
             const wire::Record r{uint32_t(wire::kMaxRecord + 8), Kind::mem_info, 0, 1, 0, 1};
             std::memcpy(c.ring.data(c.head), &r, sizeof(r));
             c.ring.header().head.store(c.head + wire::kMaxRecord + 8);
         }},
    };
    uint64_t broken = 0;
    for (const auto& [what, lie] : lies) {
        CAPTURE(what);
        RawClient c(running.path());
        c.open();
        REQUIRE(c.call(Kind::malloc, wire::Malloc{64, 0, 0}) == 0);
        lie(c);
        CHECK(hung_up(c));
        CHECK(running.plane.counters().at("sessions_broken") == ++broken);
        victim.check();
    }
    // The tail and everything else in the ring's header is the daemon's to say: what a client writes there
    // harms nobody but itself.
    RawClient c(running.path());
    c.open();
    c.ring.header().tail.store(~uint64_t(0));
    c.ring.header().words = 0xffffffff;
    c.page->session = 1;
    c.page->device = -5;
    for (auto& done : c.page->block_done) done.store(77);
    c.head = 0;
    c.ring.header().tail.store(0);
    CHECK(c.call(Kind::malloc, wire::Malloc{64, 0, 0}) == 0);
    victim.check();
}

TEST_CASE(
    "what comes behind a stream's destruction is dropped, and its events hang nobody and are not left") {
    Mock mock;
    const int64_t streams = mock.mock_held().streams, events = mock.mock_held().events;
    {
        Running running;
        RawClient c(running.path());
        c.open();
        const Objects o = furnish(c);
        const auto soon = [] { return int64_t(wire::now_ns()) + 5'000'000'000; };
        // The stream waits for a function, its destruction for the stream.
        c.say(Kind::host_func, wire::HostFunc{o.stream, 1, 1, 0});
        const uint32_t destruction = ++c.request;
        c.say(Kind::destroy_stream, wire::StreamOp{o.stream, -1}, destruction);
        c.say(Kind::record_event, wire::EventOp{o.event, o.stream, 0});
        c.say(Kind::wait_event, wire::EventOp{o.event, 0, -1});
        c.function_returned(c.function_given(0));
        REQUIRE(c.answered(destruction, 5'000'000'000));
        CHECK(c.ring.header().status == 0);
        CHECK(c.call(Kind::sync_event, wire::EventOp{o.event, 0, soon()}) == acl::RT_STREAM_ABORT);
        CHECK(c.call(Kind::sync_stream, wire::StreamOp{0, soon()}) == 0);
        c.say(Kind::record_event, wire::EventOp{o.event, 0, 0});
        CHECK(c.call(Kind::sync_event, wire::EventOp{o.event, 0, soon()}) == 0);
        CHECK(c.call(Kind::destroy_event, wire::EventOp{o.event, 0, 0}) == 0);
    }
    CHECK(mock.mock_held().streams == streams);
    CHECK(mock.mock_held().events == events);
}

TEST_CASE("messages that are too short, too long or none are refused and counted") {
    Running running;
    Victim victim(running.path());
    RawClient c(running.path());
    c.open();
    for (uint16_t k = 0; k <= uint16_t(Kind::count_) + 1; k++) {
        for (size_t words : {size_t(0), size_t(1), size_t(40)}) {
            // Of those without a fixed size some may be in order; none may do harm.
            CAPTURE(k);
            CAPTURE(words);
            if (Kind(k) == Kind::sync_device || Kind(k) == Kind::abort_device) continue;
            put(c, uint32_t(sizeof(wire::Record) + words * 8), Kind(k), 0x1000u + k, Bytes(words * 8, 0xff));
        }
    }
    // A ring has one place for answers, and a stream was made by eight bytes of ones: its answer goes by way
    // of the ring's worker and the dispatching thread, and may be late. This question's goes the same way
    // behind it, so that nothing takes the place of the next answer.
    CHECK(c.call(Kind::create_stream, wire::CreateStream{0, 0}) >= 0);
    CHECK(c.call(Kind::sync_device, wire::StreamOp{0, 1000}) >= 0);
    CHECK(running.plane.counters().at("malformed") > uint64_t(Kind::count_));
    victim.check();
    CHECK(c.alive());
}

TEST_CASE("the socket takes requests, nothing else") {
    Running running;
    Victim victim(running.path());
    const auto request = [](wire::Ask ask) {
        wire::Request r{};
        r.magic = wire::kMagic;
        r.version = wire::kVersion;
        r.ask = ask;
        r.table_hash = api::kTableHash;
        return r;
    };
    wire::Answer answer;
    std::vector<daemon::Fd> fds;
    const wire::Request hello = request(wire::Ask::hello);
    Bytes bytes;
    append(bytes, hello);
    for (size_t n : {size_t(1), sizeof(hello) - 1, sizeof(hello) + 1, size_t(4096), size_t(100'000)}) {
        CAPTURE(n);
        RawClient c(running.path());
        Bytes wrong = bytes;
        wrong.resize(n);
        CHECK(c.send_raw(wrong.data(), n));
        CHECK_FALSE(c.receive(&answer, &fds));
    }
    RawClient early(running.path());
    CHECK(early.ask(wire::Ask::new_ring, &answer, &fds));
    CHECK(answer.status != 0);
    CHECK(fds.empty());
    {
        RawClient old(running.path());
        wire::Request r = hello;
        r.version++;
        CHECK(old.send_raw(&r, sizeof(r)));
        CHECK(old.receive(&answer, &fds));
        CHECK(std::string(answer.message).find("different versions") != std::string::npos);
    }
    RawClient c(running.path());
    c.open();
    CHECK(c.ask(wire::Ask::hello, &answer, &fds));
    CHECK(answer.status != 0);
    CHECK(c.ask(wire::Ask(99), &answer, &fds));
    CHECK(answer.status != 0);
    CHECK(c.ask(wire::Ask::free_host_memory, &answer, &fds, 0, 12345));
    CHECK(answer.status != 0);
    for (uint64_t n : {uint64_t(0), ~uint64_t(0), uint64_t(1) << 50}) {
        CHECK(c.ask(wire::Ask::host_memory, &answer, &fds, n));
        CHECK(answer.status != 0);
    }
    CHECK(fds.empty());
    CHECK(running.plane.counters().at("malformed_requests") >= 7);

    // Descriptors that come along are not kept.
    const daemon::Fd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
    const size_t before = open_files();
    const wire::Request bad = request(wire::Ask(99));
    for (int i = 0; i < 100; i++) {
        CHECK(c.send_raw(&bad, sizeof(bad), null.get()));
        CHECK(c.receive(&answer, &fds));
    }
    CHECK(open_files() == before);
    victim.check();
}

TEST_CASE("memory that is given back is nobody's until the copies of other threads are over") {
    Mock mock;
    Running running;
    RawClient c(running.path());
    c.open();
    Objects o = furnish(c);
    // A session that ends amid calls and frees: nothing is freed twice, or while it is used (this is for the
    // address sanitizer to see).
    for (int round = 0; round < 20; round++) {
        RawClient d(running.path());
        d.open();
        Objects mine = furnish(d);
        for (int i = 0; i < 50; i++) {
            Bytes set;
            append(set, wire::Memset{mine.stream, mine.memory, kObjectBytes, kObjectBytes, 1, 1});
            put(d, uint32_t(sizeof(wire::Record) + set.size()), Kind::memset, uint32_t(1 + i), set);
        }
        Bytes give;
        append(give, wire::Free{mine.memory, 0});
        put(d, uint32_t(sizeof(wire::Record) + give.size()), Kind::free, 77, give);
    }
    for (int i = 0; i < 1000 && running.plane.sessions().size() > 1; i++) usleep(2000);
    REQUIRE(c.call(Kind::free, wire::Free{o.memory, 0}) == 0);
    for (int i = 0; i < 1000 && mock.mock_held().memory > 0; i++) usleep(2000);
    CHECK(mock.mock_held().memory == 0);
}

TEST_CASE("a short answer bears nothing of the daemon's memory") {
    Running running;
    RawClient c(running.path());
    c.open();
    const Objects o = furnish(c);
    REQUIRE(c.call(Kind::memset, wire::Memset{o.stream, o.memory, 8, 8, 0x5a, 1}) == 0);
    for (int i = 0; i < 3; i++) {
        const wire::Copy out{0, 0, o.memory, 1, Place::inline_data, Place::device, 0, 0, 0, 1};
        REQUIRE(c.call(Kind::copy, out) == 0);
        CHECK(c.word() == 0x5a);
    }
}

TEST_CASE("an event that is exported again and again is exported once, and leaves room for others'") {
    Running running;
    RawClient greedy(running.path()), other(running.path());
    const auto exported = [](RawClient& c, uint64_t event) {
        wire::Share w{};
        w.call = wire::Share::export_event;
        w.handle = event;
        Bytes p;
        append(p, w);
        return c.call(Kind::share, p);
    };
    const auto make = [](RawClient& c, uint32_t index) {
        const uint64_t event = wire::make_handle(wire::HandleKind::event, index, 1);
        REQUIRE(c.call(Kind::create_event, wire::CreateEvent{event, acl::EVENT_IPC, 0}) == 0);
        return event;
    };
    greedy.open();
    other.open();
    const uint64_t event = make(greedy, 1);
    REQUIRE(exported(greedy, event) == 0);
    const uint64_t key = greedy.word();
    for (int i = 0; i < 20'000; i++) {
        if (exported(greedy, event) != 0 || greedy.word() != key) FAIL("another key, or none");
    }
    // And with events of its own it does not get further than its own limit.
    int refused = 0;
    for (uint32_t i = 2; i < 2200; i++) refused += exported(greedy, make(greedy, i)) != 0;
    CHECK(refused > 0);
    CHECK(exported(other, make(other, 1)) == 0);
    CHECK(other.word() != key);
    // What has been destroyed counts no more.
    CHECK(greedy.call(Kind::destroy_event, wire::EventOp{event, 0, 0}) == 0);
    CHECK(exported(greedy, make(greedy, 5000)) == 0);
}
