// Device memory: given, taken back when nothing uses it any more, set, told of, and what the cache is to do
// with it. Calls the exports, which a free ends, and the releases.
#pragma once

#include "flexnpu/daemon/exports.hpp"
#include "flexnpu/daemon/records/family.hpp"
#include "flexnpu/daemon/releases.hpp"

namespace flexnpu::daemon {

class MemoryRecords : RecordFamily {
public:
    MemoryRecords(const RecordParts& parts, Exports& exports, Releases& releases)
        : RecordFamily(parts), exports_(exports), releases_(releases) {}

    void allocate(Session& s, Payload p, const Reply& reply);
    void release(Session& s, Payload p, const Reply& reply);
    void info(Session& s, Payload p, const Reply& reply);
    void memset(Session& s, Payload p, const Reply& reply);
    // aclrtCmoAsync.
    void cache_hint(Session& s, Payload p);

private:
    Exports& exports_;
    Releases& releases_;
};

}  // namespace flexnpu::daemon
