#include "flexnpu/daemon/teardown.hpp"

#include <algorithm>
#include <thread>

#include "flexnpu/daemon/communicators.hpp"
#include "flexnpu/daemon/deadline.hpp"
#include "flexnpu/daemon/kernels.hpp"
#include "flexnpu/wire/futex.hpp"

namespace flexnpu::daemon {

using wire::now_ns;

namespace {

// A dying session's streams, if it has communicators, get this long to end by themselves: other ranks wait.
constexpr uint64_t kRanksEndMs = 2000;
// Sessions that are torn down at one time.
constexpr size_t kTeardowns = 32;

}  // namespace

void Teardown::start() {
    share_ = std::make_shared<Threads::Group>(kTeardowns, nullptr);
    one_by_one_ = std::make_unique<Worker>(workers_.threads(), share_);
    running_ = true;
}

void Teardown::hurry(uint64_t end_by_ns) {
    running_ = false;
    end_by_ns_ = end_by_ns;
}

void Teardown::stop() {
    ranked_.clear();
    one_by_one_.reset();
}

void Teardown::begin(const std::shared_ptr<Session>& s) {
    for (auto& ring : s->rings) ring->closed = true;
    if (!s->communicators) return one_by_one_->post([this, s] { tear_down(*s); });
    std::erase_if(ranked_, [](const auto& one) { return one->idle(); });
    ranked_.push_back(std::make_unique<Worker>(workers_.threads(), share_));
    ranked_.back()->post([this, s] {
        s->communicators->abandon();
        tear_down(*s);
    });
}

// Sees to it that the session's streams end: by themselves or, after a time, by an abort. Whoever waits for
// them then returns: the session's own threads, and other ranks.
void Teardown::end_streams(Session& s) const {
    const uint64_t end_ms = s.communicators ? std::min(s.end_ms, kRanksEndMs) : s.end_ms;
    const uint64_t give_up = std::min(now_ns() + end_ms * 1'000'000, end_by_ns_.load());
    const auto end = [&](const std::shared_ptr<Lane>& lane) {
        int32_t status = acl::STREAM_NOT_READY;
        while (vendor_.aclrtStreamQuery(lane->stream, &status) == 0 && status != acl::STREAM_COMPLETE) {
            if (now_ns() > give_up) {
                if (vendor_.aclrtStreamAbort) vendor_.aclrtStreamAbort(lane->stream);
                return;
            }
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
        }
    };
    s.each_lane(end);
    for (const auto& one : s.leaving_lanes) {
        if (const auto lane = one.lock()) end(lane);
    }
}

// Waits for what is in flight, then gives everything back.
void Teardown::tear_down(Session& s) {
    end_streams(s);
    for (auto& ring : s.rings) ring->worker.reset();
    captures_.tear_down(s);
    s.communicators.reset();
    // Of all together: a stream that has been aborted and does not end is left.
    const int64_t deadline_ns = int64_t(std::min(now_ns() + s.end_ms * 1'000'000, end_by_ns_.load()));
    s.each_lane([&](const std::shared_ptr<Lane>& lane) { end_lane(*lane, deadline_ns); });
    s.kernels.reset();
    s.events.each([](const std::shared_ptr<Event>& e) { e->mark->waiters.clear(); });
    s.events = Table<Event>(wire::HandleKind::event);
    s.streams = Table<Lane>(wire::HandleKind::stream);
    s.default_lane.reset();
    s.shapes.clear();
    s.late.clear();
    std::vector<MemoryMap::Range> ranges = s.memory.take_all();
    std::move(s.leaving.begin(), s.leaving.end(), std::back_inserter(ranges));
    s.leaving.clear();
    address_space_.give_back(s, std::move(ranges));
    s.host.clear();
    s.leaving_host.clear();
    s.staging_pin.reset();
    s.live.reset();
}

void Teardown::end_lane(Lane& lane, int64_t deadline_ns) {
    markers_.close(lane);
    vendor_.aclrtSynchronizeStreamWithTimeout(lane.stream, left_ms(deadline_ns));
    for (const Lent& l : lane.lent) vendor_.aclrtDestroyEvent(l.event);
    std::vector<uint8_t*> buffers;
    for (const Lent& l : lane.lent) {
        if (l.buffer) buffers.push_back(l.buffer);
    }
    if (!buffers.empty() && running_) {
        inbox_.post([this, buffers] {
            for (uint8_t* b : buffers) spares_.give_buffer(b);
        });
    }
    lane.lent.clear();
    for (const Lane::Fence& f : lane.fences) vendor_.aclrtDestroyEvent(f.event);
    lane.old_workspaces.clear();
    lane.workspace.reset();
    vendor_.aclrtDestroyStream(lane.stream);
}

}  // namespace flexnpu::daemon
