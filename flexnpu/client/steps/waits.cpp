// Where steps end: what is waited for, copied to the host and to the device, and streams beside a model's.
#include <algorithm>
#include <utility>

#include "flexnpu/client/steps/steps.hpp"

namespace flexnpu::client {

// ---- points of a lane; all with its lock held ----

// The step may end here: it does so behind its longest runs of launches. `over`: it is known to be.
void Steps::propose(Lane& lane, const Totals& then, bool over) {
    if (lane.kind_ == Kind::between || then.weight() <= lane.run_start_) return;  // nothing new
    const uint64_t run = then.weight() - lane.run_start_;
    lane.run_start_ = then.weight();
    if (lane.capturing_) return;
    if (run * 4 >= lane.run_longest_) {
        // What was launched behind the next step's input is the next step's.
        const bool doubtful = lane.input_ && then.position() >= lane.input_;
        Lane::Point& point = doubtful ? lane.later_ : lane.end_;
        point = {then, true, over, over && heard(lane) ? outside_.now() : 0};
        if (!doubtful) lane.later_ = {};
        if (!doubtful && over) show(lane);
    }
    lane.run_longest_ = std::max(lane.run_longest_, run);
}

// Something was copied to the host behind `then`.
void Steps::result(Lane& lane, const Totals& then, uint64_t bytes, bool over) {
    lane.result_ = true;
    // What was copied to the device before was the step's own business.
    if (lane.later_.here) lane.end_ = std::exchange(lane.later_, {});
    lane.input_ = 0;
    lane.t_input_ = 0;
    if (then.weight() > lane.run_start_) {
        propose(lane, then, over);
    } else if (lane.end_.here && lane.end_.at.position() == then.position()) {
        lane.end_.at.d2h += bytes;  // copied right after the wait that ended a step: its result
        if (lane.end_.over && heard(lane)) show(lane);
    }
}

void Steps::input(Lane& lane, uint64_t bytes) {
    lane.now_.h2d += bytes;
    lane.now_.h2d_copies++;
    if (lane.result_ && !lane.input_) lane.input_ = totals(lane).position() + 1;
    if (!listened()) return;
    const uint64_t now = outside_.now();
    if (!lane.t_input_ || now > lane.t_input_last_ + kInputNs) lane.t_input_ = now;
    lane.t_input_last_ = now;
}

// All is over that was on the lane when it held so much.
void Steps::reached(Lane& lane, uint64_t launches, uint64_t graphs) {
    Totals then = totals(lane);
    // Nothing was launched meanwhile: the program was held by the wait, and its next step has begun with the
    // input that it copied before.
    if (lane.t_input_ && launches >= then.launches && graphs >= then.graphs && listened())
        lane.t_input_last_ = outside_.now();
    then.launches = std::min(then.launches, launches);
    then.graphs = std::min(then.graphs, graphs);
    if (lane.pending_.here && then.position() >= lane.pending_.position)
        settle_pending(lane, outside_.now(), FLEXNPU_STEP_BY_SYNC);
    // A wait for the steps before says nothing of the one that runs.
    if (lane.kind_ != Kind::between && then.position() <= lane.opened_pos_) return;
    publish(lane);
    if (lane.capturing_ || lane.main_.load(relaxed)) {
        lane.run_start_ = std::max(lane.run_start_, then.weight());
        return;
    }
    settle(lane);
    if (lane.kind_ == Kind::embedding || lane.kind_ == Kind::pieces) {
        reached_model(lane, then);
        return;
    }
    if (lane.kind_ == Kind::between && (lane.has_model_ || then.weight() <= lane.run_start_)) {
        // The synchronise that precedes a copy, for one.
        lane.run_start_ = std::max(lane.run_start_, then.weight());
        return;
    }
    if (lane.end_.here && then.position() < lane.end_.at.position()) return;  // in its middle
    const Totals end = lane.end_.here ? lane.end_.at : then;
    lane.run_start_ = std::max(lane.run_start_, then.weight());
    close(lane, heard(lane) ? outside_.now() : 0, FLEXNPU_STEP_BY_SYNC, end);
}

void Steps::reached_model(Lane& lane, const Totals& then) {
    for (Lane::Point* point : {&lane.end_, &lane.later_}) {
        if (!point->here || point->over || then.position() < point->at.position()) continue;
        point->over = true;
        point->at.gated = then.gated;
        if (!heard(lane)) continue;
        point->t = outside_.now();
        if (point == &lane.end_) show(lane);
    }
    propose(lane, then, true);
}

// ---- side lanes ----

void Steps::make_side(Lane& lane, Lane* main) {
    if (&lane == main) return;
    {
        std::lock_guard lock(lane.mutex_);
        if (lane.has_model_ || lane.main_.load(relaxed) == main) return;
        lane.main_.store(main, relaxed);
        lane.may_gap_.store(false, relaxed);
        lane.t_open_.store(0, relaxed);
    }
    std::lock_guard lock(main->mutex_);
    lane.side_taken_.store(lane.launches_.load(relaxed), relaxed);
    if (std::find(main->sides_.begin(), main->sides_.end(), &lane) == main->sides_.end())
        main->sides_.push_back(&lane);
}

// Launched on the lane's side lanes since they were last taken.
uint64_t Steps::side_launches(const Lane& lane) const {
    uint64_t sum = 0;
    for (const Lane* side : lane.sides_) {
        if (side->main_.load(relaxed) == &lane)
            sum += side->launches_.load(relaxed) - side->side_taken_.load(relaxed);
    }
    return sum;
}

// ---- what the program calls ----

StepMark Steps::mark(uint64_t stream) {
    Lane& l = lane(stream);
    StepMark m{&l, l.launches_.load(relaxed), l.graphs_.load(relaxed)};
    if (l.main_.load(relaxed)) {
        std::lock_guard lock(l.mutex_);
        m.follows = l.follows_;
        m.follows_launches = l.follows_launches_;
        m.follows_graphs = l.follows_graphs_;
    }
    return m;
}

std::vector<StepMark> Steps::marks() {
    std::vector<StepMark> all;
    std::lock_guard lock(mutex_);
    for (Lane* l : lanes_) all.push_back({l, l->launches_.load(relaxed), l->graphs_.load(relaxed)});
    return all;
}

void Steps::reached(const StepMark& mark) {
    if (mark.lane) {
        std::lock_guard lock(mark.lane->mutex_);
        reached(*mark.lane, mark.launches, mark.graphs);
    }
    if (mark.follows) {
        std::lock_guard lock(mark.follows->mutex_);
        reached(*mark.follows, mark.follows_launches, mark.follows_graphs);
    }
}

void Steps::event_recorded(uint64_t event, uint64_t stream) {
    const uint32_t i = wire::handle_index(event);
    auto& slot = events_[i / kEventChunk];
    Mark* chunk = slot.load(std::memory_order_acquire);
    if (!chunk) {
        std::lock_guard lock(mutex_);
        if (!(chunk = slot.load(relaxed)))
            slot.store(chunk = new Mark[kEventChunk], std::memory_order_release);
    }
    const StepMark m = mark(stream);
    Mark& kept = chunk[i % kEventChunk];
    kept.launches.store(m.launches, relaxed);
    kept.graphs.store(m.graphs, relaxed);
    kept.follows_launches.store(m.follows_launches, relaxed);
    kept.follows_graphs.store(m.follows_graphs, relaxed);
    kept.follows.store(m.follows, relaxed);
    kept.lane.store(m.lane, relaxed);
}

StepMark Steps::mark_of_event(uint64_t event) {
    const uint32_t i = wire::handle_index(event);
    const Mark* chunk = events_[i / kEventChunk].load(std::memory_order_acquire);
    if (!chunk) return {};
    const Mark& kept = chunk[i % kEventChunk];
    return {
        kept.lane.load(relaxed),    kept.launches.load(relaxed),         kept.graphs.load(relaxed),
        kept.follows.load(relaxed), kept.follows_launches.load(relaxed), kept.follows_graphs.load(relaxed)};
}

void Steps::event_awaited(uint64_t event, uint64_t stream) {
    StepMark m = mark_of_event(event);
    Lane& l = lane(stream);
    if (!m.lane || m.lane == &l) return;
    if (Lane* main = m.lane->main_.load(relaxed)) {
        if (m.follows != main) return;
        m.launches = m.follows_launches;
        m.graphs = m.follows_graphs;
        m.lane = main;
    } else {
        std::lock_guard lock(m.lane->mutex_);
        if (!m.lane->has_model_ || m.lane->capturing_) return;
    }
    if (m.lane == &l) return;
    make_side(l, m.lane);
    std::lock_guard lock(l.mutex_);
    if (l.main_.load(relaxed) != m.lane) return;
    l.follows_ = m.lane;
    l.follows_launches_ = m.launches;
    l.follows_graphs_ = m.graphs;
}

void Steps::copied(uint64_t stream, bool waits, bool to_device, uint64_t bytes) {
    Lane* l = waits ? copies_lane() : &lane(stream);
    if (!l) return;
    StepMark m{l, UINT64_MAX, UINT64_MAX};
    if (Lane* main = l->main_.load(relaxed)) {
        // On a side lane: the model's step is as far as the copy waits for it.
        std::lock_guard lock(l->mutex_);
        if (l->follows_ == main) m = {main, l->follows_launches_, l->follows_graphs_};
        m.lane = main;
    }
    std::lock_guard lock(m.lane->mutex_);
    if (to_device) {
        if (m.lane == l) {
            input(*l, bytes);
        } else {
            m.lane->now_.h2d += bytes;
            m.lane->now_.h2d_copies++;
        }
        return;
    }
    Lane& of = *m.lane;
    of.now_.d2h += bytes;
    Totals then = totals(of);
    then.launches = std::min(then.launches, m.launches);
    then.graphs = std::min(then.graphs, m.graphs);
    if (of.kind_ == Kind::between || then.position() > of.opened_pos_) result(of, then, bytes, false);
    // A copy to the host waits for what was launched before it.
    if (waits) reached(of, then.launches, then.graphs);
}

}  // namespace flexnpu::client
