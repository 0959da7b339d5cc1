// Buffers and staging blocks that copies given to the vendor still read. Owns their number; a lane keeps its
// own. Calls the vendor and the spares. The dispatching thread's.
#pragma once

#include <cstdint>

#include "flexnpu/daemon/session.hpp"
#include "flexnpu/daemon/spares.hpp"

namespace flexnpu::daemon {

class LentBuffers {
public:
    // How often copies that have lent out a buffer are looked at.
    static constexpr uint64_t kReclaimNs = 200'000;

    LentBuffers(Vendor& vendor, Spares& spares) : vendor_(vendor), spares_(spares) {}

    // The lane's stream holds a copy that reads these; `event` has been recorded behind it.
    void lend(Lane& lane, void* event, const CopyItem& copy) {
        lane.lent.push_back({event, copy.buffer, copy.block, copy.block_ticket});
        lent_++;
    }
    // Those of copies that are over, or all, go back to where they came from.
    void reclaim(Lane& lane, bool all);
    // What the copy reads goes back: it is over, or will not be dispatched.
    void give_back(Lane& lane, const CopyItem& copy) {
        if (copy.buffer) spares_.give_buffer(copy.buffer);
        lane.session->give_block(copy.block, copy.block_ticket);
    }
    // The same of an item that may be a copy.
    void give_back(Lane& lane, const Item& item) {
        if (const auto* copy = std::get_if<CopyItem>(&item.work)) give_back(lane, *copy);
    }
    // The lane goes: its buffers are not looked at any more.
    void forget(const Lane& lane) { lent_ -= lane.lent.size(); }
    // Of a lane that has been forgotten, when its stream is empty.
    void take_back(Lane& lane) {
        lent_ += lane.lent.size();  // reclaim() counts them down
        reclaim(lane, true);
    }
    bool any() const { return lent_ != 0; }
    // Whether it is time to look at all lanes.
    bool due(uint64_t now) {
        if (!lent_ || now - reclaimed_ns_ <= kReclaimNs) return false;
        reclaimed_ns_ = now;
        return true;
    }

private:
    Vendor& vendor_;
    Spares& spares_;
    uint64_t lent_ = 0;
    uint64_t reclaimed_ns_ = 0;
};

}  // namespace flexnpu::daemon
