// Device memory: given, taken back when nothing uses it any more, and set.
#include <algorithm>

#include "flexnpu/daemon/dispatcher.hpp"
#include "flexnpu/daemon/graphs.hpp"
#include "flexnpu/daemon/heads.hpp"
#include "flexnpu/daemon/payload.hpp"
#include "flexnpu/wire/futex.hpp"

namespace flexnpu::daemon {

namespace {

// How long a free waits for the operators that may use the memory.
constexpr int32_t kLongestUseMs = 10'000;

}  // namespace

void Dispatcher::allocate(Session& s, Payload p, const Reply& reply) {
    wire::Malloc m;
    if (!taken(s, p, &m, reply, "aclrtMalloc")) return;
    if (m.bytes == 0) return refuse(s, reply, acl::INVALID_PARAM, "aclrtMalloc: size is 0");
    // The ring keeps the worker, and the worker ends before its session's memory is freed.
    worker_of(*reply.ring).post([this, &s, m, reply] {
        std::shared_ptr<Held> held;
        Failure failure;
        failure.code = allocate_memory(vendor_, s.account, {"aclrtMalloc", m.bytes, m.policy, m.align32 != 0},
                                       &held, &failure.message);
        if (failure.code) {
            failures_.count_quota(*s.account, m.bytes);
            return reply.fail(failure);
        }
        const uint64_t address = held->address();
        s.memory.add({address, m.bytes, MemoryMap::Kind::own, std::move(held)});
        reply.ok(address);
    });
}

void Dispatcher::release(Session& s, Payload p, const Reply& reply) {
    wire::Free f;
    if (!taken(s, p, &f, reply, "aclrtFree")) return;
    auto range = s.memory.take(f.address, MemoryMap::Kind::own);
    if (!range) {
        return refuse(s, reply, acl::RT_PARAM_INVALID,
                      "aclrtFree: " + hex(f.address) + " was not allocated by this process");
    }
    exports_.forget(s.id, range->held->allocation().get());
    when_unused(s, reply, std::move(*range), [&s, reply](bool over, MemoryMap::Range range) {
        if (!over) {
            // Stuck: it is kept, and stays charged, until the session ends.
            std::lock_guard lock(s.leaving_mutex);
            s.leaving.push_back(std::move(range));
            return reply.ok();
        }
        range.held.reset();
        reply.ok();
    });
}

// Memory may go, or be unmapped, when nothing that the session has launched can touch it any more: not
// dispatched only, but over. Otherwise a late operator would write into what the next owner of the memory has
// there. Until then the session owns it: if it ends before, the memory goes with it.
void Dispatcher::when_unused(Session& s, const Reply& reply, MemoryMap::Range range,
                             std::function<void(bool over, MemoryMap::Range)> job) {
    std::list<MemoryMap::Range>::iterator at;
    {
        std::lock_guard lock(s.leaving_mutex);
        at = s.leaving.insert(s.leaving.end(), std::move(range));
    }
    // Other threads of the program may be amid a copy of it.
    after(Lanes::all_of(s), false, [this, &s, at, reply, uses = s.uses, job = std::move(job)]() mutable {
        // Events now, not the streams themselves later: those may be capturing by then, and must not be
        // asked.
        std::vector<void*> ours, all;
        std::vector<std::shared_ptr<Lane>> streams;
        s.each_lane([&](const std::shared_ptr<Lane>& lane) {
            if (lane->in_capture)
                return all.push_back(lane->before_capture);  // what came before is all that runs there
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
        worker_of(*reply.ring)
            .post([this, &s, at, reply, uses = std::move(uses), ours = std::move(ours), all = std::move(all),
                   streams = std::move(streams), job = std::move(job)]() mutable {
                // A session that has ended is torn down behind this: nothing is waited for.
                const uint64_t within_ms = reply.ring->closed ? 0 : uint64_t(kLongestUseMs);
                const uint64_t deadline = wire::now_ns() + within_ms * 1'000'000;
                const auto left = [deadline] {
                    return int32_t(
                        std::max<int64_t>((int64_t(deadline) - int64_t(wire::now_ns())) / 1'000'000, 1));
                };
                bool over = true;
                for (void* e : all)
                    over =
                        over && vendor_.aclrtSynchronizeEventWithTimeout(e, left()) != acl::RT_WAIT_TIMEOUT;
                for (auto& lane : streams)
                    over = over && vendor_.aclrtSynchronizeStreamWithTimeout(lane->stream, left()) !=
                                       acl::RT_WAIT_TIMEOUT;
                // An event that has not been reached yet may serve again: recording it anew is what it is
                // for.
                if (!ours.empty())
                    post([this, ours = std::move(ours)] {
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

void Dispatcher::memset(Session& s, Payload p, const Reply& reply) {
    wire::Memset m;
    if (!taken(s, p, &m, reply, "memset")) return;
    Lane* lane = m.now ? nullptr : lane_of(s, m.stream);
    if (!m.now && !lane)
        return refuse(s, reply, acl::RT_INVALID_HANDLE,
                      "aclrtMemsetAsync: " + hex(m.stream) + " is not a stream");
    if (m.bytes > m.room || !s.memory.holds(m.to, m.bytes)) {
        std::string message = "aclrtMemset: " + hex(m.to) + " (" + std::to_string(m.bytes) +
                              " bytes) is not in device memory of this process";
        if (reply.request) return refuse(s, reply, acl::RT_PARAM_INVALID, std::move(message));
        return refuse_later(s, lane, acl::RT_PARAM_INVALID, std::move(message));
    }
    if (m.now) {
        worker_of(*reply.ring).post([this, use = s.use(), m, reply] {
            const int32_t e = vendor_.aclrtMemset(reinterpret_cast<void*>(m.to), m.bytes, m.value, m.bytes);
            if (e)
                reply.fail({e, vendor_.message("aclrtMemset", e)});
            else
                reply.ok();
        });
        return;
    }
    if (Footprint* f = footprint_of(*lane)) f->add(s.memory, m.to, m.bytes);
    push(*lane, std::make_unique<Item>(MemsetItem{m.to, m.bytes, m.value}));
    reply.ok();
}

}  // namespace flexnpu::daemon
