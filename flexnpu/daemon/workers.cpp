#include "flexnpu/daemon/workers.hpp"

namespace flexnpu::daemon {

void Workers::start() {
    threads_ = std::make_unique<Threads>(Threads::Bounds{.most = most_}, [this] { vendor_.enter(device_); });
    completions_ = std::make_unique<Completions>(vendor_, *threads_, [this] { vendor_.enter(device_); });
}

void Workers::stop() {
    completions_.reset();
    threads_.reset();
}

Worker& Workers::of(Ring& ring) {
    if (ring.closed) return discarding_;
    if (!ring.worker) ring.worker = std::make_unique<Worker>(*threads_, ring.group);
    return *ring.worker;
}

void Workers::counters(std::map<std::string, uint64_t>* out) const {
    threads_->counters(out);
    completions_->counters(out);
}

}  // namespace flexnpu::daemon
