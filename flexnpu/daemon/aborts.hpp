// aclrtStreamAbort and aclrtDeviceTaskAbort: the vendor's stream is aborted, and what its lane holds here is
// dropped.
//
// Nobody may hang on what was dropped. An event whose record was dropped is recorded on the stream, which is
// empty then. A synchronise that waits in the lane is answered with the abort's error. So is a synchronise of
// such an event.
//
// Owns the count of aborts. Calls the vendor, the lanes and what holds something for a lane. The dispatching
// thread's.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "flexnpu/daemon/dispatch.hpp"

namespace flexnpu::daemon {

class Aborts {
public:
    struct Parts {
        Vendor& vendor;
        Inbox& inbox;
        LentBuffers& lent;
        Markers& markers;
        Lanes& lanes;
        HostCalls& host_calls;
        Dispatch& dispatch;
        Failures& failures;
    };
    explicit Aborts(const Parts& parts)
        : vendor_(parts.vendor),
          inbox_(parts.inbox),
          lent_(parts.lent),
          markers_(parts.markers),
          lanes_(parts.lanes),
          host_calls_(parts.host_calls),
          dispatch_(parts.dispatch),
          failures_(parts.failures) {}

    // Drops what the lane holds, the vendor's stream first; `done` gets the vendor's error.
    void abort(const std::shared_ptr<Lane>& lane, Worker& worker, std::function<void(Failure)> done);
    // The vendor's stream is empty: so is the lane.
    void empty(Lane& lane);
    void counters(std::map<std::string, uint64_t>* out) const { (*out)["stream_aborts"] = aborts_; }

private:
    void drop(Lane& lane, Item& item);

    Vendor& vendor_;
    Inbox& inbox_;
    LentBuffers& lent_;
    Markers& markers_;
    Lanes& lanes_;
    HostCalls& host_calls_;
    Dispatch& dispatch_;
    Failures& failures_;
    uint64_t aborts_ = 0;
};

}  // namespace flexnpu::daemon
