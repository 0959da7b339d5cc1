// The end of sessions: beside the dispatching thread, each waits for what its streams still hold and gives
// everything back to the vendor. Owns the workers that do so. Calls the vendor, the shared threads, the
// markers, and what holds graphs and addresses; spare buffers go back by way of the inbox.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "flexnpu/daemon/address_space.hpp"
#include "flexnpu/daemon/captures.hpp"

namespace flexnpu::daemon {

class Teardown {
public:
    struct Parts {
        Vendor& vendor;
        Inbox& inbox;
        Workers& workers;
        Spares& spares;
        Markers& markers;
        Captures& captures;
        AddressSpace& address_space;
    };
    explicit Teardown(const Parts& parts)
        : vendor_(parts.vendor),
          inbox_(parts.inbox),
          workers_(parts.workers),
          spares_(parts.spares),
          markers_(parts.markers),
          captures_(parts.captures),
          address_space_(parts.address_space) {}

    void start();
    // Ends a session that no longer dispatches: one after the other, but for those that wait for ranks
    // elsewhere.
    void begin(const std::shared_ptr<Session>& s);
    // The daemon stops: streams are aborted by then at the latest.
    void hurry(uint64_t end_by_ns);
    // Waits for all of them.
    void stop();

private:
    void end_streams(Session& s) const;
    void tear_down(Session& s);
    void end_lane(Lane& lane, int64_t deadline_ns);

    Vendor& vendor_;
    Inbox& inbox_;
    Workers& workers_;
    Spares& spares_;
    Markers& markers_;
    Captures& captures_;
    AddressSpace& address_space_;
    std::atomic<bool> running_{false};  // the dispatching thread
    std::atomic<uint64_t> end_by_ns_{INT64_MAX};
    std::shared_ptr<Threads::Group> share_;
    std::unique_ptr<Worker> one_by_one_;
    std::vector<std::unique_ptr<Worker>> ranked_;  // of sessions which other ranks may keep waiting
};

}  // namespace flexnpu::daemon
