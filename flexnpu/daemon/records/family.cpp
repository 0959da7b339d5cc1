#include "flexnpu/daemon/records/family.hpp"

namespace flexnpu::daemon {

Lane* RecordFamily::lane_at(Session& s, uint64_t handle, const Reply& reply, const char* function) {
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
