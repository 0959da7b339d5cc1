#include "flexnpu/daemon/records/capture.hpp"

#include "flexnpu/daemon/graphs.hpp"

namespace flexnpu::daemon {

void CaptureRecords::begin(Session& s, Payload p, const Reply& reply) {
    wire::StreamOp o;
    if (!taken(s, p, &o, reply, "aclmdlRICaptureBegin")) return;
    if (o.stream == 0)
        return refuse(s, reply, acl::RT_CAPTURE_IMPLICIT,
                      "aclmdlRICaptureBegin: the default stream cannot be captured");
    Lane* lane = lane_at(s, o.stream, reply, "aclmdlRICaptureBegin");
    if (!lane) return;
    if (lane->capture || lane->ending)
        return refuse(s, reply, acl::RT_STREAM_CAPTURED,
                      "aclmdlRICaptureBegin: the stream is being captured already");
    if (lane->update)
        return refuse(s, reply, acl::RT_TASK_GROUP_STATUS,
                      "aclmdlRICaptureBegin: the stream updates a task group");
    Failure failure;
    auto graph = std::make_shared<Graph>(vendor_, next_graph_++);
    if (!s.holder->take(HeldKind::graphs, "aclmdlRICaptureBegin", &graph->place, &failure))
        return refuse(s, reply, failure.code, failure.message);
    graph->handle = s.graphs.add(graph);
    if (!graph->handle)
        return refuse(s, reply, acl::RT_MEMORY_ALLOCATION, "aclmdlRICaptureBegin: too many graphs");
    graph->origin = lane->weak_from_this();
    graph->stream = lane->stream;
    graph->lanes.push_back(graph->origin);
    lane->capture = graph;
    after({lane}, false, [this, session = &s, lane, graph, reply] {
        captures_.enter(*lane);
        if (int32_t e = Vendor::call(vendor_.aclmdlRICaptureBegin, lane->stream,
                                     aclmdlRICaptureMode(acl::CAPTURE_RELAXED))) {
            failures_.count_vendor_error();
            Failure failure{e, vendor_.message("aclmdlRICaptureBegin", e)};
            captures_.forget(*session, graph);
            return reply.fail(failure);
        }
        graph->begun = true;
        graphs_++;
        aclmdlRICaptureStatus status = acl::CAPTURE_NONE;
        void* model = nullptr;
        uint32_t id = uint32_t(graph->serial);
        if (Vendor::call(vendor_.aclmdlRICaptureGetInfo, lane->stream, &status, &model) == 0 && model)
            Vendor::call(vendor_.aclmdlRIGetId, model, &id);
        reply.ok(graph->handle, id);
    });
}

void CaptureRecords::end(Session& s, Payload p, const Reply& reply) {
    wire::CaptureEnd o;
    if (!taken(s, p, &o, reply, "aclmdlRICaptureEnd")) return;
    Lane* lane = lane_at(s, o.stream, reply, "aclmdlRICaptureEnd");
    if (!lane) return;
    const std::shared_ptr<Graph> graph = lane->capture;
    if (!graph)
        return refuse(s, reply, acl::RT_STREAM_NOT_CAPTURED,
                      "aclmdlRICaptureEnd: the stream is not being captured");
    if (graph->origin.lock().get() != lane) {
        return refuse(s, reply, acl::RT_CAPTURE_UNMATCHED,
                      "aclmdlRICaptureEnd: the capture was begun on another stream");
    }
    graph->ending = true;
    std::vector<Lane*> lanes;
    for (auto& weak : graph->lanes) {
        auto l = weak.lock();
        if (!l || l->capture != graph) continue;
        lanes.push_back(l.get());
        l->ending = std::exchange(l->capture, nullptr);
        l->group.reset();
    }
    // The vendor may take its time over a large graph: others are served meanwhile.
    after(lanes, false, [this, session = &s, graph, drop = o.drop != 0, reply] {
        if (!graph->begun)
            return refuse(*session, reply, acl::RT_STREAM_NOT_CAPTURED,
                          "aclmdlRICaptureEnd: the stream is not being captured");
        worker_of(*reply.ring).post([this, s = session->shared_from_this(), graph, drop, reply] {
            Failure failure;
            failure.code = Vendor::call(vendor_.aclmdlRICaptureEnd, graph->stream, &graph->model);
            if (failure.code) failure.message = vendor_.message("aclmdlRICaptureEnd", failure.code);
            if (failure.code == 0 && drop)
                failure = {acl::RT_CAPTURE_INVALIDATED, "aclmdlRICaptureEnd: the capture has become invalid"};
            graph->closed = true;
            post([this, s, graph, failure, reply] {
                if (!s->removed) ended(*s, graph, failure, reply);
            });
        });
    });
}

// On the dispatching thread again.
void CaptureRecords::ended(Session& s, const std::shared_ptr<Graph>& graph, Failure failure,
                           const Reply& reply) {
    // What could not be captured is why the vendor finds fault, if it does.
    if (graph->failure.code) failure = graph->failure;
    if (failure.code == 0) {
        graph->over = true;
        captures_.forget(s, graph);
        return reply.ok(graph->handle);
    }
    failures_.count_vendor_error();
    captures_.forget(s, graph);
    worker_of(*reply.ring).post([graph, failure, reply] {
        graph->destroy();
        reply.fail(failure);
    });
}

void CaptureRecords::info(Session& s, Payload p, const Reply& reply) {
    wire::GraphOp o;
    if (!taken(s, p, &o, reply, "aclmdlRICaptureGetInfo")) return;
    Graph* graph = s.graphs.find(o.graph);
    if (!graph || !graph->begun)
        return refuse(s, reply, acl::RT_INVALID_HANDLE,
                      "aclmdlRICaptureGetInfo: " + hex(o.graph) + " is not a capture");
    aclmdlRICaptureStatus status = acl::CAPTURE_NONE;
    void* model = nullptr;
    if (!graph->closed && !graph->ending) {
        if (int32_t e = Vendor::call(vendor_.aclmdlRICaptureGetInfo, graph->stream, &status, &model)) {
            return reply.fail({e, vendor_.message("aclmdlRICaptureGetInfo", e)});
        }
        if (graph->failure.code && status == acl::CAPTURE_ACTIVE) status = acl::CAPTURE_INVALIDATED;
    }
    reply.ok(uint64_t(uint32_t(status)));
}

void CaptureRecords::group_begin(Session& s, Payload p, const Reply& reply) {
    wire::StreamOp o;
    if (!taken(s, p, &o, reply, "aclmdlRICaptureTaskGrpBegin")) return;
    Lane* lane = lane_at(s, o.stream, reply, "aclmdlRICaptureTaskGrpBegin");
    if (!lane) return;
    if (!lane->capture)
        return refuse(s, reply, acl::RT_STREAM_NOT_CAPTURED,
                      "aclmdlRICaptureTaskGrpBegin: the stream is not being captured");
    if (lane->group)
        return refuse(s, reply, acl::RT_TASK_GROUP_STATUS,
                      "aclmdlRICaptureTaskGrpBegin: a task group is open already");
    auto group = std::make_shared<TaskGroup>();
    group->graph = lane->capture;
    group->index = uint32_t(lane->capture->groups.size());
    lane->capture->groups.push_back(group);
    lane->group = group;
    after({lane}, false, [this, lane, reply] {
        if (int32_t e = Vendor::call(vendor_.aclmdlRICaptureTaskGrpBegin, lane->stream)) {
            lane->group.reset();
            return reply.fail({e, vendor_.message("aclmdlRICaptureTaskGrpBegin", e)});
        }
        reply.ok();
    });
}

void CaptureRecords::group_end(Session& s, Payload p, const Reply& reply) {
    wire::StreamOp o;
    if (!taken(s, p, &o, reply, "aclmdlRICaptureTaskGrpEnd")) return;
    Lane* lane = lane_at(s, o.stream, reply, "aclmdlRICaptureTaskGrpEnd");
    if (!lane) return;
    if (!lane->capture || !lane->group)
        return refuse(s, reply, acl::RT_TASK_GROUP_STATUS,
                      "aclmdlRICaptureTaskGrpEnd: no task group is open");
    after({lane}, false, [this, session = &s, lane, group = std::exchange(lane->group, nullptr), reply] {
        if (int32_t e = Vendor::call(vendor_.aclmdlRICaptureTaskGrpEnd, lane->stream, &group->vendor)) {
            return reply.fail({e, vendor_.message("aclmdlRICaptureTaskGrpEnd", e)});
        }
        const auto graph = group->graph.lock();
        const uint64_t handle = graph ? session->groups.add(group) : 0;
        if (!handle)
            return refuse(*session, reply, acl::RT_MEMORY_ALLOCATION,
                          "aclmdlRICaptureTaskGrpEnd: too many task groups");
        graph->group_handles.push_back(handle);
        reply.ok(handle);
    });
}

// Updates are not waited for: a decode step makes one a layer. What is wrong with one is told at the stream's
// next synchronise, and what it would have updated is left alone: no operator or kernel of it runs by itself.
void CaptureRecords::update_begin(Session& s, Payload p) {
    wire::GraphOp o;
    Lane* lane = taken(s, p, &o);
    if (!lane) return;
    TaskGroup* group = s.groups.find(o.graph);
    const auto graph = group ? group->graph.lock() : nullptr;
    const bool there = graph && graph->over && !graph->dying;  // else workers are at it
    if (!there || lane->update || lane->capture) {
        lane->update_refused = true;
        return refuse_later(s, lane, there ? acl::RT_TASK_GROUP_STATUS : acl::RT_INVALID_HANDLE,
                            there ? "aclmdlRICaptureTaskUpdateBegin: the stream is being captured, or "
                                    "updates a task group already"
                                  : "aclmdlRICaptureTaskUpdateBegin: " + hex(o.graph) +
                                        " is not a task group of a graph that can be run");
    }
    for (const auto& g : graph->groups) {
        if (g.get() == group) lane->update = g;
    }
    // The group's operators forget what they referred to. Memory that they may still be using until this
    // takes effect cannot leave the session before this lane has drained.
    lane->update->footprint.clear();
    auto item = std::make_unique<Item>(UpdateBeginItem{});
    push(*lane, std::move(item));
}

void CaptureRecords::update_end(Session& s, Payload p) {
    wire::StreamOp o;
    Lane* lane = taken(s, p, &o);
    if (!lane) return;
    lane->update_refused = false;
    if (!lane->update)
        return refuse_later(s, lane, acl::RT_TASK_GROUP_STATUS,
                            "aclmdlRICaptureTaskUpdateEnd: the stream updates no task group");
    auto item = std::make_unique<Item>(UpdateEndItem{});
    push(*lane, std::move(item));
    lane->update.reset();
}

}  // namespace flexnpu::daemon
