// Host functions in streams: aclrtLaunchHostFunc and aclrtLaunchCallback.
//
// The client runs them; the vendor never hears of them, so that no program's function holds up a thread that
// the vendor shares between tenants. A lane that comes to a function which it must wait for goes on, in its
// queue here, when the function has returned: nothing behind it reaches the vendor before, and events
// recorded behind it are not recorded. Messages travel in the session's page, see SessionPage.
//
// Owns what sessions' pages say about functions. Calls the vendor, the lanes, the markers and the spares. The
// dispatching thread's.
#pragma once

#include <map>
#include <string>

#include "flexnpu/daemon/lanes.hpp"

namespace flexnpu::daemon {

class HostCalls {
public:
    // How often a client that has not taken its host functions is looked at.
    static constexpr uint64_t kTellNs = 1'000'000;

    HostCalls(Vendor& vendor, Spares& spares, Markers& markers, Lanes& lanes, Failures& failures)
        : vendor_(vendor), spares_(spares), markers_(markers), lanes_(lanes), failures_(failures) {}

    // The lane has come to a function: the client is told when the vendor's stream does.
    void dispatch(Lane& lane, const Item& item);
    // The vendor's stream has reached the function with this ticket; nothing happens if that was dropped.
    void reached(Lane& lane, uint64_t ticket);
    // The lane's functions that the vendor's stream has yet to reach are dropped, and this one that has not
    // been dispatched. tell() says so to the client.
    void drop_all(Lane& lane);
    void drop(Lane& lane, const Item& item);
    // Gives the client what there is room for; the rest when it has taken some, or answered some.
    void tell(Session& s);
    // Whether poll() has an answer to look at.
    bool answered(const Session& s) const;
    // Tells what there is to tell. Lanes whose functions have returned go on: true.
    bool poll(Session& s);
    void counters(std::map<std::string, uint64_t>* out) const { (*out)["host_functions"] = calls_; }

private:
    Vendor& vendor_;
    Spares& spares_;
    Markers& markers_;
    Lanes& lanes_;
    Failures& failures_;
    uint64_t calls_ = 0;
};

}  // namespace flexnpu::daemon
