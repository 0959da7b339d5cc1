// Makes operators' first calls beside the dispatching thread: see first_calls.hpp. Owns their count. Calls
// the vendor on the pool's threads; who waits for a call gives it a function. The dispatching thread's.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "flexnpu/daemon/inbox.hpp"
#include "flexnpu/daemon/workers.hpp"

namespace flexnpu::daemon {

class FirstCallRunner {
public:
    using Done = std::function<void(const Failure&, uint64_t workspace)>;
    FirstCallRunner(Vendor& vendor, Inbox& inbox, Workers& workers)
        : vendor_(vendor), inbox_(inbox), workers_(workers) {}

    // Called for each item that waited for a call which has returned.
    std::function<void(uint32_t lane, uint64_t ticket)> on_over;

    // Makes the call on a thread of the pool. `done` comes on the dispatching thread, then on_over for what
    // the shape says is waiting; neither if the session has ended.
    void begin(Session& s, const std::shared_ptr<Shape>& shape, std::vector<uint64_t> addresses, Done done);
    // Any thread.
    void drop_executor(aclOpExecutor* executor) const;
    void counters(std::map<std::string, uint64_t>* out) const { (*out)["first_calls_beside"] = made_; }

private:
    Vendor& vendor_;
    Inbox& inbox_;
    Workers& workers_;
    uint64_t made_ = 0;
};

}  // namespace flexnpu::daemon
