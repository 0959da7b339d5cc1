// All families of records, and which handler each kind of record has. Owns the families. The dispatching
// thread's.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>

#include "flexnpu/daemon/records/capture.hpp"
#include "flexnpu/daemon/records/collectives.hpp"
#include "flexnpu/daemon/records/communicators.hpp"
#include "flexnpu/daemon/records/copies.hpp"
#include "flexnpu/daemon/records/events.hpp"
#include "flexnpu/daemon/records/forwarded.hpp"
#include "flexnpu/daemon/records/graphs.hpp"
#include "flexnpu/daemon/records/kernels.hpp"
#include "flexnpu/daemon/records/memory.hpp"
#include "flexnpu/daemon/records/named_operators.hpp"
#include "flexnpu/daemon/records/operators.hpp"
#include "flexnpu/daemon/records/sharing.hpp"
#include "flexnpu/daemon/records/streams.hpp"
#include "flexnpu/daemon/records/virtual_memory.hpp"

namespace flexnpu::daemon {

class Records {
public:
    // Beyond what all families call.
    struct Parts {
        gate::Gate& gate;
        Spares& spares;
        LentBuffers& lent;
        Markers& markers;
        TimedReplies& timed;
        FirstCallRunner& first_calls;
        Captures& captures;
        CopyEngine& copy_engine;
        Aborts& aborts;
        Synchronises& synchronises;
        Releases& releases;
        Exports& exports;
        AddressSpace& address_space;
        Sessions& sessions;
    };
    // `allow_kernels`: programs may load device code of their own.
    Records(const RecordParts& parts, const Parts& more, int32_t device, bool allow_kernels);

    // Does what the record asks for. `payload` is in our own memory, and untrusted.
    void handle(Session& s, const std::shared_ptr<Ring>& ring, const wire::Record& record,
                std::span<const uint8_t> payload);
    void counters(std::map<std::string, uint64_t>* out) const;

private:
    Failures& failures_;
    MemoryRecords memory_;
    CopyRecords copies_;
    StreamRecords streams_;
    EventRecords events_;
    CaptureRecords capture_;
    GraphRecords graphs_;
    OperatorRecords operators_;
    NamedOperatorRecords named_operators_;
    KernelRecords kernels_;
    CollectiveRecords collectives_;
    CommunicatorRecords communicators_;
    VirtualMemoryRecords virtual_memory_;
    SharingRecords sharing_;
    ForwardedRecords forwarded_;
};

}  // namespace flexnpu::daemon
