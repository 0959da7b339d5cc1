#include "flexnpu/daemon/aborts.hpp"

#include "flexnpu/daemon/payload.hpp"

namespace flexnpu::daemon {

void Aborts::abort(const std::shared_ptr<Lane>& lane, Worker& worker, std::function<void(Failure)> done) {
    if (!vendor_.aclrtStreamAbort)
        return done({acl::API_NOT_SUPPORTED, "aclrtStreamAbort: the device's libraries lack it"});
    aborts_++;
    lane->aborting = true;
    // The worker keeps lane and session: the teardown ends the worker first.
    worker.post([this, lane, session = lane->session->shared_from_this(), done = std::move(done)] {
        int32_t status = acl::STREAM_COMPLETE;
        vendor_.aclrtStreamQuery(lane->stream, &status);
        const int32_t e = vendor_.aclrtStreamAbort(lane->stream);
        const Failure failure = e ? Failure{e, vendor_.message("aclrtStreamAbort", e)} : Failure{};
        // An abort of a stream that works is reported by the vendor's own next synchronise.
        const bool reported = status != acl::STREAM_COMPLETE;
        inbox_.post([this, lane, session, done, failure, reported] {
            lane->aborting = false;
            if (session->removed) return;
            // Another thread of the program may have destroyed the stream meanwhile.
            if (!lanes_.find(lane->id))
                return done(
                    {acl::RT_INVALID_HANDLE, "aclrtStreamAbort: " + hex(lane->handle) + " is not a stream"});
            if (failure.code == 0) {
                const bool dropped = !lane->idle();
                if (dropped && !reported)
                    failures_.fail(*lane, acl::RT_STREAM_ABORT, "the stream was aborted");
                empty(*lane);
            }
            lanes_.flow(*lane);
            done(failure);
        });
    });
}

void Aborts::empty(Lane& lane) {
    const auto dropped = lanes_.take_all(lane);
    host_calls_.drop_all(lane);
    lent_.reclaim(lane, false);  // a copy that had begun may still be reading
    markers_.progress(lane);
    for (auto& item : dropped) {
        dispatch_.forgo(lane, *item);
        Lanes::detach(lane, *item);
        drop(lane, *item);
        lanes_.release(*item);
    }
    host_calls_.tell(*lane.session);
}

// Tells those who wait for the item.
void Aborts::drop(Lane& lane, Item& item) {
    switch (item.type()) {
        case ItemType::record: {
            if (item.as_it_is) break;  // the event's record of now is another lane's
            const std::shared_ptr<Mark> mark = std::move(item.mark);
            mark->error = acl::RT_STREAM_ABORT;
            vendor_.aclrtRecordEvent(mark->event, lane.stream);
            lanes_.recorded(*mark);
            break;
        }
        case ItemType::wait: item.mark->queued_waits -= item.as<WaitItem>().counted; break;
        // An update that has begun ends, and of one whose begin is dropped nothing is run.
        case ItemType::update_begin: lane.update_failed = true; break;
        case ItemType::update_end:
            if (lane.in_update || lane.update_failed) dispatch_.update(lane, item);
            break;
        case ItemType::sync:
            failures_.fail(lane, acl::RT_STREAM_ABORT, "the stream was aborted");
            item.as<SyncItem>().job();
            break;
        default: break;
    }
}

}  // namespace flexnpu::daemon
