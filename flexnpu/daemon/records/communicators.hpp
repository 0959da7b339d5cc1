// Communicators: made, asked about, ended. What may wait for other ranks is called by workers.
#pragma once

#include "flexnpu/daemon/records/family.hpp"

namespace flexnpu::daemon {

class CommunicatorRecords : RecordFamily {
public:
    explicit CommunicatorRecords(const RecordParts& parts) : RecordFamily(parts) {}

    void call(Session& s, Payload p, const Reply& reply);
};

}  // namespace flexnpu::daemon
