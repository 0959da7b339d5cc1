#include "flexnpu/daemon/records/memory.hpp"

#include <algorithm>

#include "flexnpu/daemon/graphs.hpp"
#include "flexnpu/wire/futex.hpp"

namespace flexnpu::daemon {

void MemoryRecords::allocate(Session& s, Payload p, const Reply& reply) {
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

void MemoryRecords::release(Session& s, Payload p, const Reply& reply) {
    wire::Free f;
    if (!taken(s, p, &f, reply, "aclrtFree")) return;
    auto range = s.memory.take(f.address, MemoryMap::Kind::own);
    if (!range) {
        return refuse(s, reply, acl::RT_PARAM_INVALID,
                      "aclrtFree: " + hex(f.address) + " was not allocated by this process");
    }
    exports_.forget(s.id, range->held->allocation().get());
    releases_.when_unused(s, reply, std::move(*range), [&s, reply](bool over, MemoryMap::Range range) {
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

void MemoryRecords::info(Session& s, Payload p, const Reply& reply) {
    wire::MemInfo m;
    if (!taken(s, p, &m, reply, "aclrtGetMemInfo")) return;
    size_t free = 0, total = 0;
    if (int32_t e = vendor_.aclrtGetMemInfo(m.attribute, &free, &total))
        return reply.fail({e, vendor_.message("aclrtGetMemInfo", e)});
    // A kind of memory that the device lacks has 0 bytes, whatever the quota.
    if (const uint64_t quota = s.account->quota()) total = std::min<uint64_t>(total, quota);
    reply.ok(std::min<uint64_t>(free, s.account->left()), total);
}

void MemoryRecords::memset(Session& s, Payload p, const Reply& reply) {
    wire::Memset m;
    if (!taken(s, p, &m, reply, "memset")) return;
    Lane* lane = m.now ? nullptr : lane_of(s, m.stream);
    if (!m.now && !lane)
        return refuse(s, reply, acl::RT_INVALID_HANDLE,
                      "aclrtMemsetAsync: " + hex(m.stream) + " is not a stream");
    if (m.bytes > m.room || !s.memory.holds(m.to, m.bytes)) {
        std::string message = "aclrtMemset: " + hex(m.to) + " (" + std::to_string(m.bytes) +
                              " bytes) is not in device memory of this process";
        if (reply.request) return refuse(s, reply, acl::RT_PARAM_INVALID, message);
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

// The cache is to fetch, write back or forget a range of memory.
void MemoryRecords::cache_hint(Session& s, Payload p) {
    wire::CacheHint h;
    Lane* lane = taken(s, p, &h);
    if (!lane) return;
    // Forgetting what is in the cache would lose what was written there: the range must be the program's to
    // the byte.
    if (h.bytes == 0 || !s.memory.holds(h.address, h.bytes)) {
        return refuse_later(s, lane, acl::RT_PARAM_INVALID,
                            "aclrtCmoAsync: " + hex(h.address) + " is not in memory of this process");
    }
    push(*lane, std::make_unique<Item>(HintItem{h.address, h.bytes, int32_t(h.type)}));
}

}  // namespace flexnpu::daemon
