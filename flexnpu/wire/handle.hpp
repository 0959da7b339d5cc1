// Handles of a session's objects: numbers, never pointers. A freed slot gets a new generation, so that a
// stale handle is told from a live one.
#pragma once

#include <cstdint>

namespace flexnpu::wire {

enum class HandleKind : uint8_t {
    none = 0,
    stream = 1,
    event = 2,
    graph = 3,
    task_group = 4,
    comm = 5,
    binary = 6,
    function = 7,
    physical = 8
};

inline constexpr uint32_t kMaxObjects = 1u << 20;

// 8 bits of kind, 20 of generation, 20 of index: never null, and not a pointer that anybody would map.
constexpr uint64_t make_handle(HandleKind kind, uint32_t index, uint32_t generation) {
    return uint64_t(kind) << 40 | uint64_t(generation & 0xfffff) << 20 | (index & 0xfffff);
}
constexpr uint32_t handle_index(uint64_t h) { return uint32_t(h) & 0xfffff; }

// A program that uses several devices has a session with each one's daemon. So that nothing of two sessions
// looks the same to it, the top bits of what it holds say which of its devices that belongs to: handles carry
// them wherever they go (the daemon's tables give them out so), device addresses get them in the client and
// lose them on the way to the daemon. Device 0's are zero.
inline constexpr int kDeviceShift = 56;
inline constexpr int kMaxDevices = 64;
constexpr uint64_t device_tag(int device) { return uint64_t(device) << kDeviceShift; }
constexpr int tagged_device(uint64_t v) { return int(v >> kDeviceShift); }
constexpr uint64_t untagged(uint64_t v) { return v & (device_tag(1) - 1); }
constexpr HandleKind handle_kind(uint64_t h) {
    return untagged(h) >> 48 ? HandleKind::none : HandleKind(untagged(h) >> 40);
}

}  // namespace flexnpu::wire
