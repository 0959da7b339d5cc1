#include "flexnpu/daemon/records/streams.hpp"

#include "flexnpu/daemon/graphs.hpp"
#include "flexnpu/wire/futex.hpp"

namespace flexnpu::daemon {

void StreamRecords::create(Session& s, Payload p, const Reply& reply) {
    wire::CreateStream c;
    if (!taken(s, p, &c, reply, "aclrtCreateStream")) return;
    Failure failure;
    auto lane = Lanes::make(s, "aclrtCreateStream", &failure);
    if (!lane) return refuse(s, reply, failure.code, failure.message);
    worker_of(*reply.ring).post([this, s = s.shared_from_this(), lane, c, reply] {
        const Failure failure = lanes_.make_stream(*lane, c.priority, c.flags);
        if (failure.code) return reply.fail(failure);
        post([this, s, lane, reply] {
            lane->handle = s->removed ? 0 : s->streams.add(lane);
            if (!lane->handle) {
                lane->ends_with = &vendor_;
                return reply.fail({acl::RT_NO_STREAM_RESOURCE, "aclrtCreateStream: too many streams"});
            }
            lanes_.enter(*lane);
            reply.ok(lane->handle);
        });
    });
}

void StreamRecords::destroy(Session& s, Payload p, const Reply& reply) {
    wire::StreamOp o;
    if (!taken(s, p, &o, reply, "aclrtDestroyStream")) return;
    Lane* lane = s.streams.find(o.stream);
    if (!lane || o.deadline_ns != 0) return destroy(s, o.stream, reply);
    // By force: what has not run is dropped first. A vendor that cannot abort drains it.
    aborts_.abort(lane->shared_from_this(), worker_of(*reply.ring),
                  [this, keep = s.shared_from_this(), stream = o.stream, reply](const Failure&) {
                      if (!keep->removed) destroy(*keep, stream, reply);
                  });
}

void StreamRecords::destroy(Session& s, uint64_t stream, const Reply& reply) {
    const auto gone = [this, stream, reply](Session& s) {
        refuse(s, reply, acl::RT_INVALID_HANDLE, "aclrtDestroyStream: " + hex(stream) + " is not a stream");
    };
    if (!s.streams.find(stream)) return gone(s);
    // Found again when the lane has drained: a second destroy on the way finds nothing.
    after({s.streams.find(stream)}, false, [this, session = &s, stream, gone, reply] {
        const Lane* found = session->streams.find(stream);
        if (found && (found->capture || found->ending))
            return refuse(*session, reply, acl::RT_STREAM_CAPTURED,
                          "aclrtDestroyStream: the stream is being captured");
        std::shared_ptr<Lane> lane = session->streams.remove(stream);
        if (!lane) return gone(*session);
        if (!lane->idle())
            aborts_.empty(*lane);  // what other threads launched meanwhile: nobody may hang on it
        lanes_.drop(*lane);
        std::erase_if(session->leaving_lanes, [](const auto& one) { return one.expired(); });
        session->leaving_lanes.push_back(lane);
        end(lane, reply);
    });
}

void StreamRecords::end(const std::shared_ptr<Lane>& lane, const Reply& reply) {
    // The lane names its session, which may end meanwhile.
    worker_of(*reply.ring).post([this, lane, keep = lane->session->shared_from_this(), reply]() mutable {
        const int32_t e = vendor_.aclrtSynchronizeStream(lane->stream);
        const Failure failure = e ? Failure{e, vendor_.message("aclrtDestroyStream", e)} : Failure{};
        markers_.close(*lane);
        lane->workspace.reset();
        lane->old_workspaces.clear();
        for (const Lane::Fence& f : lane->fences) vendor_.aclrtDestroyEvent(f.event);
        lane->ends_with = &vendor_;
        post([this, lane = std::move(lane), keep = std::move(keep), reply, failure]() mutable {
            lent_.take_back(*lane);
            // The vendor may take its time over the stream's end.
            worker_of(*reply.ring)
                .post([lane = std::move(lane), keep = std::move(keep), reply, failure]() mutable {
                    lane.reset();
                    if (failure.code)
                        reply.fail(failure);
                    else
                        reply.ok();
                });
        });
    });
}

void StreamRecords::id(Session& s, Payload p, const Reply& reply) {
    wire::StreamOp o;
    if (!taken(s, p, &o, reply, "aclrtStreamGetId")) return;
    Lane* lane = lane_at(s, o.stream, reply, "aclrtStreamGetId");
    if (!lane) return;
    int32_t id = 0;
    if (int32_t e = vendor_.aclrtStreamGetId(lane->stream, &id))
        return reply.fail({e, vendor_.message("aclrtStreamGetId", e)});
    reply.ok(uint64_t(uint32_t(id)));
}

void StreamRecords::synchronise(Session& s, Payload p, const Reply& reply) {
    wire::StreamOp o;
    if (!taken(s, p, &o, reply, "aclrtSynchronizeStream")) return;
    Lane* lane = lane_at(s, o.stream, reply, "aclrtSynchronizeStream");
    if (!lane) return;
    Session* session = &s;
    auto t = lane->idle() ? nullptr : timed_.add(o.deadline_ns, "aclrtSynchronizeStreamWithTimeout", reply);
    after({lane}, true, [this, session, lane, o, reply, t] {
        if (timed_.settle(t))
            syncs_.add(session->shared_from_this(), {lane->shared_from_this()}, o.deadline_ns, reply);
    });
}

void StreamRecords::synchronise_device(Session& s, Payload p, const Reply& reply) {
    wire::StreamOp o;
    if (!taken(s, p, &o, reply, "aclrtSynchronizeDevice")) return;
    Session* session = &s;
    auto t = timed_.add(o.deadline_ns, "aclrtSynchronizeDeviceWithTimeout", reply);
    after(Lanes::all_of(s), true, [this, session, o, reply, t] {
        if (!timed_.settle(t)) return;
        std::vector<std::shared_ptr<Lane>> lanes;
        session->each_lane([&](const std::shared_ptr<Lane>& lane) { lanes.push_back(lane); });
        syncs_.add(session->shared_from_this(), std::move(lanes), o.deadline_ns, reply);
    });
}

void StreamRecords::query(Session& s, Payload p, const Reply& reply) {
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

void StreamRecords::abort(Session& s, Payload p, const Reply& reply) {
    wire::StreamOp o;
    if (!taken(s, p, &o, reply, "aclrtStreamAbort")) return;
    Lane* lane = o.stream ? s.streams.find(o.stream) : nullptr;
    if (!lane)
        return refuse(s, reply, acl::RT_INVALID_HANDLE,
                      "aclrtStreamAbort: " + hex(o.stream) + " is not a stream");
    aborts_.abort(lane->shared_from_this(), worker_of(*reply.ring), [reply](const Failure& f) {
        if (f.code)
            reply.fail(f);
        else
            reply.ok();
    });
}

// The device's tasks, as far as they are this session's: the vendor's function of that name would abort
// everybody's.
void StreamRecords::abort_device(Session& s, Payload p, const Reply& reply) {
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
        aborts_.abort(lane, worker_of(*reply.ring), arrive);
    });
    arrive({});
}

void StreamRecords::host_function(Session& s, Payload p) {
    wire::HostFunc h;
    Lane* lane = taken(s, p, &h);
    if (!lane) return;
    if (lane->capture || lane->update) {
        return refuse_later(s, lane, acl::RT_CAPTURE_MODE_NOT_SUPPORT,
                            "aclrtLaunchHostFunc: FlexNPU cannot capture a function of the program");
    }
    push(*lane, std::make_unique<Item>(HostFunctionItem{h.function, h.block != 0}));
}

}  // namespace flexnpu::daemon
