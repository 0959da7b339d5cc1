// Timeouts, measured from the call.
#pragma once

#include <cstdint>

namespace flexnpu::client {

// When `timeout_ms` from now is, in ns of CLOCK_MONOTONIC; -1 (for ever) for -1.
int64_t deadline_ns(int32_t timeout_ms);
// Of a wait for an event in a stream, by what aclrtSetOpWaitTimeout said last.
int64_t wait_deadline_ns();
// RT_PARAM_INVALID, recorded under `function`, for what is no timeout: 0, and less than -1.
int32_t check_timeout(const char* function, int32_t timeout_ms);

}  // namespace flexnpu::client
