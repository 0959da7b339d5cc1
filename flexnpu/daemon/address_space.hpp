// Addresses that sessions have reserved and pieces that they have mapped: all of them are this process's, so
// all sessions together may have only so many. Owns those sums. Calls nothing but the vendor. Any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "flexnpu/daemon/session.hpp"

namespace flexnpu::daemon {

class AddressSpace {
public:
    explicit AddressSpace(Vendor& vendor) : vendor_(vendor) {}

    // False, and nothing taken: all sessions together have too much.
    bool reserve(uint64_t bytes) {
        if (reserved_bytes_.fetch_add(bytes) + bytes <= kMaxReserved) return true;
        reserved_bytes_ -= bytes;
        return false;
    }
    void release(uint64_t bytes) { reserved_bytes_ -= bytes; }
    bool full() const { return pieces_.load() >= kMaxPieces; }
    void count_mapped() { pieces_++; }
    void count_unmapped() { pieces_--; }
    // The session has ended, and nothing of it runs any more: what is mapped is unmapped, `ranges` and all
    // else of its virtual memory go back.
    void give_back(Session& s, std::vector<MemoryMap::Range> ranges);

private:
    static constexpr uint64_t kMaxReserved = uint64_t(1) << 46;
    // The host's kernel allows a process 65530 mappings unless told otherwise.
    static constexpr uint64_t kMaxPieces = 40'000;

    Vendor& vendor_;
    std::atomic<uint64_t> reserved_bytes_{0}, pieces_{0};
};

}  // namespace flexnpu::daemon
