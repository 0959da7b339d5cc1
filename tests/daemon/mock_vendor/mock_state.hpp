// What the mock vendor keeps: its objects, its log, and how it has been told to behave.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "acl.gen.h"
#include "mock_vendor.hpp"

namespace mock {

namespace acl = flexnpu::acl;

// A graph only counts what it captures. Anything that a stream is asked while it captures, or an event that
// it has captured, spoils the capture.
struct Model {
    uint32_t id;
    std::atomic<bool> invalid{false};  // also by those who only ask
    bool aborted = false;
    uint64_t nodes = 0;
    int open_groups = 0;
};
struct Group {
    Model* model;
};
struct Stream {
    int id;
    // Those who only ask look without a lock.
    std::atomic<Model*> capture{nullptr};
    std::atomic<bool> origin{false};
    std::atomic<Model*> update{nullptr};
    std::atomic<bool> in_group{false};
    std::atomic<Model*> stuck{nullptr};
    std::atomic<bool> stopped{false};
};
struct Event {
    uint32_t flags = 0;
    uint64_t at = 0;  // number of the record, 0: never recorded
    std::atomic<Model*> capture{nullptr};
};

inline std::mutex mutex;
inline std::condition_variable changed;
inline std::vector<MockCall> calls;
inline bool held = false;
inline bool memory_closed = false;
inline int memory_waits = 0;
inline bool logging = true;
inline std::atomic<int64_t> failing{-1};
inline std::atomic<int> failing_update{0};
inline int64_t blocking_first = -1;
inline int blocked_first = 0;
inline std::atomic<bool> refusing_pins{false};
inline std::map<void*, uint64_t> pinned;
inline std::atomic<int64_t> models{0};
inline std::vector<Stream*> all_streams;
// Never freed, as events and handles may name them; kept where a leak checker finds them.
inline auto& all_groups = *new std::vector<Group*>;
inline auto& all_models = *new std::vector<Model*>;
inline bool sticky = false;
inline std::atomic<int64_t> streams{0}, events{0}, memory{0}, host{0}, tensors{0}, executors{0};
inline thread_local char message[256];

inline void log_locked(MockCall call) {
    if (auto* s = static_cast<Stream*>(call.stream); s && !call.model)
        call.model = s->capture ? s->capture.load() : s->update.load();
    if (call.model && strchr("lcmvV", call.what) && !static_cast<Stream*>(call.stream)->update)
        static_cast<Model*>(call.model)->nodes++;
    if (logging) calls.push_back(call);
}
inline void log(MockCall call) {
    std::lock_guard lock(mutex);
    log_locked(call);
}

inline int fail(int code, const char* text) {
    snprintf(message, sizeof(message), "mock: %s", text);
    return code;
}

// A question about a stream that captures, or an event that has been captured.
inline int asked(Model* capture) {
    if (!capture) return 0;
    capture->invalid = true;
    return fail(acl::RT_CAPTURE_MODE_NOT_SUPPORT, "not while it is being captured");
}

inline int wait_free(int32_t ms, const Stream* stream = nullptr) {
    std::unique_lock lock(mutex);
    const auto free = [stream] { return !held && !(stream && stream->stopped); };
    if (ms < 0) {
        changed.wait(lock, free);
        return 0;
    }
    return changed.wait_for(lock, std::chrono::milliseconds(ms), free)
               ? 0
               : fail(acl::RT_WAIT_TIMEOUT, "timed out");
}

}  // namespace mock
