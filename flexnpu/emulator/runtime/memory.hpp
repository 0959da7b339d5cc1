// Memory of one emulated device as one process sees it.
//
// All of it is one sparse memfd, mapped once over a range of addresses. Pages are committed by the first
// touch and given back by the free, so that 64 GiB of device memory cost what is in use. A memfd rather than
// anonymous memory, so that a part can be mapped a second time (virtual memory calls) or into another process
// (IPC).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <shared_mutex>
#include <utility>
#include <vector>

#include "flexnpu/emulator/runtime/shared_device.hpp"

namespace flexnpu::emulator {

class Arena {
public:
    static constexpr uint64_t kAlignment = 512;
    static constexpr uint64_t kPage = 4096;
    static constexpr uint64_t kGranularity = 2 << 20;  // of physical memory and of what is mapped

    // Room for `shared.capacity()` bytes. Throws std::runtime_error.
    explicit Arena(SharedDevice& shared);
    ~Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    // Device memory, at least `size` bytes aligned to kAlignment; nullptr when the device is full.
    void* allocate(uint64_t size);
    // False when p is not the start of an allocation.
    bool release(void* p);

    // The same for memory without an address: a range of the file fd(), at a multiple of kGranularity.
    std::optional<uint64_t> allocate_physical(uint64_t size);
    bool release_physical(uint64_t offset);
    int fd() const { return fd_; }
    uint64_t offset_of(const void* p) const { return uint64_t(static_cast<const char*>(p) - base_); }

    bool contains_address(const void* p) const { return p >= base_ && p < base_ + span_; }
    // Whether [p, p+size) lies in one allocation.
    bool contains_range(const void* p, uint64_t size) const;
    struct Block {
        void* base;
        uint64_t size;
    };
    // The allocation that holds p.
    std::optional<Block> find(const void* p) const;
    uint64_t allocated() const;

    // In a forked child: drops the mapping.
    void abandon();

private:
    struct Used {
        uint64_t size;
        bool physical;
    };
    std::optional<uint64_t> take(uint64_t size, uint64_t alignment, bool physical);
    bool give(uint64_t offset, bool physical);
    void give_kept();
    void insert_free(uint64_t offset, uint64_t size);
    void erase_free(std::map<uint64_t, uint64_t>::iterator at);

    SharedDevice& shared_;
    int fd_ = -1;
    char* base_ = nullptr;
    uint64_t span_ = 0;
    mutable std::shared_mutex mutex_;
    std::map<uint64_t, Used> used_;                         // by offset
    std::map<uint64_t, uint64_t> free_;                     // offset -> size, no two adjacent
    std::set<std::pair<uint64_t, uint64_t>> free_by_size_;  // (size, offset): best fit
    uint64_t allocated_ = 0;
    std::vector<uint64_t> kept_;  // given back while other processes still have it imported
};

}  // namespace flexnpu::emulator
