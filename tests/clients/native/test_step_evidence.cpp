// What a step's record says of graphs, lengths, gated time and roles.
#include "steps_fixture.hpp"

using namespace flexnpu;
using namespace flexnpu::test;
using Fixture = StepsFixture;

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
    const auto update = [&](const std::vector<int64_t>& kv) {
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
    sync_device();
    embed({1, 1});
    embed({3, 1}, kOther);
    CHECK(done().size() == 2);
    const uint64_t event = wire::make_handle(wire::HandleKind::event, 5000, 1);
    launch(10);
    steps.event_recorded(event, kStream);
    launch(2);  // of the next step already
    sync_event(event);
    embed({1, 1});
    REQUIRE(done().size() == 3);
    CHECK(done()[2].launches == 11);
    CHECK(done()[2].ended_by == FLEXNPU_STEP_BY_SYNC);
    // A record of a step that is over says nothing of the one that runs.
    sync_event(event);
    CHECK(entries[0].record.seq == 1);
    sync_event(event + 1);
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
