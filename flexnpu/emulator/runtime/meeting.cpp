// Tasks that meet others: they keep their stream until all have come, and leave the compute engine to whoever
// works.
#include <algorithm>

#include "flexnpu/emulator/runtime/errors.hpp"
#include "flexnpu/emulator/runtime/stream.hpp"

namespace flexnpu::emulator {

void Stream::meet(const Kernel& kernel, uint64_t ready, uint64_t number) {
    Meeting meeting;
    meeting.ready_ns = ready;
    meeting.end_ns = meeting.ready_ns;
    meeting.stream = this;
    meeting.number = number;
    meeting.cancelled = [](const Meeting* m) {
        return m->number <= static_cast<const Stream*>(m->stream)->skip_until_.load();
    };
    meeting.reserve_link = [](const Meeting* m, uint64_t ready, uint64_t duration) {
        return static_cast<Stream*>(m->stream)->model_.shared.reserve(kLink, ready, duration);
    };
    meeting.extend_link = [](const Meeting* m, uint64_t extra) {
        static_cast<Stream*>(m->stream)->model_.shared.extend(kLink, extra);
    };
    if (int error = kernel.meet(kernel.self, &meeting)) {
        std::string message = take_message();
        set_error(error, message.empty() ? std::string(kernel.name) + " failed on the device" : message);
        meeting.end_ns = std::max(meeting.end_ns, now_ns());  // what follows comes after the wait that failed
    }
    device_ns_ = std::max(device_ns_, meeting.end_ns);
    log_.add(device, id, ready, device_ns_, kernel.name);
}

}  // namespace flexnpu::emulator
