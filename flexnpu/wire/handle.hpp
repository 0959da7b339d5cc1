// Handles of a session's objects: numbers, never pointers. A freed slot gets a new generation, so that a stale handle is told from a live one.
#pragma once

#include <cstdint>

namespace flexnpu::wire {

enum class HandleKind : uint8_t { none = 0, stream = 1, event = 2, graph = 3, task_group = 4, physical = 8 };

inline constexpr uint32_t kMaxObjects = 1u << 20;

// 8 bits of kind, 20 of generation, 20 of index: never null, and not a pointer that anybody would map.
constexpr uint64_t make_handle(HandleKind kind, uint32_t index, uint32_t generation) {
    return uint64_t(kind) << 40 | uint64_t(generation & 0xfffff) << 20 | (index & 0xfffff);
}
constexpr HandleKind handle_kind(uint64_t h) { return h >> 48 ? HandleKind::none : HandleKind(h >> 40); }
constexpr uint32_t handle_index(uint64_t h) { return uint32_t(h) & 0xfffff; }

}  // namespace flexnpu::wire
