#include "flexnpu/client/session/handles.hpp"

namespace flexnpu::client {

void LiveHandles::add(uint64_t handle) {
    const uint32_t i = wire::handle_index(handle);
    auto& slot = chunks_[i / kChunk];
    if (!slot.load(std::memory_order_acquire)) {
        std::lock_guard lock(mutex_);
        if (!slot.load(std::memory_order_relaxed))
            slot.store(new std::atomic<uint64_t>[kChunk] {}, std::memory_order_release);
    }
    slot.load(std::memory_order_acquire)[i % kChunk].store(handle, std::memory_order_relaxed);
}

bool LiveHandles::remove(uint64_t handle) {
    if (!has(handle)) return false;
    const uint32_t i = wire::handle_index(handle);
    return chunks_[i / kChunk].load(std::memory_order_acquire)[i % kChunk].compare_exchange_strong(handle, 0);
}

uint64_t EventNumbers::take() {
    std::lock_guard lock(mutex_);
    if (!free_.empty()) {
        const uint64_t old = free_.back();
        free_.pop_back();
        return wire::make_handle(wire::HandleKind::event, wire::handle_index(old), uint32_t(old >> 20) + 1) |
               tag_;
    }
    return next_ < wire::kMaxObjects ? wire::make_handle(wire::HandleKind::event, next_++, 1) | tag_ : 0;
}

void EventNumbers::give_back(uint64_t handle) {
    std::lock_guard lock(mutex_);
    free_.push_back(handle);
}

}  // namespace flexnpu::client
