// What a launch says of its step's phase, for the gate: as soon as it can be seen, and once.
#include "steps_fixture.hpp"

using namespace flexnpu;
using namespace flexnpu::test;
using Fixture = StepsFixture;

namespace {

bool is(const client::StepPhase& p, bool prefills, bool decodes, uint32_t tokens) {
    return p.prefills == prefills && p.decodes == decodes && p.tokens == tokens;
}

}  // namespace

TEST_CASE_FIXTURE(Fixture, "indices of sequences say it with the embedding") {
    embed({2, 37});
    REQUIRE(said.size() == 1);
    CHECK(is(said[0], true, false, 74));
    attend({2, 8, 64}, {37, 74}, {37, 37});
    CHECK(said.size() == 1);
    sync();
    embed({2, 1});
    REQUIRE(said.size() == 2);
    CHECK(is(said[1], false, true, 2));
    sync();
    embed({1});
    REQUIRE(said.size() == 3);
    CHECK(is(said[2], false, true, 1));
}

TEST_CASE_FIXTURE(Fixture, "packed tokens say it with the first attention operator") {
    const std::vector<int64_t> decode{1, 2, 3}, prefill{5, 9}, mixed{1, 2, 9};
    for (const auto& lengths : {decode, prefill, mixed}) {
        embed({lengths.back()});
        CHECK(said.empty());
        for (int layer = 0; layer < 3; layer++) {
            launch(7);
            attend({lengths.back(), 8, 64}, lengths, std::vector<int64_t>(lengths.size(), 40));
        }
        REQUIRE(said.size() == 1);
        CHECK(is(said[0], lengths != decode, lengths != prefill, uint32_t(lengths.back())));
        said.clear();
        sync();
    }
}

TEST_CASE_FIXTURE(Fixture, "where nobody listens only shapes are looked at") {
    listeners = 0;
    embed({9});
    attend({9, 8, 64}, {1, 2, 9}, {30, 20, 7});
    CHECK(said.empty());
    sync();
    embed({1, 9});
    CHECK(said.size() == 1);
}

TEST_CASE_FIXTURE(Fixture, "a graph says what it was captured for, or what its update says") {
    sync();
    steps.capture_begun(kStream);
    embed({4});
    attend({4, 8, 64}, {1, 2, 3, 4}, {9, 9, 9, 9});
    launch(40);
    steps.capture_ended(kStream, kGraph);
    CHECK(said.empty());  // nothing ran
    replay();
    REQUIRE(said.size() == 1);
    CHECK(is(said[0], false, true, 4));
    sync();
    // Its update, on another stream, before it goes: verification of drafts is no decode step.
    steps.updating(kOther, kGraph);
    attend({4, 8, 64}, {2, 4}, {9, 9}, kOther);
    steps.updating(kOther, 0);
    CHECK(said.size() == 1);
    replay();
    REQUIRE(said.size() == 2);
    CHECK(is(said[1], true, false, 4));
}

TEST_CASE_FIXTURE(Fixture, "pieces of a graph leave it to the attention between them") {
    constexpr uint64_t piece = wire::make_handle(wire::HandleKind::graph, 1, 1);
    steps.capture_begun(kStream);
    embed({8});
    steps.capture_ended(kStream, kGraph);
    steps.capture_begun(kStream);
    launch(5);
    steps.capture_ended(kStream, piece);
    replay();
    CHECK(said.empty());
    attend({8, 8, 64}, {1, 2, 3}, {9, 9, 9});  // padded: three of eight
    REQUIRE(said.size() == 1);
    CHECK(is(said[0], false, true, 3));
    replay(piece);
    CHECK(said.size() == 1);
}

TEST_CASE_FIXTURE(Fixture, "a side lane and a shape that cannot be say nothing") {
    embed({4, 1});
    said.clear();
    steps.event_recorded(wire::make_handle(wire::HandleKind::event, 1, 1), kStream);
    steps.event_awaited(wire::make_handle(wire::HandleKind::event, 1, 1), kOther);
    attend({4, 8, 64}, {1, 2, 3, 4}, {9, 9, 9, 9}, kOther);
    CHECK(said.empty());
    sync();
    embed({-1});
    embed({int64_t(1) << 40, int64_t(1) << 40});
    CHECK(said.empty());
}
