// What a graph holds, how it is run and updated, and how it ends.
#include "flexnpu/daemon/graphs.hpp"

#include <algorithm>
#include <cstring>

#include "flexnpu/daemon/dispatcher.hpp"

namespace flexnpu::daemon {

namespace {

// Bytes of pageable memory that a session's graphs keep for their copies.
constexpr uint64_t kMaxKept = uint64_t(1) << 30;
// How long a dead session's replays may still take before they are aborted.
constexpr int32_t kLastReplayMs = 2'000;

}  // namespace

void Footprint::add(MemoryMap& memory, uint64_t address, uint64_t bytes) {
    if (bytes == 0) return;
    const auto range = memory.find(address);
    if (!range) return;
    auto [it, fresh] = spans_.try_emplace(range->address, MemoryMap::Span{address, bytes});
    if (fresh) return;
    const uint64_t end = std::max(it->second.address + it->second.bytes, address + bytes);
    it->second.address = std::min(it->second.address, address);
    it->second.bytes = end - it->second.address;
}

const MemoryMap::Span* Footprint::first_foreign(MemoryMap& memory) const {
    for (const auto& [allocation, span] : spans_) {
        if (!memory.holds(span.address, span.bytes)) return &span;
    }
    return nullptr;
}

void* Graph::host(uint64_t bytes) {
    void* p = nullptr;
    if (vendor.aclrtMallocHost(&p, bytes) != 0) return nullptr;
    buffers.push_back(p);
    return p;
}

void Graph::abandon() {
    if (!begun || closed) return;
    closed = true;
    Vendor::call(vendor.aclmdlRICaptureEnd, stream, &model);
}

int32_t Graph::destroy() {
    int32_t e = 0;
    if (model) {
        e = Vendor::call(vendor.aclmdlRIDestroy, model);
        if (e) return e;
        model = nullptr;
    }
    for (void* p : std::exchange(buffers, {})) vendor.aclrtFreeHost(p);
    workspaces.clear();
    old_workspaces.clear();
    regions.clear();
    binaries.clear();
    uses.clear();
    records.clear();
    return 0;
}

Graph* Lane::graph() const { return update ? update->graph.lock().get() : capture.get(); }

Footprint* Dispatcher::footprint_of(Lane& lane) {
    if (lane.update) return &lane.update->footprint;
    if (lane.group) return &lane.group->footprint;
    return lane.capture ? &lane.capture->footprint : nullptr;
}

bool Dispatcher::keep_bytes(Lane& lane, CopyItem& copy, const void* from, uint64_t bytes) {
    Graph* graph = lane.graph();
    if (!graph || bytes > kMaxKept - std::min(kMaxKept, lane.session->graph_bytes)) return false;
    void* kept = graph->host(bytes);
    if (!kept) return false;
    std::memcpy(kept, from, bytes);
    graph->kept += bytes;
    lane.session->graph_bytes += bytes;
    copy.from = reinterpret_cast<uint64_t>(kept);
    return true;
}

Held* Dispatcher::captured_workspace(Lane& lane, Item& item, uint64_t bytes) {
    Graph& graph = *item.capturing;
    std::shared_ptr<Held>& workspace =
        graph.workspaces[item.group ? uint64_t(1) << 32 | item.group->index : lane.id];
    if (workspace && workspace->bytes() >= bytes) return workspace.get();
    if (workspace) graph.old_workspaces.push_back(std::exchange(workspace, nullptr));
    std::string message;
    if (int32_t e = allocate_memory(vendor_, lane.session->account, {item.shape->name(), bytes}, &workspace,
                                    &message)) {
        if (lane.session->account->left() < bytes)
            quota_refusals_++;
        else
            count_.vendor_errors++;
        fail(lane, e, std::move(message));
        return nullptr;
    }
    return workspace.get();
}

// The vendor's stream is about to capture. A free that comes amid the capture waits for what the stream was
// given before, and cannot ask the stream.
void Dispatcher::enter_capture(Lane& lane) {
    if (std::exchange(lane.in_capture, true)) return;
    lane.before_capture = spares_.event();
    if (lane.before_capture && vendor_.aclrtRecordEvent(lane.before_capture, lane.stream) != 0) {
        spares_.give_event(std::exchange(lane.before_capture, nullptr));
    }
}

// The lanes of this graph's capture run again, and its handle is gone.
void Dispatcher::forget_graph(Session& s, const std::shared_ptr<Graph>& graph) {
    for (auto& weak : std::exchange(graph->lanes, {})) {
        auto lane = weak.lock();
        if (!lane || (lane->capture != graph && lane->ending != graph)) continue;
        if (lane->capture == graph) {
            lane->capture.reset();
            lane->group.reset();
        }
        lane->ending.reset();
        lane->in_capture = false;
        if (lane->before_capture) spares_.give_event(std::exchange(lane->before_capture, nullptr));
        flow(*lane);
    }
    if (graph->over) return;
    for (uint64_t group : graph->group_handles) s.groups.remove(group);
    s.graph_bytes -= std::min(s.graph_bytes, graph->kept);
    s.graphs.remove(graph->handle);
}

void Dispatcher::dispatch_update(Lane& lane, Item& item) {
    const bool begin = item.type() == ItemType::update_begin;
    if (!begin && std::exchange(lane.update_failed, false)) return;
    const int32_t e =
        begin ? Vendor::call(vendor_.aclmdlRICaptureTaskUpdateBegin, lane.stream, item.group->vendor)
              : Vendor::call(vendor_.aclmdlRICaptureTaskUpdateEnd, lane.stream);
    lane.in_update = begin && e == 0;
    if (e == 0) return;
    count_.vendor_errors++;
    lane.update_failed = begin;
    fail(lane, e,
         vendor_.message(begin ? "aclmdlRICaptureTaskUpdateBegin" : "aclmdlRICaptureTaskUpdateEnd", e));
}

void Dispatcher::dispatch_replay(Lane& lane, Item& item) {
    lane.launched++;
    lane.in_flight_since_sync++;
    lane.step_open = true;
    const std::shared_ptr<Graph>& graph = item.as<ReplayItem>().graph;
    lane.replayed = graph;
    count_.replays++;
    if (int32_t e = Vendor::call(vendor_.aclmdlRIExecuteAsync, graph->model, lane.stream)) {
        count_.vendor_errors++;
        fail(lane, e, vendor_.message("aclmdlRIExecuteAsync", e));
    }
}

// On the reaper's thread, when nothing of the session is dispatched any more: captures end, replays have
// their time, graphs go.
void Dispatcher::tear_down_graphs(Session& s) {
    if (s.graphs.size() == 0) return;
    s.graphs.each([](const std::shared_ptr<Graph>& graph) { graph->abandon(); });
    s.each_lane([&](const std::shared_ptr<Lane>& lane) {
        lane->capture.reset();
        lane->ending.reset();
        lane->group.reset();
        lane->update.reset();
        if (lane->before_capture) vendor_.aclrtDestroyEvent(std::exchange(lane->before_capture, nullptr));
        if (vendor_.aclrtSynchronizeStreamWithTimeout(lane->stream, kLastReplayMs) != acl::RT_WAIT_TIMEOUT)
            return;
        // It waits for what its program will not do any more.
        s.graphs.each([this](const std::shared_ptr<Graph>& graph) {
            if (graph->model) Vendor::call(vendor_.aclmdlRIAbort, graph->model);
        });
    });
    s.events.each([](const std::shared_ptr<Event>& e) {
        e->mark->capture.reset();
        e->mark->previous.reset();
    });
    s.graphs.each([](const std::shared_ptr<Graph>& graph) { graph->destroy(); });
    s.groups = Table<TaskGroup>(wire::HandleKind::task_group);
    s.graphs = Table<Graph>(wire::HandleKind::graph);
}

}  // namespace flexnpu::daemon
