#include "flexnpu/client/steps/steps.hpp"

#include <algorithm>

namespace flexnpu::client {

namespace {
constexpr auto relaxed = std::memory_order_relaxed;
}  // namespace

// ---- steps; all with the lane's lock held ----

flexnpu_step_record Steps::record_of(const Lane& lane, uint32_t kind, uint64_t t_end, uint32_t ended_by,
                                     const Totals& end) const {
    flexnpu_step_record r{};
    r.version = kFlexnpuStepVersion;
    r.size = sizeof(r);
    r.kind = kind;
    r.opening = lane.capturing_                 ? FLEXNPU_STEP_CAPTURE
                : lane.kind_ == Kind::embedding ? FLEXNPU_STEP_EMBEDDING
                : lane.kind_ == Kind::graph     ? FLEXNPU_STEP_GRAPH
                : lane.kind_ == Kind::attention ? FLEXNPU_STEP_ATTENTION
                                                : FLEXNPU_STEP_PLAIN;
    r.ended_by = ended_by;
    r.t_start = lane.t_open_.load(relaxed);
    r.t_end = t_end;
    r.t_last = lane.t_last_.load(relaxed);
    r.t_base = lane.t_base_;
    r.stream = lane.stream_.load(relaxed);
    r.seq = lane.seq_;
    r.launches = end.launches - lane.base_.launches;
    r.graphs = end.graphs - lane.base_.graphs;
    r.h2d = end.h2d - lane.base_.h2d;
    r.d2h = end.d2h - lane.base_.d2h;
    r.h2d_copies = end.h2d_copies - lane.base_.h2d_copies;
    r.lane_work = end.launches + end.graphs;
    // A figure of the daemon's: one that shrinks is nonsense, and harms nobody.
    r.gated_ns =
        end.gated == UINT64_MAX || end.gated < lane.base_.gated ? UINT64_MAX : end.gated - lane.base_.gated;
    r.model = lane.model_;
    r.evidence = lane.evidence_;
    return r;
}

void Steps::tell(Lane& lane, uint32_t kind, uint64_t t_end, uint32_t ended_by, const Totals& end) {
    const bool begins = kind == FLEXNPU_STEP_BEGIN;
    if (!heard(lane) || !listened() || (begins && !*outside_.begin_listeners)) return;
    const flexnpu_step_record r = record_of(lane, kind, t_end, ended_by, end);
    (begins ? outside_.tell_begin : outside_.tell)(&r);
}

// Puts what may be the lane's step where readers look.
void Steps::show(Lane& lane) {
    flexnpu_step_entry* e = lane.waiting_;
    if (!e || !listened()) return;
    std::atomic_ref begun(e->begun), done(e->done);
    begun.fetch_add(1);  // before what follows, whoever looks
    e->record = record_of(lane, FLEXNPU_STEP_MAYBE, lane.cand_t_, FLEXNPU_STEP_BY_SYNC, lane.cand_);
    done.fetch_add(1, std::memory_order_release);
}

void Steps::begin(Lane& lane) { tell(lane, FLEXNPU_STEP_BEGIN, 0, FLEXNPU_STEP_NOT, lane.base_); }

void Steps::open(Lane& lane, Kind kind, uint64_t now, uint64_t began) {
    const bool heard = listened();
    lane.kind_ = kind;
    lane.has_model_ = true;
    lane.may_gap_.store(false, relaxed);
    lane.watch_.store(heard ? Lane::heard : Lane::unheard, relaxed);
    lane.t_open_.store(began, relaxed);
    mark(lane, now);
    lane.has_cand_ = false;
    lane.attended_ = 0;
    lane.run_longest_ = 0;
    lane.opened_at_ = lane.launches_.load(relaxed);
    lane.run_start_ = lane.opened_at_ + lane.graphs_.load(relaxed);
    lane.base_.gated = gated(lane);
}

// Ends the running step at `end`; what came after belongs to the next one.
void Steps::close(Lane& lane, uint64_t t_end, uint32_t ended_by, const Totals& end) {
    tell(lane, FLEXNPU_STEP_DONE, t_end, ended_by, end);
    lane.base_ = end;
    lane.t_base_ = t_end;
    lane.seq_++;
    lane.kind_ = Kind::between;
    lane.model_ = 0;
    lane.evidence_ = {};
    lane.has_cand_ = false;
    lane.attended_ = 0;
    lane.run_longest_ = 0;
    lane.t_open_.store(0, relaxed);
    lane.may_gap_.store(!lane.has_model_, relaxed);
    lane.watch_.store(Lane::ask, relaxed);
}

void Steps::close_for_next(Lane& lane, uint32_t ended_by) {
    if (lane.kind_ == Kind::between)
        return;  // what was launched between steps counts in the step that now begins
    settle(lane);
    if (lane.has_cand_) {
        const Totals end = lane.cand_;
        close(lane, lane.cand_t_, FLEXNPU_STEP_BY_SYNC, end);
    } else {
        close(lane, lane.t_last_.load(relaxed), ended_by, totals(lane));
    }
}

// ---- what the program calls ----

void Steps::embedding(Lane& lane, std::span<const uint8_t> key, uint64_t t_first) {
    const flexnpu_step_evidence e = of_embedding(key);
    std::lock_guard lock(lane.mutex_);
    const flexnpu_step_evidence& old = lane.evidence_;
    // Position and token-type embeddings follow the token embedding within the same step, with tables of
    // their own.
    if (lane.kind_ == Kind::embedding && (e.flags & old.flags & FLEXNPU_STEP_HAS_TABLE) &&
        (e.rows != old.rows || e.columns != old.columns) &&
        lane.launches_.load(relaxed) - lane.opened_at_ < kTableWindow) {
        return;
    }
    close_for_next(lane, FLEXNPU_STEP_BY_NEXT);
    const uint64_t now = listened() ? outside_.now() : 0;
    open(lane, Kind::embedding, now, t_first && t_first < now ? t_first : now);
    lane.evidence_ = e;
    if (!lane.capturing_) begin(lane);
}

void Steps::attention(Lane& lane, std::span<const uint8_t> key, StepRole role) {
    if (const uint64_t graph = lane.updating_.load(relaxed)) {
        Lane* replayed = nullptr;
        {
            std::lock_guard lock(models_mutex_);
            const Model& model = models_[graph];
            if (model.updated) return;  // every layer is given the same arrays
            replayed = model.replayed;
        }
        if (replayed) {
            std::lock_guard lock(replayed->mutex_);
            if (replayed->kind_ == Kind::graph && replayed->model_ == graph) {
                if (replayed->attended_ || !heard(*replayed)) return;
                replayed->attended_ = kAttentions;
                add_attention(&replayed->evidence_, key, role);
                return;
            }
        }
        // For the graph's next launch.
        if (!listened()) return;
        flexnpu_step_evidence e{};
        add_attention(&e, key, role);
        std::lock_guard lock(models_mutex_);
        Model& model = models_[graph];
        model.lengths = e;
        model.updated = true;
        return;
    }
    if (!heard(lane)) return;
    std::lock_guard lock(lane.mutex_);
    if (lane.attended_ >= kAttentions) return;
    lane.attended_++;
    add_attention(&lane.evidence_, key, role);
    if (lane.kind_ != Kind::between || lane.capturing_) return;
    // What was launched since the last step is part of this one.
    const uint64_t since = lane.t_open_.load(relaxed);
    lane.kind_ = Kind::attention;
    if (!since) lane.t_open_.store(outside_.now(), relaxed);
    lane.base_.gated = gated(lane);
    begin(lane);
}

void Steps::graph(uint64_t stream, uint64_t model) {
    Lane& l = lane(stream);
    step_lane_used = &l;
    std::lock_guard lock(l.mutex_);
    Model known;
    {
        std::lock_guard models(models_mutex_);
        Model& m = models_[model];
        m.replayed = &l;
        known = m;
        m.updated = false;
    }
    // A graph that holds its own embedding is a whole step. Of an unknown one, new input since the last
    // synchronise says so; else it is a piece of the step that runs.
    const bool whole =
        known.whole || (l.kind_ == Kind::embedding && l.has_cand_ && l.now_.h2d_copies > l.cand_.h2d_copies);
    if (l.kind_ != Kind::between && !whole) {
        if (heard(l)) mark(l, outside_.now());
        l.graphs_.fetch_add(1, relaxed);
        return;
    }
    close_for_next(l, FLEXNPU_STEP_BY_GRAPH);
    const uint64_t now = listened() ? outside_.now() : 0;
    open(l, Kind::graph, now, now);
    l.model_ = model;
    if (known.whole) {
        l.evidence_ = known.evidence;
        l.evidence_.flags |= FLEXNPU_STEP_FROM_CAPTURE;
        take_lengths(&l.evidence_, {});  // those of the capture are not this step's
    }
    if (known.updated) {
        take_lengths(&l.evidence_, known.lengths);
        l.attended_ = kAttentions;
    }
    l.graphs_.fetch_add(1, relaxed);
    begin(l);
}

void Steps::capture_begun(uint64_t stream) {
    Lane& l = lane(stream);
    std::lock_guard lock(l.mutex_);
    close_for_next(l, FLEXNPU_STEP_BY_GRAPH);
    l.capturing_ = true;
}

void Steps::capture_ended(uint64_t stream, uint64_t model) {
    Lane& l = lane(stream);
    std::lock_guard lock(l.mutex_);
    if (!l.capturing_) return;
    if (model && l.kind_ == Kind::embedding) {
        std::lock_guard models(models_mutex_);
        Model& m = models_[model];
        m.whole = true;
        m.evidence = l.evidence_;
    }
    const Totals end = totals(l);
    settle(l);
    if (end.launches != l.base_.launches || l.kind_ != Kind::between)
        close(l, l.t_last_.load(relaxed), FLEXNPU_STEP_BY_GRAPH, end);
    l.capturing_ = false;
}

void Steps::graph_destroyed(uint64_t model) {
    std::lock_guard models(models_mutex_);
    models_.erase(model);
}

void Steps::updating(uint64_t stream, uint64_t graph) {
    Lane& l = lane(stream);
    std::lock_guard lock(l.mutex_);
    l.updating_.store(graph, relaxed);
}

void Steps::synchronised(Lane& lane, const Totals& then) {
    const uint64_t done = then.launches + then.graphs;
    if (done <= lane.run_start_)
        return;  // nothing was waited for: the synchronise that precedes a copy, for one
    publish(lane);
    const uint64_t run = done - lane.run_start_;
    lane.run_start_ = done;
    if (lane.capturing_) return;
    const bool listened = heard(lane);
    settle(lane);
    if (lane.kind_ == Kind::embedding) {
        if (run * 4 >= lane.run_longest_) {
            lane.cand_ = then;
            lane.has_cand_ = true;
            if (listened) {
                lane.cand_t_ = outside_.now();
                show(lane);
            }
        }
        lane.run_longest_ = std::max(lane.run_longest_, run);
    } else if (lane.kind_ != Kind::between || !lane.has_model_) {
        close(lane, listened ? outside_.now() : 0, FLEXNPU_STEP_BY_SYNC, then);
    }
}

void Steps::synchronised(uint64_t stream) {
    Lane& l = lane(stream);
    step_lane_used = &l;
    std::lock_guard lock(l.mutex_);
    synchronised(l, totals(l));
}

void Steps::device_synchronised() {
    std::lock_guard lock(mutex_);
    for (Lane* l : lanes_) {
        std::lock_guard held(l->mutex_);
        synchronised(*l, totals(*l));
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
    const Lane& l = lane(stream);
    Mark& mark = chunk[i % kEventChunk];
    mark.launches.store(l.launches_.load(relaxed), relaxed);
    mark.graphs.store(l.graphs_.load(relaxed), relaxed);
    mark.stream.store(stream, relaxed);
}

// Who waits for an event has waited for what its stream held when it was recorded.
void Steps::event_synchronised(uint64_t event) {
    const uint32_t i = wire::handle_index(event);
    Mark* chunk = events_[i / kEventChunk].load(std::memory_order_acquire);
    if (!chunk) return;
    const Mark& mark = chunk[i % kEventChunk];
    Lane& l = lane(mark.stream.load(relaxed));
    std::lock_guard lock(l.mutex_);
    // If the record is of an earlier step, which has been closed without knowing its end, there is nothing
    // new that was waited for.
    Totals then = totals(l);
    then.launches = std::min(then.launches, mark.launches.load(relaxed));
    then.graphs = std::min(then.graphs, mark.graphs.load(relaxed));
    synchronised(l, then);
}

void Steps::copied(uint64_t stream, bool waits, bool to_device, uint64_t bytes) {
    Lane* l = waits ? copies_lane() : &lane(stream);
    if (!l) return;
    std::lock_guard lock(l->mutex_);
    if (to_device) {
        l->now_.h2d += bytes;
        l->now_.h2d_copies++;
        return;
    }
    l->now_.d2h += bytes;
    const uint64_t launches = l->launches_.load(relaxed);
    const bool more = launches + l->graphs_.load(relaxed) != l->run_start_;
    // What is copied right after the synchronise that ended a step is its result.
    if (l->has_cand_ && !more && l->cand_.launches == launches) {
        l->cand_.d2h += bytes;
        if (heard(*l)) show(*l);
    }
    // A copy to the host waits for what was launched before it.
    if (waits && more) synchronised(*l, totals(*l));
}

void Steps::stream_destroyed(uint64_t stream) {
    Lane& l = lane(stream);
    std::lock_guard lock(l.mutex_);
    close_for_next(l, FLEXNPU_STEP_BY_GAP);
}

}  // namespace flexnpu::client
