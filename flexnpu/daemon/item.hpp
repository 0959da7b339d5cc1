// What a lane is to do, in the lane's order.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <variant>
#include <vector>

#include "flexnpu/wire/layout.hpp"

namespace flexnpu::daemon {

struct Communicator;  // communicators.hpp
struct Function;      // kernels.hpp
struct Graph;         // graphs.hpp
struct Lane;
struct Mark;
class Shape;
struct TaskGroup;

enum class ItemType : uint8_t {
    launch,
    copy,
    memset,
    record,
    wait,
    reset,
    sync,
    replay,
    value,
    update_begin,
    update_end,
    host_func,
    call,
    hint,
    collective,
    kernel
};

// An operator: the item's shape and addresses, and the client's workspace.
struct LaunchItem {
    uint64_t workspace = 0, workspace_bytes = 0;
};
struct CopyItem {
    uint64_t to = 0, from = 0, bytes = 0;
    int32_t kind = 0;           // aclrtMemcpyKind
    uint8_t* buffer = nullptr;  // of inline data: ours, given back when the copy is over
    int32_t block = -1;         // of the staging area: given back when the copy is over
    uint32_t block_ticket = 0;
};
struct MemsetItem {
    uint64_t to = 0, bytes = 0;
    int32_t value = 0;
};
// Of the item's mark.
struct RecordItem {};
struct WaitItem {
    uint32_t counted = 0;  // in the mark's queued_waits
    int64_t deadline_ns = -1;
};
struct ResetItem {};
struct SyncItem {
    std::function<void()> job;  // runs when everything before it has been dispatched
};
struct ReplayItem {
    std::shared_ptr<Graph> graph;
};
// aclrtValueWait and aclrtValueWrite.
struct ValueItem {
    uint64_t address = 0, value = 0;
    uint32_t flag = 0;
    bool wait = false;
};
struct UpdateBeginItem {};
struct UpdateEndItem {};
struct HostFunctionItem {
    uint64_t function = 0;  // the client's number for it
    bool blocks = false;    // the stream waits for it
};
// A call that a worker makes: the lane waits until it has returned.
struct CallItem {
    std::function<void(Lane&, uint64_t ticket)> start;
    std::function<void()> dropped;  // what becomes of it if the lane is emptied
};
// aclrtCmoAsync.
struct HintItem {
    uint64_t address = 0, bytes = 0;
    int32_t type = 0;
};
struct CollectiveItem {
    uint32_t of = 0;           // wire::Collective::Of
    uint64_t connections = 0;  // which the vendor needs for it: the first call with them may block
    std::shared_ptr<Communicator> communicator;
    std::function<int32_t()> call;  // the vendor's
    bool may_block = false;         // made by the communicator's worker
};
struct KernelItem {
    uint32_t blocks = 0;
    std::shared_ptr<Function> function;
    std::function<int32_t()> call;  // launches it
};

// In the order of ItemType.
using ItemWork = std::variant<LaunchItem, CopyItem, MemsetItem, RecordItem, WaitItem, ResetItem, SyncItem,
                              ReplayItem, ValueItem, UpdateBeginItem, UpdateEndItem, HostFunctionItem,
                              CallItem, HintItem, CollectiveItem, KernelItem>;
static_assert(std::variant_size_v<ItemWork> == size_t(ItemType::kernel) + 1);
static_assert(std::is_same_v<std::variant_alternative_t<size_t(ItemType::wait), ItemWork>, WaitItem>);
static_assert(
    std::is_same_v<std::variant_alternative_t<size_t(ItemType::host_func), ItemWork>, HostFunctionItem>);
static_assert(std::is_same_v<std::variant_alternative_t<size_t(ItemType::kernel), ItemWork>, KernelItem>);

// A record, a wait or a reset of an event.
inline ItemWork event_work(ItemType type, int64_t deadline_ns) {
    if (type == ItemType::record) return RecordItem{};
    if (type == ItemType::reset) return ResetItem{};
    return WaitItem{.deadline_ns = deadline_ns};
}

struct Item {
    Item() = default;
    explicit Item(ItemWork w) : work(std::move(w)) {}
    ItemType type() const { return ItemType(work.index()); }
    template <class T>
    T& as() {
        return std::get<T>(work);
    }
    template <class T>
    const T& as() const {
        return std::get<T>(work);
    }

    ItemWork work;
    uint64_t ticket = 0;
    // launch:
    std::shared_ptr<Shape> shape;
    std::vector<uint64_t> addresses;
    std::shared_ptr<Mark> mark;  // record, wait, reset
    // What a graph captures, or the arguments of its operators that this updates: it does not run here and
    // now.
    std::shared_ptr<Graph> capturing;
    std::shared_ptr<TaskGroup> group;  // of an update, or of an operator that can be updated
    bool behind = false;               // the end of a capture, which the vendor comes to first
    bool of_refused_update = false;
    bool as_it_is = false;  // a real event in a capture: waits for nothing now, and is not recorded now
    bool step_end = false;
    wire::StepWord step;
    // Of real events: what it waits for or resets, and what it records.
    std::vector<std::shared_ptr<Mark>> uses, makes;
};

}  // namespace flexnpu::daemon
