// The checks at the head of a record's handler.
#pragma once

#include "flexnpu/daemon/dispatcher.hpp"
#include "flexnpu/daemon/payload.hpp"

namespace flexnpu::daemon {

template <class T>
bool Dispatcher::taken(Session& s, Payload p, T* out, const Reply& reply, const char* function) {
    if (take(p, out)) return true;
    count_.malformed++;
    refuse(s, reply, acl::INVALID_PARAM, std::string("FlexNPU: malformed ") + function);
    return false;
}

template <class T>
Lane* Dispatcher::taken(Session& s, Payload p, T* out) {
    const bool good = take(p, out);
    Lane* lane = good ? lane_of(s, out->stream) : nullptr;
    if (!good) count_.malformed++;
    if (!lane) refuse_later(s, nullptr, good ? acl::RT_INVALID_HANDLE : acl::INVALID_PARAM, "");
    return lane;
}

inline Lane* Dispatcher::lane_at(Session& s, uint64_t handle, const Reply& reply, const char* function) {
    Lane* lane = lane_of(s, handle);
    if (!lane)
        refuse(s, reply, acl::RT_INVALID_HANDLE,
               std::string(function) + ": " + hex(handle) + " is not a stream");
    return lane;
}

}  // namespace flexnpu::daemon
