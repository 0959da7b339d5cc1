// Events: made, recorded, waited for, reset, asked about. Calls the timed answers.
#pragma once

#include "flexnpu/daemon/records/family.hpp"
#include "flexnpu/daemon/timed_replies.hpp"

namespace flexnpu::daemon {

class EventRecords : RecordFamily {
public:
    EventRecords(const RecordParts& parts, TimedReplies& timed) : RecordFamily(parts), timed_(timed) {}

    void create(Session& s, Payload p, const Reply& reply);
    void destroy(Session& s, Payload p, const Reply& reply);
    void record(Session& s, Payload p);
    // A wait or a reset: takes its place in the lane, and means the event's record of now.
    void order(Session& s, Payload p, ItemType type, const char* function);
    void synchronise(Session& s, Payload p, const Reply& reply);
    void query(Session& s, Payload p, const Reply& reply);
    void elapsed(Session& s, Payload p, const Reply& reply);
    void timestamp(Session& s, Payload p, const Reply& reply);

private:
    // The event that a call names; nullptr: there is none, which has been reported and counted.
    Event* event_at(Session& s, uint64_t handle, const Reply& reply, const char* function);
    bool capture(Session& s, Lane& lane, Event& event, ItemType type);
    void use_real(Lane& lane, Event& event, ItemType type, int64_t deadline_ns);
    int32_t wait_between_sessions(const Mark& mark, const Ring& ring) const;

    TimedReplies& timed_;
};

}  // namespace flexnpu::daemon
