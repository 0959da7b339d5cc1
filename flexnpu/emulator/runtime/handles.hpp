// Handles that programs hold: numbers with a generation, never addresses, so that a stale or made-up one is
// refused.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <vector>

namespace flexnpu::emulator {

enum class HandleKind : uint64_t {
    Context = 1,
    Stream = 2,
    Event = 3,
    Group = 4,
    Graph = 5,
    Physical = 6,
    Code = 7
};

// A handle is [kind:3][generation:20][index:20][0:4]: it fits the user half of the address space and is never
// null.
template <class T>
class HandleTable {
public:
    explicit HandleTable(HandleKind kind) : kind_(kind) {}

    void* add(std::shared_ptr<T> object) {
        std::unique_lock lock(mutex_);
        uint64_t index;
        if (free_.empty()) {
            if (slots_.size() >= kLimit) {
                return nullptr;
            }
            index = slots_.size();
            slots_.emplace_back();
        } else {
            index = free_.back();
            free_.pop_back();
        }
        slots_[index].object = std::move(object);
        return encode(index, slots_[index].generation);
    }

    // The object, or null for what is not a live handle of this kind.
    std::shared_ptr<T> get(const void* handle) const {
        std::shared_lock lock(mutex_);
        const Slot* slot = find(handle);
        return slot != nullptr ? slot->object : nullptr;
    }

    // Whether another handle is of the same object. False for what is not a live handle of this kind.
    bool has_another(const void* handle) const {
        std::shared_lock lock(mutex_);
        const Slot* slot = find(handle);
        return slot != nullptr && std::any_of(slots_.begin(), slots_.end(), [&](const Slot& one) {
                   return &one != slot && one.object == slot->object;
               });
    }

    // Takes the object out; null for what is not a live handle of this kind.
    std::shared_ptr<T> remove(const void* handle) {
        std::unique_lock lock(mutex_);
        auto* slot = const_cast<Slot*>(find(handle));
        if (slot == nullptr) {
            return nullptr;
        }
        std::shared_ptr<T> object = std::move(slot->object);
        slot->object = nullptr;
        slot->generation = (slot->generation + 1) & kMask;
        free_.push_back(uint64_t(slot - slots_.data()));
        return object;
    }

    template <class Condition>
    void remove_if(Condition condition) {
        std::vector<std::shared_ptr<T>> last;  // objects end outside the lock
        std::unique_lock lock(mutex_);
        for (Slot& slot : slots_) {
            if (slot.object && condition(*slot.object)) {
                last.push_back(std::move(slot.object));
                slot.object = nullptr;
                slot.generation = (slot.generation + 1) & kMask;
                free_.push_back(uint64_t(&slot - slots_.data()));
            }
        }
        lock.unlock();
    }

    std::vector<std::shared_ptr<T>> all() const {
        std::shared_lock lock(mutex_);
        std::vector<std::shared_ptr<T>> objects;
        for (const Slot& slot : slots_) {
            if (slot.object) {
                objects.push_back(slot.object);
            }
        }
        return objects;
    }

private:
    static constexpr uint64_t kLimit = 1 << 20;
    static constexpr uint64_t kMask = kLimit - 1;
    struct Slot {
        std::shared_ptr<T> object;
        uint64_t generation = 1;
    };

    void* encode(uint64_t index, uint64_t generation) const {
        return reinterpret_cast<void*>(uint64_t(kind_) << 44 | generation << 24 | index << 4);
    }

    const Slot* find(const void* handle) const {
        auto value = reinterpret_cast<uint64_t>(handle);
        uint64_t index = value >> 4 & kMask;
        if (value >> 44 != uint64_t(kind_) || (value & 15) != 0 || index >= slots_.size()) {
            return nullptr;
        }
        const Slot& slot = slots_[index];
        return slot.object && slot.generation == (value >> 24 & kMask) ? &slot : nullptr;
    }

    HandleKind kind_;
    mutable std::shared_mutex mutex_;
    std::vector<Slot> slots_;
    std::vector<uint64_t> free_;
};

}  // namespace flexnpu::emulator
