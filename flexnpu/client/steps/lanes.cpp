// Lanes of the step counter: their places, what is read of them, and the clock of their launches.
#include "flexnpu/client/steps/steps.hpp"

namespace flexnpu::client {

constinit thread_local StepLane* step_lane_used = nullptr;

std::atomic<bool> Steps::entry_taken_[kFlexnpuStepEntries];

Steps::~Steps() {
    for (Lane* lane : lanes_) {
        if (!lane->waiting_) continue;
        lane->waiting_->record = {};
        entry_taken_[lane->waiting_ - outside_.waiting->entry].store(false, std::memory_order_release);
    }
    for (auto& slot : chunks_) {
        std::atomic<Lane*>* chunk = slot.load(relaxed);
        for (uint32_t i = 0; chunk && i < kChunk; i++) delete chunk[i].load(relaxed);
        delete[] chunk;
    }
    for (auto& slot : events_) delete[] slot.load(relaxed);
}

void Steps::leave() {
    // A thread that still runs may hold a lock, and nobody waits for it.
    std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return;
    for (Lane* lane : lanes_) {
        std::unique_lock held(lane->mutex_, std::try_to_lock);
        if (!held) continue;
        if (lane->end_.here) close_for_next(*lane, FLEXNPU_STEP_BY_GAP);
        settle_pending(*lane, 0, FLEXNPU_STEP_BY_GAP);
    }
}

void Steps::forget(flexnpu_step_table* waiting) {
    for (uint32_t i = 0; i < waiting->entries; i++) {
        if (entry_taken_[i].exchange(false, relaxed)) waiting->entry[i] = {};
    }
}

// ---- lanes ----

void Steps::take_entry(Lane& lane) {
    for (uint32_t i = 0; i < outside_.waiting->entries; i++) {
        if (entry_taken_[i].exchange(true, std::memory_order_acquire)) continue;
        lane.waiting_ = &outside_.waiting->entry[i];
        return;
    }
}

StepLane& Steps::make(uint64_t stream) {
    std::lock_guard lock(mutex_);
    if (stream == 0) {
        if (!default_ready_.load(relaxed)) {
            default_.owner_ = this;
            take_entry(default_);
            lanes_.push_back(&default_);
            default_ready_.store(true, std::memory_order_release);
        }
        return default_;
    }
    const uint32_t i = wire::handle_index(stream);
    auto& slot = chunks_[i / kChunk];
    if (!slot.load(relaxed)) slot.store(new std::atomic<Lane*>[kChunk] {}, std::memory_order_release);
    std::atomic<Lane*>& place = slot.load(relaxed)[i % kChunk];
    Lane* lane = place.load(relaxed);
    if (!lane) {
        lane = new Lane;  // kept: a later stream has its place
        lane->owner_ = this;
        lane->stream_.store(stream, relaxed);
        take_entry(*lane);
        lanes_.push_back(lane);
        place.store(lane, std::memory_order_release);
        return *lane;
    }
    if (lane->stream_.load(relaxed) == stream) return *lane;
    // The stream that had the place is gone.
    std::lock_guard held(lane->mutex_);
    close_for_next(*lane, FLEXNPU_STEP_BY_GAP);
    settle_pending(*lane, 0, FLEXNPU_STEP_BY_GAP);
    for (Lane* side : lane->sides_) {
        Lane* ours = lane;  // one that follows another lane by now keeps to that
        side->main_.compare_exchange_strong(ours, nullptr, relaxed);
    }
    lane->sides_.clear();
    lane->main_.store(nullptr, relaxed);
    lane->follows_ = nullptr;
    lane->base_ = totals(*lane);
    lane->has_model_ = lane->capturing_ = false;
    lane->may_gap_.store(true, relaxed);
    lane->ticks_.store(0, relaxed);
    lane->updating_.store(0, relaxed);
    lane->run_start_ = lane->base_.weight();
    lane->stream_.store(stream, relaxed);
    return *lane;
}

// The lane of a synchronous copy: that which the thread used last, or the only one.
StepLane* Steps::copies_lane() {
    if (Lane* last = step_lane_used; last && last->owner_ == this) return last;
    std::lock_guard lock(mutex_);
    return lanes_.size() == 1 ? lanes_.front() : nullptr;
}

uint64_t Steps::gated(const Lane& lane) const {
    const uint32_t at = wire::gated_lane(lane.stream_.load(relaxed));
    return at < outside_.gated_lanes ? outside_.gated[at].load(relaxed) : UINT64_MAX;
}

StepLane::Totals Steps::totals(const Lane& lane) const {
    Totals t = lane.now_;
    t.launches = lane.launches_.load(relaxed);
    t.graphs = lane.graphs_.load(relaxed);
    t.gated = gated(lane);
    return t;
}

void Steps::publish(Lane& lane) {
    const uint64_t n = lane.launches_.load(relaxed);
    const uint64_t before = lane.published_.exchange(n, relaxed);
    if (outside_.launched)
        outside_.launched->fetch_add(n - before, relaxed);  // the sum is right whoever was first
}

bool Steps::heard(Lane& lane) {
    uint8_t watch = lane.watch_.load(relaxed);
    if (watch == Lane::ask) lane.watch_.store(watch = listened() ? Lane::heard : Lane::unheard, relaxed);
    return watch == Lane::heard;
}

// Before a launch of a lane that is listened to, or the first since its last step.
void Steps::touch(Lane& lane) {
    if (!heard(lane)) return;
    if (!lane.may_gap_.load(relaxed) && lane.t_open_.load(relaxed)) {
        lane.ticks_.store(outside_.ticks(), relaxed);
        return;
    }
    const uint64_t now = outside_.now();
    if (lane.may_gap_.load(relaxed) && lane.t_open_.load(relaxed) &&
        now - lane.t_last_.load(relaxed) > kGapNs) {
        std::lock_guard lock(lane.mutex_);
        // Plain work without a synchronise is cut where the lane was idle.
        const uint64_t last = lane.t_last_.load(relaxed);
        if (lane.may_gap_.load(relaxed) && lane.t_open_.load(relaxed) && now - last > kGapNs) {
            const Totals end = totals(lane);
            lane.run_start_ = end.weight();
            close(lane, last, FLEXNPU_STEP_BY_GAP, end);
        }
    }
    if (lane.may_gap_.load(relaxed))
        lane.t_last_.store(now, relaxed);  // each launch's clock is read
    else
        mark(lane, now);
    if (!lane.t_open_.load(relaxed)) lane.t_open_.store(now, relaxed);
}

// Something was launched on the lane now, and the time is known.
void Steps::mark(Lane& lane, uint64_t now) {
    lane.t_last_.store(now, relaxed);
    lane.ticks_.store(0, relaxed);
    lane.marked_.store(outside_.ticks(), relaxed);
}

// Moves the mark to the lane's last launch: between the mark and now, where its ticks are between theirs.
void Steps::settle(Lane& lane) {
    const uint64_t from = lane.marked_.load(relaxed);
    uint64_t at = lane.ticks_.load(relaxed);
    if (at <= from) return;
    const uint64_t marked = lane.t_last_.load(relaxed), now = outside_.now(), to = outside_.ticks();
    if (now <= marked || to <= at) return;
    lane.t_last_.store(marked + uint64_t(double(now - marked) * (double(at - from) / double(to - from))),
                       relaxed);
    lane.marked_.store(at, relaxed);
    lane.ticks_.compare_exchange_strong(at, 0, relaxed);  // a launch may have come meanwhile
}

}  // namespace flexnpu::client
