#include "flexnpu/client/steps/steps.hpp"

#include <algorithm>

namespace flexnpu::client {

// ---- steps; all with the lane's lock held ----

flexnpu_step_record Steps::record_of(const Lane& lane, uint32_t kind, uint64_t t_end, uint32_t ended_by,
                                     const Totals& end) const {
    flexnpu_step_record r{};
    r.version = kFlexnpuStepVersion;
    r.size = sizeof(r);
    r.kind = kind;
    r.opening = lane.capturing_                 ? FLEXNPU_STEP_CAPTURE
                : lane.kind_ == Kind::embedding ? FLEXNPU_STEP_EMBEDDING
                : is_graph(lane.kind_)          ? FLEXNPU_STEP_GRAPH
                : lane.kind_ == Kind::attention ? FLEXNPU_STEP_ATTENTION
                                                : FLEXNPU_STEP_PLAIN;
    r.ended_by = ended_by;
    r.t_start = lane.t_open_.load(relaxed);
    r.t_end = t_end;
    r.t_last = lane.t_last_.load(relaxed);
    r.t_base = lane.t_base_;
    r.stream = lane.stream_.load(relaxed);
    r.seq = lane.seq_;
    r.launches = end.launches - lane.base_.launches + side_launches(lane);
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
    e->record = record_of(lane, FLEXNPU_STEP_MAYBE, lane.end_.t, FLEXNPU_STEP_BY_SYNC, lane.end_.at);
    done.fetch_add(1, std::memory_order_release);
}

void Steps::begin(Lane& lane) { tell(lane, FLEXNPU_STEP_BEGIN, 0, FLEXNPU_STEP_NOT, lane.base_); }

void Steps::open(Lane& lane, Kind kind, uint64_t now, uint64_t began) {
    const bool heard = listened();
    lane.kind_ = kind;
    lane.has_model_ = true;
    lane.may_gap_.store(false, relaxed);
    lane.watch_.store(heard ? Lane::heard : Lane::unheard, relaxed);
    lane.main_.store(nullptr, relaxed);
    if (lane.t_input_ && now <= lane.t_input_last_ + kInputNs) began = std::min(began, lane.t_input_);
    lane.t_open_.store(began, relaxed);
    mark(lane, now);
    reset(lane);
    const Totals t = totals(lane);
    lane.opened_at_ = t.launches;
    lane.opened_pos_ = t.position();
    lane.run_start_ = t.weight();
    lane.base_.gated = t.gated;
}

// What a step has, and the next one begins without.
void Steps::reset(Lane& lane) {
    lane.end_ = {};
    lane.later_ = {};
    lane.input_ = 0;
    lane.t_input_ = 0;
    lane.result_ = false;
    lane.attended_ = 0;
    lane.said_ = false;
    lane.run_longest_ = 0;
}

// Ends the running step at `end`; what came after belongs to the next one.
void Steps::close(Lane& lane, uint64_t t_end, uint32_t ended_by, const Totals& end) {
    settle_pending(lane, 0, FLEXNPU_STEP_BY_NEXT);
    tell(lane, FLEXNPU_STEP_DONE, t_end, ended_by, end);
    lane.t_base_ = t_end;
    forget_step(lane, end);
}

void Steps::forget_step(Lane& lane, const Totals& end) {
    for (Lane* side : lane.sides_) {
        if (side->main_.load(relaxed) == &lane)
            side->side_taken_.store(side->launches_.load(relaxed), relaxed);
    }
    lane.base_ = end;
    lane.seq_++;
    lane.kind_ = Kind::between;
    lane.model_ = 0;
    lane.evidence_ = {};
    // What was copied for the next step has been copied for the next step.
    const auto [t_input, t_input_last] = std::pair(lane.t_input_, lane.t_input_last_);
    reset(lane);
    lane.t_input_ = t_input, lane.t_input_last_ = t_input_last;
    lane.t_open_.store(0, relaxed);
    lane.may_gap_.store(!lane.has_model_ && !lane.main_.load(relaxed), relaxed);
    lane.watch_.store(Lane::ask, relaxed);
}

void Steps::close_for_next(Lane& lane, uint32_t ended_by) {
    if (lane.kind_ == Kind::between)
        return;  // what was launched between steps counts in the step that now begins
    settle(lane);
    if (!lane.end_.here) {
        close(lane, lane.t_last_.load(relaxed), ended_by, totals(lane));
    } else if (lane.end_.over) {
        const Totals end = lane.end_.at;
        close(lane, lane.end_.t, FLEXNPU_STEP_BY_SYNC, end);
    } else {
        park(lane);
    }
}

// The step's launches are over, and the device still has them: it is told when a wait says so.
void Steps::park(Lane& lane) {
    settle_pending(lane, 0, FLEXNPU_STEP_BY_NEXT);
    const Totals end = lane.end_.at;
    if (heard(lane)) {
        lane.pending_ = {record_of(lane, FLEXNPU_STEP_DONE, 0, FLEXNPU_STEP_BY_SYNC, end), end.position(),
                         lane.base_.gated, true};
    } else {
        lane.t_base_ = 0;
    }
    forget_step(lane, end);
}

// `t_end` 0: nobody waited for it, and all that is known is its last launch.
void Steps::settle_pending(Lane& lane, uint64_t t_end, uint32_t ended_by) {
    if (!lane.pending_.here) return;
    lane.pending_.here = false;
    flexnpu_step_record& r = lane.pending_.record;
    const uint64_t now = gated(lane), then = lane.pending_.gated;
    r.t_end = t_end ? t_end : r.t_last;
    r.ended_by = ended_by;
    r.t_base = lane.t_base_;
    r.gated_ns = now == UINT64_MAX || now < then ? UINT64_MAX : now - then;
    lane.t_base_ = r.t_end;
    lane.base_.gated = now;
    if (listened()) outside_.tell(&r);
}

// ---- what the program calls ----

// What a launch says of its step, which is said once.
StepPhase Steps::say(Lane& lane, const StepPhase& phase) {
    if (lane.said_) return {};
    lane.said_ = phase.known();
    return phase;
}

Steps::Launched Steps::embedding(Lane& lane, std::span<const uint8_t> key, uint64_t t_first) {
    const flexnpu_step_evidence e = of_embedding(key);
    std::lock_guard lock(lane.mutex_);
    const flexnpu_step_evidence& old = lane.evidence_;
    // Position and token-type embeddings follow the token embedding within the same step, with tables of
    // their own.
    if (lane.kind_ == Kind::embedding && (e.flags & old.flags & FLEXNPU_STEP_HAS_TABLE) &&
        (e.rows != old.rows || e.columns != old.columns) &&
        lane.launches_.load(relaxed) - lane.opened_at_ < kTableWindow) {
        return {};
    }
    close_for_next(lane, FLEXNPU_STEP_BY_NEXT);
    const uint64_t now = listened() ? outside_.now() : 0;
    open(lane, Kind::embedding, now, t_first && t_first < now ? t_first : now);
    lane.evidence_ = e;
    if (lane.capturing_) return {};
    begin(lane);
    return {true, say(lane, phase_of(e))};
}

Steps::Launched Steps::attention(Lane& lane, std::span<const uint8_t> key, StepRole role) {
    if (const uint64_t graph = lane.updating_.load(relaxed)) {
        Lane* replayed = nullptr;
        {
            std::lock_guard lock(models_mutex_);
            const Model& model = models_[graph];
            if (model.updated) return {};  // every layer is given the same arrays
            replayed = model.replayed;
        }
        if (replayed) {
            std::lock_guard lock(replayed->mutex_);
            if (is_graph(replayed->kind_) && replayed->model_ == graph) {
                if (replayed->attended_ || !heard(*replayed)) return {};
                replayed->attended_ = kAttentions;
                add_attention(&replayed->evidence_, key, role);
                return {};
            }
        }
        // For the graph's next launch.
        if (!listened()) return {};
        flexnpu_step_evidence e{};
        add_attention(&e, key, role);
        std::lock_guard lock(models_mutex_);
        Model& model = models_[graph];
        model.lengths = e;
        model.updated = true;
        return {};
    }
    if (!heard(lane)) return {};
    std::lock_guard lock(lane.mutex_);
    if (lane.kind_ == Kind::attention && lane.input_) close_for_next(lane, FLEXNPU_STEP_BY_NEXT);
    if (lane.attended_ >= kAttentions) return {};
    lane.attended_++;
    add_attention(&lane.evidence_, key, role);
    if (lane.capturing_ || lane.main_.load(relaxed)) return {};
    const StepPhase phase = say(lane, phase_of(lane.evidence_));
    if (lane.kind_ != Kind::between) return {false, phase};
    // What was launched since the last step is part of this one.
    const uint64_t since = lane.t_open_.load(relaxed);
    lane.kind_ = Kind::attention;
    if (!since) lane.t_open_.store(outside_.now(), relaxed);
    const Totals t = totals(lane);
    lane.opened_pos_ = t.position();
    lane.base_.gated = t.gated;
    begin(lane);
    return {true, phase};
}

Steps::Launched Steps::graph(uint64_t stream, uint64_t model) {
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
    // A graph that holds its own embedding opens a step. Another one is a piece of the step that runs, unless
    // new input has come since that step's result went, or it is the one that opened it.
    // Of an unknown graph: since a wait that may have ended the step.
    const bool input = l.input_ || (!known.captured && l.kind_ == Kind::embedding && l.end_.over &&
                                    l.now_.h2d_copies > l.end_.at.h2d_copies);
    const bool opens = known.opens || input || (l.kind_ == Kind::pieces && l.model_ == model);
    if (l.kind_ != Kind::between && !opens) {
        if (heard(l)) mark(l, outside_.now());
        l.graphs_.fetch_add(1, relaxed);
        return {};
    }
    close_for_next(l, FLEXNPU_STEP_BY_GRAPH);
    const uint64_t now = listened() ? outside_.now() : 0;
    const bool alone = known.opens ? !known.pieces : !known.captured;
    open(l, alone ? Kind::graph : Kind::pieces, now, now);
    l.model_ = model;
    if (known.opens) {
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
    // Lengths of this launch, its own shape, or what it was captured for: nobody captures a graph of one
    // token a sequence to replay it for prompts.
    const StepPhase now_known = phase_of(l.evidence_);
    return {true, say(l, now_known.known() ? now_known : known.phase)};
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
    if (model) {
        std::lock_guard models(models_mutex_);
        Model& m = models_[model];
        m.captured = true;
        if (l.kind_ == Kind::embedding) {
            m.opens = true;
            m.evidence = l.evidence_;
            m.phase = phase_of(l.evidence_);
            captured_ = model;
        } else if (const auto first = models_.find(captured_); first != models_.end()) {
            first->second.pieces = true;
        }
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
    if (captured_ == model) captured_ = 0;
}

void Steps::updating(uint64_t stream, uint64_t graph) {
    Lane& l = lane(stream);
    Lane* replayed = nullptr;
    if (graph) {
        std::lock_guard models(models_mutex_);
        if (const auto model = models_.find(graph); model != models_.end()) replayed = model->second.replayed;
    }
    {
        std::lock_guard lock(l.mutex_);
        l.updating_.store(graph, relaxed);
    }
    if (replayed) make_side(l, replayed);
}

void Steps::stream_destroyed(uint64_t stream) {
    Lane& l = lane(stream);
    std::lock_guard lock(l.mutex_);
    close_for_next(l, FLEXNPU_STEP_BY_GAP);
    settle_pending(l, 0, FLEXNPU_STEP_BY_GAP);
}

}  // namespace flexnpu::client
