// The two ends of a ring: one thread of the client writes, the daemon's dispatcher reads.
#pragma once

#include <sys/mman.h>

#include <cstring>
#include <utility>

#include "flexnpu/wire/layout.hpp"

namespace flexnpu::wire {

// A ring's memory in this process: the header, then the data twice in a row, so that a record that runs over
// the end is still contiguous.
class RingMap {
public:
    RingMap() = default;
    RingMap(RingMap&& other) noexcept : base_(std::exchange(other.base_, nullptr)) {}
    RingMap& operator=(RingMap&& other) noexcept {
        std::swap(base_, other.base_);
        return *this;
    }
    ~RingMap() {
        if (base_) munmap(base_, kRingHeaderBytes + 2 * kRingBytes);
    }

    // False when the file cannot be mapped. The file must have kRingFileBytes bytes and be sealed against
    // shrinking.
    bool open(int fd) {
        constexpr size_t all = kRingHeaderBytes + 2 * kRingBytes;
        void* area = mmap(nullptr, all, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (area == MAP_FAILED) return false;
        auto* base = static_cast<uint8_t*>(area);
        auto at = [&](size_t where, size_t bytes, off_t offset) {
            return mmap(base + where, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, offset) !=
                   MAP_FAILED;
        };
        if (!at(0, kRingFileBytes, 0) || !at(kRingFileBytes, kRingBytes, off_t(kRingHeaderBytes))) {
            munmap(area, all);
            return false;
        }
        base_ = base;
        return true;
    }

    explicit operator bool() const { return base_ != nullptr; }
    RingHeader& header() const { return *reinterpret_cast<RingHeader*>(base_); }
    uint8_t* data(uint64_t position) const { return base_ + kRingHeaderBytes + position % kRingBytes; }
    void* base() const { return base_; }

private:
    uint8_t* base_ = nullptr;
};

// The client's end. Not thread-safe.
class Producer {
public:
    explicit Producer(RingMap map)
        : map_(std::move(map)),
          head_(map_.header().head.load(std::memory_order_relaxed)),
          seen_tail_(map_.header().tail.load(std::memory_order_relaxed)) {}

    // Room for a record of `size` bytes (a multiple of 8, at most kMaxRecord), or nullptr while the ring is
    // full. The caller fills the room from byte sizeof(Record) on and calls publish().
    uint8_t* reserve(size_t size) {
        if (head_ + size - seen_tail_ > kRingBytes) {
            seen_tail_ = map_.header().tail.load(std::memory_order_acquire);
            if (head_ + size - seen_tail_ > kRingBytes) return nullptr;
        }
        return map_.data(head_);
    }

    // Makes the reserved record visible. seq_cst: the store is ordered before the caller's look at
    // SessionPage::doze.
    void publish(size_t size, Kind kind, uint32_t request, uint64_t sequence, StepWord step = {}) {
        const Record record{uint32_t(size), kind, step.flags, request, step.tokens, sequence};
        std::memcpy(map_.data(head_), &record, sizeof(record));
        head_ += size;
        map_.header().head.store(head_, std::memory_order_seq_cst);
    }

    RingHeader& header() { return map_.header(); }
    const RingMap& map() const { return map_; }

private:
    RingMap map_;
    uint64_t head_;
    uint64_t seen_tail_;
};

enum class Look { empty, record, broken };

// The daemon's end. Trusts nothing that the client can write. Not thread-safe.
class Consumer {
public:
    explicit Consumer(RingMap map) : map_(std::move(map)) {}

    // Copies the next record's header. `broken`: the framing cannot be trusted, and nothing behind it can be
    // found any more.
    Look peek(Record* out) {
        if (seen_head_ == tail_) {
            seen_head_ = map_.header().head.load(std::memory_order_acquire);
            if (seen_head_ == tail_) return Look::empty;
            if (seen_head_ - tail_ > kRingBytes || seen_head_ % 8 != 0) return Look::broken;
        }
        const uint64_t available = seen_head_ - tail_;
        if (available < sizeof(Record)) return Look::broken;
        std::memcpy(out, map_.data(tail_), sizeof(Record));
        if (out->size < sizeof(Record) || out->size % 8 != 0 || out->size > kMaxRecord ||
            out->size > available)
            return Look::broken;
        return Look::record;
    }

    // Copies the payload of the record whose header peek() gave: record.size - sizeof(Record) bytes.
    void read(const Record& record, void* out) const {
        std::memcpy(out, map_.data(tail_ + sizeof(Record)), record.size - sizeof(Record));
    }

    // Gives the record's room back to the client.
    void pop(const Record& record) {
        tail_ += record.size;
        map_.header().tail.store(tail_, std::memory_order_release);
    }

    // seq_cst: ordered after the caller's store to SessionPage::doze.
    bool empty() const { return map_.header().head.load(std::memory_order_seq_cst) == tail_; }
    RingHeader& header() { return map_.header(); }

private:
    RingMap map_;
    uint64_t tail_ = 0;
    uint64_t seen_head_ = 0;
};

}  // namespace flexnpu::wire
