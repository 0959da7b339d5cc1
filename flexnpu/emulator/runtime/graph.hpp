// A captured graph (aclmdlRI): tasks and what each comes after, and its replays.
//
// A node owns its kernel for as long as the graph or a task update holds it, and a replay runs it without
// using it up. Replays of one graph run one after the other, in the order of their calls, whatever streams
// they are on: its tasks read and write the same memory each time, and a kernel is never run concurrently
// with itself.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "flexnpu/emulator/runtime/stream.hpp"
#include "flexnpu/emulator/runtime/wake_list.hpp"

namespace flexnpu::emulator {

// A kernel that may run many times.
class HeldKernel {
public:
    explicit HeldKernel(const Kernel& kernel) : kernel(kernel) {}
    ~HeldKernel() {
        if (kernel.destroy != nullptr) {
            kernel.destroy(kernel.self);
        }
    }
    HeldKernel(const HeldKernel&) = delete;
    HeldKernel& operator=(const HeldKernel&) = delete;
    const Kernel kernel;
};

struct GraphNode {
    Task task;                             // `kernel` is empty: `held` has it
    std::shared_ptr<HeldKernel> held;      // under the graph's lock: updates exchange it
    std::shared_ptr<ReportQueue> reports;  // of a callback: the queue of the stream that it was captured on
    int32_t stream = 0;                    // the stream that it was captured on
    uint32_t group = 0;                    // its task group, from 1; 0: none
    uint32_t record = 0;                   // of an external record: its place in Replay::records
    std::vector<uint32_t> after;           // nodes that end before it begins
};

class Graph {
public:
    Graph(uint32_t id, int32_t device) : id(id), device(device) {}
    const uint32_t id;
    const int32_t device;
    void* handle = nullptr;

    // Written by the capture, and fixed when it has ended.
    std::vector<GraphNode> nodes;
    std::vector<std::vector<uint32_t>> next;       // of each node, those that come after it
    std::vector<std::shared_ptr<Event>> recorded;  // the events of external records
    uint32_t groups = 0;
    std::vector<void*> group_handles;
    // Puts meetings with other ranks in order, computes `next`, and lets the graph run.
    void seal();
    bool sealed() const { return sealed_.load(); }

    std::shared_ptr<HeldKernel> kernel(uint32_t node) const;
    void exchange(uint32_t node, std::shared_ptr<HeldKernel> kernel);

    std::string name() const;
    void set_name(std::string name);

    // Replays take turns.
    uint64_t next_ticket() { return tickets_.fetch_add(1) + 1; }
    bool is_turn(uint64_t ticket) const;
    // The replay has ended at that device time, or will never run (0).
    void finish(uint64_t ticket, uint64_t device_ns);
    uint64_t device_ns() const;

    // Ends every replay that was called before, after the task that it is at.
    void abort();
    bool aborted(uint64_t ticket) const { return ticket <= abort_until_.load(); }

    // Woken when a replay ends and when one is aborted.
    WakeList waiters;

private:
    mutable std::mutex mutex_;
    std::string name_;
    std::atomic<bool> sealed_{false};
    std::atomic<uint64_t> tickets_{0};
    std::atomic<uint64_t> abort_until_{0};
    uint64_t finished_ = 0;             // all tickets up to this one have finished
    std::set<uint64_t> finished_more_;  // and these
    uint64_t device_ns_ = 0;            // when the last one ended
};

// One call of aclmdlRIExecuteAsync, the argument of TaskKind::Replay.
struct Replay {
    std::shared_ptr<Graph> graph;
    uint64_t ticket = 0;            // taken when the task is queued
    std::vector<uint64_t> records;  // one for each of graph->recorded, numbered at the call
};

// Kernels that one aclmdlRICaptureTaskGrpBegin / End pair holds.
struct TaskGroup {
    std::weak_ptr<Graph> graph;
    std::vector<uint32_t> nodes;
    bool updating = false;  // under the captures' lock
};

// New kernels for a group, the argument of TaskKind::GraphUpdate. They take their place when the stream gets
// there.
struct TaskUpdate {
    std::shared_ptr<Graph> graph;
    std::shared_ptr<TaskGroup> group;
    std::vector<std::shared_ptr<HeldKernel>> kernels;
    bool failed = false;

    void apply() const;
};

// The graph as text: one line a task, and in the trace event format with what each task comes after.
std::string describe(const Graph& graph);
std::string describe_json(const Graph& graph, bool verbose);

// Streams that wait for a word of device memory, told of every aclrtValueWrite.
WakeList& value_waiters();

}  // namespace flexnpu::emulator
