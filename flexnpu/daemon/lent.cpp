#include "flexnpu/daemon/lent.hpp"

#include "flexnpu/daemon/vendor.hpp"

namespace flexnpu::daemon {

void LentBuffers::reclaim(Lane& lane, bool all) {
    while (!lane.lent.empty()) {
        const Lent l = lane.lent.front();
        int32_t status = acl::EVENT_RECORDED_NOT_READY;
        if (!all &&
            (vendor_.aclrtQueryEventStatus(l.event, &status) != 0 || status != acl::EVENT_RECORDED_COMPLETE))
            return;
        lane.lent.pop_front();
        lent_--;
        spares_.give_event(l.event);
        if (l.buffer) spares_.give_buffer(l.buffer);
        lane.session->give_block(l.block, l.ticket);
    }
}

}  // namespace flexnpu::daemon
