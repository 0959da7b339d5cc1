// What an aclOpExecutor is in the emulated CANN: the part that libnnopbase's functions touch. libopapi
// derives from it.
#pragma once

#include <cstdint>

inline constexpr uint32_t kExecutorLive = 0x464e4578;

struct aclOpExecutor {
    uint32_t magic = 0;  // kExecutorLive between the first call and the last use
    bool repeatable = false;
    void (*release)(aclOpExecutor*) = nullptr;
};
