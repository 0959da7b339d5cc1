#include "flexnpu/daemon/dispatch.hpp"

#include "flexnpu/api/hccl_types.hpp"
#include "flexnpu/daemon/communicators.hpp"
#include "flexnpu/daemon/deadline.hpp"
#include "flexnpu/daemon/graphs.hpp"
#include "flexnpu/daemon/kernels.hpp"
#include "flexnpu/wire/futex.hpp"

namespace flexnpu::daemon {

using wire::now_ns;

namespace {

// For the program's own records of its steps, and for nothing of ours: it may write there what it likes.
void publish_held(const Lane& lane, uint64_t held_ns) {
    const uint32_t at = wire::gated_lane(lane.handle);
    if (at < wire::kGatedLanes)
        lane.session->page->gated_ns[at].fetch_add(held_ns, std::memory_order_relaxed);
}

}  // namespace

Dispatch::Dispatch(const Parts& p)
    : vendor_(p.vendor),
      gate_(p.gate),
      inbox_(p.inbox),
      workers_(p.workers),
      spares_(p.spares),
      lent_(p.lent),
      markers_(p.markers),
      lanes_(p.lanes),
      host_calls_(p.host_calls),
      captures_(p.captures),
      copy_engine_(p.copy_engine),
      failures_(p.failures) {}

void Dispatch::dispatch(Lane& lane, const gate::Decision& d) {
    if (lane.queue.empty() || lane.queue.front()->ticket != d.ticket)
        return;  // the lane has been emptied since
    std::unique_ptr<Item> item = std::move(lane.queue.front());
    lane.queue.pop_front();
    lane.session->queued--;
    if (d.held_ns) publish_held(lane, d.held_ns);
    void* start = nullptr;
    if (d.timed && (start = spares_.event())) vendor_.aclrtRecordEvent(start, lane.stream);
    const ItemType type = item->type();
    // What would have been updated is left alone. Its events stay: others wait for them.
    const bool orders = type == ItemType::record || type == ItemType::wait || type == ItemType::reset;
    const bool of_no_update =
        item->of_refused_update || (lane.update_failed && item->capturing && type != ItemType::update_end);
    if (of_no_update && !orders) {
        if (start) spares_.give_event(start);
        forgo(lane, *item);
        lanes_.release(*item);
        return lanes_.call_over(lane.id, d.ticket);  // nothing that follows waits for it
    }
    {
        Failures::Dispatching of(failures_, *item);
        call_vendor(lane, *item, of);
    }
    const bool captured = item->capturing != nullptr;
    if (type == ItemType::launch)
        lanes_.keep_item(std::move(item));
    else
        lanes_.release(*item);
    if (captured)
        return;  // nothing of ours in a stream that captures; the gate has not been told to expect more
    if (type != ItemType::sync) markers_.fence(lane);
    if (d.mark || d.timed) {
        if (void* end = spares_.event()) {
            vendor_.aclrtRecordEvent(end, lane.stream);
            markers_made_++;
            markers_.add(lane, {end, start, d.ticket});
        } else {
            if (start) spares_.give_event(start);
            gate_.completed(now_ns(), lane.id, d.ticket, -1);
        }
    }
}

void Dispatch::forgo(Lane& lane, Item& item) {
    lent_.give_back(lane, item);
    if (item.type() == ItemType::call) item.as<CallItem>().dropped();
    if (item.type() == ItemType::host_func) host_calls_.drop(lane, item);
}

inline void Dispatch::call_vendor(Lane& lane, Item& item, Failures::Dispatching& of) {
    if (item.capturing && (item.capturing == lane.capture || item.capturing == lane.ending))
        captures_.enter(lane);
    switch (item.type()) {
        case ItemType::launch: return launch(lane, item);
        case ItemType::copy: return copy(lane, item);
        case ItemType::memset: return memset(lane, item);
        case ItemType::record: return record(lane, item);
        case ItemType::wait: return wait(lane, item);
        case ItemType::host_func: return host_calls_.dispatch(lane, item);
        case ItemType::reset: return reset(lane, item);
        case ItemType::call: return item.as<CallItem>().start(lane, item.ticket);
        case ItemType::hint: return hint(lane, item);
        case ItemType::replay: return replay(lane, item);
        case ItemType::value: return value(lane, item);
        case ItemType::update_begin:
        case ItemType::update_end: return update(lane, item);
        case ItemType::sync:
            of.end();  // the job's failures are its own
            return item.as<SyncItem>().job();
        case ItemType::collective: return collective(lane, item);
        case ItemType::kernel: return kernel(lane, item);
    }
}

void Dispatch::failed(Lane& lane, const char* function, int32_t e, bool counted) {
    if (counted) failures_.count_vendor_error();
    failures_.fail(lane, e, vendor_.message(function, e));
}

void Dispatch::launch(Lane& lane, Item& item) {
    Shape& shape = *item.shape;
    uint64_t need = 0;
    aclOpExecutor* executor = nullptr;
    lanes_.count_operator(lane, item);
    const bool credited = shape.first_call == Shape::FirstCall::credited;
    const uint64_t began = credited ? now_ns() : 0;
    const int32_t e = shape.first(item.addresses, &need, &executor);
    if (credited) {
        shape.first_call = Shape::FirstCall::over;
        lane.session->first_calls.learn_inline(shape.key(), now_ns() - began);
    }
    if (e) return failed(lane, shape.name(), e, true);
    const LaunchItem& asked = item.as<LaunchItem>();
    void* workspace = reinterpret_cast<void*>(asked.workspace);
    uint64_t size = asked.workspace_bytes;
    if (need > size) {
        const Held* own =
            item.capturing ? captured_workspace(lane, item, need) : lane_workspace(lane, shape, need);
        if (!own) return;
        workspace = reinterpret_cast<void*>(own->address());
        size = own->bytes();
    }
    if (int32_t e = vendor_.second(shape.op())(workspace, size, executor, lane.stream))
        failed(lane, shape.name(), e, true);
}

Held* Dispatch::lane_workspace(Lane& lane, const Shape& shape, uint64_t bytes) {
    if (lane.workspace && lane.workspace->bytes() >= bytes) return lane.workspace.get();
    if (lane.workspace) lane.old_workspaces.push_back(std::exchange(lane.workspace, nullptr));
    return allocate(lane, shape.name(), bytes, &lane.workspace) ? lane.workspace.get() : nullptr;
}

Held* Dispatch::captured_workspace(Lane& lane, Item& item, uint64_t bytes) {
    Graph& graph = *item.capturing;
    std::shared_ptr<Held>& workspace =
        graph.workspaces[item.group ? uint64_t(1) << 32 | item.group->index : lane.id];
    if (workspace && workspace->bytes() >= bytes) return workspace.get();
    if (workspace) graph.old_workspaces.push_back(std::exchange(workspace, nullptr));
    return allocate(lane, item.shape->name(), bytes, &workspace) ? workspace.get() : nullptr;
}

bool Dispatch::allocate(Lane& lane, const char* function, uint64_t bytes, std::shared_ptr<Held>* out) {
    const std::shared_ptr<Account>& account = lane.session->account;
    std::string message;
    const int32_t e = allocate_memory(vendor_, account, {function, bytes}, out, &message);
    if (e == 0) return true;
    if (!failures_.count_quota(*account, bytes)) failures_.count_vendor_error();
    failures_.fail(lane, e, std::move(message));
    return false;
}

void Dispatch::copy(Lane& lane, Item& item) {
    const CopyItem& c = item.as<CopyItem>();
    copy_engine_.count_copy();
    if (!item.capturing && c.kind != acl::DEVICE_TO_DEVICE) copy_engine_.given(c.bytes);
    const int32_t e =
        vendor_.aclrtMemcpyAsync(reinterpret_cast<void*>(c.to), c.bytes,
                                 reinterpret_cast<const void*>(c.from), c.bytes, c.kind, lane.stream);
    if (e) failed(lane, "aclrtMemcpyAsync", e, true);
    if (!c.buffer && c.block < 0) return;
    void* event = e == 0 ? spares_.event() : nullptr;
    if (event && vendor_.aclrtRecordEvent(event, lane.stream) == 0) return lent_.lend(lane, event, c);
    if (event) spares_.give_event(event);
    if (e == 0) vendor_.aclrtSynchronizeStream(lane.stream);
    lent_.give_back(lane, c);
}

void Dispatch::memset(Lane& lane, Item& item) {
    const MemsetItem& m = item.as<MemsetItem>();
    if (int32_t e =
            vendor_.aclrtMemsetAsync(reinterpret_cast<void*>(m.to), m.bytes, m.value, m.bytes, lane.stream))
        failed(lane, "aclrtMemsetAsync", e, false);
}

void Dispatch::record(Lane& lane, Item& item) {
    const std::shared_ptr<Mark> mark = item.mark;
    if (int32_t e = vendor_.aclrtRecordEvent(mark->event, lane.stream))
        failed(lane, "aclrtRecordEvent", e, false);
    if (item.as_it_is || !item.makes.empty()) return;
    item.mark.reset();
    lanes_.recorded(*mark);
}

void Dispatch::wait(Lane& lane, Item& item) {
    const WaitItem& w = item.as<WaitItem>();
    item.mark->queued_waits -= w.counted;
    // The vendor's function with a timeout is newer than the one without.
    static const auto timed_wait = reinterpret_cast<decltype(&::aclrtStreamWaitEventWithTimeout)>(
        vendor_.function(api::FN_aclrtStreamWaitEventWithTimeout));
    const int32_t e = w.deadline_ns >= 0 && timed_wait
                          ? timed_wait(lane.stream, item.mark->event, left_ms(w.deadline_ns))
                          : vendor_.aclrtStreamWaitEvent(lane.stream, item.mark->event);
    if (e) failed(lane, "aclrtStreamWaitEvent", e, false);
}

void Dispatch::reset(Lane& lane, Item& item) {
    if (int32_t e = vendor_.aclrtResetEvent(item.mark->event, lane.stream))
        failed(lane, "aclrtResetEvent", e, false);
}

void Dispatch::value(Lane& lane, Item& item) {
    const ValueItem& v = item.as<ValueItem>();
    const int32_t e = Vendor::call(v.wait ? vendor_.aclrtValueWait : vendor_.aclrtValueWrite,
                                   reinterpret_cast<void*>(v.address), v.value, v.flag, lane.stream);
    if (e) failed(lane, v.wait ? "aclrtValueWait" : "aclrtValueWrite", e, false);
}

void Dispatch::hint(Lane& lane, Item& item) {
    const auto cmo = reinterpret_cast<decltype(&::aclrtCmoAsync)>(vendor_.function(api::FN_aclrtCmoAsync));
    if (!cmo)
        return failures_.fail(lane, acl::API_NOT_SUPPORTED, "aclrtCmoAsync: this CANN does not have it");
    const HintItem& hint = item.as<HintItem>();
    if (int32_t e = cmo(reinterpret_cast<void*>(hint.address), hint.bytes, hint.type, lane.stream))
        failed(lane, "aclrtCmoAsync", e, false);
}

void Dispatch::replay(Lane& lane, Item& item) {
    Lanes::count_launch(lane);
    lane.step_open = true;
    const std::shared_ptr<Graph>& graph = item.as<ReplayItem>().graph;
    lane.replayed = graph;
    replays_++;
    if (int32_t e = Vendor::call(vendor_.aclmdlRIExecuteAsync, graph->model, lane.stream))
        failed(lane, "aclmdlRIExecuteAsync", e, true);
}

void Dispatch::update(Lane& lane, Item& item) {
    const bool begin = item.type() == ItemType::update_begin;
    if (!begin && std::exchange(lane.update_failed, false)) return;
    const int32_t e =
        begin ? Vendor::call(vendor_.aclmdlRICaptureTaskUpdateBegin, lane.stream, item.group->vendor)
              : Vendor::call(vendor_.aclmdlRICaptureTaskUpdateEnd, lane.stream);
    lane.in_update = begin && e == 0;
    if (e == 0) return;
    lane.update_failed = begin;
    failed(lane, begin ? "aclmdlRICaptureTaskUpdateBegin" : "aclmdlRICaptureTaskUpdateEnd", e, true);
}

void Dispatch::kernel(Lane& lane, Item& item) {
    lanes_.count_operator(lane, item);
    if (const int32_t e = item.as<KernelItem>().call()) failed(lane, "aclrtLaunchKernel", e, true);
}

// What other ranks may keep waiting is called by the communicator's worker; the lane waits.
void Dispatch::collective(Lane& lane, Item& item) {
    collectives_++;
    lane.step_open = true;
    lane.in_flight_since_sync++;
    CollectiveItem& c = item.as<CollectiveItem>();
    const char* name = collective_name(c.of);
    if (!c.may_block) {
        if (const int32_t e = c.call()) {
            failures_.count_vendor_error();
            failures_.fail(lane, acl::RT_INTERNAL, told(vendor_, name, e));
        }
        return;
    }
    Communicator& comm = *c.communicator;
    if (!comm.worker) comm.worker = std::make_unique<Worker>(workers_.threads(), lane.session->call_share);
    // The worker belongs to the communicator, which its session ends before its lanes.
    comm.worker->post([this, name, call = std::move(c.call), &comm, key = c.connections, id = lane.id,
                       ticket = item.ticket] {
        const int32_t e = comm.dropped ? int32_t(hccl::E_UNAVAIL) : call();
        Failure failure;
        if (e) failure = {acl::RT_INTERNAL, told(vendor_, name, e)};
        inbox_.post([this, comm = comm.shared_from_this(), key, id, ticket, failure] {
            if (failure.code == 0) comm->known.insert(key);
            Lane* lane = lanes_.find(id);
            if (!lane) return;
            if (failure.code) {
                failures_.count_vendor_error();
                failures_.fail(*lane, failure.code, failure.message);
            }
            lanes_.call_over(id, ticket);
        });
    });
}

void Dispatch::counters(std::map<std::string, uint64_t>* out) const {
    (*out)["collectives"] = collectives_;
    (*out)["markers"] = markers_made_;
    (*out)["graph_replays"] = replays_;
}

}  // namespace flexnpu::daemon
