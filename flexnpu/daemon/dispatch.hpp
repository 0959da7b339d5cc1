// Dispatch: what the gate lets go is given to the vendor. Owns the vendor's calls for each type of item, and
// the order of what surrounds them: timing event, fence, marker. Calls the vendor, the lanes, the markers,
// the spares and what serves one type of item. The dispatching thread's.
#pragma once

#include <map>
#include <string>

#include "flexnpu/daemon/captures.hpp"
#include "flexnpu/daemon/copy_engine.hpp"
#include "flexnpu/daemon/host_calls.hpp"
#include "flexnpu/daemon/lanes.hpp"

namespace flexnpu::daemon {

class Dispatch {
public:
    struct Parts {
        Vendor& vendor;
        gate::Gate& gate;
        Inbox& inbox;
        Workers& workers;
        Spares& spares;
        LentBuffers& lent;
        Markers& markers;
        Lanes& lanes;
        HostCalls& host_calls;
        Captures& captures;
        CopyEngine& copy_engine;
        Failures& failures;
    };
    explicit Dispatch(const Parts& parts);

    // Gives the vendor the lane's item that the gate has decided for, if it is still there.
    void dispatch(Lane& lane, const gate::Decision& decision);
    // Of an item that is not run: gives back what it holds, and tells those who wait for its call.
    void forgo(Lane& lane, Item& item);
    // Begins or ends the vendor's update of a task group.
    void update(Lane& lane, Item& item);
    void counters(std::map<std::string, uint64_t>* out) const;

private:
    void call_vendor(Lane& lane, Item& item, Failures::Dispatching& of);
    void launch(Lane& lane, Item& item);
    // A workspace of ours for a captured operator, and for one that asks for more than the client gave;
    // nullptr with the failure recorded.
    Held* captured_workspace(Lane& lane, Item& item, uint64_t bytes);
    Held* lane_workspace(Lane& lane, const Shape& shape, uint64_t bytes);
    bool allocate(Lane& lane, const char* function, uint64_t bytes, std::shared_ptr<Held>* out);
    void copy(Lane& lane, Item& item);
    void memset(Lane& lane, Item& item);
    void record(Lane& lane, Item& item);
    void wait(Lane& lane, Item& item);
    void reset(Lane& lane, Item& item);
    void value(Lane& lane, Item& item);
    void hint(Lane& lane, Item& item);
    void replay(Lane& lane, Item& item);
    void collective(Lane& lane, Item& item);
    void kernel(Lane& lane, Item& item);
    // What the vendor says of its error is the lane's failure; counted only where `counted`.
    void failed(Lane& lane, const char* function, int32_t error, bool counted);

    Vendor& vendor_;
    gate::Gate& gate_;
    Inbox& inbox_;
    Workers& workers_;
    Spares& spares_;
    LentBuffers& lent_;
    Markers& markers_;
    Lanes& lanes_;
    HostCalls& host_calls_;
    Captures& captures_;
    CopyEngine& copy_engine_;
    Failures& failures_;
    uint64_t markers_made_ = 0, collectives_ = 0, replays_ = 0;
};

}  // namespace flexnpu::daemon
