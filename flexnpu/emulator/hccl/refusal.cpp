#include "flexnpu/emulator/hccl/refusal.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace flexnpu::emulator::hccl {

namespace {

uint64_t seconds(const char* variable, uint64_t otherwise) {
    const char* text = std::getenv(variable);
    if (text == nullptr || *text == '\0') {
        return otherwise;
    }
    char* end = nullptr;
    unsigned long long value = std::strtoull(text, &end, 10);
    if (*end != '\0' || value > 1'000'000) {
        std::fprintf(stderr, "flexnpu emulator: %s=%s is not a number of seconds; %llu is used\n", variable,
                     text, static_cast<unsigned long long>(otherwise));
        return otherwise;
    }
    return value;
}

}  // namespace

uint64_t connect_timeout_s() { return std::max<uint64_t>(seconds("HCCL_CONNECT_TIMEOUT", 120), 1); }
uint64_t execute_timeout_s() { return seconds("HCCL_EXEC_TIMEOUT", 1836); }

}  // namespace flexnpu::emulator::hccl
