// Host functions in streams: aclrtLaunchHostFunc and aclrtLaunchCallback.
//
// The client runs them; the vendor never hears of them, so that no program's function holds up a thread that
// the vendor shares between tenants. A lane that comes to a function which it must wait for goes on, in its
// queue here, when the function has returned: nothing behind it reaches the vendor before, and events
// recorded behind it are not recorded. Messages travel in the session's page, see SessionPage.
#include <algorithm>

#include "flexnpu/daemon/dispatcher.hpp"
#include "flexnpu/daemon/heads.hpp"
#include "flexnpu/daemon/payload.hpp"
#include "flexnpu/wire/futex.hpp"

namespace flexnpu::daemon {

void Dispatcher::host_func(Session& s, Payload p) {
    wire::HostFunc h;
    Lane* lane = taken(s, p, &h);
    if (!lane) return;
    if (lane->capture || lane->update) {
        return refuse_later(s, lane, acl::RT_CAPTURE_MODE_NOT_SUPPORT,
                            "aclrtLaunchHostFunc: FlexNPU cannot capture a function of the program");
    }
    push(*lane, std::make_unique<Item>(HostFunctionItem{h.function, h.block != 0}));
}

void Dispatcher::dispatch_host_func(Lane& lane, Item& item) {
    count_.host_calls++;
    const HostFunctionItem& f = item.as<HostFunctionItem>();
    lane.calls.push_back({f.function, item.ticket, f.blocks});
    int32_t status = acl::STREAM_NOT_READY;
    if (lane.calls.size() == 1 && vendor_.aclrtStreamQuery(lane.stream, &status) == 0 &&
        status == acl::STREAM_COMPLETE)
        return host_reached(lane);
    void* event = spares_.event();
    if (event && vendor_.aclrtRecordEvent(event, lane.stream) == 0)
        return mark(lane, {event, nullptr, 0, true});
    // When the stream reaches it cannot be told: it does not run, rather than too early.
    if (event) spares_.give_event(event);
    lane.session->host_backlog.push_back({lane.id, lane.calls.back(), true});
    lane.calls.pop_back();
    lane.calling = lane.calling && lane.call != item.ticket;
    fail(lane, acl::RT_INTERNAL, "FlexNPU: no event for a host function");
    tell(*lane.session);
}

// The vendor's stream has reached the lane's oldest function.
void Dispatcher::host_reached(Lane& lane) {
    if (lane.calls.empty()) return;  // dropped meanwhile
    const Lane::Call call = lane.calls.front();
    lane.calls.pop_front();
    lane.session->host_backlog.push_back({lane.id, call, false});
    tell(*lane.session);
}

// Gives the client what there is room for; the rest when it has taken some, or answered some.
void Dispatcher::tell(Session& s) {
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

// Whether poll_host() has something to do for this session.
bool Dispatcher::host_answered(const Session& s) const {
    if (s.host_open == 0) return false;
    for (uint32_t i = 0; i < wire::kHostSlots; i++) {
        if (s.host_slots[i].ticket &&
            s.page->host_done[i].load(std::memory_order_seq_cst) == s.host_slots[i].ticket)
            return true;
    }
    return false;
}

// Lanes whose functions have returned go on.
bool Dispatcher::poll_host() {
    bool any = false;
    for (size_t k = 0; k < sessions_.size(); k++) {
        const std::shared_ptr<Session> s = sessions_[k];
        if (!s->host_backlog.empty()) tell(*s);
        if (!host_answered(*s)) continue;
        for (uint32_t i = 0; i < wire::kHostSlots; i++) {
            Session::HostOpen& open = s->host_slots[i];
            if (!open.ticket || s->page->host_done[i].load(std::memory_order_acquire) != open.ticket)
                continue;
            any = true;
            const int32_t status = s->page->host_status[i].load(std::memory_order_relaxed);
            const Session::HostOpen was = std::exchange(open, {});
            s->host_open--;
            auto it = lanes_.find(was.lane);
            if (it == lanes_.end()) continue;
            Lane& lane = *it->second;
            if (!lane.calling || lane.call != was.call) continue;  // the stream was aborted meanwhile
            lane.calling = false;
            if (status)
                fail(lane, acl::RT_STREAM_NO_CALLBACK,
                     "aclrtLaunchCallback: no thread is subscribed to the stream");
            flow(lane);
        }
        tell(*s);
    }
    return any;
}

}  // namespace flexnpu::daemon
