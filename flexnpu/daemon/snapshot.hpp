// What is known of a data plane at one time, for threads that must not wait for the dispatching thread.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "flexnpu/gate/gate.hpp"

namespace flexnpu::daemon {

struct LaneInfo {
    uint32_t lane, session;
    int32_t pid;
    std::string comm;
    uint64_t stream;
    gate::Phase phase;
    uint64_t queued, in_flight;
    double in_flight_us;
    uint64_t launched, completed;
    double device_us, gated_us;
    bool held_now;
    uint64_t prefill_steps, decode_steps, prefill_tokens, decode_tokens;  // as the steps themselves said
};

struct SessionInfo {
    uint32_t session;
    int32_t pid;
    std::string comm;
    uint32_t uid;
    uint64_t memory_bytes, memory_quota_bytes, rings, lanes, calls, refused, ring_full, launches, steps;
};

struct Snapshot {
    std::vector<SessionInfo> sessions;
    std::vector<LaneInfo> lanes;
    std::map<std::string, uint64_t> counters;
    uint64_t taken_ns = 0;  // of CLOCK_MONOTONIC
};

// The latest snapshot. The dispatching thread makes one when it is asked to, when something has come or gone,
// and now and then.
class SnapshotBoard {
public:
    // ---- any thread ----

    // The latest snapshot, at most as old as this call if the dispatching thread makes one within the time.
    // When that thread is known to be late, nothing is waited for. `ask` has the thread publish one; false:
    // it cannot.
    std::shared_ptr<const Snapshot> latest(std::chrono::milliseconds within,
                                           const std::function<bool()>& ask);

    // ---- the dispatching thread ----

    // Sessions or lanes have come or gone.
    void changed() { changed_ = true; }
    bool due(uint64_t now_ns) const;
    // When it will be due for what has changed; UINT64_MAX: nothing has.
    uint64_t due_at() const;
    // Fills a new snapshot in and shows it.
    void publish(uint64_t now_ns, const std::function<void(Snapshot&)>& fill);

private:
    std::mutex mutex_;
    std::condition_variable shown_;
    std::shared_ptr<const Snapshot> latest_ = std::make_shared<Snapshot>();
    uint64_t asked_ns_ = 0;  // since when one has been asked for and not been made; 0: none has
    // The dispatching thread's:
    uint64_t published_ns_ = 0;
    bool changed_ = true;
};

}  // namespace flexnpu::daemon
