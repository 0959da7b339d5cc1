// The dispatch gate: which lane's head operator is dispatched next, or that none may yet.
//
// A pure state machine. Times (ns of one monotonic clock) and events come in as arguments, decisions go
// out; there is no clock, no thread and no I/O in here, and no locking: the caller serialises the calls.
// Costs are device times in us; launches are never counted.
//
// Without a policy, or when the policy's lease has run out, the gate is transparent: first come, first
// dispatched.
//
// The policy protects decode. With T a decode lane's step target, a prefill head of estimated cost c goes if
//     k * (in flight + c) <= s,   s = max(T - elapsed, H) - remaining device work of the step,
// for every decode lane amid a step, and
//     in flight + c <= W          (prefill work in flight, us)
// H is what the decode lane's host still needs to launch the step, by the fastest of the last ones.
// An operator larger than W goes alone. Whatever W is, the next operator may be with the device as early as
// the caller hears late of ends (lag_us), while a step has time to spare. A decode lane between two steps
// lends its share within W; one idle for decode_idle_us lends all (kLendWindows * W, which is enough to keep
// a device busy).
//
// Prefill always progresses: a head is held at most B = max(max_hold_us, kHoldCosts * c) by the slack rule,
// plus the time that the work in flight needs to drain. Then it goes, with up to W us of what follows it
// ("forced", counted), so that a decode lane that never has slack gives up at most (c + W) / (B + c + W) of
// the device.
//
// A step ends where the lane is synchronised. A host that runs ahead does not synchronise the step that it
// launches, but the one before, so its own word counts as well: the first operator of a step ends the step
// before, once the device comes to it.
//
// What a lane does is what its step does: where items say the phase of theirs (Item::phase), a lane is a
// prefill lane in one step and a decode lane in the next, and neither phase holds back its own lane's other.
// Where they do not, the lane's phase is the one that was set.
//
// What a decode lane waits for is protected as well, or the gate would hold the step that it protects. The
// caller knows dependencies and names them (inherit); what a lane has queued up to there is not held.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <unordered_map>
#include <vector>

namespace flexnpu::gate {

inline constexpr uint64_t kNever = UINT64_MAX;

enum class Phase : uint8_t { Unknown, Prefill, Decode };

struct Settings {
    bool enabled = false;
    double window_us = 300;         // W
    double overlap_slowdown = 1.0;  // k; <= 0: learned from decode steps with and without prefill beside them
    uint64_t lease_until_ns = 0;    // the policy ends here; 0 with enabled set is a lease that has run out
    double decode_idle_us = 20000;  // a decode lane silent for longer is idle
    double max_hold_us = 10000;     // longest hold of a head by the slack rule, if it costs a quarter or less
    double default_stretch = 1.5;   // target of a decode lane without one: this times its step time alone
};

struct OpKey {
    uint32_t op = 0;
    uint64_t bucket = 0;  // see ShapeBucket
    bool operator==(const OpKey&) const = default;
};

// Builds OpKey::bucket from an operator's tensors: a hash of rounded dimensions (3 significant bits each,
// so that a growing KV cache moves to a new bucket every 12 to 25 %) with the operator's bytes, in quarter
// octaves, in the low 8 bits, from which an unseen shape's cost is guessed.
class ShapeBucket {
public:
    void tensor(std::span<const int64_t> dims, size_t item_size);
    // For an operator without tensors of known shape: bytes moved, if known.
    void bytes(uint64_t n) { bytes_ += n; }
    uint64_t value() const;

private:
    uint64_t hash_ = 0x9e3779b97f4a7c15ULL;
    uint64_t bytes_ = 0;
};

// The key of a graph, which is one operator to the gate: no two share one. `us`: what its captured operators
// are estimated to take.
OpKey graph_key(uint64_t serial, double us);
// For a kernel of a program's own, by its function and how many blocks of it are launched; its first guess is
// that of an operator of no bytes.
OpKey kernel_key(uint64_t serial, uint32_t blocks);

struct Item {
    OpKey key;
    uint64_t ticket = 0;      // the caller's name for it, unique within the lane
    bool costed = true;       // false: order only (event record or wait, callback, copy): never held as head
    bool step_end = false;    // a synchronise of the lane: its host launches nothing more in this step
    bool step_begin = false;  // the first operator of a step, as far as the host knows its steps
    // Of its step, from here on until another one begins; Unknown: it does not say.
    Phase phase = Phase::Unknown;
    uint32_t tokens = 0;  // with the phase: of the step
};

struct Decision {
    uint32_t lane = 0;
    uint64_t ticket = 0;
    double est_us = 0;     // estimated device time; 0 for order-only items
    uint64_t held_ns = 0;  // how long the gate held it at the head of its lane
    bool mark = false;     // put a completion marker behind it and report it with completed()
    bool timed = false;    // measure its device time (two events around it) too; implies mark
};

struct LaneStats {
    Phase phase = Phase::Unknown;  // as set
    double target_us = 0;          // as set; 0: the gate's own
    bool decodes = false;          // a decode lane as set, or it had a step that said so
    uint64_t prefill_steps = 0;    // that said so
    uint64_t decode_steps = 0;
    uint64_t prefill_tokens = 0, decode_tokens = 0;  // theirs
    uint64_t queued = 0;
    uint64_t in_flight = 0;  // not known to be complete; what goes by transparently is not tracked
    double in_flight_us = 0;
    uint64_t enqueued = 0;
    uint64_t dispatched = 0;
    double device_us = 0;  // sum of estimates of what was dispatched
    double gated_us = 0;   // sum of holds
    bool held_now = false;
    uint64_t forced = 0;     // heads that went because of max_hold_us
    uint64_t inherited = 0;  // prefill heads that went because a protected lane waited for them
    uint64_t steps = 0;
    double step_ops = 0;        // of the lane's main kind of step: operators,
    double step_device_us = 0;  // device time,
    double step_solo_us = 0;    // and wall time without prefill work beside it (0: none seen)
};

struct Counters {
    uint64_t decisions = 0;
    uint64_t held = 0;  // heads held at all
    uint64_t forced = 0;
    uint64_t inherited = 0;
    uint64_t oversize = 0;  // operators larger than W that went alone
    uint64_t expired_leases = 0;
    uint64_t lost_completions = 0;     // marks given up after kMarkTimeoutNs
    uint64_t unknown_completions = 0;  // completed() for a ticket not in flight
    uint64_t cost_keys = 0;            // (operator, bucket) pairs with a learned cost
    uint64_t cost_samples = 0;
    uint64_t cost_evicted = 0;  // pairs forgotten because the table was full
};

// Device time of an operator, learned by (operator, shape bucket). A measured time contains whatever
// another stream's operators took in between, so the estimate is a low quantile of the last samples. Unseen
// shapes: bytes over a nominal bandwidth, scaled by how the same operator has behaved in other shapes.
//
// Samples of a key get rarer. One that lies far from the estimate is followed by more, kDoubtEvery uses
// apart. Work beside an operator makes some of them long, a slower clock makes all of them long: kDoubts in a
// row and what was known before is forgotten. Two short ones make the estimate short by themselves: kDoubts
// more follow a short one. When an
// estimate has moved so, every other key is measured at its next use. So after a change of all times by a
// factor a key is right after kSampleRarest uses of any one key, and (kDoubts + 1) * kDoubtEvery of its own.
class CostModel {
public:
    double estimate(OpKey key) const;
    bool wants_sample(OpKey key);  // counts the use; true for the first uses of a key, then ever more rarely
    void learn(OpKey key, double measured_us);
    size_t size() const { return costs_.size(); }
    uint64_t samples() const { return samples_; }
    uint64_t evicted() const { return evicted_; }

    static constexpr size_t kRecent = 8;
    static constexpr uint32_t kSampleRarest = 1024;
    static constexpr uint32_t kDoubts = 4;
    static constexpr uint32_t kDoubtEvery = 16;

private:
    static constexpr size_t kMaxKeys = 1 << 16;
    struct Cost {
        std::array<float, kRecent> recent{};
        float us = 0;
        uint32_t samples = 0;
        uint32_t asked = 0;  // first samples asked for, then how far they have thinned out
        uint32_t uses_until_sample = 0;
        uint32_t moves_seen = 0;  // of moves_
        uint32_t long_ones = 0;   // of the last samples, in a row
        uint32_t settling = 0;    // samples still to be taken soon after one that was short
        float shortest_long = 0;  // the shortest of those
        bool doubted = false;     // the last sample was far from the estimate
        bool told = false;        // it was asked for because another key's estimate moved
    };
    bool moved(Cost& cost, float measured_us);
    struct Hash {
        size_t operator()(const OpKey& k) const noexcept;
    };
    struct Scale {
        double log_ratio = 0;
        uint32_t samples = 0;
    };
    Cost* find(OpKey key) const;
    std::unordered_map<OpKey, Cost, Hash> costs_;
    // An operator is estimated, then counted, often at once: the last one found.
    mutable OpKey last_key_;
    mutable Cost* last_ = nullptr;
    std::unordered_map<uint32_t, Scale> scales_;
    uint32_t moves_ = 0;  // how often an estimate has moved that nobody expected to
    uint64_t samples_ = 0;
    uint64_t evicted_ = 0;
};

// The last few values of something.
struct Recent {
    static constexpr size_t kSize = 15;
    std::array<float, kSize> values{};
    uint32_t n = 0;

    void add(double v) { values[n++ % kSize] = static_cast<float>(v); }
    double least() const {
        const size_t size = std::min<size_t>(n, kSize);
        return size == 0 ? 0 : *std::min_element(values.begin(), values.begin() + size);
    }
    double median() const {
        const size_t size = std::min<size_t>(n, kSize);
        if (size == 0) {
            return 0;
        }
        std::array<float, kSize> sorted = values;
        std::nth_element(sorted.begin(), sorted.begin() + size / 2, sorted.begin() + size);
        return sorted[size / 2];
    }
};

class Gate {
public:
    static constexpr double kLendWindows = 4;  // window of an idle decode phase, in W
    static constexpr double kHoldCosts = 4;    // longest hold of a head, in its own costs
    static constexpr double kPipelineUs = 60;  // an oversize operator may queue behind so much work in flight
    static constexpr double kLagShare = 0.125;  // of a step's slack, at most, as work that covers the lag
    static constexpr double kLagMostUs = 1000;
    static constexpr uint64_t kMarkTimeoutNs = 2'000'000'000;  // a completion so late is taken for lost

    Gate();
    ~Gate();
    Gate(const Gate&) = delete;
    Gate& operator=(const Gate&) = delete;

    // Lane numbers are the caller's. Adding a lane twice and naming an unknown one return false and change
    // nothing.
    bool add_lane(uint32_t lane);
    bool remove_lane(uint32_t lane);  // with all that it has queued and in flight
    bool set_phase(uint32_t lane, Phase phase, double target_us = 0);
    // A protected lane waits for what this lane has, or will have, up to `ticket`: that is not held. A lane's
    // tickets must grow. False: there is no such lane, or it is protected so far already.
    bool inherit(uint32_t lane, uint64_t ticket);
    // Whether the lane is protected where it has this ticket: a decode lane, or one that inherits.
    bool protects(uint32_t lane, uint64_t ticket) const;
    void set_settings(uint64_t now_ns, const Settings& settings);
    const Settings& settings() const { return settings_; }
    bool policy_active(uint64_t now_ns) const {
        return settings_.enabled && now_ns < settings_.lease_until_ns;
    }

    bool enqueue(uint64_t now_ns, uint32_t lane, const Item& item);
    // The next item to dispatch, now; call until it says none. O(log lanes) when transparent.
    std::optional<Decision> next(uint64_t now_ns);
    // When next() may change its mind without another event; kNever if it cannot.
    uint64_t wake_at(uint64_t now_ns) const;
    // A marked item, and so everything of its lane dispatched before it, is complete. measured_us < 0: not
    // measured.
    void completed(uint64_t now_ns, uint32_t lane, uint64_t ticket, double measured_us = -1);
    // The client's synchronise of this lane was answered: its step is over, and nothing of it is in flight.
    void step_end(uint64_t now_ns, uint32_t lane);

    double estimate(OpKey key) const { return costs_.estimate(key); }
    std::optional<LaneStats> stats(uint32_t lane) const;
    Counters counters() const;
    // Prefill work in flight, us by estimate, and the k in use.
    double window_used_us() const { return prefill_in_flight_us_; }
    double lag_us() const { return lag_us_; }
    double overlap_slowdown() const;

private:
    struct Lane;
    struct Step;
    using Head = std::pair<uint64_t, Lane*>;  // arrival number of a lane's head
    using Heads = std::set<Head>;

    Lane* find(uint32_t lane) const;
    void say(Lane& lane, Step& step, const Item& item);
    void expire(uint64_t now_ns);
    void rebuild();
    void insert_head(Lane& lane);
    bool gated(const Lane& lane) const;
    uint64_t decode_done_at(const Lane& lane) const;
    bool decode_active(const Lane& lane, uint64_t now_ns) const;
    double slack_us(const Lane& lane, uint64_t now_ns) const;
    double target_us(const Lane& lane) const;
    double prefill_remaining_us(uint64_t now_ns) const;
    struct View;
    View look(uint64_t now_ns, const Lane* but = nullptr) const;
    double room_us(const View& view, double cost) const;
    double hold_bound_us(double cost) const { return std::max(settings_.max_hold_us, kHoldCosts * cost); }
    enum class Verdict : uint8_t { Hold, Go, Force };
    Verdict judge(const View& all, const Lane& lane, uint64_t now_ns) const;
    uint64_t room_at(const View& view, const Lane& lane) const;
    Decision dispatch(Lane& lane, uint64_t now_ns);
    void retire(Lane& lane, size_t n, uint64_t now_ns);
    void drop_stale(uint64_t now_ns);
    void learn_step(Lane& lane, uint64_t now_ns);
    void next_step(Lane& lane, uint64_t now_ns);
    bool tracks(const Lane& lane) const;
    bool device_is_free() const;

    Settings settings_;
    bool on_ = false;  // the policy is active and there is a decode lane to protect
    std::unordered_map<uint32_t, std::unique_ptr<Lane>> lanes_;
    mutable Lane* last_ = nullptr;  // found by find()
    // Lanes that decode, or prefill, as was set or as their steps say: one may do both.
    std::vector<Lane*> decode_;
    std::vector<Lane*> prefill_;
    Heads free_;   // heads that nothing holds, by arrival
    Heads gated_;  // costed heads of prefill lanes while the policy is on
    uint64_t arrivals_ = 0;
    double prefill_in_flight_us_ = 0;
    double credit_us_ = 0;  // what may still follow a forced operator
    double learned_k_ = 1;
    // From a decision until the device has the operator, and from its end until the gate hears of it: how
    // much longer than themselves prefill operators took that went to a device without work.
    Recent lag_seen_;
    double lag_us_ = 0;
    CostModel costs_;
    Counters counters_;
};

}  // namespace flexnpu::gate
