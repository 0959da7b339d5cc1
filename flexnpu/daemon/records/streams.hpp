// Streams, synchronises, aborts, and host functions in streams. Calls the synchronises, the aborts, the timed
// answers and the lent buffers.
#pragma once

#include "flexnpu/daemon/aborts.hpp"
#include "flexnpu/daemon/records/family.hpp"
#include "flexnpu/daemon/synchronises.hpp"
#include "flexnpu/daemon/timed_replies.hpp"

namespace flexnpu::daemon {

class StreamRecords : RecordFamily {
public:
    struct Parts {
        LentBuffers& lent;
        Markers& markers;
        TimedReplies& timed;
        Aborts& aborts;
        Synchronises& synchronises;
    };
    StreamRecords(const RecordParts& parts, const Parts& more)
        : RecordFamily(parts),
          lent_(more.lent),
          markers_(more.markers),
          timed_(more.timed),
          aborts_(more.aborts),
          syncs_(more.synchronises) {}

    void create(Session& s, Payload p, const Reply& reply);
    void destroy(Session& s, Payload p, const Reply& reply);
    void id(Session& s, Payload p, const Reply& reply);
    void query(Session& s, Payload p, const Reply& reply);
    void synchronise(Session& s, Payload p, const Reply& reply);
    void synchronise_device(Session& s, Payload p, const Reply& reply);
    void abort(Session& s, Payload p, const Reply& reply);
    void abort_device(Session& s, Payload p, const Reply& reply);
    void host_function(Session& s, Payload p);

private:
    void destroy(Session& s, uint64_t stream, const Reply& reply);
    // Waits for the stream of a lane that has been dropped, and destroys it.
    void end(const std::shared_ptr<Lane>& lane, const Reply& reply);

    LentBuffers& lent_;
    Markers& markers_;
    TimedReplies& timed_;
    Aborts& aborts_;
    Synchronises& syncs_;
};

}  // namespace flexnpu::daemon
