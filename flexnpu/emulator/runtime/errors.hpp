// Error messages and the last error, kept for each thread as AscendCL does.
#pragma once

#include <cstdint>
#include <string>

#include "flexnpu/api/acl_consts.h"
#include "flexnpu/emulator/kernel.hpp"

namespace flexnpu::emulator {

// Codes that acl_consts.h does not need elsewhere.
enum RuntimeError : int32_t {
    kRepeatFinalize = 100037,
    kEventTimestampInvalid = 107006,
    kThreadNotSubscribed = 107012,
    kStreamNoCallback = 107015,
    kNotSupported = 207000,
    kReportTimeout = 507012,
};

// Records `error` with its message for the calling thread and returns `error`.
int32_t fail(int32_t error, const char* format, ...) __attribute__((format(printf, 2, 3)));
// The same with a message that is already made.
int32_t fail_with(int32_t error, std::string message);
// Takes the calling thread's message away; empty when there is none.
std::string take_message();

}  // namespace flexnpu::emulator
