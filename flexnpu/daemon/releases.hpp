// What a session gives back goes when nothing that it has launched can touch it any more: not dispatched
// only, but over. Otherwise a late operator would write into what the next owner of the memory has there.
// Until then the session owns it: if it ends before, the memory goes with it. Calls the vendor, the lanes,
// the markers, the spares and the ring's worker. The dispatching thread's.
#pragma once

#include <functional>

#include "flexnpu/daemon/lanes.hpp"

namespace flexnpu::daemon {

class Releases {
public:
    Releases(Vendor& vendor, Inbox& inbox, Workers& workers, Spares& spares, Markers& markers, Lanes& lanes)
        : vendor_(vendor),
          inbox_(inbox),
          workers_(workers),
          spares_(spares),
          markers_(markers),
          lanes_(lanes) {}

    // Runs `job`, on the ring's worker, when all that the session has launched so far is over; false: it is
    // not, after a long time. The range, which may be empty, stays the session's until then.
    void when_unused(Session& s, const Reply& reply, MemoryMap::Range range,
                     std::function<void(bool over, MemoryMap::Range)> job);

private:
    Vendor& vendor_;
    Inbox& inbox_;
    Workers& workers_;
    Spares& spares_;
    Markers& markers_;
    Lanes& lanes_;
};

}  // namespace flexnpu::daemon
