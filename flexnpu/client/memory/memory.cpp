// Device memory, host memory, copies.
#include <stdlib.h>

#include "acl.gen.h"
#include "flexnpu/client/devices.hpp"
#include "flexnpu/client/error.hpp"
#include "flexnpu/client/memory/peer.hpp"
#include "flexnpu/client/session/session.hpp"

namespace acl = flexnpu::acl;
namespace wire = flexnpu::wire;
using flexnpu::client::Channel;
using flexnpu::client::DeviceRange;
using flexnpu::client::fail;
using flexnpu::client::HostRegion;
using flexnpu::client::number;
using flexnpu::client::Session;
using wire::Kind;
using wire::Place;

// What the vendor documents: where the memory is, and its page size.
struct aclrtPtrAttributes {
    uint32_t device;
    int32_t type;  // 0 host memory of the runtime, 1 device memory, 2 neither
    uint32_t page_size;
    uint32_t reserved[4];
};

namespace {

// A device address as the daemon knows it; one of another device becomes what no daemon knows.
uint64_t on_wire(const Session& s, const void* p) { return number(p) ^ s.tag(); }
bool elsewhere(const Session& s, const void* p) { return wire::tagged_device(on_wire(s, p)) != 0; }

// Copies up to this size ride in the record itself; larger ones go through the staging area.
constexpr size_t kInlineTo = wire::kInlineBytes;
constexpr size_t kInlineFrom = wire::kReplyWords * 8;
// Chunks of copies up to this size are small enough for the dispatcher's own thread, which spares waking
// another.
constexpr size_t kSmallCopy = 512 << 10;
constexpr size_t kSmallChunk = wire::kQuickCopy;
// Chunks under way at once.
constexpr size_t kAhead = 16;

aclError allocate(const char* function, void** out, size_t bytes, aclrtMemMallocPolicy policy, bool align32) {
    if (!out) return fail(acl::INVALID_PARAM, "%s: the pointer's address is null", function);
    if (bytes == 0) return fail(acl::INVALID_PARAM, "%s: size is 0", function);
    Channel* c = Session::channel();
    if (!c) return flexnpu::client::last_error();
    const wire::Malloc ask{bytes, policy, align32};
    if (int32_t e = c->call(Kind::malloc, ask)) return e;
    const uint64_t address = c->words()[0] | c->session().tag();
    c->session().memory.add({address, bytes});
    *out = reinterpret_cast<void*>(address);
    return 0;
}

aclError release(const char* function, void* p, bool with_sync) {
    if (!p) return fail(acl::INVALID_PARAM, "%s: null pointer", function);
    Session* holder = Session::holder(number(p));
    Channel* c = holder ? holder->mine() : Session::channel();
    if (!c) return flexnpu::client::last_error();
    DeviceRange range;
    const bool known = c->session().memory.remove(number(p), &range);
    const int32_t e = c->call(Kind::free, wire::Free{number(p) ^ c->session().tag(), with_sync});
    if (e != 0 && known) c->session().memory.add(range);
    return e;
}

// A copy as the caller named it, and what it amounts to once MEMCPY_DEFAULT and pinned host memory are
// resolved.
struct Plan {
    enum { to_device, from_device, on_device, on_host } what = on_host;
    bool pinned = false;  // the host side is memory that the daemon maps too
    HostRegion region{};
};

aclError plan_copy(const char* function, void* to, size_t room, const void* from, size_t bytes,
                   aclrtMemcpyKind kind, Session& s, Plan* plan) {
    if (!to || !from) return fail(acl::INVALID_PARAM, "%s: null pointer", function);
    if (bytes > room)
        return fail(acl::RT_PARAM_INVALID, "%s: %zu bytes do not fit in the destination's %zu", function,
                    bytes, room);
    if (kind == acl::MEMCPY_DEFAULT) {
        DeviceRange r;
        auto on_device = [&](const void* p) {
            Session* holder = Session::holder(number(p));
            return holder && holder->memory.find(number(p), &r);
        };
        const bool to_dev = on_device(to), from_dev = on_device(from);
        kind = to_dev ? (from_dev ? acl::DEVICE_TO_DEVICE : acl::HOST_TO_DEVICE)
                      : (from_dev ? acl::DEVICE_TO_HOST : acl::HOST_TO_HOST);
    }
    switch (kind) {
        case acl::HOST_TO_HOST: plan->what = Plan::on_host; return 0;
        case acl::HOST_TO_DEVICE:
        case acl::HOST_TO_BUF_TO_DEVICE: plan->what = Plan::to_device; break;
        case acl::DEVICE_TO_HOST: plan->what = Plan::from_device; break;
        case acl::DEVICE_TO_DEVICE:
        case acl::INNER_DEVICE_TO_DEVICE:
        case acl::INTER_DEVICE_TO_DEVICE: plan->what = Plan::on_device; return 0;
        default: return fail(acl::INVALID_PARAM, "%s: %d is not a kind of copy", function, kind);
    }
    const uint64_t host = number(plan->what == Plan::to_device ? from : to);
    plan->pinned =
        s.host.find(host, &plan->region) && host - plan->region.address + bytes <= plan->region.bytes;
    return 0;
}

wire::Copy base_copy(uint64_t stream, bool now, uint64_t bytes) {
    wire::Copy copy{};
    copy.stream = stream;
    copy.bytes = bytes;
    copy.now = now;
    return copy;
}

// How much of a copy one chunk carries. A chunk should be small enough that the daemon works on one while we
// are at the next, and that what is under way stays in the processor's cache: then the second pass over the
// bytes costs little beside the first.
size_t chunk_of(size_t bytes) { return bytes <= kSmallCopy ? kSmallChunk : wire::kBlockBytes; }

// Host to device by the staging area. The last chunk of a copy that must be over (`now`) waits for its
// answer.
aclError push(Channel& c, uint64_t stream, bool now, uint64_t to, const uint8_t* from, size_t bytes) {
    if (bytes <= kInlineTo) {
        wire::Copy copy = base_copy(stream, now, bytes);
        copy.to = to;
        copy.to_place = Place::device;
        copy.from_place = Place::inline_data;
        if (now) return c.call(Kind::copy, &copy, sizeof(copy), from, bytes);
        const size_t payload = wire::round8(sizeof(copy) + bytes);
        uint8_t* p = c.open(payload);
        if (!p) return c.session().gone();
        std::memcpy(p, &copy, sizeof(copy));
        std::memcpy(p + sizeof(copy), from, bytes);
        c.close(payload, Kind::copy);
        return 0;
    }
    const size_t chunk = chunk_of(bytes);
    Session::Block ahead[kAhead];
    size_t sent = 0;
    for (size_t done = 0; done < bytes; sent++) {
        const size_t n = std::min(bytes - done, chunk);
        // A block that has just come back is still in the cache. An asynchronous copy may have to wait for
        // long: it takes what is free.
        if (now && sent >= kAhead && !c.session().wait_block(ahead[sent % kAhead])) return acl::RT_INTERNAL;
        Session::Block block;
        if (!c.session().take_block(&block, true)) return acl::RT_INTERNAL;
        ahead[sent % kAhead] = block;
        std::memcpy(block.data, from + done, n);
        wire::Copy copy = base_copy(stream, now, n);
        copy.to = to + done;
        copy.from = block.offset;
        copy.to_place = Place::device;
        copy.from_place = Place::staging;
        copy.block = block.index;
        copy.ticket = block.ticket;
        done += n;
        const int32_t e = now && done == bytes ? c.call(Kind::copy, copy) : c.post(Kind::copy, copy, now);
        if (e) return e;
    }
    return 0;
}

// Device to pageable host memory, over when it returns: up to kAhead chunks are on their way at once.
aclError pull(Channel& c, uint8_t* to, uint64_t from, size_t bytes) {
    if (bytes <= kInlineFrom) {
        wire::Copy copy = base_copy(0, true, bytes);
        copy.from = from;
        copy.to_place = Place::inline_data;
        copy.from_place = Place::device;
        const int32_t e = c.call(Kind::copy, copy);
        if (e == 0) std::memcpy(to, c.words(), bytes);
        return e;
    }
    Session& s = c.session();
    const size_t chunk = chunk_of(bytes);
    struct {
        Session::Block block;
        size_t at, bytes;
    } window[kAhead];
    size_t asked = 0, first = 0, count = 0;
    while (asked < bytes || count > 0) {
        if (asked < bytes && count < kAhead) {
            auto& w = window[(first + count) % kAhead];
            w.at = asked;
            w.bytes = std::min(bytes - asked, chunk);
            if (!s.take_block(&w.block, false)) return acl::RT_INTERNAL;
            wire::Copy copy = base_copy(0, true, w.bytes);
            copy.from = from + asked;
            copy.to = w.block.offset;
            copy.to_place = Place::staging;
            copy.from_place = Place::device;
            copy.block = w.block.index;
            copy.ticket = w.block.ticket;
            asked += w.bytes;
            count++;
            // The last chunk's answer carries the first error of all; it is looked at when the chunks before
            // it have been taken away.
            if (int32_t e = asked == bytes ? c.begin(Kind::copy, &copy, sizeof(copy))
                                           : c.post(Kind::copy, copy, true))
                return e;
            continue;
        }
        auto& w = window[first];
        if (!s.wait_block(w.block)) return acl::RT_INTERNAL;
        std::memcpy(to + w.at, w.block.data, w.bytes);
        s.give_block(w.block);
        first = (first + 1) % kAhead;
        count--;
    }
    return c.finish();
}

aclError copy_bytes(const char* function, void* to, size_t room, const void* from, size_t bytes,
                    aclrtMemcpyKind kind, bool now, aclrtStream stream) {
    Channel* c = Session::channel();
    if (!c) return flexnpu::client::last_error();
    Session& s = c->session();
    if (!now) {
        if (int32_t e = flexnpu::client::check_stream(s, function, number(stream))) return e;
    }
    Plan plan;
    if (aclError e = plan_copy(function, to, room, from, bytes, kind, s, &plan)) return e;
    if (bytes == 0) return 0;  // as the vendor's: there is nothing to copy
    if (now) {
        if (aclError e = s.graphs.unsafe(function)) return e;
    }
    if (plan.what == Plan::to_device) s.steps.copied(number(stream), now, true, bytes);
    auto over = [&](aclError e) {
        if (e == 0 && plan.what == Plan::from_device) s.steps.copied(number(stream), now, false, bytes);
        return e;
    };
    const uint64_t st = number(stream);
    const bool to_device = plan.what == Plan::to_device || plan.what == Plan::on_device;
    const bool from_device = plan.what == Plan::from_device || plan.what == Plan::on_device;
    if ((to_device && elsewhere(s, to)) || (from_device && elsewhere(s, from))) {
        return flexnpu::client::copy_elsewhere(to, to_device, from, from_device, bytes, now, stream);
    }
    if (plan.what == Plan::on_host) {
        if (!now) {
            if (aclError e = aclrtSynchronizeStream(stream)) return e;
        }
        std::memmove(to, from, bytes);
        return 0;
    }
    if (plan.what == Plan::on_device || plan.pinned) {
        wire::Copy copy = base_copy(st, now, bytes);
        copy.to = on_wire(s, to);
        copy.from = on_wire(s, from);
        copy.to_place = copy.from_place = Place::device;
        if (plan.pinned) {
            copy.region = plan.region.region;
            (plan.what == Plan::to_device ? copy.from : copy.to) =
                number(plan.what == Plan::to_device ? from : to) - plan.region.address;
            (plan.what == Plan::to_device ? copy.from_place : copy.to_place) = Place::host;
        }
        return over(now ? c->call(Kind::copy, copy) : c->post(Kind::copy, copy));
    }
    // Pageable memory: nobody can read or write it when a graph is replayed.
    if (aclError e = s.graphs.unsafe(function)) return e;
    if (!now && plan.what == Plan::from_device && s.graphs.of(st)) {
        return fail(acl::RT_CAPTURE_MODE_NOT_SUPPORT,
                    "%s: FlexNPU cannot capture a copy to memory that aclrtMallocHost has not given",
                    function);
    }
    if (plan.what == Plan::to_device)
        return push(*c, st, now, on_wire(s, to), static_cast<const uint8_t*>(from), bytes);
    // Device to pageable memory has nowhere to be written later: it is over when the call returns, in the
    // stream's order.
    if (!now) {
        if (aclError e = aclrtSynchronizeStream(stream)) return e;
    }
    return over(pull(*c, static_cast<uint8_t*>(to), on_wire(s, from), bytes));
}

aclError fill(const char* function, void* to, size_t room, int32_t value, size_t bytes, bool now,
              aclrtStream stream) {
    Channel* c = Session::channel();
    if (!c) return flexnpu::client::last_error();
    if (!to) return fail(acl::INVALID_PARAM, "%s: null pointer", function);
    if (bytes > room)
        return fail(acl::RT_PARAM_INVALID, "%s: %zu bytes do not fit in %zu", function, bytes, room);
    if (!now) {
        if (int32_t e = flexnpu::client::check_stream(c->session(), function, number(stream))) return e;
    }
    if (elsewhere(c->session(), to))
        return flexnpu::client::fill_elsewhere(to, room, value, bytes, now, stream);
    if (now) {
        if (aclError e = c->session().graphs.unsafe(function)) return e;
    }
    const wire::Memset ask{number(stream), on_wire(c->session(), to), room, bytes, value, now};
    return now ? c->call(Kind::memset, ask) : c->post(Kind::memset, ask);
}

aclError host_allocate(const char* function, void** out, size_t bytes) {
    if (!out || bytes == 0) return fail(acl::INVALID_PARAM, "%s: null pointer or size 0", function);
    Session* s = Session::any();
    if (!s) return flexnpu::client::last_error();
    HostRegion region;
    if (!s->map_host(bytes, &region)) return flexnpu::client::last_error();
    *out = reinterpret_cast<void*>(region.address);
    return 0;
}

}  // namespace

extern "C" {

aclError aclrtMalloc(void** p, size_t bytes, aclrtMemMallocPolicy policy) {
    return allocate("aclrtMalloc", p, bytes, policy, false);
}
aclError aclrtMallocAlign32(void** p, size_t bytes, aclrtMemMallocPolicy policy) {
    return allocate("aclrtMallocAlign32", p, bytes, policy, true);
}
aclError aclrtMallocCached(void** p, size_t bytes, aclrtMemMallocPolicy policy) {
    return allocate("aclrtMallocCached", p, bytes, policy, false);
}
aclError aclrtMallocWithCfg(void** p, size_t bytes, aclrtMemMallocPolicy policy, aclrtMallocConfig* config) {
    if (config)
        return fail(acl::API_NOT_SUPPORTED,
                    "aclrtMallocWithCfg: FlexNPU does not interpose allocation attributes yet");
    return allocate("aclrtMallocWithCfg", p, bytes, policy, false);
}
aclError aclrtFree(void* p) { return release("aclrtFree", p, false); }
aclError aclrtFreeWithDevSync(void* p) { return release("aclrtFreeWithDevSync", p, true); }
aclError aclrtMemFlush(void*, size_t) { return 0; }
aclError aclrtMemInvalidate(void*, size_t) { return 0; }

aclError aclrtMallocHost(void** p, size_t bytes) { return host_allocate("aclrtMallocHost", p, bytes); }
aclError aclrtMallocHostWithCfg(void** p, uint64_t bytes, aclrtMallocConfig* config) {
    if (config)
        return fail(acl::API_NOT_SUPPORTED,
                    "aclrtMallocHostWithCfg: FlexNPU does not interpose allocation attributes yet");
    return host_allocate("aclrtMallocHostWithCfg", p, bytes);
}
aclError aclrtFreeHost(void* p) {
    HostRegion region;
    for (int d = 0; d < wire::kMaxDevices; d++) {
        Session* s = Session::opened(d);
        if (!s || !s->host.remove(number(p), &region)) continue;
        // Copies that still use it are waited for, as the vendor's does.
        if (Channel* c = s->mine()) c->call(Kind::sync_device, wire::StreamOp{0, -1});
        return s->unmap_host(region) ? 0 : flexnpu::client::last_error();
    }
    if (Session::free_orphan(number(p))) return 0;
    return fail(acl::RT_PARAM_INVALID, "aclrtFreeHost: %p was not allocated by aclrtMallocHost", p);
}

// Memory that the program allocated itself cannot be mapped by the daemon: it is copied through the staging
// area, registered or not.
aclError aclrtHostRegister(void* p, uint64_t bytes, aclrtHostRegisterType, void** device_pointer) {
    if (!p || bytes == 0 || !device_pointer)
        return fail(acl::INVALID_PARAM, "aclrtHostRegister: null pointer or size 0");
    return fail(acl::API_NOT_SUPPORTED,
                "aclrtHostRegister: FlexNPU cannot give the device an address for memory of this program; "
                "use aclrtMallocHost");
}
aclError aclrtHostRegisterV2(void* p, uint64_t bytes, uint32_t) {
    if (!p || bytes == 0) return fail(acl::INVALID_PARAM, "aclrtHostRegisterV2: null pointer or size 0");
    return 0;
}
aclError aclrtHostUnregister(void* p) {
    return p ? 0 : fail(acl::INVALID_PARAM, "aclrtHostUnregister: null pointer");
}

aclError aclrtPointerGetAttributes(const void* p, aclrtPtrAttributes* out) {
    if (!p || !out) return fail(acl::INVALID_PARAM, "aclrtPointerGetAttributes: null pointer");
    *out = {};
    DeviceRange device;
    HostRegion host;
    if (Session* s = Session::holder(number(p)); s && s->memory.find(number(p), &device)) {
        out->device = uint32_t(s->device());
        out->type = 1;
        return 0;
    }
    out->type = 2;
    for (int d = 0; d < wire::kMaxDevices; d++) {
        if (Session* s = Session::opened(d); s && s->host.find(number(p), &host)) out->type = 0;
    }
    return 0;
}

aclError aclrtGetMemInfo(aclrtMemAttr attribute, size_t* free, size_t* total) {
    if (!free || !total) return fail(acl::INVALID_PARAM, "aclrtGetMemInfo: null pointer");
    Channel* c = Session::channel();
    if (!c) return flexnpu::client::last_error();
    if (int32_t e = c->call(Kind::mem_info, wire::MemInfo{attribute, 0})) return e;
    *free = c->words()[0];
    *total = c->words()[1];
    return 0;
}

aclError aclrtMemcpy(void* to, size_t room, const void* from, size_t bytes, aclrtMemcpyKind kind) {
    return copy_bytes("aclrtMemcpy", to, room, from, bytes, kind, true, nullptr);
}
aclError aclrtMemcpyAsync(void* to, size_t room, const void* from, size_t bytes, aclrtMemcpyKind kind,
                          aclrtStream stream) {
    return copy_bytes("aclrtMemcpyAsync", to, room, from, bytes, kind, false, stream);
}
aclError aclrtMemcpyAsyncWithCondition(void* to, size_t room, const void* from, size_t bytes,
                                       aclrtMemcpyKind kind, aclrtStream stream) {
    return copy_bytes("aclrtMemcpyAsyncWithCondition", to, room, from, bytes, kind, false, stream);
}
aclError aclrtMemcpy2d(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                       size_t height, aclrtMemcpyKind kind) {
    if (!to || !from) return fail(acl::INVALID_PARAM, "aclrtMemcpy2d: null pointer");
    return aclrtMemcpy2dAsync(to, to_pitch, from, from_pitch, width, height, kind, nullptr)
               ? aclrtPeekAtLastError(0)
               : aclrtSynchronizeStream(nullptr);
}
aclError aclrtMemcpy2dAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                            size_t height, aclrtMemcpyKind kind, aclrtStream stream) {
    if (!to || !from) return fail(acl::INVALID_PARAM, "aclrtMemcpy2dAsync: null pointer");
    if (width > to_pitch || width > from_pitch)
        return fail(acl::RT_PARAM_INVALID, "aclrtMemcpy2dAsync: a row is wider than a pitch");
    for (size_t row = 0; row < height; row++) {
        auto* t = static_cast<uint8_t*>(to) + row * to_pitch;
        auto* f = static_cast<const uint8_t*>(from) + row * from_pitch;
        if (aclError e = copy_bytes("aclrtMemcpy2dAsync", t, width, f, width, kind, false, stream)) return e;
    }
    return 0;
}
aclError aclrtMemset(void* to, size_t room, int32_t value, size_t bytes) {
    return fill("aclrtMemset", to, room, value, bytes, true, nullptr);
}
aclError aclrtMemsetAsync(void* to, size_t room, int32_t value, size_t bytes, aclrtStream stream) {
    return fill("aclrtMemsetAsync", to, room, value, bytes, false, stream);
}

}  // extern "C"
