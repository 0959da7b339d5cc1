// Reading a record's payload, which is untrusted and has been copied into our memory.
#pragma once

#include <cstring>
#include <span>
#include <string>

#include "flexnpu/wire/layout.hpp"

namespace flexnpu::daemon {

// The struct at the payload's start; what follows it in *rest, without which nothing may follow.
template <wire::Plain T>
bool take(std::span<const uint8_t> p, T* out, std::span<const uint8_t>* rest = nullptr) {
    if (p.size() < sizeof(T)) return false;
    std::memcpy(out, p.data(), sizeof(T));
    if (rest) *rest = p.subspan(sizeof(T));
    return rest != nullptr || p.size() == sizeof(T);
}

inline std::string hex(uint64_t v) {
    char text[24];
    snprintf(text, sizeof(text), "0x%llx", static_cast<unsigned long long>(v));
    return text;
}

}  // namespace flexnpu::daemon
