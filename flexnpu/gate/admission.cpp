// Admission: which head goes next, and when another may.
#include "flexnpu/gate/lanes.hpp"

namespace flexnpu::gate {

// When a decode step is over whose lane waits to go on with a prefill step: what is in flight of it is
// followed only up to its last marker. kNever: the lane is not there.
uint64_t Gate::decode_done_at(const Lane& lane) const {
    if (lane.queue.empty() || !lane.queue.front().begins || lane.phase() != Phase::Prefill) {
        return kNever;
    }
    return lane.flight.empty() ? 0
                               : after(lane.flight.back().dispatched_ns, 2 * lane.flight_us + kPipelineUs);
}

bool Gate::decode_active(const Lane& lane, uint64_t now_ns) const {
    if (lane.phase_of(lane.step.said) == Phase::Prefill || now_ns >= decode_done_at(lane)) {
        return false;
    }
    return !lane.queue.empty() || lane.marks > 0 ||
           (lane.step.open && since_us(now_ns, lane.step.last_ns) < settings_.decode_idle_us);
}

double Gate::target_us(const Lane& lane) const {
    if (lane.target_us > 0) {
        return lane.target_us;
    }
    if (lane.main < kKinds && lane.kinds[lane.main].solo_us > 0) {
        return lane.kinds[lane.main].solo_us * settings_.default_stretch;
    }
    return kInf;  // nothing known: the window alone protects it
}

// What a decode lane amid a step can still spare. Which kind of step it is shows only as it grows, so the
// tightest of the kinds that it can still become counts; a short one (a synchronise for one scalar) gets a
// share of the target in proportion. What the host still has to launch takes its time whatever the device
// does: a step that its host makes late is not made earlier by holding prefill.
double Gate::slack_us(const Lane& lane, uint64_t now_ns) const {
    const Step& step = lane.step;
    const double target = target_us(lane);
    const double elapsed = since_us(now_ns, step.start_ns);
    const double known = std::max(0.0, step.enqueued_us - step.done_us);
    if (lane.main == kKinds || !(target < kInf)) {
        return target - elapsed - known;
    }
    const Kind& main = lane.kinds[lane.main];
    double slack = kInf;
    for (const Kind& kind : lane.kinds) {
        if (kind.recent < kKindMin || kind.ops * 1.05 < step.ops) {
            continue;
        }
        if (step.closing && kind.ops * 0.95 > step.ops) {
            continue;
        }
        const double share = std::min(1.0, std::max(kind.ops / std::max(main.ops, 1.0),
                                                    kind.device_us / std::max(main.device_us, 1e-3)));
        const double remaining = step.closing ? known : std::max(known, kind.device_us - step.done_us);
        const double to_launch =
            step.closing ? 0 : kind.launch_us * at_least_zero(1 - step.ops / std::max(kind.ops, 1.0));
        slack = std::min(slack, std::max(target * share - elapsed, to_launch) - remaining);
    }
    return slack < kInf ? slack : target - elapsed - known;
}

// Prefill work in flight less what its oldest operator has had time for. Only one front is credited: the
// device runs one at a time.
double Gate::prefill_remaining_us(uint64_t now_ns) const {
    double credit = 0;
    for (const Lane* lane : prefill_) {
        if (!lane->flight.empty() && lane->flight.front().phase == Phase::Prefill) {
            const double run_us = since_us(now_ns, lane->front_since_ns);
            credit = std::max(credit, std::min(creditable(lane->flight.front().est_us), run_us));
        }
    }
    return std::max(0.0, prefill_in_flight_us_ - credit);
}

struct Gate::View {
    bool amid = false;  // some decode lane is amid a step
    bool idle = true;   // all have been silent for decode_idle_us
    double slack = kInf;
    double remaining = 0;
    double window = 0;
};

// `but`: not what this lane decodes.
Gate::View Gate::look(uint64_t now_ns, const Lane* but) const {
    View v;
    for (const Lane* lane : decode_) {
        if (lane == but) {
            continue;
        }
        if (decode_active(*lane, now_ns)) {
            v.amid = true;
            v.idle = false;
            v.slack = std::min(v.slack, slack_us(*lane, now_ns));
        } else if (since_us(now_ns, lane->step.last_ns) < settings_.decode_idle_us) {
            v.idle = false;
        }
    }
    v.window = settings_.window_us * (v.idle ? kLendWindows : 1);
    v.remaining = prefill_remaining_us(now_ns);
    return v;
}

double Gate::room_us(const View& v, double cost) const {
    double room = v.idle ? settings_.window_us : std::min(kPipelineUs, settings_.window_us);
    if (cost <= v.window) {
        room = v.window - cost;
    }
    // Where ends are heard of late, the next operator must already be there when one ends, or the device
    // idles meanwhile. A step that has time to spare does not feel it.
    const double spare = v.slack < kInf ? v.slack * kLagShare : settings_.window_us;
    return std::max(room, std::min(lag_us_, spare));
}

Gate::Verdict Gate::judge(const View& all, const Lane& lane, uint64_t now_ns) const {
    // A lane's work is in its order: what comes behind its own decode step cannot delay that.
    const View v = lane.decodes() ? look(now_ns, &lane) : all;
    const double cost = lane.queue.front().est_us;
    if (v.remaining > room_us(v, cost)) {
        return Verdict::Hold;
    }
    if (!v.amid || overlap_slowdown() * (v.remaining + cost) <= v.slack) {
        return Verdict::Go;
    }
    if (since_us(now_ns, lane.head_since_ns) >= hold_bound_us(cost) || cost <= credit_us_) {
        return Verdict::Force;
    }
    return Verdict::Hold;
}

std::optional<Decision> Gate::next(uint64_t now_ns) {
    expire(now_ns);
    if (gated_.empty()) {
        return free_.empty() ? std::nullopt : std::optional(dispatch(*free_.begin()->second, now_ns));
    }
    drop_stale(now_ns);
    const View v = look(now_ns);
    Lane* chosen = nullptr;
    Verdict verdict = Verdict::Hold;
    for (const auto& [arrival, lane] : gated_) {
        verdict = judge(v, *lane, now_ns);
        if (verdict != Verdict::Hold) {
            chosen = lane;
            break;
        }
        if (!lane->held) {
            lane->held = true;
            ++counters_.held;
        }
        if (since_us(now_ns, lane->head_since_ns) >= hold_bound_us(lane->queue.front().est_us)) {
            break;  // overdue and waiting for room: nothing may take that from it
        }
    }
    if (!free_.empty()) {
        const auto& [arrival, lane] = *free_.begin();
        const bool older = chosen != nullptr && chosen->at->first < arrival;
        if (!older || lane->phase() == Phase::Decode) {
            return dispatch(*lane, now_ns);
        }
    }
    if (chosen == nullptr) {
        return std::nullopt;
    }
    const double cost = chosen->queue.front().est_us;
    if (verdict == Verdict::Force) {
        ++counters_.forced;
        ++chosen->stats.forced;
        credit_us_ = cost <= credit_us_ ? credit_us_ - cost : settings_.window_us;
    } else {
        credit_us_ = 0;
    }
    if (cost > v.window) {
        ++counters_.oversize;
    }
    return dispatch(*chosen, now_ns);
}

// When the operator now running should be so far that this head may go; kNever if its end must be reported
// first.
uint64_t Gate::room_at(const View& v, const Lane& lane) const {
    const double cost = lane.queue.front().est_us;
    const double k = overlap_slowdown();
    double wait_us = std::max(0.0, v.remaining - room_us(v, cost));
    const double lack_us = v.amid ? k * (v.remaining + cost) - v.slack : 0;
    if (lack_us > 0) {
        // Both sides shrink with time, the left one k times as fast.
        wait_us = k > 1 ? std::max(wait_us, lack_us / (k - 1)) : kInf;
    }
    const double done_us = prefill_in_flight_us_ - v.remaining + wait_us;
    uint64_t at = kNever;
    for (const Lane* other : prefill_) {
        if (!other->flight.empty() && other->flight.front().phase == Phase::Prefill &&
            creditable(other->flight.front().est_us) >= done_us) {
            at = std::min(at, after(other->front_since_ns, done_us));
        }
    }
    return at;
}

uint64_t Gate::wake_at(uint64_t now_ns) const {
    if (gated_.empty()) {
        return kNever;
    }
    uint64_t wake = settings_.lease_until_ns;
    const auto consider = [&](uint64_t t) {
        if (t > now_ns) {
            wake = std::min(wake, t);
        }
    };
    const View all = look(now_ns);
    for (const Lane* lane : decode_) {
        consider(after(lane->step.last_ns, settings_.decode_idle_us));
        consider(decode_done_at(*lane));
    }
    for (const auto* lanes : {&prefill_, &decode_}) {
        for (const Lane* lane : *lanes) {
            if (!lane->flight.empty()) {
                consider(std::max(lane->flight.front().dispatched_ns, lane->front_since_ns) + kMarkTimeoutNs);
            }
        }
    }
    for (const auto& [arrival, lane] : gated_) {
        consider(after(lane->head_since_ns, hold_bound_us(lane->queue.front().est_us)));
        consider(room_at(lane->decodes() ? look(now_ns, lane) : all, *lane));
    }
    return std::max(wake, now_ns + kMinWakeNs);
}

double Gate::overlap_slowdown() const {
    return settings_.overlap_slowdown > 0 ? settings_.overlap_slowdown : learned_k_;
}

}  // namespace flexnpu::gate
