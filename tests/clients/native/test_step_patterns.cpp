// Call patterns of serving engines, as data: what is called in an iteration, and what the steps must be.
#include <map>
#include <sstream>
#include <string>

#include "steps_fixture.hpp"

using namespace flexnpu;
using namespace flexnpu::test;

namespace {

struct Expected {
    uint64_t launches, graphs, d2h;
};
struct Pattern {
    const char* name;
    // Once, before anybody counts. Words: see `Engine::call`.
    const char* setup;
    // As often as there are iterations, one behind the other.
    const char* iteration;
    uint32_t opening;
    Expected step;  // each, but the first and the last: what is prepared for a step counts in it
};

// vLLM-Ascend copies back on a stream of its own ("copies"), and another thread waits for the copy's event.
constexpr Pattern kPatterns[] = {
    {"eager, the same thread waits for its stream",
     "",
     "input; ops 5; embed 4; ops 80; ops 6; wait; copy-out",
     FLEXNPU_STEP_EMBEDDING,
     {92, 0, 8}},
    {"eager, an event behind the copy, on the same stream",
     "",
     "input; ops 5; embed 4; ops 86; post-out; record copied main; wait-event copied",
     FLEXNPU_STEP_EMBEDDING,
     {92, 0, 8}},
    {"eager, another thread waits for the step before while this one is launched",
     "",
     "wait-event inputs; input; ops 5; record inputs main; embed 4; ops 40; others-wait; ops 46; "
     "side-out",
     FLEXNPU_STEP_EMBEDDING,
     {92, 0, 8}},
    {"eager, another thread waits for the step before between two steps",
     "",
     "wait-event inputs; input; ops 5; record inputs main; embed 4; ops 86; side-out; others-wait",
     FLEXNPU_STEP_EMBEDDING,
     {92, 0, 8}},
    {"pieces of a graph with eager attention, a synchronise before each",
     "capture-pieces 4",
     "input; ops 5; wait; piece 0; ops 3; wait; piece 1; ops 3; wait; piece 2; ops 3; wait; piece 3; ops 6; "
     "side-out; others-wait",
     FLEXNPU_STEP_GRAPH,
     {20, 4, 8}},
    {"the same, asynchronous: the next iteration's first synchronise comes before the other thread's",
     "capture-pieces 4",
     "input; ops 5; wait; piece 0; others-wait; ops 3; wait; piece 1; ops 3; wait; piece 2; ops 3; wait; "
     "piece 3; ops 6; side-out",
     FLEXNPU_STEP_GRAPH,
     {20, 4, 8}},
    {"a whole graph, asynchronous",
     "capture-pieces 1",
     "input; ops 5; wait; piece 0; others-wait; ops 6; side-out",
     FLEXNPU_STEP_GRAPH,
     {11, 1, 8}},
    {"sampling on another stream",
     "",
     "input; ops 5; embed 4; ops 80; record logits main; await other logits; ops-on other 6; "
     "record chosen other; await copies chosen; out copies; record arrived copies; wait-event arrived",
     FLEXNPU_STEP_EMBEDDING,
     {92, 0, 8}},
    {"logits to the host and back before sampling",
     "",
     "input; ops 5; embed 4; ops 80; wait; copy-out; input; ops 40; wait; copy-out",
     FLEXNPU_STEP_EMBEDDING,
     {126, 0, 16}},
};

// Plays a pattern. Events get a new handle with each record, as torch's do.
struct Engine : StepsFixture {
    static constexpr uint64_t kMain = kStream;
    std::map<std::string, uint64_t> streams{
        {"main", kMain},
        {"copies", kOther},
        {"other", wire::make_handle(wire::HandleKind::stream, 5, 1)},
    };
    std::map<std::string, uint64_t> events;
    std::vector<uint64_t> arrived;  // copies back, in order
    uint32_t next_event = 0;

    static uint64_t graph_of(int piece) {
        return wire::make_handle(wire::HandleKind::graph, uint32_t(piece), 1);
    }

    void record(const std::string& name, const std::string& stream) {
        events[name] = wire::make_handle(wire::HandleKind::event, next_event++ % 64, 1);
        steps.event_recorded(events[name], streams[stream]);
    }

    // One word of a pattern and its arguments.
    void call(const std::string& word, std::istringstream& rest) {
        std::string a, b;
        int n = 0;
        if (word == "input") {
            for (int i = 0; i < 3; i++) steps.copied(kMain, false, true, 64);
        } else if (word == "ops") {
            rest >> n;
            launch(n);
        } else if (word == "ops-on") {
            rest >> a >> n;
            launch(n, streams[a]);
        } else if (word == "embed") {
            rest >> n;
            embed({n});
        } else if (word == "wait") {
            sync();
        } else if (word == "copy-out") {
            steps.copied(kMain, true, false, 8);
        } else if (word == "post-out") {
            steps.copied(kMain, false, false, 8);
        } else if (word == "out") {
            rest >> a;
            steps.copied(streams[a], false, false, 8);
        } else if (word == "record") {
            rest >> a >> b;
            record(a, b);
        } else if (word == "await") {
            rest >> a >> b;
            steps.event_awaited(events[b], streams[a]);
        } else if (word == "wait-event") {
            rest >> a;
            if (events.contains(a)) sync_event(events[a]);
        } else if (word == "side-out") {
            record("chosen", "main");
            steps.event_awaited(events["chosen"], kOther);
            steps.copied(kOther, false, false, 8);
            record("arrived", "copies");
            arrived.push_back(events["arrived"]);
        } else if (word == "others-wait") {
            // Another thread waits for the last copy back: amid an iteration that of the one before.
            if (!arrived.empty()) std::thread([&] { sync_event(arrived.back()); }).join();
        } else if (word == "capture-pieces") {
            rest >> n;
            const uint64_t stream = wire::make_handle(wire::HandleKind::stream, 6, 1);
            for (int i = 0; i < n; i++) {
                steps.capture_begun(stream);
                if (i == 0) embed({4}, stream);
                launch(5, stream);
                steps.capture_ended(stream, graph_of(i));
            }
        } else if (word == "piece") {
            rest >> n;
            replay(graph_of(n), kMain);
        } else {
            FAIL("unknown word: ", word);
        }
    }
    void play(const char* text) {
        std::istringstream words{std::string(text)};
        for (std::string one; std::getline(words, one, ';');) {
            std::istringstream parts(one);
            std::string word;
            if (parts >> word) call(word, parts);
        }
    }
};

}  // namespace

TEST_CASE("iterations of engines are steps, whoever waits for what, and when") {
    for (const Pattern& pattern : kPatterns) {
        INFO(std::string(pattern.name));
        Engine engine;
        engine.play(pattern.setup);
        constexpr int kIterations = 7;
        const int before = engine.begun;
        std::vector<uint64_t> began;
        for (int i = 0; i < kIterations; i++) {
            began.push_back(clock_ns);
            engine.play(pattern.iteration);
            clock_ns += 1000;
        }
        engine.steps.leave();
        CHECK(engine.begun - before == kIterations);  // as the gate is told
        std::vector<flexnpu_step_record> steps;
        for (const auto& r : StepsFixture::done()) {
            if (r.opening == FLEXNPU_STEP_CAPTURE) continue;
            // A lane that has shown no model yet: the first iteration's preparation is plain work.
            if (r.opening == FLEXNPU_STEP_PLAIN && steps.empty() && r.stream == Engine::kMain) continue;
            CHECK(r.opening == pattern.opening);
            CHECK(r.stream == Engine::kMain);  // no other stream has steps of its own
            steps.push_back(r);
        }
        REQUIRE(steps.size() == kIterations);
        for (size_t i = 0; i < steps.size(); i++) {
            CAPTURE(i);
            const auto& r = steps[i];
            CHECK(r.seq == steps[0].seq + i);
            CHECK(r.evidence.dims[0] == 4);
            CHECK(r.t_start >= began[i]);
            CHECK(r.t_start < r.t_end);
            if (i > 0) CHECK(steps[i - 1].t_end <= r.t_end);
            if (i > 0 && r.ended_by == FLEXNPU_STEP_BY_SYNC) CHECK(r.t_base == steps[i - 1].t_end);
            if (i == 0 || i + 1 == steps.size()) continue;
            CHECK(r.launches == pattern.step.launches);
            CHECK(r.graphs == pattern.step.graphs);
            CHECK(r.d2h == pattern.step.d2h);
            CHECK(r.ended_by == FLEXNPU_STEP_BY_SYNC);
        }
    }
}
