// The folding of a lane's calls into steps, driven without a daemon: a clock that the test moves, and records
// that it looks at.
#include <doctest/doctest.h>

#include <string_view>
#include <thread>
#include <vector>

#include "flexnpu/client/steps.hpp"
#include "flexnpu/wire/meta.hpp"

using namespace flexnpu;
using client::StepLane;
using client::Steps;

namespace {

constexpr uint64_t kStream = wire::make_handle(wire::HandleKind::stream, 3, 1);
constexpr uint64_t kOther = wire::make_handle(wire::HandleKind::stream, 4, 1);
constexpr uint64_t kGraph = wire::make_handle(wire::HandleKind::graph, 0, 1);

std::atomic<uint64_t> clock_ns, clock_reads;
std::vector<flexnpu_step_record> told;
volatile uint16_t listeners, beginners;

uint64_t read_clock() {
    clock_reads++;
    return clock_ns += 10;
}

struct Fixture {
    std::atomic<uint64_t> launched{0};
    std::atomic<uint64_t> gated[8] = {};
    flexnpu_step_entry entries[3] = {};
    flexnpu_step_table table{kFlexnpuStepVersion, sizeof(flexnpu_step_entry), 3, 0, entries};
    Steps steps{{&listeners, read_clock, [] { return clock_ns += 10; },
                 [](const flexnpu_step_record* r) { told.push_back(*r); }, &beginners,
                 [](const flexnpu_step_record* r) { told.push_back(*r); }, &table, gated, 8, &launched}};
    Fixture() {
        listeners = 1;
        beginners = 1;
        clock_ns = 1000;
        told.clear();
        client::step_lane_used = nullptr;
    }

    static wire::MetaWriter embedding(std::vector<int64_t> indices, int64_t rows = 1000,
                                      int64_t columns = 64) {
        wire::MetaWriter w;
        const std::vector<int64_t> table{rows, columns};
        std::vector<int64_t> out = indices;
        out.push_back(columns);
        w.tensor('T', 1, 2, 0, table, {}, table);
        w.tensor('T', 9, 2, 0, indices, {}, indices);
        w.tensor('T', 1, 2, 0, out, {}, out);
        return w;
    }
    void embed(std::vector<int64_t> indices, uint64_t stream = kStream, int64_t rows = 1000,
               uint64_t t_first = 0) {
        StepLane& l = steps.lane(stream);
        steps.embedding(l, embedding(std::move(indices), rows).bytes(), t_first);
        steps.launched(l);
    }
    void launch(int n, uint64_t stream = kStream) {
        for (int i = 0; i < n; i++) steps.launched(steps.lane(stream));
    }
    void attend(std::vector<int64_t> query, std::vector<int64_t> lengths, std::vector<int64_t> kv,
                uint64_t stream = kStream) {
        wire::MetaWriter w;
        w.tensor('T', 1, 2, 0, query, {}, query);
        w.array('I', lengths.data(), uint32_t(lengths.size()), 8);
        w.array('I', kv.data(), uint32_t(kv.size()), 8);
        w.array('s', "TND", 3, 1);
        StepLane& l = steps.lane(stream);
        steps.attention(l, w.bytes(), client::StepRole::attention_query_kv);
        steps.launched(l);
    }
    void sync(uint64_t stream = kStream) { steps.synchronised(stream); }
    static std::vector<flexnpu_step_record> of(uint32_t kind) {
        std::vector<flexnpu_step_record> out;
        for (const auto& r : told) {
            if (r.kind == kind) out.push_back(r);
        }
        return out;
    }
    static std::vector<flexnpu_step_record> done() { return of(FLEXNPU_STEP_DONE); }
};

}  // namespace

TEST_CASE_FIXTURE(Fixture, "a step ends at the synchronise behind its body, not at that in its middle") {
    for (int i = 0; i < 4; i++) {
        embed({1, i ? 1 : 37});
        launch(8);
        sync();  // a look at the mask
        launch(200);
        sync();
        const uint64_t end = clock_ns;
        steps.copied(0, true, false, 8);
        launch(3);  // a stop condition
        sync();
        steps.copied(0, true, true, 16);
        CHECK(entries[0].record.t_end == end);
        CHECK(entries[0].record.seq == uint64_t(i));
    }
    const auto d = done();
    REQUIRE(d.size() == 3);
    CHECK(d[0].evidence.dims[1] == 37);
    CHECK(d[0].evidence.ndim == 2);
    CHECK(d[0].evidence.flags == (FLEXNPU_STEP_HAS_INDICES | FLEXNPU_STEP_HAS_TABLE | FLEXNPU_STEP_AGREED));
    CHECK(d[0].launches == 209);
    CHECK(d[0].d2h == 8);
    CHECK(d[0].h2d == 0);
    CHECK(d[1].launches == 212);  // with what was launched since
    CHECK(d[1].h2d == 16);
    CHECK(d[2].seq == 2);
    CHECK(d[2].lane_work == 209 + 2 * 212);
    for (const auto& r : d) {
        CHECK(r.version == kFlexnpuStepVersion);
        CHECK(r.size == sizeof(r));
        CHECK(r.opening == FLEXNPU_STEP_EMBEDDING);
        CHECK(r.ended_by == FLEXNPU_STEP_BY_SYNC);
        CHECK(r.stream == kStream);
        CHECK(r.t_start < r.t_last);
        CHECK(r.t_last < r.t_end + 100 * 10);
        CHECK(r.gated_ns == 0);
    }
    CHECK(of(FLEXNPU_STEP_BEGIN).size() == 4);
    // The last one is known as it is so far, its result included.
    const auto last = entries[0].record;
    CHECK(last.kind == FLEXNPU_STEP_MAYBE);
    CHECK(entries[0].begun == entries[0].done);
    CHECK(last.seq == 3);
    CHECK(last.d2h == 8);
    CHECK(last.launches == 212);
    CHECK(launched == 209 + 3 * 212 + 3);
}

TEST_CASE_FIXTURE(Fixture, "the first call's time opens a step") {
    embed({1, 1}, kStream, 1000, 777);
    embed({1, 1}, kStream, 1000, 1 << 30);  // nonsense: later than its launch
    sync();
    embed({1, 1});
    REQUIRE(done().size() == 2);
    CHECK(done()[0].t_start == 777);
    CHECK(done()[1].t_start < 1 << 30);
}

TEST_CASE_FIXTURE(Fixture, "positions and token types are no steps of their own") {
    for (int i = 0; i < 3; i++) {
        embed({2, 11});
        launch(2);
        embed({1, 11}, kStream, 512);
        launch(70);
        sync();
    }
    embed({1, 11}, kStream, 512);  // far from the other: a step
    REQUIRE(done().size() == 3);
    for (const auto& r : done()) {
        CHECK(r.launches == 74);
        CHECK(r.evidence.dims[0] == 2);
    }
}

TEST_CASE_FIXTURE(
    Fixture,
    "nobody listens: nothing is told and no clock read; who comes amid a step gets the next whole one") {
    listeners = 0;
    embed({1, 5});
    launch(10);
    const uint64_t before = clock_ns;
    listeners = 1;
    launch(20);
    sync();
    CHECK(clock_ns == before);
    launch(2);
    CHECK(told.empty());
    embed({1, 1});
    launch(30);
    sync();
    embed({1, 1});
    REQUIRE(done().size() == 1);
    CHECK(done()[0].launches == 33);
    CHECK(done()[0].seq == 1);
    // Who leaves amid a step is told no more of it, and nothing later.
    listeners = 0;
    told.clear();
    sync();
    embed({1, 1});
    launch(5);
    sync();
    CHECK(told.empty());
}

TEST_CASE_FIXTURE(Fixture, "steps without any synchronise end where the next begins, at their last launch") {
    for (int i = 0; i < 3; i++) {
        embed({1, 1});
        launch(20);
    }
    REQUIRE(done().size() == 2);
    CHECK(done()[0].ended_by == FLEXNPU_STEP_BY_NEXT);
    CHECK(done()[0].t_end == done()[0].t_last);
    CHECK(done()[0].launches == 21);
}

TEST_CASE_FIXTURE(Fixture,
                  "launches of a model's step read no clock, and the last one's time is known all the same") {
    for (int i = 0; i < 2; i++) {
        embed({1, 1});
        launch(50);
        const uint64_t last = clock_ns;
        clock_ns += 10'000;
        embed({1, 1});
        launch(1);
        REQUIRE(!done().empty());
        CHECK(done().back().t_last + 50 > last);
        CHECK(done().back().t_last < last + 50);
    }
    clock_reads = 0;
    launch(500);
    CHECK(clock_reads == 0);
}

TEST_CASE_FIXTURE(
    Fixture, "what may have ended stands in the table, a lane an entry, and is told when the program ends") {
    for (uint64_t i = 1; i < 6; i++) {
        embed({1, 1}, wire::make_handle(wire::HandleKind::stream, uint32_t(i), 1));
        launch(int(i), wire::make_handle(wire::HandleKind::stream, uint32_t(i), 1));
        sync(wire::make_handle(wire::HandleKind::stream, uint32_t(i), 1));
    }
    for (uint64_t i = 0; i < 3; i++) CHECK(entries[i].record.launches == i + 2);  // two lanes have none
    embed({1, 1}, wire::make_handle(wire::HandleKind::stream, 1, 1));             // in the middle of a step
    REQUIRE(done().size() == 1);
    told.clear();
    steps.leave();
    REQUIRE(done().size() == 4);
    for (uint64_t i = 0; i < 4; i++) {
        CHECK(done()[i].launches == i + 3);
        CHECK(done()[i].ended_by == FLEXNPU_STEP_BY_SYNC);
    }
    steps.leave();
    CHECK(done().size() == 4);
    Steps::forget(&table);
    CHECK(entries[0].record.version == 0);
}

TEST_CASE_FIXTURE(Fixture,
                  "nobody listens: the table is not written; entries are free when their lanes are gone") {
    listeners = 0;
    embed({1, 1});
    sync();
    CHECK(entries[0].begun == 0);
    listeners = 1;
    for (int i = 0; i < 5; i++) {
        Fixture other;
        other.embed({1, 1});
        other.launch(i);
        other.sync();
        CHECK((other.entries[0].record.launches + other.entries[1].record.launches) == uint64_t(i + 1));
    }
}

TEST_CASE_FIXTURE(Fixture, "a lane without a model has plain steps, cut by synchronises and silence") {
    launch(5);
    sync();
    launch(7);
    sync();
    sync();
    launch(3);
    clock_ns += Steps::kGapNs + 1;
    launch(4);
    sync();
    std::vector<uint64_t> launches;
    for (const auto& r : done()) {
        CHECK(r.opening == FLEXNPU_STEP_PLAIN);
        launches.push_back(r.launches);
    }
    CHECK(launches == std::vector<uint64_t>{5, 7, 3, 4});
    CHECK(done()[2].ended_by == FLEXNPU_STEP_BY_GAP);
}

TEST_CASE_FIXTURE(Fixture,
                  "a lane without a model is heard from the first run that begins while somebody listens") {
    listeners = 0;
    launch(5);
    sync();
    listeners = 1;
    launch(6);
    sync();
    listeners = 0;
    launch(7);
    listeners = 1;
    launch(7);
    sync();
    launch(8);
    sync();
    std::vector<uint64_t> launches;
    for (const auto& r : done()) {
        launches.push_back(r.launches);
        CHECK(r.t_start != 0);
        CHECK(r.t_start < r.t_end);
    }
    CHECK(launches == std::vector<uint64_t>{6, 8});
}

TEST_CASE_FIXTURE(Fixture, "a captured graph is known by what it holds, and each replay is a step") {
    embed({4, 1});
    sync();
    steps.capture_begun(kStream);
    embed({4, 1});
    attend({4, 8, 64}, {1, 2, 3, 4}, {9, 9, 9, 9});
    launch(40);
    steps.capture_ended(kStream, kGraph);
    for (int i = 0; i < 3; i++) {
        steps.copied(kStream, false, true, 32);
        steps.graph(kStream, kGraph);
        sync();
    }
    const auto d = done();
    REQUIRE(d.size() == 5);
    CHECK(d[1].opening == FLEXNPU_STEP_CAPTURE);
    CHECK(d[1].launches == 42);
    for (size_t i = 2; i < 5; i++) {
        CHECK(d[i].opening == FLEXNPU_STEP_GRAPH);
        CHECK(d[i].model == kGraph);
        CHECK(d[i].graphs == 1);
        CHECK(d[i].launches == 0);
        CHECK(d[i].h2d == 32);
        CHECK(d[i].evidence.arrays == 0);  // the capture's lengths are not this step's
        CHECK((d[i].evidence.flags & (FLEXNPU_STEP_FROM_CAPTURE | FLEXNPU_STEP_HAS_INDICES)) ==
              (FLEXNPU_STEP_FROM_CAPTURE | FLEXNPU_STEP_HAS_INDICES));
        CHECK(d[i].evidence.dims[0] == 4);
    }
    // A capture that fails is forgotten, and so is a graph that was destroyed.
    steps.graph_destroyed(kGraph);
    steps.graph(kStream, kGraph);
    sync();
    CHECK(!(done().back().evidence.flags & FLEXNPU_STEP_FROM_CAPTURE));
}

TEST_CASE_FIXTURE(Fixture, "a graph captured while nobody listened is known to who comes later") {
    listeners = 0;
    steps.capture_begun(kStream);
    embed({2, 1});
    steps.capture_ended(kStream, kGraph);
    listeners = 1;
    steps.graph(kStream, kGraph);
    sync();
    REQUIRE(done().size() == 1);
    CHECK(done()[0].evidence.dims[0] == 2);
}

TEST_CASE_FIXTURE(Fixture, "lengths of an attention operator, the first ones of a step") {
    embed({9});
    attend({9, 8, 64}, {1, 2, 9}, {30, 20, 7});
    attend({9, 8, 64}, {1, 2, 9}, {30, 20, 7});
    attend({9, 8, 64}, {1, 2, 9}, {31, 21, 8});
    sync();
    embed({3});
    REQUIRE(done().size() == 1);
    const flexnpu_step_evidence e = done()[0].evidence;
    CHECK(e.query_ndim == 3);
    CHECK(e.query[0] == 9);
    REQUIRE(e.arrays == 2);
    CHECK(e.array[0].n == 3);
    CHECK(e.array[0].last == 9);
    CHECK(e.array[0].ones == 2);
    CHECK(e.array[0].rising == (1 | FLEXNPU_STEP_QUERY << 8));
    CHECK(e.array[1].rising == FLEXNPU_STEP_KV << 8);
    CHECK(std::string_view(e.layout) == "TND");
    CHECK(e.array[1].sum == 57);
    CHECK(e.array[1].max == 30);
}

TEST_CASE_FIXTURE(Fixture, "an attention operator's lengths stand among arguments of every other kind") {
    wire::MetaWriter w;
    const std::vector<int64_t> query{4, 8, 64}, kv{21, 22, 23, 24};
    const uint64_t value[2] = {};
    const uint8_t flags[3] = {1, 0, 1};
    w.tensor('T', 1, 2, 0, query, query, query);
    w.head('L', true, 0, 0, 2);
    w.tensor('T', 1, 2, 0, kv, {}, kv);
    w.head('T', false, 0, 0, 0);
    w.head('T', false, 0, 0, 0);
    w.head('I', false, 0, 0, 0);  // no query lengths
    w.head('S', true, 9, 0, 0);
    w.raw(value, 16);
    w.array('B', flags, 3, 1);
    w.array('I', kv.data(), 4, 8);
    w.word('d', value);
    w.array('s', "BSND_NBSD", 9, 1);
    w.array('s', "other", 5, 1);
    embed({4});
    steps.attention(steps.lane(kStream), w.bytes(), client::StepRole::attention_query_kv);
    launch(1);
    sync();
    embed({4});
    REQUIRE(done().size() == 1);
    const flexnpu_step_evidence e = done()[0].evidence;
    CHECK(e.query_ndim == 3);
    CHECK(e.query[2] == 64);
    REQUIRE(e.arrays == 1);
    CHECK(e.array[0].max == 24);
    CHECK(e.array[0].rising == (1 | FLEXNPU_STEP_KV << 8));
    CHECK(std::string_view(e.layout, sizeof(e.layout)) == "BSND_NBS");
}

TEST_CASE_FIXTURE(Fixture,
                  "task updates tell the lengths of the graph that they change, on whatever stream") {
    steps.capture_begun(kStream);
    embed({4});
    steps.capture_ended(kStream, kGraph);
    const auto update = [&](std::vector<int64_t> kv) {
        for (int layer = 0; layer < 3; layer++) {
            steps.updating(kOther, kGraph);
            attend({4, 8, 64}, {1, 2, 3, 4}, kv, kOther);
            steps.updating(kOther, 0);
        }
    };
    steps.graph(kStream, kGraph);
    update({7, 7, 7, 7});
    sync();
    update({8, 8, 8, 8});  // for the next replay
    steps.graph(kStream, kGraph);
    sync();
    steps.graph(kStream, kGraph);
    sync();
    std::vector<flexnpu_step_record> replays;
    for (const auto& r : done()) {
        if (r.opening == FLEXNPU_STEP_GRAPH) replays.push_back(r);
    }
    REQUIRE(replays.size() == 3);
    REQUIRE(replays[0].evidence.arrays == 2);
    CHECK(replays[0].evidence.array[1].max == 7);
    REQUIRE(replays[1].evidence.arrays == 2);
    CHECK(replays[1].evidence.array[1].max == 8);
    CHECK(replays[2].evidence.arrays == 0);
}

TEST_CASE_FIXTURE(
    Fixture, "a device's synchronise ends the steps of all its lanes, an event's those before its record") {
    embed({1, 19});
    embed({3, 1}, kOther);
    launch(30);
    launch(40, kOther);
    steps.device_synchronised();
    embed({1, 1});
    embed({3, 1}, kOther);
    CHECK(done().size() == 2);
    const uint64_t event = wire::make_handle(wire::HandleKind::event, 5000, 1);
    launch(10);
    steps.event_recorded(event, kStream);
    launch(2);  // of the next step already
    steps.event_synchronised(event);
    embed({1, 1});
    REQUIRE(done().size() == 3);
    CHECK(done()[2].launches == 11);
    CHECK(done()[2].ended_by == FLEXNPU_STEP_BY_SYNC);
    // A record of a step that is over says nothing of the one that runs.
    steps.event_synchronised(event);
    CHECK(entries[0].record.seq == 1);
    steps.event_synchronised(event + 1);
}

TEST_CASE_FIXTURE(Fixture, "time that the gate held belongs to the step amid which it grew") {
    embed({1, 1});
    gated[wire::gated_lane(kStream)] = 500;
    sync();
    gated[wire::gated_lane(kStream)] = 800;  // between steps
    embed({1, 1});
    gated[wire::gated_lane(kStream)] = 900;
    sync();
    embed({1, 1});
    gated[wire::gated_lane(kStream)] = 0;  // nonsense does no harm
    sync();
    embed({1, 1});
    const auto d = done();
    REQUIRE(d.size() == 3);
    CHECK(d[0].gated_ns == 500);
    CHECK(d[1].gated_ns == 100);
    CHECK(d[2].gated_ns == UINT64_MAX);
    // A stream that the daemon has no room for.
    const uint64_t far = wire::make_handle(wire::HandleKind::stream, 700, 1);
    embed({1, 1}, far);
    sync(far);
    CHECK(told.back().gated_ns == UINT64_MAX);
}

TEST_CASE_FIXTURE(Fixture, "a stream in the place of one that is gone") {
    embed({1, 1});
    launch(9);
    steps.stream_destroyed(kStream);
    REQUIRE(done().size() == 1);
    CHECK(done()[0].launches == 10);
    const uint64_t heir = wire::make_handle(wire::HandleKind::stream, 3, 2);
    launch(4, heir);
    sync(heir);
    launch(5, heir);
    sync(heir);
    CHECK(done().back().stream == heir);
    CHECK(done().back().launches == 5);
}

TEST_CASE_FIXTURE(Fixture,
                  "no launch is lost between threads that launch and one that opens and synchronises") {
    constexpr int kEach = 20'000;
    embed({1, 1});
    std::vector<std::thread> threads;
    for (int t = 0; t < 3; t++) {
        threads.emplace_back([&] { launch(kEach); });
    }
    for (int i = 0; i < 200; i++) {
        sync();
        embed({1, 1});
    }
    for (auto& t : threads) t.join();
    sync();
    embed({1, 1});
    uint64_t sum = 0;
    for (const auto& r : done()) sum += r.launches;
    CHECK(sum == 3 * kEach + 201);
}

TEST_CASE_FIXTURE(Fixture, "a model whose embedding is another operator: its attention opens the step") {
    for (int i = 0; i < 3; i++) {
        launch(4);
        attend({2, 8, 64}, {1, 2}, {5, 6});
        launch(20);
        attend({2, 8, 64}, {1, 2}, {5, 6});
        sync();
    }
    launch(3);
    sync();
    const auto d = done();
    REQUIRE(d.size() == 4);
    for (size_t i = 0; i < 3; i++) {
        CHECK(d[i].opening == FLEXNPU_STEP_ATTENTION);
        CHECK(d[i].launches == 26);
        CHECK(d[i].evidence.query[0] == 2);
        CHECK(d[i].evidence.arrays == 2);
        CHECK(d[i].t_start < d[i].t_end);
    }
    CHECK(d[1].t_base == d[0].t_end);
    CHECK(d[3].opening == FLEXNPU_STEP_PLAIN);
    CHECK(of(FLEXNPU_STEP_BEGIN).size() == 3);
}

TEST_CASE_FIXTURE(Fixture, "openings are told only to who listens to them") {
    beginners = 0;
    embed({1, 1});
    sync();
    embed({1, 1});
    CHECK(done().size() == 1);
    CHECK(of(FLEXNPU_STEP_BEGIN).empty());
}

TEST_CASE("roles") {
    CHECK(client::step_role("aclnnEmbedding") == client::StepRole::embedding);
    CHECK(client::step_role("aclnnEmbeddingDenseBackward") == client::StepRole::none);
    CHECK(client::step_role("aclnnFusedInferAttentionScoreV2") == client::StepRole::attention_query_kv);
    CHECK(client::step_role("aclnnFlashAttentionVarLenScoreV2") == client::StepRole::attention_prefix);
    CHECK(client::step_role("aclnnFlashAttentionScoreV2") == client::StepRole::attention);
    CHECK(client::step_role("aclnnFlashAttentionScoreGrad") == client::StepRole::none);
    CHECK(client::step_role("aclnnMatmul") == client::StepRole::none);
}
