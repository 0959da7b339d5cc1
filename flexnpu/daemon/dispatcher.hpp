// The data plane's one dispatching thread. It drains the rings, has each record handled, asks the gate which
// lane's item may go, and has that dispatched; it sleeps when there is nothing to do. Owns the thread and all
// parts that it runs, in the order in which they call each other: a part calls those above it.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "flexnpu/daemon/polling.hpp"
#include "flexnpu/daemon/records/records.hpp"
#include "flexnpu/gate/gate.hpp"

namespace flexnpu::daemon {

class Dispatcher {
public:
    Dispatcher(Vendor& vendor, int32_t device, const Limits& limits = {});
    ~Dispatcher();

    void start();
    // Ends the thread and frees every session.
    void stop();

    // How other threads ask: jobs, and calls of functions that take what they work on first.
    Inbox& inbox() { return inbox_; }
    // The latest snapshot, at most as old as this call if the dispatching thread makes one within the time.
    // When that thread is known to be late, nothing is waited for. Any thread.
    std::shared_ptr<const Snapshot> snapshot(std::chrono::milliseconds within);

    Sessions& sessions() { return sessions_; }
    // On the dispatching thread.
    Lanes& lanes() { return lanes_; }
    gate::Gate& gate() { return gate_; }

private:
    void loop();
    void turn();
    // Runs `f`; an exception is noted, and ends the session that was being served.
    template <class F>
    void guard(Session* session, const char* where, F f);
    void run_posted();
    bool drain();
    void pump();
    // A lane's stream has come to a marker.
    void reached(uint32_t lane, const Completions::Marker& m, double us);
    // When the thread must wake up at the latest, if nobody wakes it; `nap`: before long.
    uint64_t next_turn(bool nap);
    void sleep(uint64_t until);
    bool rings_empty() const;
    void set_doze(wire::Doze doze);
    // Makes the snapshot that other threads read.
    void publish();
    std::vector<LaneInfo> lane_infos() const;
    std::map<std::string, uint64_t> counters() const;

    Vendor& vendor_;
    const int32_t device_;
    const Limits limits_;
    std::thread thread_;
    std::atomic<bool> stop_{false};
    Inbox inbox_;
    SnapshotBoard board_;
    Polling polling_;
    Turn turn_;
    std::vector<uint8_t> payload_;
    uint64_t records_seen_ = 0, naps_ = 0, sleeps_ = 0;

    gate::Gate gate_;
    Timers timers_;
    Failures failures_;
    Spares spares_;
    Workers workers_;
    TimedReplies timed_;
    Markers markers_;
    LentBuffers lent_;
    FirstCallRunner first_calls_;
    Lanes lanes_;
    HostCalls host_calls_;
    Captures captures_;
    CopyEngine copy_engine_;
    Dispatch dispatch_;
    Aborts aborts_;
    Synchronises syncs_;
    Releases releases_;
    Exports exports_;
    AddressSpace address_space_;
    Teardown teardown_;
    Sessions sessions_;
    Records records_;
};

}  // namespace flexnpu::daemon
