// Memory of a session by its addresses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

namespace flexnpu::client {

// Host memory that the daemon maps too (aclrtMallocHost).
struct HostRegion {
    uint64_t address;
    uint64_t bytes;
    uint32_t region;
    int file;  // for a child of fork(), see fork.hpp; -1: none
};

struct DeviceRange {
    uint64_t address;
    uint64_t bytes;
};

// Memory ranges by address, for lookups from any thread.
template <class Range>
class Ranges {
public:
    void add(const Range& r) {
        std::lock_guard lock(mutex_);
        items_.insert(upper(r.address), r);
    }
    bool remove(uint64_t address, Range* out) {
        std::lock_guard lock(mutex_);
        auto it = upper(address);
        if (it == items_.begin() || (--it)->address != address) return false;
        *out = *it;
        items_.erase(it);
        return true;
    }
    // The range that holds `address`.
    bool find(uint64_t address, Range* out) const {
        std::lock_guard lock(mutex_);
        auto it = upper(address);
        if (it == items_.begin()) return false;
        --it;
        if (address - it->address >= it->bytes) return false;
        *out = *it;
        return true;
    }
    bool empty() const {
        std::lock_guard lock(mutex_);
        return items_.empty();
    }
    // Keeps them as they are while the lock is held; then items() may be read.
    std::unique_lock<std::mutex> hold() const { return std::unique_lock(mutex_); }
    const std::vector<Range>& items() const { return items_; }
    std::vector<Range> take_all() {
        std::lock_guard lock(mutex_);
        return std::exchange(items_, {});
    }

private:
    typename std::vector<Range>::const_iterator upper(uint64_t address) const {
        size_t low = 0, high = items_.size();
        while (low < high) {
            const size_t mid = (low + high) / 2;
            if (items_[mid].address <= address)
                low = mid + 1;
            else
                high = mid;
        }
        return items_.begin() + ptrdiff_t(low);
    }
    mutable std::mutex mutex_;
    std::vector<Range> items_;
};

}  // namespace flexnpu::client
