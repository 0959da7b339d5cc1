// Rings, their merge, and operator metadata.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <deque>
#include <limits>
#include <memory>
#include <random>
#include <thread>

#include "flexnpu/wire/adaptive_wait.hpp"
#include "flexnpu/wire/handle.hpp"
#include "flexnpu/wire/merge.hpp"
#include "flexnpu/wire/meta.hpp"
#include "flexnpu/wire/operation.hpp"
#include "flexnpu/wire/ring.hpp"

using namespace flexnpu::wire;

namespace {

// Both ends of one ring.
struct Pair {
    std::unique_ptr<Producer> producer;
    std::unique_ptr<Consumer> consumer;
    RingHeader* header = nullptr;
    Pair() {
        const int fd = memfd_create("ring", MFD_CLOEXEC);
        REQUIRE(ftruncate(fd, kRingFileBytes) == 0);
        RingMap a, b;
        REQUIRE(a.open(fd));
        REQUIRE(b.open(fd));
        close(fd);
        header = &a.header();
        producer = std::make_unique<Producer>(std::move(a));
        consumer = std::make_unique<Consumer>(std::move(b));
    }
    bool put(size_t payload, uint64_t sequence, uint8_t fill) {
        uint8_t* p = producer->reserve(sizeof(Record) + payload);
        if (!p) return false;
        std::memset(p + sizeof(Record), fill, payload);
        producer->publish(sizeof(Record) + payload, Kind::launch, 0, sequence);
        return true;
    }
};

// What merge.hpp asks of a ring.
struct Merging {
    Pair pair;
    Consumer& consumer = *pair.consumer;
    Record head{};
    bool has_head = false;
};

}  // namespace

TEST_CASE("records of every size come out as they went in, over many laps") {
    Pair ring;
    std::mt19937 random(1);
    struct Sent {
        size_t payload;
        uint64_t sequence;
        uint8_t fill;
    };
    std::deque<Sent> sent;
    std::vector<uint8_t> buffer(kMaxRecord);
    uint64_t bytes = 0;
    for (uint64_t n = 0; bytes < 20 * kRingBytes;) {
        const Sent s{random() % (random() % 8 ? 64 : (kMaxRecord - sizeof(Record)) / 8) * 8, n,
                     uint8_t(random())};
        if (random() % 2 && ring.put(s.payload, s.sequence, s.fill)) {
            sent.push_back(s);
            bytes += s.payload;
            n++;
            continue;
        }
        Record r;
        if (sent.empty()) {
            CHECK(ring.consumer->peek(&r) == Look::empty);
            continue;
        }
        REQUIRE(ring.consumer->peek(&r) == Look::record);
        REQUIRE(r.size == sizeof(Record) + sent.front().payload);
        REQUIRE(r.sequence == sent.front().sequence);
        ring.consumer->read(r, buffer.data());
        bool same = true;
        for (size_t i = 0; i < sent.front().payload; i++) same &= buffer[i] == sent.front().fill;
        REQUIRE(same);
        ring.consumer->pop(r);
        sent.pop_front();
    }
}

TEST_CASE("a ring holds what it can, and no more") {
    Pair ring;
    size_t n = 0;
    while (ring.put(1000, n, 0)) n++;
    CHECK(n == kRingBytes / (1000 + sizeof(Record)));
    Record r;
    REQUIRE(ring.consumer->peek(&r) == Look::record);
    ring.consumer->pop(r);
    CHECK(ring.put(1000, n, 0));
    CHECK_FALSE(ring.put(1000, n, 0));
}

TEST_CASE("broken frames are seen as such") {
    const uint64_t heads[] = {1, 7, 8, 16, kRingBytes + 8, uint64_t(1) << 63, ~uint64_t(0)};
    for (uint64_t head : heads) {
        CAPTURE(head);
        Pair ring;
        ring.header->head.store(head);
        Record r;
        CHECK(ring.consumer->peek(&r) == Look::broken);
    }
    const uint32_t sizes[] = {
        0, 8, sizeof(Record) - 8, sizeof(Record) + 1, sizeof(Record) + 72, kMaxRecord + 8, ~0u, ~7u};
    for (uint32_t size : sizes) {
        CAPTURE(size);
        Pair ring;
        REQUIRE(ring.put(64, 1, 0));
        Record r{};
        r.size = size;
        std::memcpy(reinterpret_cast<uint8_t*>(ring.header) + kRingHeaderBytes, &r, sizeof(r));
        CHECK(ring.consumer->peek(&r) == Look::broken);
    }
}

TEST_CASE("what happened before comes out before, over several rings") {
    constexpr int kRings = 4;
    constexpr uint64_t kRecords = 40'000;
    std::vector<std::unique_ptr<Merging>> rings;
    for (int i = 0; i < kRings; i++) rings.push_back(std::make_unique<Merging>());
    std::atomic<uint64_t> sequence{0}, turn{0};
    std::vector<std::thread> threads;
    // Strict turns: every record happened before the next, whichever ring it is in.
    for (int t = 0; t < kRings; t++) {
        threads.emplace_back([&, t] {
            for (uint64_t i = uint64_t(t); i < kRecords; i += kRings) {
                while (turn.load(std::memory_order_acquire) != i) std::this_thread::yield();
                const uint64_t s = sequence.fetch_add(1);
                while (!rings[size_t(t)]->pair.put(8, s, 0)) std::this_thread::yield();
                turn.store(i + 1, std::memory_order_release);
            }
        });
    }
    for (uint64_t want = 0; want < kRecords;) {
        const Merged m = next(rings);
        if (m.look == Look::empty) {
            std::this_thread::yield();
            continue;
        }
        REQUIRE(m.look == Look::record);
        REQUIRE(m.record.sequence == want++);
        rings[m.ring]->consumer.pop(m.record);
        rings[m.ring]->has_head = false;
    }
    for (auto& t : threads) t.join();
}

TEST_CASE("metadata comes out as it went in") {
    const int64_t dims[] = {2, 3}, strides[] = {3, 1}, storage[] = {6}, ints[] = {4, -5};
    const float floats[] = {0.5f, 1.5f, 2.5f};
    const unsigned char flags[] = {1, 0, 1}, value[16] = {7};
    const int64_t word = -9;
    const double real = 2.25;
    MetaWriter w;
    w.tensor('T', 1, 2, 5, dims, strides, storage);
    w.head('t', false, 0, 0, 0);
    w.head('L', true, 0, 0, 2);
    w.tensor('T', 0, 2, 0, dims, {}, {});
    w.head('T', false, 0, 0, 0);
    w.head('S', true, 9, 0, 0);
    w.raw(value, 16);
    w.array('I', ints, 2, 8);
    w.array('F', floats, 3, 4);
    w.array('B', flags, 3, 1);
    w.array('s', "name", 4, 1);
    w.word('i', &word);
    w.word('d', &real);
    std::vector<ArgMeta> a;
    REQUIRE(decode_meta(w.bytes(), "TtLSIFBsid", &a));
    CHECK(a[0].tensors[0].dims == std::vector<int64_t>{2, 3});
    CHECK(a[0].tensors[0].strides == std::vector<int64_t>{3, 1});
    CHECK(a[0].tensors[0].storage == std::vector<int64_t>{6});
    CHECK(a[0].tensors[0].offset == 5);
    CHECK_FALSE(a[1].present);
    CHECK(a[2].tensors.size() == 2);
    CHECK_FALSE(a[2].tensors[1].present);
    CHECK(a[3].scalars[0].value[0] == 7);
    CHECK(a[4].ints == std::vector<int64_t>{4, -5});
    CHECK(a[5].floats == std::vector<float>{0.5f, 1.5f, 2.5f});
    CHECK(a[6].bools == std::vector<uint8_t>{1, 0, 1});
    CHECK(a[7].text == "name");
    CHECK(a[8].integer == -9);
    CHECK(a[9].real == 2.25);
    // The reader that takes no memory sees the same.
    MetaReader reader(w.bytes());
    MetaHead h;
    const uint8_t* body;
    std::string kinds;
    for (const uint8_t* end = w.bytes().data(); reader.next(&h, &body); end = body) {
        kinds += h.kind;
        CHECK(body > end);
        if (h.kind == 'I') CHECK(std::memcmp(body, ints, sizeof(ints)) == 0);
        if (h.kind == 's') CHECK(std::memcmp(body, "name", 4) == 0);
    }
    CHECK(kinds == "TtLSIFBsid");
    for (size_t n = 0; n < w.bytes().size(); n++) {
        MetaReader part(w.bytes().first(n));
        size_t whole = 0;
        while (part.next(&h, &body)) whole++;
        CHECK(whole < kinds.size());
    }
    CHECK_FALSE(decode_meta(w.bytes(), "TtLSIFBsi", &a));
    CHECK_FALSE(decode_meta(w.bytes(), "TtLSIFBsdi", &a));
    for (size_t n = 0; n < w.bytes().size(); n++)
        CHECK_FALSE(decode_meta(w.bytes().first(n), "TtLSIFBsid", &a));
}

TEST_CASE("extents") {
    auto extent = [](std::vector<int64_t> dims, std::vector<int64_t> strides, int64_t offset,
                     uint32_t bits) -> int64_t {
        TensorMeta t;
        t.dims = std::move(dims);
        t.strides = std::move(strides);
        t.offset = offset;
        Extent e;
        return extent_of(t, bits, false, &e) ? int64_t(e.bytes) : -1;
    };
    CHECK(extent({2, 3}, {3, 1}, 0, 32) == 24);
    CHECK(extent({2, 3}, {}, 0, 32) == 24);
    CHECK(extent({2, 3}, {10, 1}, 4, 16) == (4 + 10 + 2 + 1) * 2);
    CHECK(extent({}, {}, 0, 64) == 8);
    CHECK(extent({0, 5}, {5, 1}, 7, 32) == 0);
    CHECK(extent({3}, {0}, 1, 8) == 2);
    CHECK(extent({3}, {-1}, 2, 8) == 3);
    CHECK(extent({3}, {-1}, 1, 8) == -1);  // below the address
    CHECK(extent({3}, {1}, -1, 8) == -1);
    CHECK(extent({-1}, {1}, 0, 8) == -1);
    CHECK(extent({3}, {1, 1}, 0, 8) == -1);
    CHECK(extent({7}, {}, 0, 4) == 4);  // half bytes
    constexpr int64_t most = std::numeric_limits<int64_t>::max();
    CHECK(extent({most, most}, {}, 0, 8) == -1);
    CHECK(extent({2}, {most}, 0, 128) == -1);
    CHECK(extent({2}, {1}, most, 8) == -1);
}

TEST_CASE("handles") {
    const uint64_t h = make_handle(HandleKind::event, 5, 3);
    CHECK(handle_kind(h) == HandleKind::event);
    CHECK(handle_index(h) == 5);
    CHECK(h != make_handle(HandleKind::event, 5, 4));
    CHECK(h != make_handle(HandleKind::stream, 5, 3));
    CHECK(handle_kind(~uint64_t(0)) == HandleKind::none);
}

TEST_CASE(
    "operators by type: what is written is read; anything else is refused, and nothing is read beyond its "
    "end") {
    Operation o;
    o.type = "MatMulV2";
    o.engine = 1;
    o.inputs.push_back({0, 2, 2, -1, 0, {2, 3}, {2, 3}, {}, "x1", std::string("\0\1\2", 3), 0x1000, 24});
    o.inputs.push_back({1, 2, -1, -1, 0, {}, {}, {7}, "", "", 0x2000, 2});
    o.outputs.push_back({0, 2, -1, -1, 0, {2}, {}, {}, "y", "", 0x3000, 8});
    o.attributes = {{"transpose_x1", std::string("b\1\0\0\0\1", 6)}, {"name", "s"}};
    const std::vector<uint8_t> bytes = encode_operation(o);
    Operation back;
    REQUIRE(decode_operation(bytes, &back));
    CHECK(encode_operation(back) == bytes);
    CHECK(back.inputs[0].constant == o.inputs[0].constant);
    CHECK(back.attributes == o.attributes);
    for (size_t n = 0; n < bytes.size(); n++) {
        // A copy of its own: a reader that goes on would leave it, which the sanitizers see.
        const std::vector<uint8_t> part(bytes.begin(), bytes.begin() + ptrdiff_t(n));
        Operation cut;
        CHECK(!decode_operation(part, &cut));
    }
    std::mt19937 random(7);
    for (int turn = 0; turn < 20'000; turn++) {
        std::vector<uint8_t> changed = bytes;
        for (int k = int(random() % 4); k >= 0; k--) changed[random() % changed.size()] = uint8_t(random());
        changed.resize(random() % 3 ? changed.size() : random() % changed.size());
        Operation any;
        if (decode_operation(changed, &any))
            CHECK(any.inputs.size() + any.outputs.size() + any.attributes.size() <= 3 * kMaxOperationTensors);
    }
}

TEST_CASE("a wait that is over before anybody looks is not slept through for ever") {
    constexpr uint64_t usual = 2'000'000;
    AdaptiveWait wait;
    const auto learn = [&] {
        for (int i = 0; i < 8; i++) wait.learn(usual);
    };
    learn();
    CHECK(wait.plan(0).spin_from == usual - AdaptiveWait::kWakeNs);
    // Looks that came late say little, unless there is nothing else.
    wait.missed(false);
    wait.missed(false);
    CHECK(wait.plan(0).spin_from > 0);
    wait.learn(usual);
    wait.missed(false);
    wait.missed(false);
    CHECK(wait.plan(0).spin_from > 0);
    wait.missed(false);
    CHECK(wait.plan(0).spin_from == 0);
    learn();
    wait.missed(true);
    CHECK(wait.plan(0).spin_from == 0);
}
