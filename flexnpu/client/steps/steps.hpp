// Folds the calls of a lane (a client stream) into steps, as `probes/steps/phases.py` describes them, for the
// probe point flexnpu_step.
//
//   - the second call of an embedding opens a step, and so does the launch of a captured graph that holds
//     one. A graph without one is a piece of the step that runs, unless new input has come;
//   - a second embedding with another table soon after (positions, token types) belongs to the same step;
//   - a step ends at a point of its lane: behind its body, where its result is copied to the host, or where
//     somebody waits. Waits in its middle, and what is launched for the next step, are no ends of it;
//   - a wait says what is over: all that was launched before the record that it waits for, or before the
//     call. So a wait for the step before, on another thread, ends that step and not the one that is
//     launched;
//   - a step is told when the next one has opened and its own end is over, because a forward pass may wait in
//     its middle. Until the next one opens it stands in a table that a reader may look at (MAYBE);
//   - a stream that waits for events of a model's lane (copies, sampling) is a side lane. It has no steps of
//     its own: what is done there belongs to the model's;
//   - where no step runs, an attention operator opens one: the model's embedding is some other operator;
//   - a step of a whole graph or of an attention operator, or on a lane that never showed a model, ends at
//     the first wait;
//   - what is launched between two steps counts in the later one.
//
// The counting never stops, so a reader that comes in the middle of a step is given the next whole one.
// Clocks are read, and records assembled, only in steps that opened while somebody listened.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <vector>

#include "flexnpu/client/probe_point.hpp"
#include "flexnpu/client/steps/step_evidence.hpp"
#include "flexnpu/wire/layout.hpp"

namespace flexnpu::client {

inline constexpr auto relaxed = std::memory_order_relaxed;

class Steps;
class StepLane;
// The lane that the calling thread used last: a synchronous copy names none.
extern constinit __attribute__((tls_model("initial-exec"))) thread_local StepLane* step_lane_used;

// What a wait waits for: what was on a lane, and on the lane that it had waited for.
struct StepMark {
    StepLane* lane = nullptr;
    uint64_t launches = 0, graphs = 0;
    StepLane* follows = nullptr;
    uint64_t follows_launches = 0, follows_graphs = 0;
};

class alignas(64) StepLane {
    friend class Steps;
    static constexpr uint64_t kGraphWeight = 64;
    // All that a launch touches.
    std::atomic<uint64_t> launches_{0};
    std::atomic<uint64_t> stream_{0};
    std::atomic<uint64_t> graphs_{0};
    std::atomic<uint64_t> t_open_{0}, t_last_{0};
    // On a lane with a model t_last_ is a mark now and then, of which the ticks are known, and launches leave
    // ticks only.
    std::atomic<uint64_t> marked_{0}, ticks_{0};  // ticks at the mark; of the last launch behind it, 0: none
    // Whether somebody listened when the step opened. Where nothing was launched since the last one ended,
    // the next launch asks.
    enum Watch : uint8_t { unheard, heard, ask };
    std::atomic<uint8_t> watch_{ask};
    std::atomic<bool> may_gap_{true};  // between two steps of a lane that has shown no model
    Steps* owner_ = nullptr;
    std::atomic<uint64_t> published_{0};

    struct Totals {
        uint64_t launches = 0, graphs = 0, h2d = 0, d2h = 0, h2d_copies = 0, gated = 0;
        uint64_t position() const { return launches + graphs; }  // in the lane's order
        // What a run of launches weighs. A graph's launch stands for many operators.
        uint64_t weight() const { return launches + kGraphWeight * graphs; }
    };
    // A point of the lane, and when all before it was over.
    struct Point {
        Totals at;
        bool here = false, over = false;
        uint64_t t = 0;
    };
    // A step whose launches are over, and whose end is not.
    struct Pending {
        flexnpu_step_record record;
        uint64_t position = 0, gated = 0;
        bool here = false;
    };
    enum class Kind : uint8_t { between, embedding, graph, pieces, attention };

    std::mutex mutex_;
    Totals now_;   // but launches and graphs, which are above, and gated time, which is the daemon's to say
    Totals base_;  // at the running step's beginning
    Point end_;    // which is taken to end it
    Point later_;  // a better one, if what was copied to the device before it was not the next step's input
    Pending pending_;
    flexnpu_step_entry* waiting_ = nullptr;  // its place in the table
    uint64_t run_start_ = 0;                 // weight at the last point that was looked at
    uint64_t run_longest_ = 0;
    uint64_t opened_at_ = 0;   // launches when the step opened
    uint64_t opened_pos_ = 0;  // position then
    uint64_t input_ = 0;       // position + 1 where input came after a result; 0: none has
    uint64_t t_input_ = 0, t_input_last_ = 0;
    bool result_ = false;  // something of the step was copied to the host
    uint64_t seq_ = 0;
    uint64_t model_ = 0;
    Kind kind_ = Kind::between;
    uint64_t t_base_ = 0;    // the end of the step before, as far as it is known
    uint32_t attended_ = 0;  // attention operators looked at
    bool has_model_ = false, capturing_ = false;
    bool said_ = false;                     // a launch of the running step has shown its phase
    std::atomic<StepLane*> main_{nullptr};  // of a side lane: the model's
    StepLane* follows_ = nullptr;           // up to where its last wait for an event made it wait
    uint64_t follows_launches_ = 0, follows_graphs_ = 0;
    std::atomic<uint64_t> side_taken_{0};  // of a side lane: launches that the main one's steps have counted
    std::vector<StepLane*> sides_;         // of a main lane
    std::atomic<uint64_t> updating_{0};    // the graph whose task group launches now give new arguments
    flexnpu_step_evidence evidence_{};
};

// Thread-safe.
class Steps {
public:
    // What a launch is to its lane's step.
    struct Launched {
        bool begins = false;  // the first of a step
        StepPhase phase;      // of the step, where this launch is the first to show it
        wire::StepWord word() const {
            return {uint16_t((begins ? wire::kBeginsStep : 0) | (phase.prefills ? wire::kStepPrefills : 0) |
                             (phase.decodes ? wire::kStepDecodes : 0)),
                    phase.tokens};
        }
    };
    // What it needs from outside; tests have their own.
    struct Outside {
        const volatile uint16_t* listeners;
        uint64_t (*now)();    // ns
        uint64_t (*ticks)();  // what costs less than a clock
        void (*tell)(const flexnpu_step_record*);
        const volatile uint16_t* begin_listeners;
        void (*tell_begin)(const flexnpu_step_record*);
        flexnpu_step_table* waiting;
        const std::atomic<uint64_t>* gated = nullptr;  // ns, by wire::gated_lane()
        uint32_t gated_lanes = 0;
        std::atomic<uint64_t>* launched =
            nullptr;  // operators launched on all lanes, for people: late by a few
    };
    explicit Steps(const Outside& outside) : outside_(outside) {}
    ~Steps();
    // The program ends: what waits for a next step is told.
    void leave();
    // In a child of fork(): the lanes in the table are its parent's.
    static void forget(flexnpu_step_table* waiting);
    Steps(const Steps&) = delete;
    Steps& operator=(const Steps&) = delete;
    // Before anything is launched.
    void publish_to(std::atomic<uint64_t>* launched, const std::atomic<uint64_t>* gated, uint32_t lanes) {
        outside_.launched = launched;
        outside_.gated = gated;
        outside_.gated_lanes = lanes;
    }

    StepLane& lane(uint64_t stream) {
        if (stream == 0) return default_lane();
        const uint32_t i = wire::handle_index(stream);
        auto* chunk = chunks_[i / kChunk].load(std::memory_order_acquire);
        if (__builtin_expect(chunk != nullptr, 1)) {
            StepLane* l = chunk[i % kChunk].load(std::memory_order_acquire);
            if (__builtin_expect(l && l->stream_.load(relaxed) == stream, 1)) return *l;
        }
        return make(stream);
    }
    bool listened() const { return *outside_.listeners != 0; }

    // An operator has been launched on the lane; its embedding() or attention() comes before.
    void launched(StepLane& lane) {
        if (__builtin_expect(lane.watch_.load(relaxed) != StepLane::unheard, 0)) touch(lane);
        const uint64_t n = lane.launches_.fetch_add(1, relaxed) + 1;
        if (__builtin_expect(n % kPublishEvery == 0, 0)) publish(lane);
        step_lane_used = &lane;
    }
    // `key`: the metadata of the operator's first call behind the operator's number (wire/meta.hpp);
    // `t_first`: when that was, 0: not known.
    // All three come before the launch, and say what it is to its step. One of a capture is nothing, nor is
    // an attention operator while nobody listens: it is not looked at then.
    Launched embedding(StepLane& lane, std::span<const uint8_t> key, uint64_t t_first);
    Launched attention(StepLane& lane, std::span<const uint8_t> key, StepRole role);

    Launched graph(uint64_t stream, uint64_t model);
    void capture_begun(uint64_t stream);
    void capture_ended(uint64_t stream, uint64_t model);  // model 0: it failed
    void graph_destroyed(uint64_t model);
    // Launches of the stream give new arguments to a task group of this graph; 0: no longer.
    void updating(uint64_t stream, uint64_t graph);

    // A wait: `mark()` before it, `reached()` when it has returned. Without a mark of an event's there is
    // nothing to reach.
    StepMark mark(uint64_t stream);
    StepMark mark_of_event(uint64_t event);
    std::vector<StepMark> marks();  // of all lanes
    void reached(const StepMark& mark);
    void event_recorded(uint64_t event, uint64_t stream);
    // The stream waits for an event.
    void event_awaited(uint64_t event, uint64_t stream);
    // A copy between host and device of the stream; `waits`: of none (aclrtMemcpy), and the call returns when
    // it is over.
    void copied(uint64_t stream, bool waits, bool to_device, uint64_t bytes);
    void stream_destroyed(uint64_t stream);

    // Silence on a lane, without a synchronise, that ends a plain step, ns.
    static constexpr uint64_t kGapNs = 1'000'000'000;
    // Launches within which a second embedding table belongs to the same step.
    static constexpr uint64_t kTableWindow = 64;
    // Attention operators of a step that are looked at: there is one kernel for prompts and one for tokens.
    static constexpr uint32_t kAttentions = 2;
    static constexpr uint32_t kPublishEvery = 64;
    // Input of one step is copied within this time, ns; what came earlier is not the beginning of the step.
    static constexpr uint64_t kInputNs = 20'000'000;

private:
    using Lane = StepLane;
    using Totals = StepLane::Totals;
    using Kind = StepLane::Kind;
    static constexpr uint32_t kChunk = 1024;
    static constexpr uint32_t kEventChunk = 1024;
    struct Mark {
        std::atomic<StepLane*> lane{nullptr}, follows{nullptr};
        std::atomic<uint64_t> launches{0}, graphs{0}, follows_launches{0}, follows_graphs{0};
    };
    struct Model {
        bool captured = false;
        bool opens = false;   // it holds an embedding
        bool pieces = false;  // and graphs without one were captured behind it, before the next one with
        flexnpu_step_evidence evidence{};
        StepPhase phase;               // of its capture, where that showed one
        StepLane* replayed = nullptr;  // on which it was launched last
        bool updated = false;          // arrays for its next launch
        flexnpu_step_evidence lengths{};
    };

    static bool is_graph(Kind kind) { return kind == Kind::graph || kind == Kind::pieces; }
    Lane& default_lane() {
        if (__builtin_expect(default_ready_.load(std::memory_order_acquire), 1)) return default_;
        return make(0);
    }
    Lane& make(uint64_t stream);
    Lane* copies_lane();
    void touch(Lane& lane);
    void mark(Lane& lane, uint64_t now);
    void settle(Lane& lane);
    bool heard(Lane& lane);
    void publish(Lane& lane);
    Totals totals(const Lane& lane) const;
    uint64_t gated(const Lane& lane) const;
    void open(Lane& lane, Kind kind, uint64_t now, uint64_t began);
    void begin(Lane& lane);
    static StepPhase say(Lane& lane, const StepPhase& phase);
    flexnpu_step_record record_of(const Lane& lane, uint32_t kind, uint64_t t_end, uint32_t ended_by,
                                  const Totals& end) const;
    void tell(Lane& lane, uint32_t kind, uint64_t t_end, uint32_t ended_by, const Totals& end);
    void show(Lane& lane);
    void take_entry(Lane& lane);
    void close(Lane& lane, uint64_t t_end, uint32_t ended_by, const Totals& end);
    void close_for_next(Lane& lane, uint32_t ended_by);
    void reset(Lane& lane);
    void forget_step(Lane& lane, const Totals& end);
    void propose(Lane& lane, const Totals& then, bool over);
    void reached(Lane& lane, uint64_t launches, uint64_t graphs);
    void reached_model(Lane& lane, const Totals& then);
    void park(Lane& lane);
    void settle_pending(Lane& lane, uint64_t t_end, uint32_t ended_by);
    void result(Lane& lane, const Totals& then, uint64_t bytes, bool over);
    void input(Lane& lane, uint64_t bytes);
    uint64_t side_launches(const Lane& lane) const;
    void make_side(Lane& lane, Lane* main);

    Outside outside_;
    std::atomic<bool> default_ready_{false};
    Lane default_;
    std::atomic<std::atomic<Lane*>*> chunks_[wire::kMaxObjects / kChunk] = {};
    std::atomic<Mark*> events_[wire::kMaxObjects / kEventChunk] = {};
    std::mutex mutex_;  // never taken with a lane's held; the other way round is allowed
    std::vector<Lane*> lanes_;
    static std::atomic<bool> entry_taken_[kFlexnpuStepEntries];
    std::mutex models_mutex_;  // the innermost
    std::map<uint64_t, Model> models_;
    uint64_t captured_ = 0;  // the last graph captured with an embedding
};

}  // namespace flexnpu::client
