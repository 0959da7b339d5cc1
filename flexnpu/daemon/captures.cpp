#include "flexnpu/daemon/captures.hpp"

#include <algorithm>

namespace flexnpu::daemon {

namespace {

// How long a dead session's replays may still take before they are aborted.
constexpr int32_t kLastReplayMs = 2'000;

}  // namespace

// A free that comes amid the capture waits for what the stream was given before, and cannot ask the stream.
void Captures::begin(Lane& lane) {
    lane.in_capture = true;
    void* event = spares_.event();
    if (event && vendor_.aclrtRecordEvent(event, lane.stream) != 0)
        spares_.give_event(std::exchange(event, nullptr));
    // A free that waits for it may outlast the capture.
    if (event) lane.before_capture = {event, [this](void* e) { vendor_.aclrtDestroyEvent(e); }};
}

void Captures::forget(Session& s, const std::shared_ptr<Graph>& graph) {
    for (auto& weak : std::exchange(graph->lanes, {})) {
        auto lane = weak.lock();
        if (!lane || (lane->capture != graph && lane->ending != graph)) continue;
        if (lane->capture == graph) {
            lane->capture.reset();
            lane->group.reset();
        }
        lane->ending.reset();
        lane->in_capture = false;
        lane->before_capture.reset();
        lanes_.flow(*lane);
    }
    if (graph->over) return;
    for (uint64_t group : graph->group_handles) s.groups.remove(group);
    s.graph_bytes -= std::min(s.graph_bytes, graph->kept);
    s.graphs.remove(graph->handle);
}

void Captures::tear_down(Session& s) {
    if (s.graphs.size() == 0) return;
    s.graphs.each([](const std::shared_ptr<Graph>& graph) { graph->abandon(); });
    s.each_lane([&](const std::shared_ptr<Lane>& lane) {
        lane->capture.reset();
        lane->ending.reset();
        lane->group.reset();
        lane->update.reset();
        lane->before_capture.reset();
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
