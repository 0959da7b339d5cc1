// The device memory that a session may touch, by address.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "flexnpu/daemon/device_memory.hpp"

namespace flexnpu::daemon {

class MemoryMap {
public:
    enum class Kind : uint8_t {
        own,       // allocated by this session
        imported,  // another session's, by an IPC key
        mapped,    // physical memory mapped into a reservation of this session
    };
    struct Range {
        uint64_t address;
        uint64_t bytes;
        Kind kind = Kind::own;
        std::shared_ptr<Held> held = nullptr;
    };

    void add(Range range) {
        std::lock_guard lock(mutex_);
        ranges_.insert(above(range.address), std::move(range));
        last_ = 0;
    }
    // Takes out the range of this kind that starts at `address`.
    std::optional<Range> take(uint64_t address, Kind kind) {
        std::lock_guard lock(mutex_);
        auto it = above(address);
        if (it == ranges_.begin() || (--it)->address != address || it->kind != kind) return std::nullopt;
        std::optional<Range> range = std::move(*it);
        ranges_.erase(it);
        last_ = 0;
        removals_++;
        return range;
    }
    // The range that holds `address`.
    std::optional<Range> find(uint64_t address) {
        std::lock_guard lock(mutex_);
        auto it = above(address);
        if (it == ranges_.begin() || address - (--it)->address >= it->bytes) return std::nullopt;
        return *it;
    }
    // Whether this piece of physical memory is mapped anywhere.
    bool has_mapped(const Allocation* allocation) {
        std::lock_guard lock(mutex_);
        return std::any_of(ranges_.begin(), ranges_.end(), [&](const Range& r) {
            return r.kind == Kind::mapped && r.held->allocation().get() == allocation;
        });
    }
    // Whether any range has a byte of [address, address + bytes).
    bool overlaps(uint64_t address, uint64_t bytes) {
        std::lock_guard lock(mutex_);
        auto it = above(address);
        if (it != ranges_.begin() && address - std::prev(it)->address < std::prev(it)->bytes) return true;
        return it != ranges_.end() && it->address - address < bytes;
    }
    // Whether [address, address + bytes) lies within one range, or within mapped ones that follow each other
    // without a gap.
    bool holds(uint64_t address, uint64_t bytes) {
        std::lock_guard lock(mutex_);
        return holds_locked(address, bytes);
    }
    // The same for n of them under one lock; the first that is not held, or n.
    template <class At>
    size_t first_foreign(size_t n, At at) {
        std::lock_guard lock(mutex_);
        for (size_t i = 0; i < n; i++) {
            const auto [address, bytes] = at(i);
            if (bytes != 0 && !holds_locked(address, bytes)) return i;
        }
        return n;
    }
    // How often a range has been taken out: what was found to be held is still so while this stays the same.
    uint64_t removals() const {
        std::lock_guard lock(mutex_);
        return removals_;
    }
    std::vector<Range> take_all() {
        std::lock_guard lock(mutex_);
        return std::exchange(ranges_, {});
    }

    struct Span {
        uint64_t address;
        uint64_t bytes;
    };

private:
    static bool inside(const Range& r, uint64_t address, uint64_t bytes) {
        return address >= r.address && bytes <= r.bytes && address - r.address <= r.bytes - bytes;
    }
    bool holds_locked(uint64_t address, uint64_t bytes) {
        if (last_ < ranges_.size() && inside(ranges_[last_], address, bytes)) return true;
        auto it = above(address);
        if (it == ranges_.begin()) return false;
        --it;
        if (inside(*it, address, bytes)) {
            last_ = size_t(it - ranges_.begin());
            return true;
        }
        // A tensor may lie over several pieces of physical memory, which the program has mapped side by side.
        if (address - it->address >= it->bytes || bytes > UINT64_MAX - address) return false;
        while (it->kind == Kind::mapped) {
            const uint64_t end = it->address + it->bytes;
            if (end >= address + bytes) return true;
            if (++it == ranges_.end() || it->address != end) return false;
        }
        return false;
    }
    std::vector<Range>::iterator above(uint64_t address) {
        return std::upper_bound(ranges_.begin(), ranges_.end(), address,
                                [](uint64_t a, const Range& r) { return a < r.address; });
    }
    mutable std::mutex mutex_;
    std::vector<Range> ranges_;
    size_t last_ = 0;
    uint64_t removals_ = 1;
};

}  // namespace flexnpu::daemon
