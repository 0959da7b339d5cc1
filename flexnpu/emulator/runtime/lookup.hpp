// What every call on a stream begins and ends with.
#pragma once

#include <memory>
#include <utility>

#include "acl.gen.h"
#include "flexnpu/emulator/runtime/errors.hpp"
#include "flexnpu/emulator/runtime/runtime.hpp"
#include "flexnpu/emulator/runtime/stream.hpp"

namespace flexnpu::emulator {

// Whether the calling thread may work: it has a device.
inline int32_t check_context(const char* function) {
    if (Runtime::get().current_device() >= 0) {
        return acl::SUCCESS;
    }
    return fail(acl::RT_CONTEXT_NULL, "%s: this thread has no device: call aclrtSetDevice first", function);
}

// Errors that many functions have: an output is null; there is no such device.
int32_t null_argument(const char* function);
int32_t check_device(const char* function, int64_t index);

// The stream behind `handle`, of the calling thread's context for a null one. An ACL error, recorded under
// `function`, if there is none, or if the thread's device is another. (CANN wants the very context; a program
// that keeps to one a device sees no difference.)
int32_t find_stream(const char* function, aclrtStream handle, std::shared_ptr<Stream>* stream);

// Queues the task or, on a stream that is captured, makes it part of the graph; or records why it cannot be.
inline int32_t append(const char* function, Stream& stream, Task&& task) {
    if (stream.divert.load() != Stream::Divert::None) {
        bool taken = false;
        int32_t error = Runtime::get().captures.take(function, stream, task, &taken);
        if (taken) {
            return error;
        }
    }
    switch (stream.enqueue(std::move(task))) {
        case Stream::Enqueued::Ending:
            return fail(acl::RT_INVALID_HANDLE, "%s: the stream is being destroyed", function);
        case Stream::Enqueued::NoThread:
            return fail(acl::RT_INTERNAL, "%s: the system has no thread for the emulated stream", function);
        default: return acl::SUCCESS;
    }
}

}  // namespace flexnpu::emulator
