// What becomes of a call that fails: it is counted, and answered at once or kept for the next synchronise of
// its lane. Owns those counts. Writes to the session, the lane and the ring it is given, and calls no other
// part. The dispatching thread's, but for the quota's count.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <string>

#include "flexnpu/daemon/session.hpp"

namespace flexnpu::daemon {

class Failures {
public:
    // The call is refused, and who waits for it is told.
    void refuse(Session& s, const Reply& reply, int32_t code, const std::string& message);
    // The same of a call that nobody waits for. Null: there is no lane whose synchronise could report it.
    void refuse_later(Session& s, Lane* lane, int32_t code, std::string message);
    // The record cannot be read.
    void malformed(Session& s, const Reply& reply, const std::string& what);
    void malformed(Session& s);
    void count_malformed() { malformed_++; }
    // The lane's next synchronise reports it, unless another failure came first. That of a capture is for the
    // capture's end to report.
    void fail(Lane& lane, int32_t code, std::string message);

    void count_vendor_error() { vendor_errors_++; }
    void count_timeout() { timeouts_++; }
    // Any thread. `bytes` have not been allocated: counts it if the account's quota is why. False: it is not.
    bool count_quota(const Account& account, uint64_t bytes) {
        if (account.left() >= bytes) return false;
        quota_refusals_++;
        return true;
    }
    void count_quota() { quota_refusals_++; }
    void counters(std::map<std::string, uint64_t>* out) const;

    // While it lives, failures are those of this item, in whatever lane.
    class Dispatching {
    public:
        Dispatching(Failures& failures, const Item& item) : failures_(failures) {
            failures_.dispatching_ = &item;
        }
        ~Dispatching() { end(); }
        Dispatching(const Dispatching&) = delete;
        Dispatching& operator=(const Dispatching&) = delete;
        void end() { failures_.dispatching_ = nullptr; }

    private:
        Failures& failures_;
    };

private:
    const Item* dispatching_ = nullptr;
    uint64_t refused_ = 0, malformed_ = 0, vendor_errors_ = 0, timeouts_ = 0;
    std::atomic<uint64_t> quota_refusals_{0};
};

}  // namespace flexnpu::daemon
