// The checks at the head of a record's handler.
#pragma once

#include "flexnpu/daemon/dispatcher.hpp"
#include "flexnpu/daemon/payload.hpp"

namespace flexnpu::daemon {

template <class T>
bool Dispatcher::taken(Session& s, Payload p, T* out, const Reply& reply, const char* function) {
    if (take(p, out)) return true;
    malformed(s, reply, function);
    return false;
}

template <class T>
Lane* Dispatcher::taken(Session& s, Payload p, T* out) {
    if (!take(p, out)) return malformed(s), nullptr;
    Lane* lane = lane_of(s, out->stream);
    if (!lane) refuse_later(s, nullptr, acl::RT_INVALID_HANDLE, "");
    return lane;
}

inline Event* Dispatcher::event_at(Session& s, uint64_t handle, const Reply& reply, const char* function) {
    Event* e = s.events.find(handle);
    if (e) return e;
    Failure failure = no_event(s, function, handle);
    refuse(s, reply, failure.code, std::move(failure.message));
    return nullptr;
}

inline Lane* Dispatcher::lane_at(Session& s, uint64_t handle, const Reply& reply, const char* function) {
    Lane* lane = lane_of(s, handle);
    if (lane) return lane;
    if (handle == 0 && s.no_default_lane.code)
        refuse(s, reply, s.no_default_lane.code, s.no_default_lane.message);
    else
        refuse(s, reply, acl::RT_INVALID_HANDLE,
               std::string(function) + ": " + hex(handle) + " is not a stream");
    return nullptr;
}

}  // namespace flexnpu::daemon
