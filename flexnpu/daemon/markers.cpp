#include "flexnpu/daemon/markers.hpp"

#include <algorithm>

namespace flexnpu::daemon {

void Markers::progress(Lane& lane) {
    while (!lane.fences.empty()) {
        const Lane::Fence f = lane.fences.front();
        int32_t status = acl::EVENT_RECORDED_NOT_READY;
        if (vendor_.aclrtQueryEventStatus(f.event, &status) != 0 || status != acl::EVENT_RECORDED_COMPLETE)
            return;
        lane.over = std::max(lane.over, f.given);
        spares_.give_event(f.event);
        lane.fences.pop_front();
    }
}

bool Markers::look_for_room(Lane& lane) {
    progress(lane);
    if (lane.given + lane.queue.size() - lane.over < kInFlight || lane.fences.empty()) return true;
    lane.full = true;
    const Lane::Fence f = lane.fences.front();
    lane.fences.pop_front();
    lane.over = std::max(lane.over, f.given);  // will be, when the marker comes back
    add(lane, {f.event, nullptr, 0});
    return false;
}

void Markers::record_fence(Lane& lane) {
    void* e = spares_.event();
    if (!e) return;
    if (vendor_.aclrtRecordEvent(e, lane.stream) != 0) return spares_.give_event(e);
    lane.fences.push_back({e, lane.given});
}

void Markers::add(Lane& lane, const Completions::Marker& m) {
    if (!lane.markers) {
        lane.markers = workers_.completions().lane(
            lane.session->wait_share, [this, id = lane.id](const Completions::Marker& m, double us) {
                inbox_.post([this, id, m, us] { reached(id, m, us); });
            });
    }
    workers_.completions().add(lane.markers, m);
}

void Markers::close(Lane& lane) {
    if (lane.markers) workers_.completions().close(lane.markers);
}

void Markers::reached(uint32_t lane, const Completions::Marker& m, double us) {
    spares_.give_event(m.end);
    if (m.start) spares_.give_event(m.start);
    on_reached(lane, m, us);
}

}  // namespace flexnpu::daemon
