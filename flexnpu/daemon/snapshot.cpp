#include "flexnpu/daemon/snapshot.hpp"

#include <algorithm>

#include "flexnpu/wire/futex.hpp"

namespace flexnpu::daemon {

namespace {

// How often a snapshot is made while nobody asks for one, and how soon after a change.
constexpr uint64_t kPublishNs = 1'000'000'000, kChangedNs = 20'000'000;

}  // namespace

std::shared_ptr<const Snapshot> SnapshotBoard::latest(std::chrono::milliseconds within,
                                                      const std::function<bool()>& ask) {
    const uint64_t now = wire::now_ns(), within_ns = uint64_t(within.count()) * 1'000'000;
    std::unique_lock lock(mutex_);
    if (asked_ns_ == 0) {
        asked_ns_ = now;
        lock.unlock();
        const bool asked = ask();
        lock.lock();
        if (!asked) {
            asked_ns_ = 0;
            return latest_;
        }
    } else if (now - std::min(now, asked_ns_) > within_ns) {
        return latest_;  // asked for so long ago that another wait would end like the last
    }
    shown_.wait_for(lock, within, [&] { return latest_->taken_ns >= now; });
    return latest_;
}

bool SnapshotBoard::due(uint64_t now_ns) const {
    const uint64_t since = now_ns - std::min(now_ns, published_ns_);
    return since >= kPublishNs || (changed_ && since >= kChangedNs);
}

uint64_t SnapshotBoard::due_at() const { return changed_ ? published_ns_ + kChangedNs : UINT64_MAX; }

void SnapshotBoard::publish(uint64_t now_ns, const std::function<void(Snapshot&)>& fill) {
    auto made = std::make_shared<Snapshot>();
    made->taken_ns = published_ns_ = now_ns;
    changed_ = false;
    {
        std::lock_guard lock(mutex_);
        asked_ns_ = 0;  // who asks from here on asks for the next
    }
    fill(*made);
    {
        std::lock_guard lock(mutex_);
        latest_ = std::move(made);
    }
    shown_.notify_all();
}

}  // namespace flexnpu::daemon
