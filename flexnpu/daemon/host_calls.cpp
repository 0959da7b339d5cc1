#include "flexnpu/daemon/host_calls.hpp"

#include <algorithm>

#include "flexnpu/wire/futex.hpp"

namespace flexnpu::daemon {

void HostCalls::dispatch(Lane& lane, const Item& item) {
    calls_++;
    const HostFunctionItem& f = item.as<HostFunctionItem>();
    lane.calls.push_back({f.function, item.ticket, f.blocks});
    int32_t status = acl::STREAM_NOT_READY;
    if (lane.calls.size() == 1 && vendor_.aclrtStreamQuery(lane.stream, &status) == 0 &&
        status == acl::STREAM_COMPLETE)
        return reached(lane, item.ticket);
    void* event = spares_.event();
    if (event && vendor_.aclrtRecordEvent(event, lane.stream) == 0)
        return markers_.add(lane, {event, nullptr, item.ticket, true});
    // When the stream reaches it cannot be told: it does not run, rather than too early.
    if (event) spares_.give_event(event);
    lane.session->host_backlog.push_back({lane.id, lane.calls.back(), true});
    lane.calls.pop_back();
    failures_.fail(lane, acl::RT_INTERNAL, "FlexNPU: no event for a host function");
    tell(*lane.session);
    lanes_.call_over(lane.id, item.ticket);
}

void HostCalls::reached(Lane& lane, uint64_t ticket) {
    if (lane.calls.empty() || lane.calls.front().ticket != ticket) return;  // dropped meanwhile
    const Lane::Call call = lane.calls.front();
    lane.calls.pop_front();
    lane.session->host_backlog.push_back({lane.id, call, false});
    tell(*lane.session);
}

void HostCalls::drop_all(Lane& lane) {
    for (const Lane::Call& c : std::exchange(lane.calls, {}))
        lane.session->host_backlog.push_back({lane.id, c, true});
}

void HostCalls::drop(Lane& lane, const Item& item) {
    const Lane::Call call{item.as<HostFunctionItem>().function, item.ticket, false};
    lane.session->host_backlog.push_back({lane.id, call, true});
}

void HostCalls::tell(Session& s) {
    wire::SessionPage& page = *s.page;
    const uint32_t before = s.host_given;
    while (!s.host_backlog.empty() &&
           s.host_given - page.host_taken.load(std::memory_order_acquire) < wire::kHostCalls) {
        const Session::HostTold& told = s.host_backlog.front();
        wire::HostCall call{told.call.function, told.dropped ? wire::kDropped : wire::kNobodyWaits, 0};
        if (told.call.block && !told.dropped) {
            auto* slot = std::find_if(std::begin(s.host_slots), std::end(s.host_slots),
                                      [](const auto& o) { return o.ticket == 0; });
            if (slot == std::end(s.host_slots)) break;
            if (++s.host_ticket == 0) ++s.host_ticket;
            *slot = {s.host_ticket, told.lane, told.call.ticket};
            s.host_open++;
            call.slot = uint32_t(slot - s.host_slots);
            call.ticket = s.host_ticket;
        }
        page.host_calls[s.host_given % wire::kHostCalls] = call;
        s.host_given++;
        s.host_backlog.pop_front();
    }
    if (s.host_given == before) return;
    // seq_cst against the client's store to `host_waiting` before its last look at `host_given`.
    page.host_given.store(s.host_given, std::memory_order_seq_cst);
    if (page.host_waiting.load(std::memory_order_seq_cst)) wire::futex_wake(page.host_given);
}

bool HostCalls::answered(const Session& s) const {
    if (s.host_open == 0) return false;
    for (uint32_t i = 0; i < wire::kHostSlots; i++) {
        if (s.host_slots[i].ticket &&
            s.page->host_done[i].load(std::memory_order_seq_cst) == s.host_slots[i].ticket)
            return true;
    }
    return false;
}

bool HostCalls::poll(Session& s) {
    if (!s.host_backlog.empty()) tell(s);
    if (!answered(s)) return false;
    bool any = false;
    for (uint32_t i = 0; i < wire::kHostSlots; i++) {
        Session::HostOpen& open = s.host_slots[i];
        if (!open.ticket || s.page->host_done[i].load(std::memory_order_acquire) != open.ticket) continue;
        any = true;
        const int32_t status = s.page->host_status[i].load(std::memory_order_relaxed);
        const Session::HostOpen was = std::exchange(open, {});
        s.host_open--;
        Lane* lane = lanes_.find(was.lane);
        if (!lane || !lane->calling || lane->call != was.call) continue;  // the stream was aborted meanwhile
        if (status)
            failures_.fail(*lane, acl::RT_STREAM_NO_CALLBACK,
                           "aclrtLaunchCallback: no thread is subscribed to the stream");
        lanes_.call_over(was.lane, was.call);
    }
    tell(s);
    return any;
}

}  // namespace flexnpu::daemon
