// Which handler each kind of record has. Everything in a record is untrusted: it has been copied into our
// memory, and is checked where it is handled.
#include <algorithm>

#include "flexnpu/daemon/dispatcher.hpp"
#include "flexnpu/daemon/heads.hpp"
#include "flexnpu/daemon/payload.hpp"

namespace flexnpu::daemon {

using wire::Kind;

namespace {

bool is_synchronous(Kind k) { return k > Kind::define_shape && k < Kind::count_ && k != Kind::destroy_event; }

}  // namespace

void Dispatcher::handle(Session& s, const std::shared_ptr<Ring>& ring, const wire::Record& record) {
    const Payload p(payload_.data(), record.size - sizeof(wire::Record));
    if (record.kind == Kind::launch) return launch(s, p);  // most are
    const Reply reply{ring, record.request};
    if (is_synchronous(record.kind) && record.request == 0) {
        failures_.count_malformed();
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
            Lane* lane = lane_at(s, o.stream, reply, "aclrtStreamGetId");
            if (!lane) return;
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
            Event* e = event_at(s, o.event, reply, "aclrtEventGetTimestamp");
            if (!e) return;
            return timestamp(*e, reply);
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
    malformed(s, reply, "message of kind " + std::to_string(unsigned(record.kind)));
}

}  // namespace flexnpu::daemon
