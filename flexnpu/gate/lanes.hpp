// What the gate keeps of each lane. Of this room only.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <deque>
#include <limits>

#include "flexnpu/gate/gate.hpp"

namespace flexnpu::gate {

inline constexpr double kInf = std::numeric_limits<double>::infinity();
inline constexpr size_t kKinds = 16;        // kinds of step, by octave of their operator count
inline constexpr size_t kStepHistory = 64;  // steps over which a kind must have been seen kKindMin times
inline constexpr uint32_t kKindMin = 2;
inline constexpr uint32_t kLagMin = 5;  // ends heard of late, before it counts as the rule
inline constexpr double kMarkEveryUs =
    100;  // decode lanes: a completion marker at least every so much device time
inline constexpr uint32_t kMarkEveryOps = 16;  // or operators
inline constexpr uint64_t kMinWakeNs = 20'000;

inline double since_us(uint64_t now_ns, uint64_t then_ns) {
    return now_ns > then_ns ? static_cast<double>(now_ns - then_ns) / 1e3 : 0;
}

inline uint64_t after(uint64_t ns, double us) {
    if (!(us < 1e12)) {
        return kNever;
    }
    return ns + static_cast<uint64_t>(std::max(us, 0.0) * 1e3);
}

// An operator is not taken for done before its end is reported: the estimate may be short.
inline double creditable(double est_us) { return est_us - std::min(0.25 * est_us, Gate::kPipelineUs / 2); }

inline double at_least_zero(double v) {
    return v > 0 ? v : 0;  // NaN becomes 0 too
}

struct Kind {
    Recent ops_seen, device_seen, solo_seen, launch_seen;
    double ops = 0, device_us = 0, solo_us = 0;  // medians
    double launch_us = 0;                        // the host's, from the first operator to the last; the least
    uint32_t recent = 0;                         // of the last kStepHistory steps
};

struct Gate::Step {
    bool open = false;
    bool closing = false;  // the host has asked to synchronise: no more operators will come
    Phase said = Phase::Unknown;
    uint64_t start_ns = 0;
    uint64_t last_ns = 0;                          // last sign of life of the lane's host or device
    uint64_t host_start_ns = 0, host_last_ns = 0;  // when the host launched its first and its last so far
    uint32_t ops = 0;                              // enqueued so far
    double enqueued_us = 0;                        // their device time
    double done_us = 0;                            // and of those known to be complete
    double beside_us = 0;                          // prefill work that ran, or was in flight, beside it
};

struct Gate::Lane {
    struct Queued {
        Item item;
        uint64_t arrival;
        double est_us;
        bool begins;  // the first operator of a step in `coming`
        Phase said;   // of its step, as far as it was known then
    };
    struct InFlight {
        uint64_t ticket;
        OpKey key;
        double est_us;
        uint64_t dispatched_ns;
        Phase phase;  // that it went as
        Phase said;
        bool mark;
        bool begins;
        bool lone;     // prefill, and it went to a device without work
        bool drained;  // known to be complete by a synchronise; kept only for the measurement to come
    };

    uint32_t id = 0;
    Phase set = Phase::Unknown;
    bool says_prefill = false, says_decode = false;  // some step did
    double target_us = 0;
    uint64_t inherits_below = 0;  // a protected lane waits for the tickets below this

    std::deque<Queued> queue;
    uint64_t head_since_ns = 0;
    bool held = false;
    Heads::node_type node;  // of the head while in neither set, so that moving it does not allocate
    Heads* in = nullptr;
    Heads::iterator at;

    std::deque<InFlight> flight;
    double flight_us = 0;
    uint32_t marks = 0;           // marked and not drained
    uint64_t front_since_ns = 0;  // since when the front of the flight may have been running
    double unmarked_us = 0;
    uint32_t unmarked_ops = 0;

    Step step;                // that the device is at
    std::deque<Step> coming;  // that the host has begun since
    std::array<Kind, kKinds> kinds{};
    std::array<uint8_t, kStepHistory> history{};
    uint64_t steps = 0;
    size_t main = kKinds;  // the kind that takes most of the lane's device time; kKinds: none yet

    LaneStats stats;

    Lane() {
        Heads seed;
        seed.emplace(0, this);
        node = seed.extract(seed.begin());
    }

    Phase phase_of(Phase said) const { return said != Phase::Unknown ? said : set; }
    bool prefills() const { return set == Phase::Prefill || says_prefill; }
    bool decodes() const { return set == Phase::Decode || says_decode; }
    // Of what it waits to dispatch; of the step that the device is at where there is nothing.
    Phase phase() const { return phase_of(queue.empty() ? step.said : queue.front().said); }

    Step& newest() { return coming.empty() ? step : coming.back(); }

    void leave() {
        if (in != nullptr) {
            node = in->extract(at);
            in = nullptr;
        }
    }

    void enter(Heads& heads) {
        node.value() = {queue.front().arrival, this};
        at = heads.insert(std::move(node)).position;
        in = &heads;
    }
};

}  // namespace flexnpu::gate
