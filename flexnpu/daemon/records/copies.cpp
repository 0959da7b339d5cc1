#include "flexnpu/daemon/records/copies.hpp"

#include <algorithm>
#include <cstring>

#include "flexnpu/daemon/graphs.hpp"
#include "flexnpu/wire/futex.hpp"

namespace flexnpu::daemon {

using wire::Place;

void CopyRecords::copy(Session& s, Payload p, const Reply& reply) {
    wire::Copy c;
    Payload data;
    if (!take(p, &c, &data)) {
        return malformed(s, reply, "copy");
    }
    // A refused copy that holds a block gives it back, or the client would wait for it for ever.
    const bool staged = c.to_place == Place::staging || c.from_place == Place::staging;
    auto bad = [&](int32_t code, std::string message) {
        if (staged && c.block < wire::kBlocks) s.give_block(int32_t(c.block), c.ticket);
        if (reply.request) return refuse(s, reply, code, message);
        refuse_later(s, c.now ? nullptr : lane_of(s, c.stream), code, std::move(message));
    };
    const auto odd = [&] {
        failures_.count_malformed();
        bad(acl::INVALID_PARAM, "FlexNPU: malformed copy");
    };
    if (staged && c.block >= wire::kBlocks) return odd();
    if (c.bytes == 0) return bad(acl::INVALID_PARAM, "aclrtMemcpy: size is 0");
    // Resolves one side; false (with the refusal sent) if it is not this session's.
    auto resolve = [&](Place place, uint64_t address, bool source, uint64_t* out) {
        switch (place) {
            case Place::device:
                if (!s.memory.holds(address, c.bytes)) {
                    bad(acl::RT_PARAM_INVALID, std::string("aclrtMemcpy: ") +
                                                   (source ? "source " : "destination ") + hex(address) +
                                                   " (" + std::to_string(c.bytes) +
                                                   " bytes) is not in device memory of this process");
                    return false;
                }
                *out = address;
                return true;
            case Place::staging:
                if (address > wire::kBlocks * wire::kBlockBytes ||
                    c.bytes > wire::kBlocks * wire::kBlockBytes - address)
                    return odd(), false;
                *out = reinterpret_cast<uint64_t>(s.staging) + address;
                return true;
            case Place::host: {
                auto it = s.host.find(c.region);
                if (it == s.host.end() || address > it->second->bytes ||
                    c.bytes > it->second->bytes - address)
                    return odd(), false;
                *out = reinterpret_cast<uint64_t>(it->second->address) + address;
                return true;
            }
            case Place::inline_data: *out = 0; return true;
        }
        odd();
        return false;
    };
    const bool from_inline = c.from_place == Place::inline_data, to_inline = c.to_place == Place::inline_data;
    if (from_inline &&
        (data.size() != wire::round8(c.bytes) || c.bytes > wire::kInlineBytes || c.to_place != Place::device))
        return odd();
    if (to_inline &&
        (c.bytes > wire::kReplyWords * 8 || c.from_place != Place::device || !c.now || !reply.request))
        return odd();
    if (!from_inline && !data.empty()) return odd();
    if (c.to_place != Place::device && c.from_place != Place::device) return odd();
    if (c.now > 1) return odd();
    uint64_t to = 0, from = 0;
    if (!resolve(c.to_place, c.to, false, &to) || !resolve(c.from_place, c.from, true, &from)) return;
    const int32_t kind = c.to_place != Place::device     ? acl::DEVICE_TO_HOST
                         : c.from_place != Place::device ? acl::HOST_TO_DEVICE
                                                         : acl::DEVICE_TO_DEVICE;

    if (!c.now) {
        Lane* lane = lane_of(s, c.stream);
        if (!lane)
            return bad(acl::RT_INVALID_HANDLE, "aclrtMemcpyAsync: " + hex(c.stream) + " is not a stream");
        auto item = std::make_unique<Item>(CopyItem{.to = to, .from = from, .bytes = c.bytes, .kind = kind});
        CopyItem& copied = item->as<CopyItem>();
        Footprint* footprint = footprint_of(*lane);
        if (footprint) {
            if (c.to_place == Place::device) footprint->add(s.memory, to, c.bytes);
            if (c.from_place == Place::device) footprint->add(s.memory, from, c.bytes);
            if (c.to_place == Place::staging)
                return bad(acl::RT_CAPTURE_MODE_NOT_SUPPORT,
                           "aclrtMemcpyAsync: a copy to pageable memory cannot be captured");
            if (c.to_place == Place::host || c.from_place == Place::host)
                lane->graph()->regions.push_back(s.host[c.region]);
        }
        if (footprint && (staged || from_inline)) {
            if (!keep_bytes(*lane, copied, from_inline ? data.data() : reinterpret_cast<const uint8_t*>(from),
                            c.bytes)) {
                return bad(acl::RT_MEMORY_ALLOCATION, "FlexNPU: no host memory for a captured copy");
            }
            if (staged) s.give_block(int32_t(c.block), c.ticket);
        } else if (staged) {
            copied.block = int32_t(c.block);
            copied.block_ticket = c.ticket;
        }
        if (from_inline && !footprint) {
            copied.buffer = spares_.buffer();
            if (!copied.buffer) return bad(acl::RT_MEMORY_ALLOCATION, "FlexNPU: no host memory for a copy");
            std::memcpy(copied.buffer, data.data(), c.bytes);
            copied.from = reinterpret_cast<uint64_t>(copied.buffer);
        }
        push(*lane, std::move(item));
        return reply.ok();
    }

    copy_engine_.count_copy();
    // Small ones take as long as handing them to another thread would, unless the copy engine is busy.
    if (from_inline && copy_engine_.slow()) {
        worker_of(*reply.ring)
            .post([this, use = s.use(), to, kind,
                   bytes = std::vector<uint8_t>(data.begin(), data.begin() + ptrdiff_t(c.bytes)), reply] {
                const int32_t e = vendor_.aclrtMemcpy(reinterpret_cast<void*>(to), bytes.size(), bytes.data(),
                                                      bytes.size(), kind);
                if (e)
                    reply.fail({e, vendor_.message("aclrtMemcpy", e)});
                else
                    reply.ok();
            });
        return;
    }
    if (to_inline && copy_engine_.slow()) {
        worker_of(*reply.ring).post([this, use = s.use(), from, kind, n = c.bytes, reply] {
            uint64_t words[wire::kReplyWords] = {};  // what is sent is rounded up
            const int32_t e = vendor_.aclrtMemcpy(words, n, reinterpret_cast<const void*>(from), n, kind);
            if (e)
                reply.fail({e, vendor_.message("aclrtMemcpy", e)});
            else
                reply.send(0, "", words, wire::round8(n) / 8);
        });
        return;
    }
    if (from_inline) {
        const int32_t e =
            vendor_.aclrtMemcpy(reinterpret_cast<void*>(to), c.bytes, data.data(), c.bytes, kind);
        if (e) return reply.fail({e, vendor_.message("aclrtMemcpy", e)});
        return reply.ok();
    }
    if (to_inline) {
        uint64_t words[wire::kReplyWords] = {};  // what is sent is rounded up
        const int32_t e =
            vendor_.aclrtMemcpy(words, c.bytes, reinterpret_cast<const void*>(from), c.bytes, kind);
        if (e) return reply.fail({e, vendor_.message("aclrtMemcpy", e)});
        return reply.send(0, "", words, wire::round8(c.bytes) / 8);
    }
    auto make = [this, &s, c, to, from, kind, staged, reply](bool on_worker) {
        Failure& failure = reply.ring->chunk_failure;
        const int32_t e = vendor_.aclrtMemcpy(reinterpret_cast<void*>(to), c.bytes,
                                              reinterpret_cast<const void*>(from), c.bytes, kind);
        if (e && failure.code == 0) failure = {e, vendor_.message("aclrtMemcpy", e)};
        const Failure first = reply.request ? std::exchange(failure, {}) : Failure{};
        // Before the client knows: its next copy need not go to the worker because of this one.
        if (on_worker) reply.ring->copying.fetch_sub(1, std::memory_order_release);
        if (staged) s.give_block(int32_t(c.block), c.ticket);
        if (first.code)
            reply.fail(first);
        else
            reply.ok();
    };
    // The chunks of one copy, and the copies of one thread, stay in order. A thread that has nobody else's
    // work to dispatch makes larger ones itself.
    const bool quick = c.bytes <= kLargeCopy || (c.bytes <= wire::kBlockBytes && sessions_.nothing_queued());
    if (quick && reply.ring->copying.load(std::memory_order_acquire) == 0 && !copy_engine_.slow()) {
        make(false);
        return;
    }
    const bool large = c.bytes > kLargeCopy;
    if (large) copy_engine_.begin_large();
    reply.ring->copying.fetch_add(1, std::memory_order_relaxed);
    worker_of(*reply.ring).post([this, use = s.use(), make, large] {
        make(true);
        if (large) copy_engine_.end_large();
    });
}

}  // namespace flexnpu::daemon
