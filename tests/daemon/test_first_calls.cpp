// An operator's first call that takes its time: its lane waits, and nobody else.
#include <doctest/doctest.h>

#include "flexnpu/daemon/first_calls.hpp"
#include "flexnpu/wire/meta.hpp"
#include "fuzz/raw_client.hpp"
#include "plane_fixture.hpp"

using namespace flexnpu;
using namespace flexnpu::test;
using wire::Kind;

namespace {

const uint32_t kAbs = uint32_t(api::find_op("aclnnAbs")), kNeg = uint32_t(api::find_op("aclnnNeg"));

template <class F>
bool comes(F condition) {
    for (int i = 0; i < 10'000; i++) {
        if (condition()) return true;
        usleep(2000);
    }
    return false;
}

// First calls of this operator do not return before the end of the scope, or let_go().
struct Slow {
    explicit Slow(uint32_t op) { mock().mock_block_first(op); }
    ~Slow() { let_go(); }
    void let_go() const { mock().mock_block_first(-1); }
    bool reached(int calls = 1) const {
        return comes([calls] { return mock().mock_blocked_first() == calls; });
    }
};

struct Client : RawClient {
    Objects objects;
    uint64_t other = 0;
    uint32_t shapes = 0;
    explicit Client(const Running& r) : RawClient(r.path()) {
        open();
        objects = furnish(*this);
        REQUIRE(call(Kind::create_stream, wire::CreateStream{0, 0}) == 0);
        other = word();
    }
    uint64_t new_shape() { return uint64_t(1) << 32 | shapes++; }
    Bytes definition(uint64_t shape, uint32_t op, int64_t n = 4) const {
        wire::MetaWriter w;
        const int64_t dims[] = {n}, strides[] = {1};
        for (int i = 0; i < 2; i++) w.tensor(api::kOps[op].kinds[i], acl::FLOAT, 2, 0, dims, strides, dims);
        Bytes p;
        append(p, wire::DefineShape{shape, op, 2, uint32_t(w.bytes().size()), 0});
        append(p, objects.memory);
        append(p, objects.memory);
        p.insert(p.end(), w.bytes().begin(), w.bytes().end());
        return p;
    }
    void put_record(Kind kind, const Bytes& payload, uint32_t with_request = 0) {
        Bytes b;
        append(b, wire::Record{uint32_t(sizeof(wire::Record) + payload.size()), kind, 0, with_request, 0,
                               ++sequence});
        b.insert(b.end(), payload.begin(), payload.end());
        REQUIRE(put(b));
    }
    void launch(uint64_t stream, uint64_t shape, uint32_t op) {
        Bytes p;
        append(p, wire::Launch{stream, 0, 0, shape, op, 2, 0});
        append(p, objects.memory);
        append(p, objects.memory);
        put_record(Kind::launch, p);
    }
    void set(uint64_t stream, int32_t value) {
        say(Kind::memset, wire::Memset{stream, objects.memory, 64, 64, value, 0});
    }
    int32_t sync(uint64_t stream) { return call(Kind::sync_stream, wire::StreamOp{stream, -1}); }
};

// What the vendor was given for this operator or these memsets, in order.
std::string given(uint64_t from, void* stream) {
    std::string out;
    for (const MockCall& c : mock().since(from)) {
        if (c.stream == stream && (c.what == 'l' || c.what == 'm')) out += c.what;
    }
    return out;
}

}  // namespace

TEST_CASE("a definition that the vendor is slow about keeps nobody else waiting") {
    Running running;
    Client one(running), two(running);
    const Slow slow(kAbs);
    const uint64_t shape = one.new_shape();
    const uint32_t question = ++one.request | 0x80000000u;
    one.put_record(Kind::define_shape, one.definition(shape, kAbs), question);
    REQUIRE(slow.reached());
    // Another session, with operators of its own; the control side; another stream of this session.
    CHECK(two.call(Kind::define_shape, two.definition(two.new_shape(), kNeg)) == 0);
    two.launch(two.objects.stream, uint64_t(1) << 32, kNeg);
    CHECK(two.sync(two.objects.stream) == 0);
    CHECK(running.plane.sessions().size() == 2);
    CHECK(running.plane.counters().at("first_calls_beside") == 2);
    CHECK(one.ring.header().reply.load() != question);
    one.set(one.other, 3);
    CHECK(one.sync(one.other) == 0);
    slow.let_go();
    CHECK(comes([&] {
        one.knock();
        return one.ring.header().reply.load() == question;
    }));
    CHECK(one.ring.header().status == 0);
    one.launch(one.objects.stream, shape, kAbs);
    CHECK(one.sync(one.objects.stream) == 0);
}

TEST_CASE("a launch whose first call is slow holds up its stream, in order, and no other") {
    Running running;
    Client one(running), two(running);
    const Slow slow(kAbs);
    const uint64_t shape = one.new_shape(), from = mock().count();
    one.put_record(Kind::define_shape, one.definition(shape, kAbs));
    one.set(one.objects.stream, 1);
    one.launch(one.objects.stream, shape, kAbs);
    one.set(one.objects.stream, 2);
    REQUIRE(slow.reached());
    // The same shape in another stream waits for the same call.
    one.launch(one.other, shape, kAbs);
    CHECK(two.sync(two.objects.stream) == 0);
    two.set(two.objects.stream, 5);
    CHECK(two.sync(two.objects.stream) == 0);
    CHECK(one.call(Kind::query_stream, wire::StreamOp{one.objects.stream, 0}) == 0);
    CHECK(one.word() == acl::STREAM_NOT_READY);
    REQUIRE(mock().mock_blocked_first() == 1);
    void* stream = nullptr;
    for (const MockCall& c : mock().since(from)) {
        if (c.what == 'm' && c.b == 1) stream = c.stream;
    }
    REQUIRE(stream);
    CHECK(given(from, stream) == "m");
    slow.let_go();
    CHECK(one.sync(one.objects.stream) == 0);
    CHECK(one.sync(one.other) == 0);
    CHECK(given(from, stream) == "mlm");
    CHECK(mock().mock_held().executors == 0);
}

TEST_CASE("slow first calls of several streams are made at one time") {
    Running running;
    Client one(running);
    const Slow slow(kAbs);
    for (int i = 0; i < 2; i++) {
        const uint64_t shape = one.new_shape();
        one.put_record(Kind::define_shape, one.definition(shape, kAbs, 4 << i));
        one.launch(i ? one.other : one.objects.stream, shape, kAbs);
    }
    CHECK(slow.reached(2));
    slow.let_go();
    CHECK(one.sync(one.objects.stream) == 0);
    CHECK(one.sync(one.other) == 0);
}

TEST_CASE("a stream that waits for a first call can be aborted and destroyed") {
    Running running;
    Client one(running);
    const uint64_t from = mock().count();
    {
        const Slow slow(kAbs);
        const uint64_t shape = one.new_shape();
        one.put_record(Kind::define_shape, one.definition(shape, kAbs));
        one.launch(one.objects.stream, shape, kAbs);
        one.launch(one.other, shape, kAbs);
        REQUIRE(slow.reached());
        CHECK(one.call(Kind::abort_stream, wire::StreamOp{one.objects.stream, 0}) == 0);
        CHECK(one.sync(one.objects.stream) == acl::RT_STREAM_ABORT);
        one.set(one.objects.stream, 1);
        CHECK(one.sync(one.objects.stream) == 0);
        CHECK(one.call(Kind::destroy_stream, wire::StreamOp{one.objects.stream, 0}) == 0);
    }
    CHECK(one.sync(one.other) == 0);
    size_t launches = 0;
    for (const MockCall& c : mock().since(from)) launches += c.what == 'l';
    CHECK(launches == 1);
}

TEST_CASE("a session that ends amid a first call is torn down, and the call ends by itself") {
    Running running;
    Client two(running);
    const MockHeld before = mock().mock_held();
    const Slow slow(kAbs);
    {
        Client one(running);
        const uint64_t shape = one.new_shape();
        one.put_record(Kind::define_shape, one.definition(shape, kAbs));
        one.launch(one.objects.stream, shape, kAbs);
        REQUIRE(slow.reached());
    }
    CHECK(comes([&] { return running.plane.sessions().size() == 1; }));
    CHECK(comes([&] { return mock().mock_held().streams == before.streams; }));
    CHECK(two.sync(two.objects.stream) == 0);
    slow.let_go();
    CHECK(comes([&] { return mock().mock_blocked_first() == 0; }));
    CHECK(comes([&] {
        const MockHeld now = mock().mock_held();
        return now.tensors == before.tensors && now.executors == before.executors;
    }));
}

TEST_CASE("a capture's end waits for the first call of what it captures") {
    Running running;
    Client one(running);
    REQUIRE(one.call(Kind::capture_begin, wire::StreamOp{one.objects.stream, 0}) == 0);
    const uint64_t from = mock().count();
    const Slow slow(kAbs);
    const uint64_t shape = one.new_shape();
    one.put_record(Kind::define_shape, one.definition(shape, kAbs));
    one.launch(one.objects.stream, shape, kAbs);
    const uint32_t question = ++one.request | 0x80000000u;
    one.say(Kind::capture_end, wire::CaptureEnd{one.objects.stream, 0}, question);
    REQUIRE(slow.reached());
    usleep(20'000);
    CHECK(one.ring.header().reply.load() != question);
    slow.let_go();
    CHECK(comes([&] {
        one.knock();
        return one.ring.header().reply.load() == question;
    }));
    CHECK(one.ring.header().status == 0);
    std::string order;
    for (const MockCall& c : mock().since(from)) order += strchr("lE", c.what) ? std::string(1, c.what) : "";
    CHECK(order == "lE");
}

TEST_CASE("kinds whose first calls are quick are credited, and lose it when one is not") {
    constexpr uint64_t kQuick = 20'000, kSlow = 50'000'000;
    daemon::FirstCalls calls;
    const gate::OpKey key{7, 99}, other{7, 100};
    for (int i = 0; i < 3; i++) {
        CHECK(!calls.quick(key));
        calls.learn(key, kQuick);
    }
    CHECK(calls.quick(key));
    CHECK(!calls.quick(other));
    // A slow one begins the count anew.
    calls.learn(other, kQuick);
    calls.learn(other, kQuick);
    calls.learn(other, kSlow);
    calls.learn(other, kQuick);
    CHECK(!calls.quick(other));
    calls.learn_inline(key, kSlow);
    for (int i = 0; i < 12; i++) {
        CHECK(!calls.quick(key));
        calls.learn(key, kQuick);
    }
    CHECK(calls.quick(key));
    // Whoever has stalled the others for long enough gets no more credit for anything.
    for (int i = 0; i < 4; i++) calls.learn_inline(key, kSlow);
    for (int i = 0; i < 1000; i++) calls.learn(other, kQuick);
    CHECK(!calls.quick(other));
}
