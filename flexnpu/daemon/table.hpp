// A session's objects of one kind, by handle.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "flexnpu/wire/handle.hpp"

namespace flexnpu::daemon {

template <class T>
class Table {
public:
    explicit Table(wire::HandleKind kind) : kind_(kind) {}
    // Of all its handles, see wire/handle.hpp. While it is empty.
    void set_tag(uint64_t tag) { tag_ = tag; }

    // A handle for the object, or 0 when there are too many.
    uint64_t add(std::shared_ptr<T> object) {
        uint32_t i;
        if (free_.empty()) {
            if (slots_.size() >= wire::kMaxObjects) return 0;
            i = uint32_t(slots_.size());
            slots_.emplace_back();
        } else {
            i = free_.back();
            free_.pop_back();
        }
        slots_[i].object = std::move(object);
        slots_[i].handle = wire::make_handle(kind_, i, ++slots_[i].generation) | tag_;
        count_++;
        return slots_[i].handle;
    }
    // Under a handle that its owner has chosen; false if that is no free slot of this kind.
    bool add_at(uint64_t handle, std::shared_ptr<T> object) {
        const uint32_t i = wire::handle_index(handle);
        if (handle == 0 || handle != (wire::make_handle(kind_, i, uint32_t(handle >> 20)) | tag_) ||
            find(handle))
            return false;
        if (i >= slots_.size()) slots_.resize(i + 1);
        if (slots_[i].handle) return false;
        slots_[i] = {handle, 0, std::move(object)};
        count_++;
        return true;
    }
    T* find(uint64_t handle) const {
        const uint32_t i = wire::handle_index(handle);
        return handle && i < slots_.size() && slots_[i].handle == handle ? slots_[i].object.get() : nullptr;
    }
    std::shared_ptr<T> share(uint64_t handle) const {
        return find(handle) ? slots_[wire::handle_index(handle)].object : nullptr;
    }
    std::shared_ptr<T> remove(uint64_t handle) {
        if (!find(handle)) return nullptr;
        Slot& slot = slots_[wire::handle_index(handle)];
        slot.handle = 0;
        if (slot.generation)
            free_.push_back(wire::handle_index(handle));  // 0: its owner chooses, see add_at()
        count_--;
        return std::move(slot.object);
    }
    template <class F>
    void each(F f) const {
        for (const Slot& slot : slots_) {
            if (slot.handle) f(slot.object);
        }
    }
    size_t size() const { return count_; }

private:
    struct Slot {
        uint64_t handle = 0;
        uint32_t generation = 0;
        std::shared_ptr<T> object;
    };
    wire::HandleKind kind_;
    uint64_t tag_ = 0;
    std::vector<Slot> slots_;
    std::vector<uint32_t> free_;
    size_t count_ = 0;
};

}  // namespace flexnpu::daemon
