// Where a lane's steps begin and end.
#include "steps_fixture.hpp"

using namespace flexnpu;
using namespace flexnpu::test;
using Fixture = StepsFixture;

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
    CHECK(begun == 4);
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
    CHECK(begun == 4);
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
    CHECK(begun == 1);  // the gate is told all the same
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

TEST_CASE_FIXTURE(Fixture, "a step begins with its input, however long the program then waited") {
    constexpr uint64_t kLong = 100'000'000;
    embed({5});
    launch(40);
    sync();
    for (const bool waits : {true, false}) {
        CAPTURE(waits);
        told.clear();
        steps.copied(kStream, false, true, 64);
        launch(3);
        const uint64_t input = clock_ns;
        const client::StepMark mark = steps.mark(kStream);
        clock_ns += kLong;
        if (waits) steps.reached(mark);
        embed({5});
        const auto begun = of(FLEXNPU_STEP_BEGIN);
        REQUIRE(begun.size() == 1);
        // Without a wait the program was away, and what it had copied may be anything.
        CHECK((begun[0].t_start <= input) == waits);
        launch(40);
        sync();
    }
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
