// Graphs (aclmdlRI): what a session captures, replays and updates.
//
// Program order decides what belongs to a capture: a lane captures from the record of its capture's begin on,
// another lane from its wait for an event that was recorded in a capturing lane. Each item is marked so when
// its record is read, and the vendor's own capture, always of the relaxed mode since our threads serve others
// meanwhile, follows when it is dispatched. Nothing of ours (fence, marker, timing event, workspace of the
// lane) enters a vendor's stream that captures, and what is captured is never held by the gate: it does not
// run yet.
//
// A captured copy reads its source at each replay if that is device memory or memory of aclrtMallocHost; from
// pageable memory, which nobody can read at replay, it takes the bytes of the time of the call.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "flexnpu/daemon/session.hpp"
#include "flexnpu/daemon/vendor.hpp"

namespace flexnpu::daemon {

// Device memory that captured operators refer to: one span for each allocation.
class Footprint {
public:
    // [address, address + bytes) has been found to be the session's.
    void add(MemoryMap& memory, uint64_t address, uint64_t bytes);
    // The first span that is not the session's any more, or nullptr.
    const MemoryMap::Span* first_foreign(MemoryMap& memory) const;
    void clear() { spans_.clear(); }

private:
    std::map<uint64_t, MemoryMap::Span> spans_;  // by the address of their allocation
};

// Operators of a graph that can be given new arguments.
struct TaskGroup {
    std::weak_ptr<Graph> graph;
    uint32_t index = 0;      // within its graph
    void* vendor = nullptr;  // the vendor's handle
    Footprint footprint;
};

struct Graph : std::enable_shared_from_this<Graph> {
    Graph(Vendor& v, uint64_t s) : vendor(v), serial(s) {}
    ~Graph() { destroy(); }
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;

    // Ends a capture that its program will not end. May block, as destroy() may.
    void abandon();
    // Gives everything back to the vendor: the model, then what it used. The vendor's error.
    int32_t destroy();
    // Host memory that lives as long as the graph; nullptr when there is none.
    void* host(uint64_t bytes);

    Vendor& vendor;
    const uint64_t serial;  // of all graphs of this daemon
    uint64_t handle = 0;
    Holding place;  // among its session's
    // Of the capture.
    std::weak_ptr<Lane> origin;
    void* stream = nullptr;                  // the vendor's, of origin
    std::vector<std::weak_ptr<Lane>> lanes;  // that capture
    bool begun = false;                      // the vendor captures
    bool ending = false;                     // the program has asked for the end
    std::atomic<bool> closed{false};         // the vendor does not capture any more; a worker says so
    bool over = false;                       // the graph can be replayed
    bool dying = false;
    Failure failure;  // the first of what was to be captured: the end of the capture reports it
    double us = 0;    // device time of the captured operators, estimated
    // Of the graph.
    void* model = nullptr;
    Footprint footprint;
    uint64_t checked = 0;  // MemoryMap::removals() at the last look at the footprints
    std::vector<std::shared_ptr<TaskGroup>> groups;
    std::vector<uint64_t> group_handles;
    // Real events (ACL_EVENT_EXTERNAL) that the graph waits for or resets, and that it records.
    std::set<std::shared_ptr<Event>> uses, records;
    // Workspaces of ours, by lane, or by group where they are updated; larger ones replace smaller ones,
    // which captured operators may still name.
    std::map<uint64_t, std::shared_ptr<Held>> workspaces;
    std::vector<std::shared_ptr<Held>> old_workspaces;
    uint64_t kept = 0;  // bytes in `buffers`
    std::vector<void*> buffers;
    std::vector<std::shared_ptr<HostMemory>> regions;
    wire::AdaptiveWait sync_waits;  // how long synchronises behind its replays take; the dispatcher's
    std::set<std::shared_ptr<Binary>> binaries;  // whose kernels it runs
    std::mutex
        mutex;  // held by workers that call the vendor with the model, which another ring's may destroy
    std::string text;  // the vendor's description, while a client reads it
};

// The footprint that this lane's next operator adds to, or nullptr: it is not captured.
Footprint* footprint_of(Lane& lane);
// A captured copy's bytes, in memory that lives as long as the graph. False: there is none.
bool keep_bytes(Lane& lane, CopyItem& copy, const void* from, uint64_t bytes);

}  // namespace flexnpu::daemon
