#include "flexnpu/daemon/records/records.hpp"

namespace flexnpu::daemon {

using wire::Kind;

namespace {

bool is_synchronous(Kind k) { return k > Kind::define_shape && k < Kind::count_ && k != Kind::destroy_event; }

}  // namespace

Records::Records(const RecordParts& parts, const Parts& more, int32_t device, bool allow_kernels)
    : failures_(parts.failures),
      memory_(parts, more.exports, more.releases),
      copies_(parts, more.spares, more.copy_engine, more.sessions),
      streams_(parts, {more.lent, more.markers, more.timed, more.aborts, more.synchronises}),
      events_(parts, more.timed),
      capture_(parts, more.captures),
      graphs_(parts, more.captures),
      operators_(parts, more.gate, more.first_calls),
      named_operators_(parts),
      kernels_(parts, more.releases, allow_kernels),
      collectives_(parts),
      communicators_(parts),
      virtual_memory_(parts, {more.address_space, more.exports, more.releases}, device),
      sharing_(parts, more.exports, more.releases),
      forwarded_(parts, device) {}

void Records::handle(Session& s, const std::shared_ptr<Ring>& ring, const wire::Record& record,
                     std::span<const uint8_t> p) {
    const wire::StepWord step{record.flags, record.tokens};
    if (record.kind == Kind::launch) return operators_.launch(s, p, step);  // most are
    const Reply reply{ring, record.request};
    if (is_synchronous(record.kind) && record.request == 0) {
        failures_.count_malformed();
        return failures_.refuse(s, reply, acl::INVALID_PARAM, "FlexNPU: a question without a request number");
    }
    switch (record.kind) {
        case Kind::copy: return copies_.copy(s, p, reply);
        case Kind::memset: return memory_.memset(s, p, reply);
        case Kind::record_event: return events_.record(s, p);
        case Kind::wait_event: return events_.order(s, p, ItemType::wait, "aclrtStreamWaitEvent");
        case Kind::reset_event: return events_.order(s, p, ItemType::reset, "aclrtResetEvent");
        case Kind::drop_shape: return operators_.drop_shape(s, p, reply);
        case Kind::define_shape: return operators_.define_shape(s, p, reply);
        case Kind::malloc: return memory_.allocate(s, p, reply);
        case Kind::free: return memory_.release(s, p, reply);
        case Kind::mem_info: return memory_.info(s, p, reply);
        case Kind::create_stream: return streams_.create(s, p, reply);
        case Kind::destroy_stream: return streams_.destroy(s, p, reply);
        case Kind::sync_stream: return streams_.synchronise(s, p, reply);
        case Kind::sync_device: return streams_.synchronise_device(s, p, reply);
        case Kind::query_stream: return streams_.query(s, p, reply);
        case Kind::abort_stream: return streams_.abort(s, p, reply);
        case Kind::abort_device: return streams_.abort_device(s, p, reply);
        case Kind::host_func: return streams_.host_function(s, p);
        case Kind::stream_id: return streams_.id(s, p, reply);
        case Kind::create_event: return events_.create(s, p, reply);
        case Kind::destroy_event: return events_.destroy(s, p, reply);
        case Kind::sync_event: return events_.synchronise(s, p, reply);
        case Kind::query_event: return events_.query(s, p, reply);
        case Kind::event_elapsed: return events_.elapsed(s, p, reply);
        case Kind::event_timestamp: return events_.timestamp(s, p, reply);
        case Kind::launch_graph: return graphs_.launch(s, p, step);
        case Kind::update_begin: return capture_.update_begin(s, p);
        case Kind::update_end: return capture_.update_end(s, p);
        case Kind::value_op: return graphs_.value(s, p);
        case Kind::capture_begin: return capture_.begin(s, p, reply);
        case Kind::capture_end: return capture_.end(s, p, reply);
        case Kind::capture_info: return capture_.info(s, p, reply);
        case Kind::group_begin: return capture_.group_begin(s, p, reply);
        case Kind::group_end: return capture_.group_end(s, p, reply);
        case Kind::destroy_graph: return graphs_.destroy(s, p, reply);
        case Kind::graph_text: return graphs_.text(s, p, reply);
        case Kind::control_graph: return graphs_.control(s, p, reply);
        case Kind::forward: return forwarded_.forward(s, p, reply);
        case Kind::text: return forwarded_.text(s, p, reply);
        case Kind::cache_hint: return memory_.cache_hint(s, p);
        case Kind::run_op: return named_operators_.run(s, p, reply);
        case Kind::late_dims: return operators_.late_dims(s, p, reply);
        case Kind::collective: return collectives_.collective(s, p);
        case Kind::launch_kernel: return kernels_.launch(s, p);
        case Kind::kernel: return kernels_.call(s, p, reply);
        case Kind::communicator: return communicators_.call(s, p, reply);
        case Kind::virtual_memory: return virtual_memory_.call(s, p, reply);
        case Kind::share: return sharing_.share(s, p, reply);
        case Kind::launch:
        case Kind::invalid:
        case Kind::count_: break;
    }
    failures_.malformed(s, reply, "message of kind " + std::to_string(unsigned(record.kind)));
}

void Records::counters(std::map<std::string, uint64_t>* out) const {
    capture_.counters(out);
    operators_.counters(out);
}

}  // namespace flexnpu::daemon
