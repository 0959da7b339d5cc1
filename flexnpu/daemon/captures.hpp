// When a lane's stream begins to capture and when it runs again. Calls the vendor, the lanes and the spares.
// The dispatching thread's, but for the teardown.
#pragma once

#include <memory>

#include "flexnpu/daemon/graphs.hpp"
#include "flexnpu/daemon/lanes.hpp"

namespace flexnpu::daemon {

class Captures {
public:
    Captures(Vendor& vendor, Spares& spares, Lanes& lanes)
        : vendor_(vendor), spares_(spares), lanes_(lanes) {}

    // The vendor's stream is about to capture.
    void enter(Lane& lane) {
        if (!lane.in_capture) begin(lane);
    }
    // The lanes of this graph's capture run again; its handle is gone unless it can be replayed.
    void forget(Session& s, const std::shared_ptr<Graph>& graph);
    // On the thread that tears the session down, when nothing of it is dispatched any more: captures end,
    // replays have their time, graphs go.
    void tear_down(Session& s);

private:
    void begin(Lane& lane);

    Vendor& vendor_;
    Spares& spares_;
    Lanes& lanes_;
};

}  // namespace flexnpu::daemon
