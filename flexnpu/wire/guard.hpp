// Threads and jobs that an exception does not take the process down with.
#pragma once

#include <pthread.h>
#include <stdio.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <thread>
#include <utility>

namespace flexnpu::wire {

// Exceptions that guards have caught, of the whole process.
inline std::atomic<uint64_t> caught_exceptions{0};

// Logs and counts the exception that is being handled.
inline void note_exception(const char* where) noexcept {
    caught_exceptions++;
    try {
        throw;
    } catch (const std::exception& e) {
        fprintf(stderr, "flexnpu: %s: %s\n", where, e.what());
    } catch (...) {
        fprintf(stderr, "flexnpu: %s: an exception of an unknown kind\n", where);
    }
}

// Runs `f`; an exception is noted. False: there was one.
template <class F>
bool guarded(const char* where, F&& f) noexcept {
    try {
        f();
        return true;
    } catch (...) {
        note_exception(where);
        return false;
    }
}

// Runs `job`, and `failed`, if there is one, when an exception has left it.
inline bool run_guarded(const char* where, const std::function<void()>& job,
                        const std::function<void()>& failed = {}) noexcept {
    if (guarded(where, job)) return true;
    if (failed) guarded(where, failed);
    return false;
}

// Starts a thread of this name. An exception that leaves `body` ends the thread and not the process. Throws
// std::system_error when the system gives no thread.
inline std::thread start_thread(const char* name, std::function<void()> body) {
    return std::thread([name, body = std::move(body)] {
        pthread_setname_np(pthread_self(), name);
        guarded(name, body);
    });
}

}  // namespace flexnpu::wire
