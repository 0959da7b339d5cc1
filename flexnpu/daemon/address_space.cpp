#include "flexnpu/daemon/address_space.hpp"

#include "flexnpu/daemon/vendor.hpp"

namespace flexnpu::daemon {

void AddressSpace::give_back(Session& s, std::vector<MemoryMap::Range> ranges) {
    VirtualMemory& m = s.virtual_memory;
    for (MemoryMap::Range& r : ranges) {
        if (r.kind == MemoryMap::Kind::mapped) {
            vendor_.aclrtUnmapMem(reinterpret_cast<void*>(r.address));
            count_unmapped();
        }
        r.held.reset();
    }
    for (auto [address, bytes] : m.reserved) {
        vendor_.aclrtReleaseMemAddress(reinterpret_cast<void*>(address));
        release(bytes);
    }
    m.reserved.clear();
    m.physical = Table<Held>(wire::HandleKind::physical);
}

}  // namespace flexnpu::daemon
