// Sessions: opened, given rings and memory, and taken out when their client has gone. Owns the table of all
// sessions and what limits their objects in number. Calls the lanes, the exports and the teardown. The
// dispatching thread's, but for the number of live sessions.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "flexnpu/daemon/exports.hpp"
#include "flexnpu/daemon/holdings.hpp"
#include "flexnpu/daemon/lanes.hpp"
#include "flexnpu/daemon/limits.hpp"
#include "flexnpu/daemon/snapshot.hpp"
#include "flexnpu/daemon/teardown.hpp"

namespace flexnpu::daemon {

class Sessions {
public:
    struct Parts {
        Vendor& vendor;
        Inbox& inbox;
        SnapshotBoard& board;
        Lanes& lanes;
        Exports& exports;
        Teardown& teardown;
    };
    Sessions(const Parts& parts, const Limits& limits);

    // ---- what the acceptor calls. False: what they would add has gone, since its client has ----

    bool open(const std::weak_ptr<Session>& session);
    bool add_ring(const std::shared_ptr<Session>& s, const std::weak_ptr<Ring>& ring);
    bool add_host(const std::shared_ptr<Session>& s, uint32_t number,
                  const std::weak_ptr<HostMemory>& region);
    // Takes shared host memory from the session; it is unmapped when no copy can touch it any more. Null:
    // there is none of that number, or too much waits for its copies already.
    std::shared_ptr<HostMemory> retire_host(const std::shared_ptr<Session>& session, uint32_t number);
    void remove(uint32_t id);

    // ---- the dispatching thread ----

    const std::vector<std::shared_ptr<Session>>& all() const { return sessions_; }
    // The session's rings are not read any more, and its client is hung up on.
    void sever(Session& s);
    // Called for a session whose rings cannot be trusted any more.
    std::function<void(Session&)> on_broken;
    // Nothing of any session is on its way to the device.
    bool nothing_queued() const;
    // The daemon stops: all sessions end.
    void end_all();
    std::vector<SessionInfo> infos() const;
    void counters(std::map<std::string, uint64_t>* out) const;

    // ---- any thread ----

    // Sessions that are being opened, open or being torn down.
    size_t live() const { return live_->load(); }
    // Counts one more, until the result ends.
    std::shared_ptr<void> count_live() {
        ++*live_;
        return {nullptr, [all = live_](void*) { --*all; }};
    }

private:
    // Drops what the session has not dispatched: the records of events that other sessions may wait for.
    std::vector<std::shared_ptr<Mark>> drop_lanes(Session& s);

    Vendor& vendor_;
    Inbox& inbox_;
    SnapshotBoard& board_;
    Lanes& lanes_;
    Exports& exports_;
    Teardown& teardown_;
    const size_t call_share_;  // of the shared threads, for one session
    Holdings holdings_;
    std::vector<std::shared_ptr<Session>> sessions_;
    const std::shared_ptr<std::atomic<size_t>> live_ = std::make_shared<std::atomic<size_t>>(0);
    uint64_t opened_ = 0, broken_ = 0;
};

}  // namespace flexnpu::daemon
