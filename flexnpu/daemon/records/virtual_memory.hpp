// Virtual memory calls: a session reserves addresses, holds physical memory, and maps its own into its own.
// Operators may touch what is mapped. Calls the address space, the exports and the releases.
#pragma once

#include "flexnpu/daemon/address_space.hpp"
#include "flexnpu/daemon/exports.hpp"
#include "flexnpu/daemon/records/family.hpp"
#include "flexnpu/daemon/releases.hpp"

namespace flexnpu::daemon {

class VirtualMemoryRecords : RecordFamily {
public:
    struct Parts {
        AddressSpace& address_space;
        Exports& exports;
        Releases& releases;
    };
    VirtualMemoryRecords(const RecordParts& parts, const Parts& more, int32_t device)
        : RecordFamily(parts),
          space_(more.address_space),
          exports_(more.exports),
          releases_(more.releases),
          device_(device) {}

    void call(Session& s, Payload p, const Reply& reply);

private:
    void reserve(Session& s, const wire::VirtualMemory& v, const Reply& reply);
    void map(Session& s, const wire::VirtualMemory& v, const Reply& reply);
    void unmap(Session& s, const wire::VirtualMemory& v, const Reply& reply);

    AddressSpace& space_;
    Exports& exports_;
    Releases& releases_;
    const int32_t device_;
};

}  // namespace flexnpu::daemon
