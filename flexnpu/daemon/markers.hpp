// How far the vendor's streams have come: fences that keep a stream from filling up, and markers whose return
// is reported. Both are spare events recorded in the stream. Calls the vendor, the spares and the threads
// that wait for markers; who needs to know gives it a function. The dispatching thread's.
#pragma once

#include <functional>
#include <utility>

#include "flexnpu/daemon/inbox.hpp"
#include "flexnpu/daemon/spares.hpp"
#include "flexnpu/daemon/workers.hpp"

namespace flexnpu::daemon {

class Markers {
public:
    Markers(Vendor& vendor, Inbox& inbox, Spares& spares, Workers& workers)
        : vendor_(vendor), inbox_(inbox), spares_(spares), workers_(workers) {}

    // Called when a lane's stream has reached a marker, after its events have gone back. The lane may have
    // gone meanwhile. `us`: between its two events, or -1.
    std::function<void(uint32_t lane, const Completions::Marker& marker, double us)> on_reached;

    // The stream is to tell when it reaches the marker, whose events have been recorded there.
    void add(Lane& lane, const Completions::Marker& marker);
    // Reports the lane's markers that are left, and returns when nobody looks at them any more. Any thread.
    void close(Lane& lane);
    // Something has been given to the vendor's stream.
    void fence(Lane& lane) {
        if (++lane.given % kFenceEvery == 0) record_fence(lane);
    }
    // Whether the vendor's stream has room for one more. If not, a marker without a ticket tells when.
    bool room(Lane& lane) {
        return lane.given + lane.queue.size() - lane.over < kInFlight || look_for_room(lane);
    }
    // Looks how many of the lane's fences have been reached.
    void progress(Lane& lane);

private:
    // Items of one lane between us and the device. Hardware streams hold about a thousand or two; with fewer
    // than this a device runs dry.
    static constexpr uint64_t kInFlight = 512;
    static constexpr uint64_t kFenceEvery = 64;
    void record_fence(Lane& lane);
    bool look_for_room(Lane& lane);
    void reached(uint32_t lane, const Completions::Marker& marker, double us);

    Vendor& vendor_;
    Inbox& inbox_;
    Spares& spares_;
    Workers& workers_;
};

}  // namespace flexnpu::daemon
