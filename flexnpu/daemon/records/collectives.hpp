// Hccl*: collective operations, checked and appended to their lane.
#pragma once

#include "flexnpu/daemon/records/family.hpp"

namespace flexnpu::daemon {

class CollectiveRecords : RecordFamily {
public:
    explicit CollectiveRecords(const RecordParts& parts) : RecordFamily(parts) {}

    void collective(Session& s, Payload p);
};

}  // namespace flexnpu::daemon
