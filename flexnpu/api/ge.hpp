// The graph engine's C++ interface, as far as programs link it: most of it fails by name (ge.tsv,
// ge.gen.cpp).
#pragma once

#include <cstdint>

namespace flexnpu::api {

// How each library says that it has no graph engine: with ACL's error for the calling thread, by what the
// caller can take.
int32_t engine_failure(const char* name);  // records it; defined by the library around ge.gen.cpp

inline constexpr uint32_t kGraphFailed = 0xffffffff;
uint32_t engine_status(const char* name);
[[noreturn]] void engine_throw(const char* name);

}  // namespace flexnpu::api
