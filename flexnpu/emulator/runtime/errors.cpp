#include "flexnpu/emulator/runtime/errors.hpp"

#include <cstdarg>
#include <cstdio>
#include <utility>

#include "acl.gen.h"

namespace flexnpu::emulator {

namespace {

struct ThreadErrors {
    std::string message;   // of the most recent failure, until it is read
    std::string returned;  // what aclGetRecentErrMsg gave out last: the caller holds its address
    int32_t last = 0;
};

ThreadErrors& thread_errors() {
    thread_local ThreadErrors errors;
    return errors;
}

std::string format_message(const char* format, va_list args) {
    char text[1024];
    std::vsnprintf(text, sizeof(text), format, args);
    return text;
}

}  // namespace

int32_t fail_with(int32_t error, std::string message) {
    ThreadErrors& errors = thread_errors();
    errors.last = error;
    errors.message = "E" + std::to_string(error) + ": " + std::move(message);
    return error;
}

int32_t fail(int32_t error, const char* format, ...) {
    va_list args;
    va_start(args, format);
    std::string message = format_message(format, args);
    va_end(args);
    return fail_with(error, std::move(message));
}

std::string take_message() { return std::exchange(thread_errors().message, {}); }

}  // namespace flexnpu::emulator

namespace emu = flexnpu::emulator;

extern "C" {

int32_t flexnpu_emu_fail(int32_t error, const char* format, ...) {
    va_list args;
    va_start(args, format);
    std::string message = emu::format_message(format, args);
    va_end(args);
    return emu::fail_with(error, std::move(message));
}

// What every function without a body of its own answers (emu_fallback_*.gen.cpp).
FLEXNPU_EXPORT int emu_unsupported(const char* function) {
    return emu::fail(flexnpu::acl::API_NOT_SUPPORTED, "%s is not supported by the emulated CANN", function);
}

const char* aclGetRecentErrMsg() {
    emu::ThreadErrors& errors = emu::thread_errors();
    errors.returned = std::exchange(errors.message, {});
    return errors.returned.empty()
               ? nullptr
               : errors.returned.c_str();  // as CANN: programs take any address for an error
}

aclError aclrtGetLastError(aclrtLastErrLevel) { return std::exchange(emu::thread_errors().last, 0); }

aclError aclrtPeekAtLastError(aclrtLastErrLevel) { return emu::thread_errors().last; }
}
