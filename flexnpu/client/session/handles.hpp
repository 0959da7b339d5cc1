// Numbers of streams and events, as the client keeps them.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

#include "flexnpu/wire/handle.hpp"

namespace flexnpu::client {

// Handles that the daemon has given out and not taken back: lets an asynchronous call refuse a stale handle
// at once, where CANN would. The daemon checks again by itself.
class LiveHandles {
public:
    void add(uint64_t handle);
    bool has(uint64_t handle) const {
        const uint32_t i = wire::handle_index(handle);
        const std::atomic<uint64_t>* chunk = chunks_[i / kChunk].load(std::memory_order_acquire);
        return chunk && chunk[i % kChunk].load(std::memory_order_relaxed) == handle && handle != 0;
    }
    // False if it is not live (any more).
    bool remove(uint64_t handle);

private:
    static constexpr uint32_t kChunk = 1024;
    std::mutex mutex_;
    std::atomic<std::atomic<uint64_t>*> chunks_[wire::kMaxObjects / kChunk] = {};
};

// Numbers for events, which the client chooses and the daemon checks.
class EventNumbers {
public:
    void set_tag(uint64_t tag) { tag_ = tag; }
    uint64_t take();
    // Once the destruction has been written: whoever takes the slot next writes after that.
    void give_back(uint64_t handle);

private:
    std::mutex mutex_;
    std::vector<uint64_t> free_;
    uint32_t next_ = 0;
    uint64_t tag_ = 0;
};

}  // namespace flexnpu::client
