// Lanes, settings and the lease; what comes in and what goes out.
#include "flexnpu/gate/gate.hpp"

#include <algorithm>
#include <utility>

#include "flexnpu/gate/lanes.hpp"

namespace flexnpu::gate {

Gate::Gate() = default;
Gate::~Gate() = default;

Gate::Lane* Gate::find(uint32_t lane) const {
    if (last_ == nullptr || last_->id != lane) {
        const auto it = lanes_.find(lane);
        last_ = it == lanes_.end() ? nullptr : it->second.get();
    }
    return last_;
}

bool Gate::add_lane(uint32_t lane) {
    const auto [it, added] = lanes_.try_emplace(lane);
    if (added) {
        it->second = std::make_unique<Lane>();
        it->second->id = lane;
    }
    return added;
}

bool Gate::remove_lane(uint32_t id) {
    Lane* const lane = find(id);
    if (lane == nullptr) {
        return false;
    }
    lane->leave();
    last_ = nullptr;
    lanes_.erase(id);
    rebuild();
    return true;
}

bool Gate::set_phase(uint32_t id, Phase phase, double target_us) {
    Lane* const lane = find(id);
    if (lane == nullptr) {
        return false;
    }
    lane->target_us = at_least_zero(target_us);
    if (lane->set != phase) {
        lane->set = phase;
        // What is in flight goes on as what the lane now is, where it did not say itself.
        for (Lane::InFlight& op : lane->flight) {
            op.phase = lane->phase_of(op.said);
        }
        rebuild();
    }
    return true;
}

// A step of the lane has said its phase.
void Gate::say(Lane& lane, Step& step, const Item& item) {
    step.said = item.phase;
    const bool prefill = item.phase == Phase::Prefill;
    bool& says = prefill ? lane.says_prefill : lane.says_decode;
    ++(prefill ? lane.stats.prefill_steps : lane.stats.decode_steps);
    (prefill ? lane.stats.prefill_tokens : lane.stats.decode_tokens) += item.tokens;
    if (!std::exchange(says, true)) {
        rebuild();
    }
}

void Gate::set_settings(uint64_t now_ns, const Settings& settings) {
    expire(now_ns);
    settings_ = settings;
    settings_.window_us = at_least_zero(settings.window_us);
    settings_.decode_idle_us = at_least_zero(settings.decode_idle_us);
    settings_.max_hold_us = at_least_zero(settings.max_hold_us);
    settings_.default_stretch = std::max(1.0, at_least_zero(settings.default_stretch));
    expire(now_ns);
    rebuild();
}

void Gate::expire(uint64_t now_ns) {
    if (settings_.enabled && now_ns >= settings_.lease_until_ns) {
        settings_.enabled = false;
        ++counters_.expired_leases;
        rebuild();
    }
}

// Recomputes everything that follows from phases and settings: rare, so O(lanes).
void Gate::rebuild() {
    decode_.clear();
    prefill_.clear();
    prefill_in_flight_us_ = 0;
    for (const auto& [id, lane] : lanes_) {
        if (lane->decodes()) {
            decode_.push_back(lane.get());
        }
        if (lane->prefills()) {
            prefill_.push_back(lane.get());
        }
        for (const Lane::InFlight& op : lane->flight) {
            prefill_in_flight_us_ += op.phase == Phase::Prefill && !op.drained ? op.est_us : 0;
        }
    }
    const bool was_on = on_;
    on_ = settings_.enabled && !decode_.empty();
    if (on_ != was_on) {
        credit_us_ = 0;
    }
    for (const auto& [id, lane] : lanes_) {
        lane->leave();
        insert_head(*lane);
    }
}

bool Gate::gated(const Lane& lane) const {
    const Item& head = lane.queue.front().item;
    return on_ && lane.phase() == Phase::Prefill && head.costed && head.ticket >= lane.inherits_below;
}

bool Gate::inherit(uint32_t id, uint64_t ticket) {
    Lane* const lane = find(id);
    if (lane == nullptr || ticket < lane->inherits_below) {
        return false;
    }
    lane->inherits_below = ticket + 1;
    if (lane->in == &gated_ && !gated(*lane)) {
        lane->leave();
        insert_head(*lane);
    }
    return true;
}

bool Gate::protects(uint32_t id, uint64_t ticket) const {
    const Lane* const lane = find(id);
    return lane != nullptr && (lane->phase() == Phase::Decode || ticket < lane->inherits_below);
}

void Gate::insert_head(Lane& lane) {
    if (lane.queue.empty()) {
        return;
    }
    if (gated(lane)) {
        // It may have waited behind others since its first estimate.
        lane.queue.front().est_us = costs_.estimate(lane.queue.front().item.key);
        lane.enter(gated_);
    } else {
        lane.enter(free_);
    }
}

bool Gate::enqueue(uint64_t now_ns, uint32_t id, const Item& item) {
    Lane* const lane = find(id);
    if (lane == nullptr) {
        return false;
    }
    if (Step& step = lane->step; step.open && lane->queue.empty() && lane->flight_us <= 0 &&
                                 since_us(now_ns, step.last_ns) > settings_.decode_idle_us) {
        step.open = false;  // its end was never said: what it looked like is not worth learning
        lane->coming.clear();
    }
    if (!lane->step.open) {
        lane->step = Step{};
        lane->step.open = true;
        lane->step.start_ns = now_ns;
        lane->step.beside_us = prefill_in_flight_us_;
    }
    lane->step.last_ns = now_ns;
    const bool begins = item.step_begin && lane->newest().ops > 0;
    if (begins) {
        lane->newest().closing = true;
        lane->coming.emplace_back();
    }
    Step& step = lane->newest();
    const double est_us = item.costed ? costs_.estimate(item.key) : 0;
    if (item.costed) {
        step.host_start_ns = step.ops == 0 ? now_ns : step.host_start_ns;
        step.host_last_ns = now_ns;
        ++step.ops;
        step.enqueued_us += est_us;
    }
    step.closing = step.closing || item.step_end;
    if (item.phase != Phase::Unknown && item.phase != step.said) {
        say(*lane, step, item);
    }
    ++lane->stats.enqueued;

    lane->queue.push_back({item, arrivals_++, est_us, begins, step.said});
    if (lane->queue.size() == 1) {
        lane->head_since_ns = now_ns;
        insert_head(*lane);
    }
    return true;
}

// As far as completions are heard of.
bool Gate::device_is_free() const {
    return prefill_in_flight_us_ <= 0 &&
           std::ranges::all_of(decode_, [](const Lane* lane) { return lane->flight_us <= 0; });
}

// Whether all that the lane has in flight is followed, and not only what is measured.
bool Gate::tracks(const Lane& lane) const { return on_ && (lane.prefills() || lane.decodes()); }

Decision Gate::dispatch(Lane& lane, uint64_t now_ns) {
    const Lane::Queued queued = lane.queue.front();
    lane.leave();
    lane.queue.pop_front();

    Decision d;
    d.lane = lane.id;
    d.ticket = queued.item.ticket;
    d.est_us = queued.est_us;
    if (lane.held) {
        d.held_ns = now_ns > lane.head_since_ns ? now_ns - lane.head_since_ns : 0;
        lane.stats.gated_us += static_cast<double>(d.held_ns) / 1e3;
        lane.held = false;
    }
    ++counters_.decisions;
    ++lane.stats.dispatched;
    const Phase phase = lane.phase_of(queued.said);
    if (on_ && phase == Phase::Prefill && queued.item.costed && queued.item.ticket < lane.inherits_below) {
        ++lane.stats.inherited;
        ++counters_.inherited;
    }
    lane.stats.device_us += queued.est_us;

    const bool track = tracks(lane);
    if (queued.begins && (!track || lane.flight.empty())) {
        next_step(lane, now_ns);  // where completions are not followed, going there is being there
    }
    if (queued.item.costed) {
        d.timed = costs_.wants_sample(queued.item.key);
        d.mark = d.timed;
        if (track && !d.mark) {
            lane.unmarked_us += queued.est_us;
            ++lane.unmarked_ops;
            d.mark = phase == Phase::Prefill || queued.begins || lane.unmarked_us >= kMarkEveryUs ||
                     lane.unmarked_ops >= kMarkEveryOps || lane.newest().closing;
        }
        if (d.mark) {
            lane.unmarked_us = 0;
            lane.unmarked_ops = 0;
            ++lane.marks;
        }
        if (track || d.mark) {
            if (lane.flight.empty()) {
                lane.front_since_ns = now_ns;
            }
            const bool begins = track && queued.begins && !lane.flight.empty();
            const bool lone = track && d.mark && phase == Phase::Prefill && device_is_free();
            lane.flight.push_back({queued.item.ticket, queued.item.key, queued.est_us, now_ns, phase,
                                   queued.said, d.mark, begins, lone, false});
            lane.flight_us += queued.est_us;
            if (phase == Phase::Prefill) {
                prefill_in_flight_us_ += queued.est_us;
                for (Lane* decode : decode_) {
                    decode->step.beside_us += decode->step.open && decode != &lane ? queued.est_us : 0;
                }
            }
        }
    }
    if (!lane.queue.empty()) {
        lane.head_since_ns = now_ns;
        insert_head(lane);
    }
    return d;
}

std::optional<LaneStats> Gate::stats(uint32_t id) const {
    const Lane* const lane = find(id);
    if (lane == nullptr) {
        return std::nullopt;
    }
    LaneStats s = lane->stats;
    s.phase = lane->set;
    s.decodes = lane->decodes();
    s.target_us = lane->target_us;
    s.queued = lane->queue.size();
    s.in_flight = static_cast<uint64_t>(std::count_if(lane->flight.begin(), lane->flight.end(),
                                                      [](const Lane::InFlight& op) { return !op.drained; }));
    s.in_flight_us = lane->flight_us;
    s.held_now = lane->held;
    s.steps = lane->steps;
    if (lane->main < kKinds) {
        const Kind& kind = lane->kinds[lane->main];
        s.step_ops = kind.ops;
        s.step_device_us = kind.device_us;
        s.step_solo_us = kind.solo_us;
    }
    return s;
}

Counters Gate::counters() const {
    Counters c = counters_;
    c.cost_keys = costs_.size();
    c.cost_samples = costs_.samples();
    c.cost_evicted = costs_.evicted();
    return c;
}

}  // namespace flexnpu::gate
