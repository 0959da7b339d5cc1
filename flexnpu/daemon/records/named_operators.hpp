// Operators named by type (aclopCompileAndExecute). The vendor compiles such an operator when it is first
// met, which takes seconds, so the call is made by the ring's worker; the lane holds what follows, in its
// queue here, until it has returned. The program waits for that, as it would for the vendor's own call. Only
// formats whose size follows from the dimensions are accepted: others could reach beyond their buffer.
#pragma once

#include "flexnpu/daemon/records/family.hpp"

namespace flexnpu::daemon {

class NamedOperatorRecords : RecordFamily {
public:
    explicit NamedOperatorRecords(const RecordParts& parts) : RecordFamily(parts) {}

    void run(Session& s, Payload p, const Reply& reply);
};

}  // namespace flexnpu::daemon
