#include "flexnpu/daemon/releases.hpp"

#include <algorithm>
#include <thread>

#include "flexnpu/wire/futex.hpp"

namespace flexnpu::daemon {

namespace {

// How long a free waits for the operators that may use the memory.
constexpr int32_t kLongestUseMs = 10'000;

}  // namespace

void Releases::when_unused(Session& s, const Reply& reply, MemoryMap::Range range,
                           std::function<void(bool over, MemoryMap::Range)> job) {
    std::list<MemoryMap::Range>::iterator at;
    {
        std::lock_guard lock(s.leaving_mutex);
        at = s.leaving.insert(s.leaving.end(), std::move(range));
    }
    // Other threads of the program may be amid a copy of it.
    lanes_.after(
        Lanes::all_of(s), false, [this, &s, at, reply, uses = s.uses, job = std::move(job)]() mutable {
            // Events now, not the streams themselves later: those may be capturing by then, and must not be
            // asked.
            std::vector<void*> ours, all;
            std::vector<std::shared_ptr<Lane>> streams;
            // What the program has destroyed runs on, and is in nobody's table: its end is waited for.
            std::copy_if(s.leaving_lanes.begin(), s.leaving_lanes.end(), std::back_inserter(uses),
                         [](const auto& lane) { return !lane.expired(); });
            bool known = true;
            std::vector<std::shared_ptr<void>>
                captures;  // others' events, which must not serve again meanwhile
            s.each_lane([&](const std::shared_ptr<Lane>& lane) {
                if (lane->in_capture) {  // what came before is all that runs there
                    known = known && lane->before_capture;
                    captures.push_back(lane->before_capture);
                    return all.push_back(lane->before_capture.get());
                }
                markers_.progress(*lane);
                if (lane->given == lane->over && !lane->in_flight_since_sync) return;
                void* e = lane->in_update ? nullptr : spares_.event();
                if (e && vendor_.aclrtRecordEvent(e, lane->stream) != 0)
                    spares_.give_event(std::exchange(e, nullptr));
                if (!e) return streams.push_back(lane);
                ours.push_back(e);
                all.push_back(e);
            });
            std::erase(all, nullptr);
            workers_.of(*reply.ring)
                .post([this, &s, at, reply, uses = std::move(uses), ours = std::move(ours),
                       all = std::move(all), streams = std::move(streams), captures = std::move(captures),
                       known, job = std::move(job)]() mutable {
                    // A session that has ended is torn down behind this: nothing is waited for.
                    const uint64_t within_ms = reply.ring->closed ? 0 : uint64_t(kLongestUseMs);
                    const uint64_t deadline = wire::now_ns() + within_ms * 1'000'000;
                    const auto left = [deadline] {
                        return int32_t(
                            std::max<int64_t>((int64_t(deadline) - int64_t(wire::now_ns())) / 1'000'000, 1));
                    };
                    bool over = known;
                    for (void* e : all)
                        over = over &&
                               vendor_.aclrtSynchronizeEventWithTimeout(e, left()) != acl::RT_WAIT_TIMEOUT;
                    for (auto& lane : streams)
                        over = over && vendor_.aclrtSynchronizeStreamWithTimeout(lane->stream, left()) !=
                                           acl::RT_WAIT_TIMEOUT;
                    // An event that has not been reached yet may serve again: recording it anew is what it is
                    // for.
                    if (!ours.empty())
                        inbox_.post([this, ours = std::move(ours)] {
                            for (void* e : ours) spares_.give_event(e);
                        });
                    for (const auto& use : uses) {
                        while (!use.expired() && wire::now_ns() < deadline)
                            std::this_thread::sleep_for(std::chrono::microseconds(100));
                        over = over && use.expired();
                    }
                    MemoryMap::Range range;
                    {
                        std::lock_guard lock(s.leaving_mutex);
                        range = std::move(*at);
                        s.leaving.erase(at);
                    }
                    job(over, std::move(range));
                });
        });
}

}  // namespace flexnpu::daemon
