// What the handlers of every family of records share: the parts that all of them call, by the names that the
// handlers use, and the checks at a handler's head. A family has one handler for each kind of record, in a
// header of its own that says what else it calls. Everything in a payload is untrusted. The dispatching
// thread's.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "flexnpu/daemon/lanes.hpp"
#include "flexnpu/daemon/payload.hpp"

namespace flexnpu::daemon {

struct RecordParts {
    Vendor& vendor;
    Inbox& inbox;
    Workers& workers;
    Lanes& lanes;
    Failures& failures;
};

class RecordFamily {
protected:
    using Payload = std::span<const uint8_t>;

    explicit RecordFamily(const RecordParts& parts)
        : vendor_(parts.vendor),
          lanes_(parts.lanes),
          failures_(parts.failures),
          inbox_(parts.inbox),
          workers_(parts.workers) {}
    ~RecordFamily() = default;
    RecordFamily(const RecordFamily&) = delete;
    RecordFamily& operator=(const RecordFamily&) = delete;

    // The payload, which is one T and nothing else; false: it is not, which has been reported and counted.
    template <class T>
    bool taken(Session& s, Payload p, T* out, const Reply& reply, const char* function) {
        if (take(p, out)) return true;
        malformed(s, reply, function);
        return false;
    }
    // The same of a record that nobody waits for, and the lane of its stream; nullptr: one of the two is
    // missing.
    template <class T>
    Lane* taken(Session& s, Payload p, T* out) {
        if (!take(p, out)) return malformed(s), nullptr;
        Lane* lane = lane_of(s, out->stream);
        if (!lane) refuse_later(s, nullptr, acl::RT_INVALID_HANDLE, "");
        return lane;
    }
    // The lane that a call names; nullptr: there is none, which has been reported and counted.
    Lane* lane_at(Session& s, uint64_t handle, const Reply& reply, const char* function);

    void refuse(Session& s, const Reply& reply, int32_t code, const std::string& message) {
        failures_.refuse(s, reply, code, message);
    }
    void refuse_later(Session& s, Lane* lane, int32_t code, std::string message) {
        failures_.refuse_later(s, lane, code, std::move(message));
    }
    void malformed(Session& s, const Reply& reply, const std::string& what) {
        failures_.malformed(s, reply, what);
    }
    void malformed(Session& s) { failures_.malformed(s); }
    Lane* lane_of(Session& s, uint64_t handle) { return lanes_.of(s, handle); }
    void push(Lane& lane, std::unique_ptr<Item> item) { lanes_.push(lane, std::move(item)); }
    void after(const std::vector<Lane*>& lanes, bool step_end, std::function<void()> job) {
        lanes_.after(lanes, step_end, std::move(job));
    }
    Worker& worker_of(Ring& ring) { return workers_.of(ring); }
    void post(Inbox::Job job) { inbox_.post(std::move(job)); }

    Vendor& vendor_;
    Lanes& lanes_;
    Failures& failures_;

private:
    Inbox& inbox_;
    Workers& workers_;
};

}  // namespace flexnpu::daemon
