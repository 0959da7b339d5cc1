// Captures in progress (aclmdlRICaptureBegin ... End): which streams' tasks go into which graph.
//
// What CANN documents is followed: the modes and which functions are unsafe (synchronous copies and fills,
// and asynchronous ones of host memory that is not page-locked: the call fails, the capture goes on), the
// error of each misuse. Where it documents nothing the law is CUDA's: recording an event on a capturing
// stream takes its place in the graph, waiting for that event brings another stream into the capture, every
// such stream must have been joined at the end, and synchronising or querying what is being captured fails
// and invalidates the capture.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "flexnpu/emulator/runtime/graph.hpp"
#include "flexnpu/emulator/runtime/handles.hpp"

namespace flexnpu::emulator {

struct Capture {
    std::shared_ptr<Graph> graph;
    Stream* origin = nullptr;
    int32_t mode = 0;
    uint64_t thread = 0;  // that began it
    std::string invalid;  // why the graph cannot be had; empty: it can
    // The task group being recorded, and on which stream.
    std::shared_ptr<TaskGroup> group;
    Stream* group_stream = nullptr;
    bool over = false;
};

// Where in a graph an event was recorded: after these nodes.
struct CaptureMark {
    std::shared_ptr<Capture> capture;
    std::vector<uint32_t> frontier;
};

// Every function that fails records its error under `function` and returns it.
class Captures {
public:
    int32_t begin(const char* function, Stream& stream, bool default_stream, int32_t mode);
    int32_t end(const char* function, Stream& stream, void** graph);
    // The status of a stream (acl::CAPTURE_*) and its graph, null when it does not capture.
    int32_t status(Stream& stream, void** graph);

    // The stream's tasks are diverted: takes one. `taken` is false when the stream has become an ordinary one
    // meanwhile.
    int32_t take(const char* function, Stream& stream, Task& task, bool* taken);

    // Events of streams. Each returns false for `handled` when nothing is captured and the ordinary way is to
    // be gone.
    int32_t record(const char* function, const std::shared_ptr<Event>& event, Stream& stream, bool* handled);
    int32_t wait(const char* function, const std::shared_ptr<Event>& event,
                 const std::shared_ptr<Stream>& stream, bool* handled);
    int32_t reset(const char* function, const std::shared_ptr<Event>& event, Stream& stream, bool* handled);

    // 0 when the call is allowed; an error, which invalidates the capture, when it waits for or asks about
    // what is captured.
    int32_t check_stream(const char* function, Stream& stream);
    int32_t check_event(const char* function, Event& event);
    int32_t check_device(const char* function, int32_t device);
    // Error of a function that a capture's mode forbids to the calling thread; the capture goes on.
    int32_t check_unsafe(const char* function);
    static int32_t exchange_mode(int32_t mode);

    // The stream was aborted: its capture cannot be completed. Gone: it is not captured any more either.
    void stream_aborted(Stream& stream);
    void stream_gone(Stream& stream);

    int32_t group_begin(const char* function, Stream& stream);
    int32_t group_end(const char* function, Stream& stream, void** group);
    int32_t update_begin(const char* function, Stream& stream, void* group);
    // The update to queue on the stream.
    int32_t update_end(const char* function, Stream& stream, std::shared_ptr<TaskUpdate>* update);

    // A graph that can run, by its handle.
    int32_t find(const char* function, void* handle, std::shared_ptr<Graph>* graph) const;
    // Also while it is being captured; null for what is not a graph.
    std::shared_ptr<Graph> find_any(void* handle) const { return graphs_.get(handle); }
    int32_t destroy(const char* function, void* handle);

private:
    struct Chain {
        std::shared_ptr<Capture> capture;
        std::vector<uint32_t> frontier;  // what the stream's next task comes after
    };

    Chain* chain_locked(Stream& stream);
    // Takes the handles of a graph and its groups away.
    void forget(const Graph& graph);
    void finish_locked(Capture& capture);
    static int32_t refuse_invalid(const char* function, const Capture& capture);
    void invalidate_locked(Capture& capture, const char* function, const char* what);
    static uint32_t add_node_locked(Chain& chain, Stream& stream, Task&& task);
    bool unjoined_locked(const Capture& capture) const;

    mutable std::mutex mutex_;
    std::unordered_map<Stream*, Chain> chains_;
    std::unordered_map<Stream*, std::shared_ptr<TaskUpdate>> updates_;
    std::atomic<uint32_t> active_{0};  // captures that have begun and not ended
    HandleTable<Graph> graphs_{HandleKind::Graph};
    HandleTable<TaskGroup> groups_{HandleKind::Group};
    std::atomic<uint32_t> next_id_{0};
};

}  // namespace flexnpu::emulator
