#include "flexnpu/gate/gate.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace flexnpu::gate {

namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr size_t kKinds = 16;        // kinds of step, by octave of their operator count
constexpr size_t kKindHistory = 15;  // steps remembered of each kind
constexpr size_t kStepHistory = 64;  // steps over which a kind must have been seen kKindMin times
constexpr uint32_t kKindMin = 2;
constexpr double kMarkEveryUs = 100;  // decode lanes: a completion marker at least every so much device time
constexpr uint32_t kMarkEveryOps = 16;  // or operators
constexpr uint64_t kMinWakeNs = 20'000;

double since_us(uint64_t now_ns, uint64_t then_ns) {
    return now_ns > then_ns ? static_cast<double>(now_ns - then_ns) / 1e3 : 0;
}

uint64_t after(uint64_t ns, double us) {
    if (!(us < 1e12)) {
        return kNever;
    }
    return ns + static_cast<uint64_t>(std::max(us, 0.0) * 1e3);
}

// An operator is not taken for done before its end is reported: the estimate may be short.
double creditable(double est_us) { return est_us - std::min(0.25 * est_us, Gate::kPipelineUs / 2); }

double at_least_zero(double v) {
    return v > 0 ? v : 0;  // NaN becomes 0 too
}

// The last kKindHistory values of something, and their median.
struct Recent {
    std::array<float, kKindHistory> values{};
    uint32_t n = 0;

    void add(double v) { values[n++ % kKindHistory] = static_cast<float>(v); }
    double median() const {
        const size_t size = std::min<size_t>(n, kKindHistory);
        if (size == 0) {
            return 0;
        }
        std::array<float, kKindHistory> sorted = values;
        std::nth_element(sorted.begin(), sorted.begin() + size / 2, sorted.begin() + size);
        return sorted[size / 2];
    }
};

struct Kind {
    Recent ops_seen, device_seen, solo_seen;
    double ops = 0, device_us = 0, solo_us = 0;  // medians
    uint32_t recent = 0;                         // of the last kStepHistory steps
};

}  // namespace

struct Gate::Step {
    bool open = false;
    bool closing = false;  // the host has asked to synchronise: no more operators will come
    uint64_t start_ns = 0;
    uint64_t last_ns = 0;    // last sign of life of the lane's host or device
    uint32_t ops = 0;        // enqueued so far
    double enqueued_us = 0;  // their device time
    double done_us = 0;      // and of those known to be complete
    double beside_us = 0;    // prefill work that ran, or was in flight, beside it
};

struct Gate::Lane {
    struct Queued {
        Item item;
        uint64_t arrival;
        double est_us;
    };
    struct InFlight {
        uint64_t ticket;
        OpKey key;
        double est_us;
        uint64_t dispatched_ns;
        bool mark;
        bool drained;  // known to be complete by a synchronise; kept only for the measurement to come
    };

    uint32_t id = 0;
    Phase phase = Phase::Unknown;
    double target_us = 0;

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

    Step step;
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
    if (lane->phase != phase) {
        lane->phase = phase;
        rebuild();
    }
    return true;
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
        if (lane->phase == Phase::Decode) {
            decode_.push_back(lane.get());
        } else if (lane->phase == Phase::Prefill) {
            prefill_.push_back(lane.get());
            prefill_in_flight_us_ += lane->flight_us;
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
    return on_ && lane.phase == Phase::Prefill && lane.queue.front().item.costed;
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
    Step& step = lane->step;
    if (step.open && lane->queue.empty() && lane->flight_us <= 0 &&
        since_us(now_ns, step.last_ns) > settings_.decode_idle_us) {
        step.open = false;  // its end was never said: what it looked like is not worth learning
    }
    if (!step.open) {
        step = Step{};
        step.open = true;
        step.start_ns = now_ns;
        step.beside_us = prefill_in_flight_us_;
    }
    step.last_ns = now_ns;
    const double est_us = item.costed ? costs_.estimate(item.key) : 0;
    if (item.costed) {
        ++step.ops;
        step.enqueued_us += est_us;
    }
    step.closing = step.closing || item.step_end;
    ++lane->stats.enqueued;

    lane->queue.push_back({item, arrivals_++, est_us});
    if (lane->queue.size() == 1) {
        lane->head_since_ns = now_ns;
        insert_head(*lane);
    }
    return true;
}

bool Gate::decode_active(const Lane& lane, uint64_t now_ns) const {
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
// share of the target in proportion.
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
        slack = std::min(slack, target * share - elapsed - remaining);
    }
    return slack < kInf ? slack : target - elapsed - known;
}

// Prefill work in flight less what its oldest operator has had time for. Only one front is credited: the
// device runs one at a time.
double Gate::prefill_remaining_us(uint64_t now_ns) const {
    double credit = 0;
    for (const Lane* lane : prefill_) {
        if (!lane->flight.empty()) {
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

Gate::View Gate::look(uint64_t now_ns) const {
    View v;
    for (const Lane* lane : decode_) {
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
    if (cost <= v.window) {
        return v.window - cost;
    }
    return v.idle ? settings_.window_us : std::min(kPipelineUs, settings_.window_us);
}

Gate::Verdict Gate::judge(const View& v, const Lane& lane, uint64_t now_ns) const {
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
        if (!older || lane->phase == Phase::Decode) {
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
    lane.stats.device_us += queued.est_us;

    if (queued.item.costed) {
        d.timed = costs_.wants_sample(queued.item.key);
        d.mark = d.timed;
        const bool track = on_ && lane.phase != Phase::Unknown;
        if (track && !d.mark) {
            lane.unmarked_us += queued.est_us;
            ++lane.unmarked_ops;
            d.mark = lane.phase == Phase::Prefill || lane.unmarked_us >= kMarkEveryUs ||
                     lane.unmarked_ops >= kMarkEveryOps || lane.step.closing;
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
            lane.flight.push_back(
                {queued.item.ticket, queued.item.key, queued.est_us, now_ns, d.mark, false});
            lane.flight_us += queued.est_us;
            if (lane.phase == Phase::Prefill) {
                prefill_in_flight_us_ += queued.est_us;
                for (Lane* decode : decode_) {
                    decode->step.beside_us += decode->step.open ? queued.est_us : 0;
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

// The first n of the lane's flight are complete.
void Gate::retire(Lane& lane, size_t n, uint64_t now_ns) {
    for (; n > 0; --n) {
        const Lane::InFlight& op = lane.flight.front();
        if (!op.drained) {
            lane.flight_us -= op.est_us;
            lane.step.done_us += op.est_us;
            lane.marks -= op.mark ? 1 : 0;
            if (lane.phase == Phase::Prefill) {
                prefill_in_flight_us_ -= op.est_us;
            }
        }
        lane.flight.pop_front();
    }
    lane.front_since_ns = now_ns;
    if (lane.flight.empty()) {
        // Leave no rounding error behind.
        lane.flight_us = 0;
        if (prefill_.size() == 1 && lane.phase == Phase::Prefill) {
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
    lane->step.last_ns = std::max(lane->step.last_ns, now_ns);
    retire(*lane, static_cast<size_t>(it - lane->flight.begin()) + 1, now_ns);
}

void Gate::step_end(uint64_t now_ns, uint32_t id) {
    Lane* const lane = find(id);
    if (lane == nullptr) {
        return;
    }
    if (lane->step.open) {
        learn_step(*lane, now_ns);
    }
    // All is complete; what is to be measured is still in the caller's hands.
    for (Lane::InFlight& op : lane->flight) {
        if (!op.drained) {
            op.drained = true;
            lane->flight_us -= op.est_us;
            lane->marks -= op.mark ? 1 : 0;
            if (lane->phase == Phase::Prefill) {
                prefill_in_flight_us_ = std::max(0.0, prefill_in_flight_us_ - op.est_us);
            }
            op.est_us = 0;
        }
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
        for (const Lane::Queued& queued : lane->queue) {
            lane->step.ops += queued.item.costed ? 1 : 0;
            lane->step.enqueued_us += queued.est_us;
            lane->step.closing = lane->step.closing || queued.item.step_end;
        }
    }
}

void Gate::learn_step(Lane& lane, uint64_t now_ns) {
    const Step& step = lane.step;
    if (step.ops == 0 || !lane.queue.empty()) {
        return;
    }
    const double wall_us = since_us(now_ns, step.start_ns);
    const size_t k = std::min<size_t>(std::bit_width(step.ops) - 1, kKinds - 1);
    Kind& kind = lane.kinds[k];
    kind.ops_seen.add(step.ops);
    kind.device_seen.add(step.enqueued_us);
    kind.ops = kind.ops_seen.median();
    kind.device_us = kind.device_seen.median();
    if (step.beside_us <= 0.01 * wall_us) {
        kind.solo_seen.add(wall_us);
        kind.solo_us = kind.solo_seen.median();
    } else if (lane.phase == Phase::Decode && kind.solo_us > 0 && step.beside_us > 0.1 * kind.solo_us) {
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
        if (!other->flight.empty() && creditable(other->flight.front().est_us) >= done_us) {
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
    const View v = look(now_ns);
    for (const Lane* lane : decode_) {
        consider(after(lane->step.last_ns, settings_.decode_idle_us));
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
        consider(room_at(v, *lane));
    }
    return std::max(wake, now_ns + kMinWakeNs);
}

double Gate::overlap_slowdown() const {
    return settings_.overlap_slowdown > 0 ? settings_.overlap_slowdown : learned_k_;
}

std::optional<LaneStats> Gate::stats(uint32_t id) const {
    const Lane* const lane = find(id);
    if (lane == nullptr) {
        return std::nullopt;
    }
    LaneStats s = lane->stats;
    s.phase = lane->phase;
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
