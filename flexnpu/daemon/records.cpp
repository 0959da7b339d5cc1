// What each record does. Everything in a record is untrusted: it has been copied into our memory, and is
// checked here.
#include <algorithm>
#include <bit>
#include <cstring>

#include "flexnpu/api/forward.hpp"
#include "flexnpu/daemon/dispatcher.hpp"
#include "flexnpu/daemon/graphs.hpp"
#include "flexnpu/daemon/heads.hpp"
#include "flexnpu/daemon/payload.hpp"
#include "flexnpu/wire/futex.hpp"

namespace flexnpu::daemon {

using wire::Kind;
using wire::Place;

namespace {

// How long a free waits for the operators that may use the memory.
constexpr int32_t kLongestUseMs = 10'000;
// How often a wait for another session's stream looks whether its own session has ended.
constexpr int32_t kEventSliceMs = 500;
constexpr uint32_t kMaxShapeNumbers = 1 << 15;
// Launches kept for a client that may ask for their outputs' shapes; one that asks later is told that they
// are unknown.
constexpr size_t kMaxLate = 1024;

bool is_synchronous(Kind k) { return k > Kind::define_shape && k < Kind::count_ && k != Kind::destroy_event; }
// An event's earlier records are looked at when there are more than these.
constexpr size_t kMostEarlier = 8;

Failure not_reached(const char* function) {
    return {acl::RT_EVENT_TIMESTAMP_INVALID,
            std::string(function) + ": an event is not recorded or not reached yet"};
}

// Whether waits for earlier records of the event are outstanding. Forgets records for which none are.
bool waits_pending(Event& e) {
    std::erase_if(e.earlier, [](const std::shared_ptr<Mark>& m) {
        int32_t status = acl::EVENT_WAIT_NOT_READY;
        return m->queued_waits == 0 && (m->vendor.aclrtQueryEventWaitStatus(m->event, &status) != 0 ||
                                        status == acl::EVENT_WAIT_COMPLETE);
    });
    return !e.earlier.empty();
}

// Failed definitions kept for the launches behind them.
constexpr size_t kMaxBadShapes = 1024;

}  // namespace

void Dispatcher::handle(Session& s, const std::shared_ptr<Ring>& ring, const wire::Record& record) {
    const Payload p(payload_.data(), record.size - sizeof(wire::Record));
    if (record.kind == Kind::launch) return launch(s, p);  // most are
    const Reply reply{ring, record.request};
    if (is_synchronous(record.kind) && record.request == 0) {
        count_.malformed++;
        return refuse(s, reply, acl::INVALID_PARAM, "FlexNPU: a question without a request number");
    }
    switch (record.kind) {
        case Kind::copy: return copy(s, p, reply);
        case Kind::memset: return memset(s, p, reply);
        case Kind::record_event: return record_event(s, p);
        case Kind::wait_event: return order_event(s, p, ItemType::wait, "aclrtStreamWaitEvent");
        case Kind::reset_event: return order_event(s, p, ItemType::reset, "aclrtResetEvent");
        case Kind::drop_shape: {
            wire::DropShape d;
            if (!take(p, &d)) break;
            const uint32_t index = uint32_t(d.shape);
            if (index < s.shapes.size() && s.shapes[index] && s.shapes[index]->number == d.shape)
                s.shapes[index].reset();
            return;
        }
        case Kind::define_shape: return define_shape(s, p, reply);
        case Kind::malloc: return allocate(s, p, reply);
        case Kind::free: return release(s, p, reply);
        case Kind::mem_info: {
            wire::MemInfo m;
            if (!take(p, &m)) break;
            size_t free = 0, total = 0;
            if (int32_t e = vendor_.aclrtGetMemInfo(m.attribute, &free, &total))
                return reply.fail({e, vendor_.message("aclrtGetMemInfo", e)});
            // A kind of memory that the device lacks has 0 bytes, whatever the quota.
            if (const uint64_t quota = s.account->quota()) total = std::min<uint64_t>(total, quota);
            return reply.ok(std::min<uint64_t>(free, s.account->left()), total);
        }
        case Kind::create_stream: return create_stream(s, p, reply);
        case Kind::destroy_stream: return destroy_stream(s, p, reply);
        case Kind::sync_stream: return sync_stream(s, p, reply);
        case Kind::sync_device: return sync_device(s, p, reply);
        case Kind::query_stream: return query_stream(s, p, reply);
        case Kind::abort_stream: return abort_stream(s, p, reply);
        case Kind::abort_device: return abort_device(s, p, reply);
        case Kind::host_func: return host_func(s, p);
        case Kind::stream_id: {
            wire::StreamOp o;
            if (!take(p, &o)) break;
            Lane* lane = lane_of(s, o.stream);
            if (!lane) return refuse(s, reply, acl::RT_INVALID_HANDLE, hex(o.stream) + " is not a stream");
            int32_t id = 0;
            if (int32_t e = vendor_.aclrtStreamGetId(lane->stream, &id))
                return reply.fail({e, vendor_.message("aclrtStreamGetId", e)});
            return reply.ok(uint64_t(uint32_t(id)));
        }
        case Kind::create_event: return create_event(s, p, reply);
        case Kind::destroy_event: {
            wire::EventOp o;
            if (!take(p, &o)) break;
            if (!s.events.remove(o.event))
                return refuse(s, reply, acl::RT_INVALID_HANDLE, hex(o.event) + " is not an event");
            return reply.ok();
        }
        case Kind::sync_event: return sync_event(s, p, reply);
        case Kind::query_event: return query_event(s, p, reply);
        case Kind::event_elapsed: return elapsed(s, p, reply);
        case Kind::event_timestamp: {
            wire::EventOp o;
            if (!take(p, &o)) break;
            Event* e = s.events.find(o.event);
            if (!e) return refuse(s, reply, acl::RT_INVALID_HANDLE, hex(o.event) + " is not an event");
            if (e->mark->pending) return reply.fail(not_reached("aclrtEventGetTimestamp"));
            uint64_t t = 0;
            if (int32_t err = vendor_.aclrtEventGetTimestamp(e->mark->event, &t)) {
                return reply.fail({err, vendor_.message("aclrtEventGetTimestamp", err)});
            }
            return reply.ok(t);
        }
        case Kind::launch_graph: return launch_graph(s, p);
        case Kind::update_begin: return update_begin(s, p);
        case Kind::update_end: return update_end(s, p);
        case Kind::value_op: return value_op(s, p);
        case Kind::capture_begin: return capture_begin(s, p, reply);
        case Kind::capture_end: return capture_end(s, p, reply);
        case Kind::capture_info: return capture_info(s, p, reply);
        case Kind::group_begin: return group_begin(s, p, reply);
        case Kind::group_end: return group_end(s, p, reply);
        case Kind::destroy_graph: return destroy_graph(s, p, reply);
        case Kind::graph_text: return graph_text(s, p, reply);
        case Kind::control_graph: return control_graph(s, p, reply);
        case Kind::forward: return forward(s, p, reply);
        case Kind::text: return text(s, p, reply);
        case Kind::cache_hint: return cache_hint(s, p);
        case Kind::run_op: return run_op(s, p, reply);
        case Kind::late_dims: {
            wire::LateDims l;
            if (!take(p, &l)) break;
            auto it = std::find_if(s.late.begin(), s.late.end(),
                                   [&](const auto& entry) { return entry.first == l.late; });
            if (it == s.late.end()) return refuse(s, reply, acl::INVALID_PARAM, "FlexNPU: no such launch");
            const std::vector<uint64_t> dims = it->second->output_dims(wire::kReplyWords);
            s.late.erase(it);
            return reply.send(0, "", dims.data(), dims.size());
        }
        case Kind::collective: return collective(s, p);
        case Kind::launch_kernel: return launch_kernel(s, p);
        case Kind::kernel: return kernel(s, p, reply);
        case Kind::communicator: return communicator(s, p, reply);
        case Kind::virtual_memory: return virtual_memory(s, p, reply);
        case Kind::share: return share(s, p, reply);
        case Kind::launch:
        case Kind::invalid:
        case Kind::count_: break;
    }
    count_.malformed++;
    refuse(s, reply, acl::INVALID_PARAM,
           "FlexNPU: malformed message of kind " + std::to_string(unsigned(record.kind)));
}

// ---- operators ----

void Dispatcher::define_shape(Session& s, Payload p, const Reply& reply) {
    wire::DefineShape d;
    Payload rest;
    if (!take(p, &d, &rest) || rest.size() != size_t(d.addresses) * 8 + d.meta_bytes ||
        uint32_t(d.shape) >= kMaxShapeNumbers) {
        count_.malformed++;
        return refuse(s, reply, acl::INVALID_PARAM, "FlexNPU: malformed definition of an operator's shape");
    }
    const uint32_t index = uint32_t(d.shape);
    int32_t error = 0;
    std::string message;
    auto shape =
        Shape::make(vendor_, d.op, rest.subspan(size_t(d.addresses) * 8), d.addresses, &error, &message);
    auto keep = [&] {
        shape->number = d.shape;
        if (s.shapes.size() <= index)
            s.shapes.resize(
                std::max<size_t>(index + 1, std::min<size_t>(kMaxShapeNumbers, s.shapes.size() * 2)));
        s.shapes[index] = std::move(shape);
        count_.shapes++;
    };
    if (!reply.request) {
        // Nobody waits: the launch will check the addresses, make the first call, and report what is wrong.
        if (shape) return keep();
        if (s.bad_shapes.size() >= kMaxBadShapes) s.bad_shapes.clear();
        s.bad_shapes[d.shape] = {error, std::move(message)};
        return;
    }
    if (!shape) return refuse(s, reply, error, std::move(message));
    std::vector<uint64_t> addresses(d.addresses);
    if (d.addresses) std::memcpy(addresses.data(), rest.data(), addresses.size() * 8);
    const size_t foreign = s.memory.first_foreign(
        addresses.size(), [&](size_t i) { return MemoryMap::Span{addresses[i], shape->extent(i)}; });
    if (foreign != addresses.size()) {
        return refuse(s, reply, acl::RT_PARAM_INVALID,
                      std::string(shape->name()) + ": tensor " + std::to_string(foreign) + " at " +
                          hex(addresses[foreign]) + " (" + std::to_string(shape->extent(foreign)) +
                          " bytes) is not in memory of this process");
    }
    uint64_t workspace = 0;
    aclOpExecutor* executor = nullptr;
    if (int32_t e = shape->first(addresses, &workspace, &executor))
        return reply.fail({e, vendor_.message(shape->name(), e)});
    if (executor) {
        using Destroy = decltype(&::aclDestroyAclOpExecutor);
        static const auto destroy = reinterpret_cast<Destroy>(vendor_.symbol("aclDestroyAclOpExecutor"));
        if (destroy) destroy(executor);
    }
    keep();
    reply.ok(workspace);
}

void Dispatcher::launch(Session& s, Payload p) {
    wire::Launch l;
    Payload rest;
    if (!take(p, &l, &rest) || rest.size() != size_t(l.count) * 8) {
        count_.malformed++;
        return refuse_later(s, nullptr, acl::INVALID_PARAM, "");
    }
    Lane* lane = lane_of(s, l.stream);
    if (!lane) return refuse_later(s, nullptr, acl::RT_INVALID_HANDLE, "");
    const uint32_t index = uint32_t(l.shape);
    std::shared_ptr<Shape> shape = index < s.shapes.size() ? s.shapes[index] : nullptr;
    if (!shape || shape->number != l.shape || shape->op() != l.op || shape->addresses() != l.count ||
        !vendor_.second(l.op)) {
        if (auto bad = s.bad_shapes.find(l.shape); bad != s.bad_shapes.end())
            return refuse_later(s, lane, bad->second.code, bad->second.message);
        return refuse_later(s, lane, acl::INVALID_PARAM,
                            "FlexNPU: a launch of an operator that was never defined");
    }
    if (l.late) {
        // The next launch of this shape must not write over what this one leaves in its objects.
        int32_t error = 0;
        std::string message;
        shape = shape->clone(&error, &message);
        if (!shape) return refuse_later(s, lane, error, std::move(message));
        s.late.emplace_back(l.late, shape);
        if (s.late.size() > kMaxLate) s.late.pop_front();
    }
    auto item = spare_item();
    item->type = ItemType::launch;
    item->addresses.resize(l.count);
    if (l.count) std::memcpy(item->addresses.data(), rest.data(), rest.size());
    // The workspace comes last.
    const size_t foreign = s.memory.first_foreign(l.count + 1, [&](size_t i) {
        return i < l.count ? MemoryMap::Span{item->addresses[i], shape->extent(i)}
                           : MemoryMap::Span{l.workspace, l.workspace_size};
    });
    if (foreign != size_t(l.count) + 1) {
        const bool ws = foreign == l.count;
        return refuse_later(s, lane, acl::RT_PARAM_INVALID,
                            std::string(shape->name()) + ": " +
                                (ws ? "the workspace" : "tensor " + std::to_string(foreign)) + " at " +
                                hex(ws ? l.workspace : item->addresses[foreign]) +
                                " is not in memory of this process");
    }
    if (lane->update_refused) return refuse_later(s, lane, acl::RT_TASK_GROUP_STATUS, "");
    if (Footprint* f = footprint_of(*lane)) {
        for (size_t i = 0; i < l.count; i++) f->add(s.memory, item->addresses[i], shape->extent(i));
        f->add(s.memory, l.workspace, l.workspace_size);
        if (!lane->update) lane->capture->us += gate_.estimate(shape->key());
    }
    item->a = l.workspace;
    item->b = l.workspace_size;
    item->shape = std::move(shape);
    push(*lane, std::move(item));
}

// ---- memory ----

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
            if (s.account->left() < m.bytes) quota_refusals_++;
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
    after(lanes_of(s), false, [this, &s, at, reply, uses = s.uses, job = std::move(job)]() mutable {
        // Events now, not the streams themselves later: those may be capturing by then, and must not be
        // asked.
        std::vector<void*> ours, all;
        std::vector<std::shared_ptr<Lane>> streams;
        s.each_lane([&](const std::shared_ptr<Lane>& lane) {
            if (lane->in_capture)
                return all.push_back(lane->before_capture);  // what came before is all that runs there
            progress(*lane);
            if (lane->given == lane->over && !lane->in_flight_since_sync) return;
            void* e = lane->in_update ? nullptr : spare_event();
            if (e && vendor_.aclrtRecordEvent(e, lane->stream) != 0)
                spare_events_.push_back(std::exchange(e, nullptr));
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
                        spare_events_.insert(spare_events_.end(), ours.begin(), ours.end());
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

void Dispatcher::copy(Session& s, Payload p, const Reply& reply) {
    wire::Copy c;
    Payload data;
    if (!take(p, &c, &data)) {
        count_.malformed++;
        return refuse(s, reply, acl::INVALID_PARAM, "FlexNPU: malformed copy");
    }
    // A refused copy that holds a block gives it back, or the client would wait for it for ever.
    const bool staged = c.to_place == Place::staging || c.from_place == Place::staging;
    auto bad = [&](int32_t code, std::string message) {
        if (staged && c.block < wire::kBlocks) s.give_block(int32_t(c.block), c.ticket);
        if (reply.request) return refuse(s, reply, code, std::move(message));
        refuse_later(s, c.now ? nullptr : lane_of(s, c.stream), code, std::move(message));
    };
    auto malformed = [&] {
        count_.malformed++;
        bad(acl::INVALID_PARAM, "FlexNPU: malformed copy");
    };
    if (staged && c.block >= wire::kBlocks) return malformed();
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
                    return malformed(), false;
                *out = reinterpret_cast<uint64_t>(s.staging) + address;
                return true;
            case Place::host: {
                auto it = s.host.find(c.region);
                if (it == s.host.end() || address > it->second->bytes ||
                    c.bytes > it->second->bytes - address)
                    return malformed(), false;
                *out = reinterpret_cast<uint64_t>(it->second->address) + address;
                return true;
            }
            case Place::inline_data: *out = 0; return true;
        }
        malformed();
        return false;
    };
    const bool from_inline = c.from_place == Place::inline_data, to_inline = c.to_place == Place::inline_data;
    if (from_inline &&
        (data.size() != wire::round8(c.bytes) || c.bytes > wire::kInlineBytes || c.to_place != Place::device))
        return malformed();
    if (to_inline &&
        (c.bytes > wire::kReplyWords * 8 || c.from_place != Place::device || !c.now || !reply.request))
        return malformed();
    if (!from_inline && !data.empty()) return malformed();
    if (c.to_place != Place::device && c.from_place != Place::device) return malformed();
    if (c.now > 1) return malformed();
    uint64_t to = 0, from = 0;
    if (!resolve(c.to_place, c.to, false, &to) || !resolve(c.from_place, c.from, true, &from)) return;
    const int32_t kind = c.to_place != Place::device     ? acl::DEVICE_TO_HOST
                         : c.from_place != Place::device ? acl::HOST_TO_DEVICE
                                                         : acl::DEVICE_TO_DEVICE;

    if (!c.now) {
        Lane* lane = lane_of(s, c.stream);
        if (!lane)
            return bad(acl::RT_INVALID_HANDLE, "aclrtMemcpyAsync: " + hex(c.stream) + " is not a stream");
        auto item = std::make_unique<Item>();
        item->type = ItemType::copy;
        item->a = to;
        item->b = from;
        item->bytes = c.bytes;
        item->value = kind;
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
            if (!keep_bytes(*lane, *item, from_inline ? data.data() : reinterpret_cast<const uint8_t*>(from),
                            c.bytes)) {
                return bad(acl::RT_MEMORY_ALLOCATION, "FlexNPU: no host memory for a captured copy");
            }
            if (staged) s.give_block(int32_t(c.block), c.ticket);
        } else if (staged) {
            item->block = int32_t(c.block);
            item->ticket_of_block = c.ticket;
        }
        if (from_inline && !footprint) {
            item->buffer = spare_buffer();
            if (!item->buffer) return bad(acl::RT_MEMORY_ALLOCATION, "FlexNPU: no host memory for a copy");
            std::memcpy(item->buffer, data.data(), c.bytes);
            item->b = reinterpret_cast<uint64_t>(item->buffer);
        }
        push(*lane, std::move(item));
        return reply.ok();
    }

    count_.copies++;
    // Small ones take as long as handing them to another thread would, unless the copy engine is busy.
    if (from_inline && copies_are_slow()) {
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
    if (to_inline && copies_are_slow()) {
        worker_of(*reply.ring).post([this, use = s.use(), from, kind, n = c.bytes, reply] {
            uint64_t words[wire::kReplyWords];
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
        uint64_t words[wire::kReplyWords];
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
    const bool quick = c.bytes <= kLargeCopy || (c.bytes <= wire::kBlockBytes && nothing_queued());
    if (quick && reply.ring->copying.load(std::memory_order_acquire) == 0 && !copies_are_slow()) {
        make(false);
        return;
    }
    const bool large = c.bytes > kLargeCopy;
    if (large) large_copies_++;
    reply.ring->copying.fetch_add(1, std::memory_order_relaxed);
    worker_of(*reply.ring).post([this, use = s.use(), make, large] {
        make(true);
        if (large) large_copies_--;
    });
}

bool Dispatcher::nothing_queued() const {
    return std::all_of(sessions_.begin(), sessions_.end(), [](const auto& s) { return s->queued == 0; });
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
    auto item = std::make_unique<Item>();
    item->type = ItemType::memset;
    item->a = m.to;
    item->bytes = m.bytes;
    item->value = m.value;
    push(*lane, std::move(item));
    reply.ok();
}

// ---- streams ----

void Dispatcher::create_stream(Session& s, Payload p, const Reply& reply) {
    wire::CreateStream c;
    if (!taken(s, p, &c, reply, "aclrtCreateStream")) return;
    Failure failure;
    auto lane = make_lane(s, c.priority, c.flags, &failure);
    if (!lane) return reply.fail(failure);
    lane->handle = s.streams.add(lane);
    if (!lane->handle) {
        drop_lane(*lane);
        lane->ends_with = &vendor_;
        return refuse(s, reply, acl::RT_INTERNAL, "aclrtCreateStream: too many streams");
    }
    reply.ok(lane->handle);
}

void Dispatcher::destroy_stream(Session& s, Payload p, const Reply& reply) {
    wire::StreamOp o;
    if (!taken(s, p, &o, reply, "aclrtDestroyStream")) return;
    if (!s.streams.find(o.stream))
        return refuse(s, reply, acl::RT_INVALID_HANDLE,
                      "aclrtDestroyStream: " + hex(o.stream) + " is not a stream");
    Session* session = &s;
    if (o.deadline_ns == 0) {
        // By force: what has not run is dropped first. A vendor that cannot abort drains it.
        abort_lane(s.streams.find(o.stream)->shared_from_this(), worker_of(*reply.ring),
                   [this, keep = s.shared_from_this(), o, reply](const Failure&) {
                       if (keep->removed) return;
                       const wire::StreamOp plain{o.stream, -1};
                       destroy_stream(*keep, {reinterpret_cast<const uint8_t*>(&plain), sizeof(plain)},
                                      reply);
                   });
        return;
    }
    // Found again when the lane has drained: a second destroy on the way finds nothing.
    after({s.streams.find(o.stream)}, false, [this, session, o, reply] {
        const Lane* found = session->streams.find(o.stream);
        if (found && (found->capture || found->ending))
            return refuse(*session, reply, acl::RT_STREAM_CAPTURED,
                          "aclrtDestroyStream: the stream is being captured");
        std::shared_ptr<Lane> lane = session->streams.remove(o.stream);
        if (!lane)
            return refuse(*session, reply, acl::RT_INVALID_HANDLE,
                          "aclrtDestroyStream: " + hex(o.stream) + " is not a stream");
        if (!lane->idle()) empty_lane(*lane);  // what other threads launched meanwhile: nobody may hang on it
        drop_lane(*lane);
        std::erase_if(session->leaving_lanes, [](const auto& one) { return one.expired(); });
        session->leaving_lanes.push_back(lane);
        // The lane names its session, which may end meanwhile.
        worker_of(*reply.ring).post([this, lane, keep = session->shared_from_this(), reply]() mutable {
            const int32_t e = vendor_.aclrtSynchronizeStream(lane->stream);
            const Failure failure = e ? Failure{e, vendor_.message("aclrtDestroyStream", e)} : Failure{};
            lane->markers.reset();
            lane->workspace.reset();
            lane->old_workspaces.clear();
            for (const Lane::Fence& f : lane->fences) vendor_.aclrtDestroyEvent(f.event);
            lane->ends_with = &vendor_;
            post([this, lane = std::move(lane), keep = std::move(keep), reply, failure]() mutable {
                lent_ += lane->lent.size();  // reclaim() counts them down; drop_lane() did already
                reclaim(*lane, true);
                lane.reset();
                if (failure.code)
                    reply.fail(failure);
                else
                    reply.ok();
            });
        });
    });
}

void Dispatcher::sync_stream(Session& s, Payload p, const Reply& reply) {
    wire::StreamOp o;
    if (!taken(s, p, &o, reply, "aclrtSynchronizeStream")) return;
    Lane* lane = lane_at(s, o.stream, reply, "aclrtSynchronizeStream");
    if (!lane) return;
    Session* session = &s;
    auto t = lane->idle() ? nullptr : timed(o.deadline_ns, "aclrtSynchronizeStreamWithTimeout", reply);
    after({lane}, true, [this, session, lane, o, reply, t] {
        if (settle(t))
            finish_sync(session->shared_from_this(), {lane->shared_from_this()}, o.deadline_ns, reply);
    });
}

void Dispatcher::sync_device(Session& s, Payload p, const Reply& reply) {
    wire::StreamOp o;
    if (!taken(s, p, &o, reply, "aclrtSynchronizeDevice")) return;
    Session* session = &s;
    auto t = timed(o.deadline_ns, "aclrtSynchronizeDeviceWithTimeout", reply);
    after(lanes_of(s), true, [this, session, o, reply, t] {
        if (!settle(t)) return;
        std::vector<std::shared_ptr<Lane>> lanes;
        session->each_lane([&](const std::shared_ptr<Lane>& lane) { lanes.push_back(lane); });
        finish_sync(session->shared_from_this(), std::move(lanes), o.deadline_ns, reply);
    });
}

void Dispatcher::query_stream(Session& s, Payload p, const Reply& reply) {
    wire::StreamOp o;
    if (!taken(s, p, &o, reply, "aclrtStreamQuery")) return;
    Lane* lane = lane_at(s, o.stream, reply, "aclrtStreamQuery");
    if (!lane) return;
    if (lane->stop_on_failure && lane->failure.code) return reply.fail(lane->failure);
    int32_t status = acl::STREAM_NOT_READY;
    if (lane->idle()) {
        if (int32_t e = vendor_.aclrtStreamQuery(lane->stream, &status))
            return reply.fail({e, vendor_.message("aclrtStreamQuery", e)});
    }
    reply.ok(uint64_t(uint32_t(status)));
}

// ---- events ----

// The client chooses the handle, so that it need not wait: it asks once for each kind of event, and an event
// that then cannot be made is one that its records and waits do not find.
void Dispatcher::create_event(Session& s, Payload p, const Reply& reply) {
    wire::CreateEvent c;
    if (!taken(s, p, &c, reply, "aclrtCreateEvent")) return;
    void* event = nullptr;
    // All sessions' events are this process's: the vendor need not know that one is for several.
    const bool ipc = (c.flags & acl::EVENT_IPC) != 0;
    if (ipc && (c.flags & acl::EVENT_EXTERNAL)) {
        return refuse(s, reply, acl::RT_PARAM_INVALID,
                      "aclrtCreateEvent: FlexNPU does not share external events between processes");
    }
    if (ipc)
        c.flags = (c.flags & ~uint32_t(acl::EVENT_IPC)) ? c.flags & ~uint32_t(acl::EVENT_IPC)
                                                        : uint32_t(acl::EVENT_SYNC);
    const int32_t e = c.ex ? vendor_.aclrtCreateEventExWithFlag(&event, c.flags)
                           : vendor_.aclrtCreateEventWithFlag(&event, c.flags);
    if (e) {
        count_.vendor_errors++;
        return reply.fail({e, vendor_.message("aclrtCreateEventWithFlag", e)});
    }
    auto made = std::make_shared<Event>();
    made->flags = c.flags;
    made->ex = c.ex != 0;
    made->ipc = ipc;
    made->mark = std::make_shared<Mark>(vendor_, event);
    made->mark->between_sessions = ipc;
    if (!s.events.add_at(c.handle, made))
        return refuse(s, reply, acl::RT_INVALID_HANDLE,
                      "aclrtCreateEvent: " + hex(c.handle) + " is not free");
    reply.ok();
}

void Dispatcher::record_event(Session& s, Payload p) {
    wire::EventOp o;
    if (!take(p, &o)) {
        count_.malformed++;
        return refuse_later(s, nullptr, acl::INVALID_PARAM, "");
    }
    Event* e = s.events.find(o.event);
    Lane* lane = lane_of(s, o.stream);
    if (!e || !lane)
        return refuse_later(s, lane, acl::RT_INVALID_HANDLE,
                            "aclrtRecordEvent: " + hex(o.event) + " is not an event");
    if (capture_event(s, *lane, *e, ItemType::record)) return;
    if (e->real()) return use_real_event(*lane, *e, ItemType::record, -1);
    if (e->mark.use_count() > 1) {
        // Operators that have yet to be dispatched mean the earlier record.
        void* fresh = nullptr;
        const int32_t err = e->ex ? vendor_.aclrtCreateEventExWithFlag(&fresh, e->flags)
                                  : vendor_.aclrtCreateEventWithFlag(&fresh, e->flags);
        if (err) return fail(*lane, err, vendor_.message("aclrtRecordEvent", err));
        if (e->mark->queued_waits) e->earlier.push_back(e->mark);
        e->mark = std::make_shared<Mark>(vendor_, fresh);
        e->mark->between_sessions = e->ipc;
    }
    if (e->earlier.size() > kMostEarlier) waits_pending(*e);
    e->mark->pending = e->mark->recorded = true;
    e->mark->error = 0;
    e->mark->capture = lane->capture;
    auto item = std::make_unique<Item>();
    item->type = ItemType::record;
    item->mark = e->mark;
    push(*lane, std::move(item));
}

// A wait or a reset: takes its place in the lane, and means the event's record of now.
void Dispatcher::order_event(Session& s, Payload p, ItemType type, const char* function) {
    wire::EventOp o;
    if (!take(p, &o)) {
        count_.malformed++;
        return refuse_later(s, nullptr, acl::INVALID_PARAM, "");
    }
    Event* e = s.events.find(o.event);
    Lane* lane = lane_of(s, o.stream);
    if (!e || !lane)
        return refuse_later(s, lane, acl::RT_INVALID_HANDLE,
                            std::string(function) + ": " + hex(o.event) + " is not an event");
    if (capture_event(s, *lane, *e, type)) return;
    if (e->real()) return use_real_event(*lane, *e, type, o.deadline_ns);
    auto item = std::make_unique<Item>();
    item->type = type;
    item->mark = e->mark;
    if (type == ItemType::wait) {
        item->deadline_ns = o.deadline_ns;
        item->value = e->mark->recorded;
        e->mark->queued_waits += e->mark->recorded;
    }
    push(*lane, std::move(item));
}

void Dispatcher::sync_event(Session& s, Payload p, const Reply& reply) {
    wire::EventOp o;
    if (!taken(s, p, &o, reply, "aclrtSynchronizeEvent")) return;
    Event* e = s.events.find(o.event);
    if (!e)
        return refuse(s, reply, acl::RT_INVALID_HANDLE,
                      "aclrtSynchronizeEvent: " + hex(o.event) + " is not an event");
    auto t = e->mark->pending ? timed(o.deadline_ns, "aclrtSynchronizeEventWithTimeout", reply) : nullptr;
    when_recorded(e->mark, [this, mark = e->mark, o, reply, t] {
        if (!settle(t)) return;
        if (mark->error)
            return reply.fail({mark->error, "aclrtSynchronizeEvent: the event's stream was aborted"});
        auto wait = [this, mark, o, reply] {
            const int32_t err = o.deadline_ns >= 0 ? vendor_.aclrtSynchronizeEventWithTimeout(
                                                         mark->event, left_ms(o.deadline_ns))
                                : mark->between_sessions ? wait_between_sessions(*mark, *reply.ring)
                                                         : vendor_.aclrtSynchronizeEvent(mark->event);
            if (err)
                reply.fail({err, vendor_.message("aclrtSynchronizeEvent", err)});
            else
                reply.ok();
        };
        int32_t status = acl::EVENT_RECORDED_NOT_READY;
        if (vendor_.aclrtQueryEventStatus(mark->event, &status) == 0 &&
            status == acl::EVENT_RECORDED_COMPLETE)
            return wait();  // returns at once
        worker_of(*reply.ring).post(std::move(wait));
    });
}

// For an event in another session's stream: that stream may run on when the session that waits has ended.
int32_t Dispatcher::wait_between_sessions(const Mark& mark, const Ring& ring) const {
    int32_t e = acl::RT_WAIT_TIMEOUT;
    while (e == acl::RT_WAIT_TIMEOUT && !ring.closed)
        e = vendor_.aclrtSynchronizeEventWithTimeout(mark.event, kEventSliceMs);
    return e;
}

// Runs `job` once the last record of that event has been dispatched: now, if nothing is outstanding.
void Dispatcher::when_recorded(const std::shared_ptr<Mark>& mark, std::function<void()> job) {
    if (mark->pending)
        mark->waiters.push_back(std::move(job));
    else
        job();
}

void Dispatcher::query_event(Session& s, Payload p, const Reply& reply) {
    wire::EventOp o;
    if (!take(p, &o) || o.stream > 2) {
        count_.malformed++;
        return refuse(s, reply, acl::INVALID_PARAM, "FlexNPU: malformed aclrtQueryEvent");
    }
    Event* e = s.events.find(o.event);
    if (!e)
        return refuse(s, reply, acl::RT_INVALID_HANDLE,
                      "aclrtQueryEvent: " + hex(o.event) + " is not an event");
    // The three functions name the same two states by different numbers.
    if (o.stream == 2) {
        int32_t status = acl::EVENT_WAIT_NOT_READY;
        if (!waits_pending(*e) && e->mark->queued_waits == 0) {
            if (int32_t err = vendor_.aclrtQueryEventWaitStatus(e->mark->event, &status))
                return reply.fail({err, vendor_.message("aclrtQueryEventWaitStatus", err)});
        }
        return reply.ok(uint64_t(uint32_t(status)));
    }
    int32_t status = acl::EVENT_RECORDED_NOT_READY;
    if (!e->mark->pending) {
        if (int32_t err = vendor_.aclrtQueryEventStatus(e->mark->event, &status))
            return reply.fail({err, vendor_.message("aclrtQueryEventStatus", err)});
    }
    if (o.stream == 0)
        status = status == acl::EVENT_RECORDED_COMPLETE ? acl::EVENT_COMPLETE : acl::EVENT_NOT_READY;
    reply.ok(uint64_t(uint32_t(status)));
}

void Dispatcher::elapsed(Session& s, Payload p, const Reply& reply) {
    wire::EventPair o;
    if (!taken(s, p, &o, reply, "aclrtEventElapsedTime")) return;
    Event *a = s.events.find(o.start), *b = s.events.find(o.end);
    if (!a || !b)
        return refuse(s, reply, acl::RT_INVALID_HANDLE,
                      "aclrtEventElapsedTime: " + hex(a ? o.end : o.start) + " is not an event");
    if (a->mark->pending || b->mark->pending) return reply.fail(not_reached("aclrtEventElapsedTime"));
    float ms = 0;
    if (int32_t e = vendor_.aclrtEventElapsedTime(&ms, a->mark->event, b->mark->event))
        return reply.fail({e, vendor_.message("aclrtEventElapsedTime", e)});
    reply.ok(std::bit_cast<uint32_t>(ms));
}

// ---- the rest ----

struct Dispatcher::Context final : api::ForwardContext {
    Context(Dispatcher& d, Session& s) : dispatcher(d), session(s) {}
    bool stream(uint64_t handle, void** out) override {
        Lane* lane = dispatcher.lane_of(session, handle);
        if (!lane) return false;
        *out = lane->stream;
        return true;
    }
    void* vendor(api::FnId fn) override { return dispatcher.vendor_.function(fn); }
    Dispatcher& dispatcher;
    Session& session;
};

void Dispatcher::forward(Session& s, Payload p, const Reply& reply) {
    wire::Forward f;
    Payload rest;
    if (!take(p, &f, &rest) || f.function >= api::FN_COUNT || f.words > rest.size() / 8 ||
        rest.size() != size_t(f.words) * 8 || f.out_words > wire::kReplyWords) {
        count_.malformed++;
        return refuse(s, reply, acl::INVALID_PARAM, "FlexNPU: malformed call");
    }
    uint64_t in[64] = {}, out[wire::kReplyWords] = {};
    if (f.words > std::size(in)) return refuse(s, reply, acl::INVALID_PARAM, "FlexNPU: too many arguments");
    if (f.words) std::memcpy(in, rest.data(), rest.size());
    // The program counts its devices in its own way.
    if (const int at = api::device_argument(uint16_t(f.function)); at >= 0 && uint32_t(at) < f.words) {
        if (int32_t(in[at]) != s.device)
            return refuse(s, reply, acl::RT_INVALID_DEVICE,
                          "device " + std::to_string(int32_t(in[at])) + " does not exist");
        in[at] = uint64_t(device_);
    }
    if (f.function == api::FN_aclrtSetStreamFailureMode && f.words >= 2) {
        if (Lane* lane = lane_of(s, in[0])) lane->stop_on_failure = in[1] == 1;
    }
    Context context(*this, s);
    uint32_t written = 0;
    const int32_t e =
        api::handle_forward(uint16_t(f.function), in, f.words, out, f.out_words, &written, context);
    if (e == 0) {
        // Programs size what they take by the device's memory: theirs ends at the quota.
        const bool memory = f.function == api::FN_aclrtGetDeviceInfo && f.words > 1 &&
                            int32_t(in[1]) == acl::ATTR_TOTAL_GLOBAL_MEM_SIZE;
        if (const uint64_t quota = s.account->quota(); memory && quota && written > 0)
            out[0] = std::min(out[0], quota);
        return reply.send(0, "", out, written);
    }
    const char* text = vendor_.aclGetRecentErrMsg();
    reply.fail({e, text && *text
                       ? text
                       : std::string(api::kFnNames[f.function]) + " failed with error " + std::to_string(e)});
}

void Dispatcher::text(Session& s, Payload p, const Reply& reply) {
    wire::Text t;
    Payload rest;
    if (!take(p, &t, &rest) || rest.size() != wire::round8(t.bytes)) {
        count_.malformed++;
        return refuse(s, reply, acl::INVALID_PARAM, "FlexNPU: malformed question");
    }
    std::string name(reinterpret_cast<const char*>(rest.data()), t.bytes);
    uint64_t words[wire::kReplyWords] = {};
    char* out = reinterpret_cast<char*>(words + 1);
    constexpr size_t room = (wire::kReplyWords - 1) * 8 - 1;
    int32_t e = 0;
    switch (t.what) {
        case wire::kVersionOf: e = vendor_.aclsysGetVersionStr(name.data(), out); break;
        case wire::kVersionNumberOf: {
            int32_t number = 0;
            e = vendor_.aclsysGetVersionNum(name.data(), &number);
            std::memcpy(out, &number, sizeof(number));
            if (e == 0) {
                words[0] = sizeof(number);
                return reply.send(0, "", words, 2);
            }
            break;
        }
        case wire::kCompileOption: {
            const size_t n = vendor_.aclGetCompileoptSize(t.number);
            if (n > 0 && n < room) e = vendor_.aclGetCompileopt(t.number, out, n);
            break;
        }
        default:
            count_.malformed++;
            return refuse(s, reply, acl::INVALID_PARAM, "FlexNPU: malformed question");
    }
    if (e) return reply.fail({e, vendor_.message("the vendor's library", e)});
    words[0] = strnlen(out, room);
    reply.send(0, "", words, 1 + wire::round8(words[0]) / 8);
}

}  // namespace flexnpu::daemon
