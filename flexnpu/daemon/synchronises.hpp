// Synchronises whose lanes have been dispatched: what is left is for the device to come to their end.
//
// What is nearly over is polled for, since handing the wait to a thread that sleeps takes longer; the rest is
// waited for by the ring's worker. Calls the vendor, the workers and the lanes.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "flexnpu/daemon/inbox.hpp"
#include "flexnpu/daemon/lanes.hpp"
#include "flexnpu/daemon/workers.hpp"
#include "flexnpu/wire/adaptive_wait.hpp"

namespace flexnpu::daemon {

// The dispatching thread's.
class Synchronises {
public:
    Synchronises(Vendor& vendor, Inbox& inbox, Workers& workers, Lanes& lanes)
        : vendor_(vendor), inbox_(inbox), workers_(workers), lanes_(lanes) {}

    // Answers when these lanes' streams are empty, or at the deadline (of CLOCK_MONOTONIC; < 0: none).
    void add(std::shared_ptr<Session> session, std::vector<std::shared_ptr<Lane>> lanes, int64_t deadline_ns,
             const Reply& reply);
    // Looks at those that are likely to be over soon. True while there are any.
    bool poll(uint64_t now);
    // When the first of them will be worth a look; UINT64_MAX: there is none.
    uint64_t next_poll() const;
    void clear() { all_.clear(); }

private:
    struct One {
        std::shared_ptr<Session> session;
        std::vector<std::shared_ptr<Lane>> lanes;
        std::vector<std::pair<uint32_t, uint64_t>> tickets;
        Failure failure;
        int64_t deadline_ns;  // < 0: none
        uint64_t began;
        wire::AdaptiveWait::Plan poll;
        Reply reply;
        // Where the time that it took is recorded: with its graph, or its lane.
        std::weak_ptr<Graph> graph;
        size_t bucket;
        bool looked = false;  // at spin_from or later
        bool threadless = false;
    };
    bool answer_if_complete(One& one);
    void wait_for(One& one) const;
    static void answer(const One& one);
    // False: no thread is to be had.
    bool hand_over(One& one);
    static std::shared_ptr<wire::AdaptiveWait> adaptive_wait_of(
        const std::weak_ptr<Graph>& graph, const std::vector<std::shared_ptr<Lane>>& lanes, size_t bucket);

    Vendor& vendor_;
    Inbox& inbox_;
    Workers& workers_;
    Lanes& lanes_;
    std::vector<One> all_;
};

}  // namespace flexnpu::daemon
