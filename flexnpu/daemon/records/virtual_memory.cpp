#include "flexnpu/daemon/records/virtual_memory.hpp"

#include <cstring>

namespace flexnpu::daemon {

namespace {

// One session may take many of this process's addresses and mappings, not all.
constexpr uint64_t kMaxReservedPerSession = uint64_t(1) << 44;
constexpr uint64_t kMaxPiecesPerSession = 1 << 14;
constexpr uint64_t kMaxReservations = 4096;

void* pointer(uint64_t v) { return reinterpret_cast<void*>(v); }

}  // namespace

void VirtualMemoryRecords::call(Session& s, Payload p, const Reply& reply) {
    wire::VirtualMemory v;
    if (p.size() != sizeof(v)) {
        return malformed(s, reply, "virtual memory call");
    }
    std::memcpy(&v, p.data(), sizeof(v));
    if (!vendor_.aclrtReserveMemAddress || !vendor_.aclrtReleaseMemAddress || !vendor_.aclrtMallocPhysical ||
        !vendor_.aclrtFreePhysical || !vendor_.aclrtMapMem || !vendor_.aclrtUnmapMem ||
        !vendor_.aclrtMemGetAllocationGranularity) {
        return refuse(s, reply, acl::API_NOT_SUPPORTED, "FlexNPU: this CANN has no virtual memory calls");
    }
    aclrtPhysicalMemProp properties{};
    properties.handle_type = v.handle_type;
    properties.allocation_type = v.allocation_type;
    properties.memory = v.memory;
    properties.location = {uint32_t(device_), acl::LOCATION_DEVICE};
    Worker& worker = worker_of(*reply.ring);
    switch (v.call) {
        case wire::VirtualMemory::reserve: return worker.post([this, &s, v, reply] { reserve(s, v, reply); });
        case wire::VirtualMemory::release:
            return worker.post([this, &s, v, reply] {
                std::lock_guard lock(s.virtual_memory.mutex);
                auto at = s.virtual_memory.reserved.find(v.address);
                if (at == s.virtual_memory.reserved.end()) {
                    return reply.fail({acl::RT_PARAM_INVALID, "aclrtReleaseMemAddress: " + hex(v.address) +
                                                                  " was not reserved by this process"});
                }
                if (s.virtual_memory.unmapping || s.memory.overlaps(at->first, at->second)) {
                    return reply.fail(
                        {acl::RT_PARAM_INVALID,
                         "aclrtReleaseMemAddress: memory is still mapped at " + hex(v.address)});
                }
                if (int32_t e = vendor_.aclrtReleaseMemAddress(pointer(v.address))) {
                    return reply.fail({e, vendor_.message("aclrtReleaseMemAddress", e)});
                }
                s.virtual_memory.reserved_bytes -= at->second;
                space_.release(at->second);
                s.virtual_memory.reserved.erase(at);
                reply.ok();
            });
        case wire::VirtualMemory::allocate:
            if (v.bytes == 0 || v.flags != 0)
                return refuse(s, reply, acl::RT_PARAM_INVALID, "aclrtMallocPhysical: size 0, or flags");
            return worker.post([this, &s, v, properties, reply] {
                std::shared_ptr<Held> held;
                Failure failure;
                failure.code =
                    allocate_physical(vendor_, s.account, v.bytes, properties, &held, &failure.message);
                if (failure.code) {
                    failures_.count_quota(*s.account, v.bytes);
                    return reply.fail(failure);
                }
                std::unique_lock lock(s.virtual_memory.mutex);
                const uint64_t handle = s.virtual_memory.physical.add(std::move(held));
                lock.unlock();
                if (!handle) return reply.fail({acl::RT_INTERNAL, "aclrtMallocPhysical: too many handles"});
                reply.ok(handle);
            });
        case wire::VirtualMemory::free:
            return worker.post([this, &s, v, reply] {
                std::shared_ptr<Held> held;
                bool last = true;
                {
                    std::lock_guard lock(s.virtual_memory.mutex);
                    Held* found = s.virtual_memory.physical.find(v.handle);
                    if (!found)
                        return reply.fail(
                            {acl::RT_INVALID_HANDLE, "aclrtFreePhysical: " + hex(v.handle) +
                                                         " is not physical memory of this process"});
                    // The last handle may not go before the mappings do; one of several may.
                    last = s.virtual_memory.handles_of(found->allocation().get()) == 1;
                    if (last && s.memory.has_mapped(found->allocation().get())) {
                        return reply.fail(
                            {acl::RT_PARAM_INVALID,
                             "aclrtFreePhysical: the memory is still mapped: call aclrtUnmapMem first"});
                    }
                    held = s.virtual_memory.physical.remove(v.handle);
                }
                if (last) exports_.forget(s.id, held->allocation().get());
                held.reset();
                reply.ok();
            });
        case wire::VirtualMemory::map: return worker.post([this, &s, v, reply] { map(s, v, reply); });
        case wire::VirtualMemory::unmap: return unmap(s, v, reply);
        case wire::VirtualMemory::mapped:
            return worker.post([&s, v, reply] {
                std::lock_guard lock(s.virtual_memory.mutex);
                auto range = s.memory.find(v.address);
                if (!range || range->kind != MemoryMap::Kind::mapped || !s.memory.holds(v.address, v.bytes)) {
                    return reply.fail({acl::RT_PARAM_INVALID, "not all of " + hex(v.address) + " (" +
                                                                  std::to_string(v.bytes) +
                                                                  " bytes) is mapped"});
                }
                reply.ok();
            });
        case wire::VirtualMemory::retain:
            return worker.post([&s, v, reply] {
                std::lock_guard lock(s.virtual_memory.mutex);
                auto range = s.memory.find(v.address);
                if (!range || range->kind != MemoryMap::Kind::mapped) {
                    return reply.fail(
                        {acl::RT_PARAM_INVALID,
                         "aclrtMemRetainAllocationHandle: nothing is mapped at " + hex(v.address)});
                }
                const uint64_t handle = s.virtual_memory.physical.add(std::move(range->held));
                if (!handle)
                    return reply.fail({acl::RT_INTERNAL, "aclrtMemRetainAllocationHandle: too many handles"});
                reply.ok(handle);
            });
        case wire::VirtualMemory::granularity:
            return worker.post([this, v, properties, reply]() mutable {
                size_t bytes = 0;
                const int32_t e = vendor_.aclrtMemGetAllocationGranularity(&properties, v.option, &bytes);
                if (e)
                    reply.fail({e, vendor_.message("aclrtMemGetAllocationGranularity", e)});
                else
                    reply.ok(bytes);
            });
    }
    malformed(s, reply, "virtual memory call");
}

// The hint is dropped: where the daemon's addresses are free is not the program's to know.
void VirtualMemoryRecords::reserve(Session& s, const wire::VirtualMemory& v, const Reply& reply) {
    VirtualMemory& m = s.virtual_memory;
    std::lock_guard lock(m.mutex);
    auto too_much = [&] {
        reply.fail(
            {acl::RT_PARAM_INVALID, "aclrtReserveMemAddress: " + std::to_string(v.bytes) +
                                        " bytes of addresses are more than this session may still reserve"});
    };
    if (v.bytes == 0 || v.bytes > kMaxReservedPerSession - m.reserved_bytes ||
        m.reserved.size() >= kMaxReservations)
        return too_much();
    if (!space_.reserve(v.bytes)) return too_much();
    void* p = nullptr;
    if (int32_t e = vendor_.aclrtReserveMemAddress(&p, v.bytes, 0, nullptr, v.flags)) {
        space_.release(v.bytes);
        return reply.fail({e, vendor_.message("aclrtReserveMemAddress", e)});
    }
    m.reserved[reinterpret_cast<uint64_t>(p)] = v.bytes;
    m.reserved_bytes += v.bytes;
    reply.ok(reinterpret_cast<uint64_t>(p));
}

void VirtualMemoryRecords::map(Session& s, const wire::VirtualMemory& v, const Reply& reply) {
    VirtualMemory& m = s.virtual_memory;
    std::lock_guard lock(m.mutex);
    if (!m.physical.find(v.handle)) {
        return reply.fail({acl::RT_INVALID_HANDLE,
                           "aclrtMapMem: " + hex(v.handle) + " is not physical memory of this process"});
    }
    auto at = m.reserved.upper_bound(v.address);
    const bool ours = at != m.reserved.begin() && v.address - (--at)->first < at->second &&
                      v.bytes <= at->second - (v.address - at->first);
    if (!ours || v.bytes == 0) {
        return reply.fail(
            {acl::RT_PARAM_INVALID, "aclrtMapMem: " + hex(v.address) + " (" + std::to_string(v.bytes) +
                                        " bytes) is not within addresses that this process has reserved"});
    }
    if (s.memory.overlaps(v.address, v.bytes))
        return reply.fail(
            {acl::RT_PARAM_INVALID, "aclrtMapMem: memory is mapped at " + hex(v.address) + " already"});
    std::shared_ptr<Held> held = m.physical.share(v.handle);
    if (v.offset > held->bytes() || v.bytes > held->bytes() - v.offset) {
        return reply.fail({acl::RT_PARAM_INVALID, "aclrtMapMem: the memory has " +
                                                      std::to_string(held->bytes()) +
                                                      " bytes, less than what is to be mapped"});
    }
    if (m.pieces >= kMaxPiecesPerSession || space_.full()) {
        return reply.fail(
            {acl::RT_MEMORY_ALLOCATION, "aclrtMapMem: too many mapped pieces: use larger ones"});
    }
    if (int32_t e = vendor_.aclrtMapMem(pointer(v.address), v.bytes, v.offset,
                                        held->allocation()->vendor_handle(), v.flags)) {
        return reply.fail({e, vendor_.message("aclrtMapMem", e)});
    }
    m.pieces++;
    space_.count_mapped();
    s.memory.add({v.address, v.bytes, MemoryMap::Kind::mapped, std::move(held)});
    reply.ok();
}

// From here on no call may name these addresses; the vendor unmaps them when the last operator that does is
// over.
void VirtualMemoryRecords::unmap(Session& s, const wire::VirtualMemory& v, const Reply& reply) {
    auto range = s.memory.take(v.address, MemoryMap::Kind::mapped);
    if (!range)
        return refuse(s, reply, acl::RT_PARAM_INVALID,
                      "aclrtUnmapMem: nothing of this process is mapped at " + hex(v.address));
    s.virtual_memory.unmapping++;
    releases_.when_unused(
        s, reply, std::move(*range), [this, &s, v, reply](bool over, MemoryMap::Range range) {
            VirtualMemory& m = s.virtual_memory;
            std::lock_guard lock(m.mutex);
            m.unmapping--;
            if (!over) {
                // Still in use after a long time: it stays mapped, and the program is told.
                s.memory.add(std::move(range));
                return reply.fail(
                    {acl::RT_WAIT_TIMEOUT, "aclrtUnmapMem: operators that were launched before still run"});
            }
            const int32_t e = vendor_.aclrtUnmapMem(pointer(v.address));
            if (e) {
                s.memory.add(std::move(range));
                return reply.fail({e, vendor_.message("aclrtUnmapMem", e)});
            }
            m.pieces--;
            space_.count_unmapped();
            range.held.reset();
            reply.ok();
        });
}

}  // namespace flexnpu::daemon
