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
    kEventTimestampInvalid = acl::RT_EVENT_TIMESTAMP_INVALID,
    kThreadNotSubscribed = acl::RT_THREAD_SUBSCRIBE,
    kStreamNoCallback = acl::RT_STREAM_NO_CALLBACK,
    kNotSupported = 207000,
    kReportTimeout = acl::RT_REPORT_TIMEOUT,
};

// Records `error` with its message for the calling thread and returns `error`.
int32_t fail(int32_t error, const char* format, ...) __attribute__((format(printf, 2, 3)));
// The same with a message that is already made.
int32_t fail_with(int32_t error, std::string message);
// Takes the calling thread's message away; empty when there is none.
std::string take_message();

}  // namespace flexnpu::emulator
