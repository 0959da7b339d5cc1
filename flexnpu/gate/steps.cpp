// What is in flight, what is complete, and what steps teach.
#include <bit>
#include <utility>

#include "flexnpu/gate/lanes.hpp"

namespace flexnpu::gate {

// The first n of the lane's flight are complete.
void Gate::retire(Lane& lane, size_t n, uint64_t now_ns) {
    for (; n > 0; --n) {
        const Lane::InFlight& op = lane.flight.front();
        if (!op.drained) {
            lane.flight_us -= op.est_us;
            lane.step.done_us += op.est_us;
            lane.marks -= op.mark ? 1 : 0;
            if (op.phase == Phase::Prefill) {
                prefill_in_flight_us_ -= op.est_us;
            }
        }
        lane.flight.pop_front();
        if (!lane.flight.empty() && std::exchange(lane.flight.front().begins, false)) {
            next_step(lane, now_ns);
        }
    }
    lane.front_since_ns = now_ns;
    if (lane.flight.empty()) {
        // Leave no rounding error behind.
        lane.flight_us = 0;
        if (prefill_.size() == 1 && prefill_.front() == &lane) {
            prefill_in_flight_us_ = 0;
        }
    }
    prefill_in_flight_us_ = std::max(0.0, prefill_in_flight_us_);
}

void Gate::completed(uint64_t now_ns, uint32_t id, uint64_t ticket, double measured_us) {
    Lane* const lane = find(id);
    if (lane == nullptr) {
        ++counters_.unknown_completions;
        return;
    }
    const auto it = std::find_if(lane->flight.begin(), lane->flight.end(),
                                 [ticket](const Lane::InFlight& op) { return op.ticket == ticket; });
    if (it == lane->flight.end()) {
        ++counters_.unknown_completions;
        return;
    }
    if (measured_us >= 0) {
        costs_.learn(it->key, measured_us);
    }
    if (it->lone) {
        const double ran_us = measured_us >= 0 ? measured_us : it->est_us;
        lag_seen_.add(std::clamp(since_us(now_ns, it->dispatched_ns) - ran_us, 0.0, kLagMostUs));
        lag_us_ = lag_seen_.n >= kLagMin ? lag_seen_.median() : 0;
    }
    lane->step.last_ns = std::max(lane->step.last_ns, now_ns);
    retire(*lane, static_cast<size_t>(it - lane->flight.begin()) + 1, now_ns);
}

void Gate::step_end(uint64_t now_ns, uint32_t id) {
    Lane* const lane = find(id);
    if (lane == nullptr) {
        return;
    }
    if (lane->step.open && lane->coming.empty() && lane->queue.empty()) {
        learn_step(*lane, now_ns);
    }
    lane->coming.clear();
    // All is complete; what is to be measured is still in the caller's hands.
    for (Lane::InFlight& op : lane->flight) {
        if (!op.drained) {
            op.drained = true;
            lane->flight_us -= op.est_us;
            lane->marks -= op.mark ? 1 : 0;
            if (op.phase == Phase::Prefill) {
                prefill_in_flight_us_ = std::max(0.0, prefill_in_flight_us_ - op.est_us);
            }
            op.est_us = 0;
        }
        op.begins = false;
    }
    std::erase_if(lane->flight, [](const Lane::InFlight& op) { return !op.mark; });
    lane->flight_us = 0;
    lane->unmarked_us = 0;
    lane->unmarked_ops = 0;
    lane->step = Step{};
    lane->step.last_ns = now_ns;
    if (!lane->queue.empty()) {  // another thread's, already
        lane->step.open = true;
        lane->step.start_ns = now_ns;
        for (Lane::Queued& queued : lane->queue) {
            queued.begins = false;
            lane->step.said = queued.said;
            lane->step.ops += queued.item.costed ? 1 : 0;
            lane->step.enqueued_us += queued.est_us;
            lane->step.closing = lane->step.closing || queued.item.step_end;
        }
    }
}

// The device has come to the first operator of the next step.
void Gate::next_step(Lane& lane, uint64_t now_ns) {
    if (lane.coming.empty()) {
        return;
    }
    if (lane.step.open) {
        learn_step(lane, now_ns);
    }
    lane.step = lane.coming.front();
    lane.coming.pop_front();
    lane.step.open = true;
    lane.step.start_ns = now_ns;
    lane.step.last_ns = now_ns;
    lane.step.beside_us = prefill_in_flight_us_;
}

void Gate::learn_step(Lane& lane, uint64_t now_ns) {
    const Step& step = lane.step;
    // A model's prefill has as many operators as its decode step, and takes longer: what the gate knows of a
    // lane's steps is for protecting decode.
    if (step.ops == 0 || (lane.says_decode && lane.phase_of(step.said) == Phase::Prefill)) {
        return;
    }
    const double wall_us = since_us(now_ns, step.start_ns);
    const size_t k = std::min<size_t>(std::bit_width(step.ops) - 1, kKinds - 1);
    Kind& kind = lane.kinds[k];
    kind.ops_seen.add(step.ops);
    kind.device_seen.add(step.enqueued_us);
    kind.ops = kind.ops_seen.median();
    kind.device_us = kind.device_seen.median();
    // A host that waits for the device amid a step takes longer beside prefill: the least is its own.
    kind.launch_seen.add(since_us(step.host_last_ns, step.host_start_ns));
    kind.launch_us = kind.launch_seen.least();
    if (step.beside_us <= 0.01 * wall_us) {
        kind.solo_seen.add(wall_us);
        kind.solo_us = kind.solo_seen.median();
    } else if (lane.decodes() && kind.solo_us > 0 && step.beside_us > 0.1 * kind.solo_us) {
        const double k_seen = std::clamp((wall_us - kind.solo_us) / step.beside_us, 1.0, 4.0);
        learned_k_ += 0.05 * (k_seen - learned_k_);
    }

    uint8_t& slot = lane.history[lane.steps % kStepHistory];
    if (lane.steps >= kStepHistory) {
        --lane.kinds[slot].recent;
    }
    slot = static_cast<uint8_t>(k);
    ++kind.recent;
    ++lane.steps;

    lane.main = kKinds;
    double most = -1;
    for (size_t i = 0; i < kKinds; ++i) {
        const double total = lane.kinds[i].recent * lane.kinds[i].device_us;
        if (lane.kinds[i].recent >= kKindMin && total > most) {
            most = total;
            lane.main = i;
        }
    }
}

void Gate::drop_stale(uint64_t now_ns) {
    for (const auto* lanes : {&prefill_, &decode_}) {
        for (Lane* lane : *lanes) {
            if (!lane->flight.empty() && now_ns >= lane->flight.front().dispatched_ns + kMarkTimeoutNs &&
                now_ns >= lane->front_since_ns + kMarkTimeoutNs) {
                counters_.lost_completions += lane->flight.front().mark ? 1 : 0;
                retire(*lane, 1, now_ns);
                lane->front_since_ns = now_ns > kMarkTimeoutNs ? now_ns - kMarkTimeoutNs : 0;
            }
        }
    }
}

}  // namespace flexnpu::gate
