// The device memory that a session holds, by address.
#pragma once

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

namespace flexnpu::daemon {

class MemoryMap {
public:
    struct Range {
        uint64_t address;
        uint64_t bytes;
    };

    void add(uint64_t address, uint64_t bytes) {
        std::lock_guard lock(mutex_);
        ranges_.insert(above(address), {address, bytes});
        total_ += bytes;
        last_ = 0;
    }
    // Removes the range that starts at `address`; false if there is none.
    bool remove(uint64_t address) {
        std::lock_guard lock(mutex_);
        auto it = above(address);
        if (it == ranges_.begin() || (--it)->address != address) return false;
        total_ -= it->bytes;
        ranges_.erase(it);
        last_ = 0;
        return true;
    }
    // Whether [address, address + bytes) lies within one range.
    bool holds(uint64_t address, uint64_t bytes) {
        std::lock_guard lock(mutex_);
        return holds_locked(address, bytes);
    }
    // The same for n of them under one lock; the first that is not held, or n.
    template <class At>
    size_t first_foreign(size_t n, At at) {
        std::lock_guard lock(mutex_);
        for (size_t i = 0; i < n; i++) {
            const Range r = at(i);
            if (r.bytes != 0 && !holds_locked(r.address, r.bytes)) return i;
        }
        return n;
    }
    uint64_t total() const {
        std::lock_guard lock(mutex_);
        return total_;
    }
    std::vector<Range> take_all() {
        std::lock_guard lock(mutex_);
        total_ = 0;
        return std::exchange(ranges_, {});
    }

private:
    static bool inside(const Range& r, uint64_t address, uint64_t bytes) {
        return address >= r.address && bytes <= r.bytes && address - r.address <= r.bytes - bytes;
    }
    bool holds_locked(uint64_t address, uint64_t bytes) {
        if (last_ < ranges_.size() && inside(ranges_[last_], address, bytes)) return true;
        auto it = above(address);
        if (it == ranges_.begin()) return false;
        --it;
        if (!inside(*it, address, bytes)) return false;
        last_ = size_t(it - ranges_.begin());
        return true;
    }
    std::vector<Range>::iterator above(uint64_t address) {
        return std::upper_bound(ranges_.begin(), ranges_.end(), address, [](uint64_t a, const Range& r) { return a < r.address; });
    }
    mutable std::mutex mutex_;
    std::vector<Range> ranges_;
    uint64_t total_ = 0;
    size_t last_ = 0;
};

}  // namespace flexnpu::daemon
