// What the gate lets go is given to the vendor.
#include <algorithm>

#include "flexnpu/daemon/communicators.hpp"
#include "flexnpu/daemon/deadline.hpp"
#include "flexnpu/daemon/dispatcher.hpp"
#include "flexnpu/daemon/graphs.hpp"
#include "flexnpu/daemon/kernels.hpp"
#include "flexnpu/wire/futex.hpp"

namespace flexnpu::daemon {

using wire::now_ns;

namespace {

constexpr uint64_t kSlowCopyBytesPerNs = 8;  // a cautious 8 GB/s

}  // namespace

// For the program's own records of its steps, and for nothing of ours: it may write there what it likes.
void Dispatcher::publish_held(const Lane& lane, uint64_t held_ns) {
    const uint32_t at = wire::gated_lane(lane.handle);
    if (at < wire::kGatedLanes)
        lane.session->page->gated_ns[at].fetch_add(held_ns, std::memory_order_relaxed);
}

void Dispatcher::dispatch(Lane& lane, const gate::Decision& d) {
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
    if (lane.update_failed && item->capturing && type != ItemType::update_end && !orders) return;
    dispatching_ = item.get();
    if (item->capturing && (item->capturing == lane.capture || item->capturing == lane.ending))
        enter_capture(lane);
    switch (type) {
        case ItemType::launch: dispatch_launch(lane, *item); break;
        case ItemType::copy: dispatch_copy(lane, *item); break;
        case ItemType::memset: {
            const MemsetItem& m = item->as<MemsetItem>();
            if (int32_t e = vendor_.aclrtMemsetAsync(reinterpret_cast<void*>(m.to), m.bytes, m.value, m.bytes,
                                                     lane.stream))
                fail(lane, e, vendor_.message("aclrtMemsetAsync", e));
            break;
        }
        case ItemType::record: dispatch_record(lane, *item); break;
        case ItemType::wait: dispatch_wait(lane, *item); break;
        case ItemType::host_func: dispatch_host_func(lane, *item); break;
        case ItemType::reset:
            if (int32_t e = vendor_.aclrtResetEvent(item->mark->event, lane.stream))
                fail(lane, e, vendor_.message("aclrtResetEvent", e));
            break;
        case ItemType::call: item->as<CallItem>().start(lane, item->ticket); break;
        case ItemType::hint: dispatch_hint(lane, *item); break;
        case ItemType::replay: dispatch_replay(lane, *item); break;
        case ItemType::value: {
            const ValueItem& v = item->as<ValueItem>();
            const int32_t e = Vendor::call(v.wait ? vendor_.aclrtValueWait : vendor_.aclrtValueWrite,
                                           reinterpret_cast<void*>(v.address), v.value, v.flag, lane.stream);
            if (e) fail(lane, e, vendor_.message(v.wait ? "aclrtValueWait" : "aclrtValueWrite", e));
            break;
        }
        case ItemType::update_begin:
        case ItemType::update_end: dispatch_update(lane, *item); break;
        case ItemType::sync:
            dispatching_ = nullptr;
            item->as<SyncItem>().job();
            break;
        case ItemType::collective: dispatch_collective(lane, *item); break;
        case ItemType::kernel: dispatch_kernel(lane, *item); break;
    }
    dispatching_ = nullptr;
    const bool captured = item->capturing != nullptr;
    if (type == ItemType::launch)
        keep_item(std::move(item));
    else
        release_marks(*item);
    if (captured)
        return;  // nothing of ours in a stream that captures; the gate has not been told to expect more
    if (type != ItemType::sync) fence(lane);
    if (d.mark || d.timed) {
        if (void* end = spares_.event()) {
            vendor_.aclrtRecordEvent(end, lane.stream);
            count_.markers++;
            mark(lane, {end, start, d.ticket});
        } else {
            if (start) spares_.give_event(start);
            gate_.completed(now_ns(), lane.id, d.ticket, -1);
        }
    }
}

void Dispatcher::count_operator(Lane& lane, const Item& item) {
    if (item.capturing) {
        count_.captured++;
        return;
    }
    lane.launched++;
    lane.in_flight_since_sync++;
    lane.step_open = true;
    count_.launches++;
}

void Dispatcher::dispatch_launch(Lane& lane, Item& item) {
    Shape& shape = *item.shape;
    uint64_t need = 0;
    aclOpExecutor* executor = nullptr;
    count_operator(lane, item);
    const bool credited = shape.first_call == Shape::FirstCall::credited;
    const uint64_t began = credited ? now_ns() : 0;
    const int32_t e = shape.first(item.addresses, &need, &executor);
    if (credited) {
        shape.first_call = Shape::FirstCall::over;
        lane.session->first_calls.learn_inline(shape.key(), now_ns() - began);
    }
    if (e) {
        count_.vendor_errors++;
        fail(lane, e, vendor_.message(shape.name(), e));
        return;
    }
    const LaunchItem& asked = item.as<LaunchItem>();
    void* workspace = reinterpret_cast<void*>(asked.workspace);
    uint64_t size = asked.workspace_bytes;
    if (need > size && item.capturing) {
        Held* own = captured_workspace(lane, item, need);
        if (!own) return;
        workspace = reinterpret_cast<void*>(own->address());
        size = own->bytes();
    } else if (need > size) {
        if (!lane.workspace || need > lane.workspace->bytes()) {
            if (lane.workspace) lane.old_workspaces.push_back(std::exchange(lane.workspace, nullptr));
            std::string message;
            if (int32_t e = allocate_memory(vendor_, lane.session->account, {shape.name(), need},
                                            &lane.workspace, &message)) {
                if (lane.session->account->left() < need)
                    quota_refusals_++;
                else
                    count_.vendor_errors++;
                fail(lane, e, std::move(message));
                return;
            }
        }
        workspace = reinterpret_cast<void*>(lane.workspace->address());
        size = lane.workspace->bytes();
    }
    if (int32_t e = vendor_.second(shape.op())(workspace, size, executor, lane.stream)) {
        count_.vendor_errors++;
        fail(lane, e, vendor_.message(shape.name(), e));
    }
}

void Dispatcher::dispatch_copy(Lane& lane, Item& item) {
    const CopyItem& c = item.as<CopyItem>();
    count_.copies++;
    if (!item.capturing && c.bytes > kLargeCopy && c.kind != acl::DEVICE_TO_DEVICE) {
        copying_until_ = std::max(copying_until_, now_ns()) + c.bytes / kSlowCopyBytesPerNs;
    }
    const int32_t e =
        vendor_.aclrtMemcpyAsync(reinterpret_cast<void*>(c.to), c.bytes,
                                 reinterpret_cast<const void*>(c.from), c.bytes, c.kind, lane.stream);
    if (e) {
        count_.vendor_errors++;
        fail(lane, e, vendor_.message("aclrtMemcpyAsync", e));
    }
    if (!c.buffer && c.block < 0) return;
    void* event = e == 0 ? spares_.event() : nullptr;
    if (event && vendor_.aclrtRecordEvent(event, lane.stream) == 0) {
        lane.lent.push_back({event, c.buffer, c.block, c.block_ticket});
        lent_++;
        return;
    }
    if (e == 0) vendor_.aclrtSynchronizeStream(lane.stream);
    if (c.buffer) spares_.give_buffer(c.buffer);
    lane.session->give_block(c.block, c.block_ticket);
}

// Whether a small copy made here and now could queue behind a large one, and all lanes with it.
bool Dispatcher::copies_are_slow() const {
    return large_copies_.load(std::memory_order_relaxed) > 0 || now_ns() < copying_until_;
}

void Dispatcher::dispatch_record(Lane& lane, Item& item) {
    const std::shared_ptr<Mark> mark = item.mark;
    if (int32_t e = vendor_.aclrtRecordEvent(mark->event, lane.stream))
        fail(lane, e, vendor_.message("aclrtRecordEvent", e));
    if (item.as_it_is || !item.makes.empty()) return;
    item.mark.reset();
    recorded(*mark);
}

void Dispatcher::recorded(Mark& mark) {
    mark.pending = false;
    auto blocked = std::exchange(mark.blocked, {});
    auto waiters = std::exchange(mark.waiters, {});
    for (Lane* l : blocked) {
        l->blocked = false;
        timers_.cancel(std::exchange(l->blocked_until, {}));
        flow(*l);
    }
    for (auto& w : waiters) w();
}

void Dispatcher::dispatch_wait(Lane& lane, Item& item) {
    const WaitItem& w = item.as<WaitItem>();
    item.mark->queued_waits -= w.counted;
    // The vendor's function with a timeout is newer than the one without.
    static const auto timed_wait = reinterpret_cast<decltype(&::aclrtStreamWaitEventWithTimeout)>(
        vendor_.function(api::FN_aclrtStreamWaitEventWithTimeout));
    const int32_t e = w.deadline_ns >= 0 && timed_wait
                          ? timed_wait(lane.stream, item.mark->event, left_ms(w.deadline_ns))
                          : vendor_.aclrtStreamWaitEvent(lane.stream, item.mark->event);
    if (e) fail(lane, e, vendor_.message("aclrtStreamWaitEvent", e));
}

}  // namespace flexnpu::daemon
