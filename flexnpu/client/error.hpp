// Errors as CANN reports them: a code from every call, the last one per thread, and a message per thread.
#pragma once

#include <cstdint>
#include <string>

namespace flexnpu::client {

// Records `code` as the calling thread's last error with a message, and returns it.
int32_t fail(int32_t code, const char* format, ...) __attribute__((format(printf, 2, 3)));

// The same for an error whose message came from the daemon.
int32_t fail_text(int32_t code, const char* message);

// What the calling thread has recorded last: what to return when somebody else recorded it.
int32_t last_error();
std::string last_message();

}  // namespace flexnpu::client
