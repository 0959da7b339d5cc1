// aclrtStreamAbort and aclrtDeviceTaskAbort: the vendor's stream is aborted, and what its lane holds here is
// dropped.
//
// Nobody may hang on what was dropped: events whose records were are recorded on the empty stream, and a
// synchronise that waits in the lane is answered with the abort's error, as is a synchronise of such an
// event.
#include "flexnpu/daemon/dispatcher.hpp"
#include "flexnpu/daemon/heads.hpp"
#include "flexnpu/daemon/payload.hpp"
#include "flexnpu/wire/futex.hpp"

namespace flexnpu::daemon {

void Dispatcher::abort_stream(Session& s, Payload p, const Reply& reply) {
    wire::StreamOp o;
    if (!taken(s, p, &o, reply, "aclrtStreamAbort")) return;
    Lane* lane = o.stream ? s.streams.find(o.stream) : nullptr;
    if (!lane)
        return refuse(s, reply, acl::RT_INVALID_HANDLE,
                      "aclrtStreamAbort: " + hex(o.stream) + " is not a stream");
    abort_lane(lane->shared_from_this(), worker_of(*reply.ring), [reply](const Failure& f) {
        if (f.code)
            reply.fail(f);
        else
            reply.ok();
    });
}

// The device's tasks, as far as they are this session's: the vendor's function of that name would abort
// everybody's.
void Dispatcher::abort_device(Session& s, Payload p, const Reply& reply) {
    wire::StreamOp o;
    if (!taken(s, p, &o, reply, "aclrtDeviceTaskAbort")) return;
    auto left = std::make_shared<size_t>(1);
    auto first = std::make_shared<Failure>();
    auto arrive = [left, first, reply](const Failure& f) {
        if (f.code && first->code == 0) *first = f;
        if (--*left) return;
        if (first->code)
            reply.fail(*first);
        else
            reply.ok();
    };
    s.each_lane([&](const std::shared_ptr<Lane>& lane) {
        ++*left;
        abort_lane(lane, worker_of(*reply.ring), arrive);
    });
    arrive({});
}

void Dispatcher::abort_lane(const std::shared_ptr<Lane>& lane, Worker& worker,
                            std::function<void(Failure)> done) {
    if (!vendor_.aclrtStreamAbort)
        return done({acl::API_NOT_SUPPORTED, "aclrtStreamAbort: the device's libraries lack it"});
    count_.aborts++;
    lane->aborting = true;
    // The worker keeps lane and session: tear_down() ends the worker first.
    worker.post([this, lane, session = lane->session->shared_from_this(), done = std::move(done)] {
        int32_t status = acl::STREAM_COMPLETE;
        vendor_.aclrtStreamQuery(lane->stream, &status);
        const int32_t e = vendor_.aclrtStreamAbort(lane->stream);
        const Failure failure = e ? Failure{e, vendor_.message("aclrtStreamAbort", e)} : Failure{};
        // An abort of a stream that works is reported by the vendor's own next synchronise.
        const bool reported = status != acl::STREAM_COMPLETE;
        post([this, lane, session, done, failure, reported] {
            lane->aborting = false;
            if (session->removed) return;
            // Another thread of the program may have destroyed the stream meanwhile.
            if (!has_lane(lane->id))
                return done(
                    {acl::RT_INVALID_HANDLE, "aclrtStreamAbort: " + hex(lane->handle) + " is not a stream"});
            if (failure.code == 0) {
                const bool dropped = !lane->idle();
                if (dropped && !reported) fail(*lane, acl::RT_STREAM_ABORT, "the stream was aborted");
                empty_lane(*lane);
            }
            flow(*lane);
            done(failure);
        });
    });
}

// The vendor's stream is empty: so is the lane.
void Dispatcher::empty_lane(Lane& lane) {
    Session& s = *lane.session;
    const auto stats = gate_.stats(lane.id).value_or(gate::LaneStats{});
    gate_.remove_lane(lane.id);
    gate_.add_lane(lane.id);
    gate_.set_phase(lane.id, stats.phase, stats.target_us);
    lane.blocked = lane.calling = false;
    lane.first_call = 0;
    timers_.cancel(std::exchange(lane.blocked_until, {}));
    for (const Lane::Call& c : std::exchange(lane.calls, {})) s.host_backlog.push_back({lane.id, c, true});
    std::vector<std::unique_ptr<Item>> dropped;
    for (auto* items : {&lane.queue, &lane.backlog}) {
        for (auto& item : *items) dropped.push_back(std::move(item));
        items->clear();
    }
    s.queued -= dropped.size();
    reclaim(lane, false);  // a copy that had begun may still be reading
    progress(lane);
    for (auto& item : dropped) {
        give_back_source(lane, *item);
        detach(lane, *item);
        switch (item->type()) {
            case ItemType::record: {
                if (item->as_it_is) break;  // the event's record of now is another lane's
                const std::shared_ptr<Mark> mark = std::move(item->mark);
                mark->error = acl::RT_STREAM_ABORT;
                vendor_.aclrtRecordEvent(mark->event, lane.stream);
                recorded(*mark);
                break;
            }
            case ItemType::wait: item->mark->queued_waits -= item->as<WaitItem>().counted; break;
            case ItemType::host_func:
                s.host_backlog.push_back(
                    {lane.id, {item->as<HostFunctionItem>().function, item->ticket, false}, true});
                break;
            case ItemType::call: item->as<CallItem>().dropped(); break;
            // An update that has begun ends, and of one whose begin is dropped nothing is run.
            case ItemType::update_begin: lane.update_failed = true; break;
            case ItemType::update_end:
                if (lane.in_update || lane.update_failed) dispatch_update(lane, *item);
                break;
            case ItemType::sync:
                fail(lane, acl::RT_STREAM_ABORT, "the stream was aborted");
                item->as<SyncItem>().job();
                break;
            default: break;
        }
        release_marks(*item);
    }
    tell(s);
}

}  // namespace flexnpu::daemon
