// What a session knows of its graphs, and which of its streams are being captured: a program that asks before
// every allocation need not wait for the daemon.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "flexnpu/client/error.hpp"

namespace flexnpu::client {

struct Capture {
    uint64_t graph = 0;
    uint64_t origin = 0;  // the stream whose capture was begun
    int32_t mode = 0;
    pid_t thread = 0;
    bool invalid = false;   // a call has been made that a capture of this mode forbids
    bool doubtful = false;  // the vendor may have found it invalid: ask
};

// Thread-safe.
class Graphs {
public:
    // Whether anything is being captured.
    bool any() const { return count_.load(std::memory_order_relaxed) != 0; }

    // A graph, from the begin of its capture on; the vendor's number for it.
    void add(uint64_t graph, uint32_t id);
    void drop(uint64_t graph);
    bool has(uint64_t graph, uint32_t* id = nullptr) const;
    void add_group(uint64_t graph, uint64_t group);
    // The graph that the group is part of; 0: no such group.
    uint64_t graph_of_group(uint64_t group) const;

    void begin(const Capture& capture);
    // Forgets the capture of this stream.
    void end(uint64_t origin);
    // The capture that the stream is part of; nullptr: none.
    std::shared_ptr<Capture> of(uint64_t stream);
    // An event's record in, or wait of, a stream: waiting for an event of a capture joins it.
    // A real event (ACL_EVENT_EXTERNAL): it takes nobody into a capture.
    void add_real_event(uint64_t event);
    void forget_event(uint64_t event);
    void recorded(uint64_t event, uint64_t stream);
    void waited(uint64_t stream, uint64_t event);

    // Whether the calling thread may make a call that a stream's order does not cover: an ACL error, and the
    // captures that forbid it invalid, or 0. The calling thread's own mode is `thread_mode`.
    int32_t unsafe(const char* function);
    // The stream's synchronise or query has failed: its capture may be invalid.
    void doubt(uint64_t stream);

private:
    std::atomic<uint32_t> count_{0};
    struct Known {
        uint32_t id;
        std::vector<uint64_t> groups;
    };
    mutable std::mutex mutex_;
    std::map<uint64_t, Known> graphs_;
    std::map<uint64_t, uint64_t> groups_;
    std::map<uint64_t, std::shared_ptr<Capture>> streams_;
    std::atomic<uint32_t> real_count_{0};
    std::set<uint64_t> real_events_;
    std::map<uint64_t, std::weak_ptr<Capture>> events_;  // by the capture in which they were recorded last
};

}  // namespace flexnpu::client
