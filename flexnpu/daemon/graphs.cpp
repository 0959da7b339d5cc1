#include "flexnpu/daemon/graphs.hpp"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "flexnpu/daemon/dispatcher.hpp"
#include "flexnpu/daemon/heads.hpp"
#include "flexnpu/daemon/payload.hpp"

namespace flexnpu::daemon {

namespace {

constexpr size_t kMaxGraphs = 1 << 16;
// Bytes of pageable memory that a session's graphs keep for their copies.
constexpr uint64_t kMaxKept = uint64_t(1) << 30;
// How long a dead session's replays may still take before they are aborted.
constexpr int32_t kLastReplayMs = 2'000;

}  // namespace

// ---- what a graph holds ----

void Footprint::add(MemoryMap& memory, uint64_t address, uint64_t bytes) {
    if (bytes == 0) return;
    const auto range = memory.find(address);
    if (!range) return;
    auto [it, fresh] = spans_.try_emplace(range->address, MemoryMap::Span{address, bytes});
    if (fresh) return;
    const uint64_t end = std::max(it->second.address + it->second.bytes, address + bytes);
    it->second.address = std::min(it->second.address, address);
    it->second.bytes = end - it->second.address;
}

const MemoryMap::Span* Footprint::first_foreign(MemoryMap& memory) const {
    for (const auto& [allocation, span] : spans_) {
        if (!memory.holds(span.address, span.bytes)) return &span;
    }
    return nullptr;
}

void* Graph::host(uint64_t bytes) {
    void* p = nullptr;
    if (vendor.aclrtMallocHost(&p, bytes) != 0) return nullptr;
    buffers.push_back(p);
    return p;
}

void Graph::abandon() {
    if (!begun || closed) return;
    closed = true;
    Vendor::call(vendor.aclmdlRICaptureEnd, stream, &model);
}

int32_t Graph::destroy() {
    int32_t e = 0;
    if (model) {
        e = Vendor::call(vendor.aclmdlRIDestroy, model);
        if (e) return e;
        model = nullptr;
    }
    for (void* p : std::exchange(buffers, {})) vendor.aclrtFreeHost(p);
    workspaces.clear();
    old_workspaces.clear();
    regions.clear();
    binaries.clear();
    uses.clear();
    records.clear();
    return 0;
}

// ---- capture ----

void Dispatcher::capture_begin(Session& s, Payload p, const Reply& reply) {
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
    if (s.graphs.size() >= kMaxGraphs)
        return refuse(s, reply, acl::RT_MEMORY_ALLOCATION, "aclmdlRICaptureBegin: too many graphs");
    auto graph = std::make_shared<Graph>(vendor_, next_graph_++);
    graph->handle = s.graphs.add(graph);
    if (!graph->handle)
        return refuse(s, reply, acl::RT_MEMORY_ALLOCATION, "aclmdlRICaptureBegin: too many graphs");
    graph->origin = lane->weak_from_this();
    graph->stream = lane->stream;
    graph->lanes.push_back(graph->origin);
    lane->capture = graph;
    after({lane}, false, [this, session = &s, lane, graph, reply] {
        enter_capture(*lane);
        if (int32_t e = Vendor::call(vendor_.aclmdlRICaptureBegin, lane->stream,
                                     aclmdlRICaptureMode(acl::CAPTURE_RELAXED))) {
            count_.vendor_errors++;
            Failure failure{e, vendor_.message("aclmdlRICaptureBegin", e)};
            forget_graph(*session, graph);
            return reply.fail(failure);
        }
        graph->begun = true;
        count_.graphs++;
        aclmdlRICaptureStatus status = acl::CAPTURE_NONE;
        void* model = nullptr;
        uint32_t id = uint32_t(graph->serial);
        if (Vendor::call(vendor_.aclmdlRICaptureGetInfo, lane->stream, &status, &model) == 0 && model)
            Vendor::call(vendor_.aclmdlRIGetId, model, &id);
        reply.ok(graph->handle, id);
    });
}

// The vendor's stream is about to capture. A free that comes amid the capture waits for what the stream was
// given before, and cannot ask the stream.
void Dispatcher::enter_capture(Lane& lane) {
    if (std::exchange(lane.in_capture, true)) return;
    lane.before_capture = spare_event();
    if (lane.before_capture && vendor_.aclrtRecordEvent(lane.before_capture, lane.stream) != 0) {
        spare_events_.push_back(std::exchange(lane.before_capture, nullptr));
    }
}

// The lanes of this graph's capture run again, and its handle is gone.
void Dispatcher::forget_graph(Session& s, const std::shared_ptr<Graph>& graph) {
    for (auto& weak : std::exchange(graph->lanes, {})) {
        auto lane = weak.lock();
        if (!lane || (lane->capture != graph && lane->ending != graph)) continue;
        if (lane->capture == graph) {
            lane->capture.reset();
            lane->group.reset();
        }
        lane->ending.reset();
        lane->in_capture = false;
        if (lane->before_capture) spare_events_.push_back(std::exchange(lane->before_capture, nullptr));
        flow(*lane);
    }
    if (graph->over) return;
    for (uint64_t group : graph->group_handles) s.groups.remove(group);
    s.graph_bytes -= std::min(s.graph_bytes, graph->kept);
    s.graphs.remove(graph->handle);
}

void Dispatcher::capture_end(Session& s, Payload p, const Reply& reply) {
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
                if (!s->removed) capture_ended(*s, graph, failure, reply);
            });
        });
    });
}

// On the dispatching thread again.
void Dispatcher::capture_ended(Session& s, const std::shared_ptr<Graph>& graph, Failure failure,
                               const Reply& reply) {
    // What could not be captured is why the vendor finds fault, if it does.
    if (graph->failure.code) failure = graph->failure;
    if (failure.code == 0) {
        graph->over = true;
        forget_graph(s, graph);
        return reply.ok(graph->handle);
    }
    count_.vendor_errors++;
    forget_graph(s, graph);
    worker_of(*reply.ring).post([graph, failure, reply] {
        graph->destroy();
        reply.fail(failure);
    });
}

void Dispatcher::capture_info(Session& s, Payload p, const Reply& reply) {
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

Graph* Lane::graph() const { return update ? update->graph.lock().get() : capture.get(); }

Footprint* Dispatcher::footprint_of(Lane& lane) {
    if (lane.update) return &lane.update->footprint;
    if (lane.group) return &lane.group->footprint;
    return lane.capture ? &lane.capture->footprint : nullptr;
}

bool Dispatcher::keep_bytes(Lane& lane, Item& item, const void* from, uint64_t bytes) {
    Graph* graph = lane.graph();
    if (!graph || bytes > kMaxKept - std::min(kMaxKept, lane.session->graph_bytes)) return false;
    void* kept = graph->host(bytes);
    if (!kept) return false;
    std::memcpy(kept, from, bytes);
    graph->kept += bytes;
    lane.session->graph_bytes += bytes;
    item.b = reinterpret_cast<uint64_t>(kept);
    return true;
}

// ---- task groups ----

void Dispatcher::group_begin(Session& s, Payload p, const Reply& reply) {
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

void Dispatcher::group_end(Session& s, Payload p, const Reply& reply) {
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
// next synchronise, and what it would have updated is left alone: nothing of it is run as an operator of its
// own.
void Dispatcher::update_begin(Session& s, Payload p) {
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
    auto item = std::make_unique<Item>();
    item->type = ItemType::update_begin;
    push(*lane, std::move(item));
}

void Dispatcher::update_end(Session& s, Payload p) {
    wire::StreamOp o;
    Lane* lane = taken(s, p, &o);
    if (!lane) return;
    lane->update_refused = false;
    if (!lane->update)
        return refuse_later(s, lane, acl::RT_TASK_GROUP_STATUS,
                            "aclmdlRICaptureTaskUpdateEnd: the stream updates no task group");
    auto item = std::make_unique<Item>();
    item->type = ItemType::update_end;
    push(*lane, std::move(item));
    lane->update.reset();
}

void Dispatcher::dispatch_update(Lane& lane, Item& item) {
    const bool begin = item.type == ItemType::update_begin;
    if (!begin && std::exchange(lane.update_failed, false)) return;
    const int32_t e =
        begin ? Vendor::call(vendor_.aclmdlRICaptureTaskUpdateBegin, lane.stream, item.group->vendor)
              : Vendor::call(vendor_.aclmdlRICaptureTaskUpdateEnd, lane.stream);
    lane.in_update = begin && e == 0;
    if (e == 0) return;
    count_.vendor_errors++;
    lane.update_failed = begin;
    fail(lane, e,
         vendor_.message(begin ? "aclmdlRICaptureTaskUpdateBegin" : "aclmdlRICaptureTaskUpdateEnd", e));
}

Held* Dispatcher::captured_workspace(Lane& lane, Item& item, uint64_t bytes) {
    Graph& graph = *item.capturing;
    std::shared_ptr<Held>& workspace =
        graph.workspaces[item.group ? uint64_t(1) << 32 | item.group->index : lane.id];
    if (workspace && workspace->bytes() >= bytes) return workspace.get();
    if (workspace) graph.old_workspaces.push_back(std::exchange(workspace, nullptr));
    std::string message;
    if (int32_t e = allocate_memory(vendor_, lane.session->account, {item.shape->name(), bytes}, &workspace,
                                    &message)) {
        if (lane.session->account->left() < bytes)
            quota_refusals_++;
        else
            count_.vendor_errors++;
        fail(lane, e, std::move(message));
        return nullptr;
    }
    return workspace.get();
}

// ---- values ----

void Dispatcher::value_op(Session& s, Payload p) {
    wire::ValueOp o;
    if (!take(p, &o) || o.wait > 1) {
        count_.malformed++;
        return refuse_later(s, nullptr, acl::INVALID_PARAM, "");
    }
    Lane* lane = lane_of(s, o.stream);
    if (!lane) return refuse_later(s, nullptr, acl::RT_INVALID_HANDLE, "");
    const char* function = o.wait ? "aclrtValueWait" : "aclrtValueWrite";
    if (!s.memory.holds(o.address, sizeof(uint64_t))) {
        return refuse_later(
            s, lane, acl::RT_PARAM_INVALID,
            std::string(function) + ": " + hex(o.address) + " is not in device memory of this process");
    }
    if (Footprint* f = footprint_of(*lane)) f->add(s.memory, o.address, sizeof(uint64_t));
    auto item = std::make_unique<Item>();
    item->type = ItemType::value;
    item->a = o.address;
    item->b = o.value;
    item->flag = o.flag;
    item->value = int32_t(o.wait);
    push(*lane, std::move(item));
}

// ---- real events ----

// An event's record, wait or reset in a lane: what it means to a capture. True when that is all that it
// means.
bool Dispatcher::capture_event(Session& s, Lane& lane, Event& event, ItemType type) {
    if (!event.real()) {
        // Waiting for an event of a capture joins it.
        const auto of = event.mark->capture.lock();
        if (type == ItemType::wait && !lane.capture && !lane.ending && of && !of->ending &&
            s.graphs.find(of->handle) == of.get()) {
            lane.capture = of;
            of->lanes.push_back(lane.weak_from_this());
        }
        return false;
    }
    if (!lane.capture) return false;
    (type == ItemType::record ? lane.capture->records : lane.capture->uses).insert(event.shared_from_this());
    auto item = std::make_unique<Item>();
    item->type = type;
    item->mark = event.mark;
    item->as_it_is = true;
    if (type == ItemType::wait) event.mark->queued_waits += uint32_t(item->value = 1);
    push(lane, std::move(item));
    return true;
}

// A real event outside of a capture: operations on it are dispatched in the order of the program, whatever
// the lane.
void Dispatcher::use_real_event(Lane& lane, Event& event, ItemType type, int64_t deadline_ns) {
    auto item = std::make_unique<Item>();
    item->type = type;
    if (type == ItemType::record) {
        if (event.mark->queued_waits) event.earlier.push_back(event.mark);
        event.mark = std::make_shared<Mark>(event.mark);
        event.mark->pending = event.mark->recorded = true;
        item->makes.push_back(event.mark);
    } else {
        event.mark->users++;
        item->uses.push_back(event.mark);
    }
    if (type == ItemType::wait) {
        item->deadline_ns = deadline_ns;
        event.mark->queued_waits += uint32_t(item->value = 1);
    }
    item->mark = event.mark;
    push(lane, std::move(item));
}

// What must be dispatched before this item, or nullptr.
Mark* Dispatcher::obstacle(const Item& item) {
    if ((item.type == ItemType::wait || item.type == ItemType::reset) && item.mark->pending && !item.as_it_is)
        return item.mark.get();
    for (const auto& m : item.uses) {
        if (m->pending) return m.get();
    }
    for (const auto& m : item.makes) {
        Mark* before = m->previous.get();
        if (before && (before->pending ||
                       before->users > size_t(std::count(item.uses.begin(), item.uses.end(), m->previous))))
            return before;
    }
    return nullptr;
}

// The lane does not wait for the item's obstacle any more.
void Dispatcher::detach(Lane& lane, const Item& item) {
    if (item.mark) std::erase(item.mark->blocked, &lane);
    for (const auto& m : item.uses) std::erase(m->blocked, &lane);
    for (const auto& m : item.makes) {
        if (m->previous) std::erase(m->previous->blocked, &lane);
    }
}

void Dispatcher::unblock(Mark& mark) {
    for (Lane* l : std::exchange(mark.blocked, {})) {
        l->blocked = false;
        timers_.cancel(std::exchange(l->blocked_until, {}));
        flow(*l);
    }
}

// The item has been dispatched, or never will be.
void Dispatcher::release_marks(Item& item) {
    for (const auto& m : std::exchange(item.uses, {})) {
        m->users--;
        unblock(*m);
    }
    for (const auto& m : std::exchange(item.makes, {})) {
        m->pending = false;
        m->previous.reset();
        unblock(*m);
        for (auto& w : std::exchange(m->waiters, {})) w();
    }
}

// ---- replay ----

void Dispatcher::launch_graph(Session& s, Payload p) {
    wire::GraphOp o;
    Lane* lane = taken(s, p, &o);
    if (!lane) return;
    Graph* graph = s.graphs.find(o.graph);
    if (!graph || !graph->over || graph->dying) {
        return refuse_later(s, lane, acl::RT_INVALID_HANDLE,
                            "aclmdlRIExecuteAsync: " + hex(o.graph) + " is not a graph that can be run");
    }
    if (lane->capture || lane->update) {
        return refuse_later(
            s, lane, acl::RT_STREAM_CAPTURED,
            "aclmdlRIExecuteAsync: a stream that is being captured or updated cannot run a graph");
    }
    // The operators have been captured with addresses that were the session's then.
    if (const uint64_t removals = s.memory.removals(); graph->checked != removals) {
        const MemoryMap::Span* gone = graph->footprint.first_foreign(s.memory);
        for (size_t i = 0; !gone && i < graph->groups.size(); i++)
            gone = graph->groups[i]->footprint.first_foreign(s.memory);
        if (gone) {
            return refuse_later(s, lane, acl::RT_PARAM_INVALID,
                                "aclmdlRIExecuteAsync: the graph's operators use memory at " +
                                    hex(gone->address) + " (" + std::to_string(gone->bytes) +
                                    " bytes), which this process has freed");
        }
        graph->checked = removals;
    }
    auto item = std::make_unique<Item>();
    item->type = ItemType::replay;
    item->graph = graph->shared_from_this();
    for (const auto& e : graph->uses) {
        e->mark->users++;
        item->uses.push_back(e->mark);
    }
    for (const auto& e : graph->records) {
        e->mark = std::make_shared<Mark>(e->mark);
        e->mark->pending = e->mark->recorded = true;
        item->makes.push_back(e->mark);
    }
    push(*lane, std::move(item));
}

void Dispatcher::dispatch_replay(Lane& lane, Item& item) {
    lane.launched++;
    lane.in_flight_since_sync++;
    lane.step_open = true;
    lane.replayed = item.graph;
    count_.replays++;
    if (int32_t e = Vendor::call(vendor_.aclmdlRIExecuteAsync, item.graph->model, lane.stream)) {
        count_.vendor_errors++;
        fail(lane, e, vendor_.message("aclmdlRIExecuteAsync", e));
    }
}

// ---- the rest ----

void Dispatcher::destroy_graph(Session& s, Payload p, const Reply& reply) {
    wire::GraphOp o;
    if (!taken(s, p, &o, reply, "aclmdlRIDestroy")) return;
    Graph* graph = s.graphs.find(o.graph);
    if (!graph || graph->dying)
        return refuse(s, reply, acl::RT_INVALID_HANDLE,
                      "aclmdlRIDestroy: " + hex(o.graph) + " is not a graph");
    if (!graph->over)
        return refuse(s, reply, acl::RT_MODEL_CAPTURED, "aclmdlRIDestroy: the graph is being captured");
    bool updated = false;
    s.each_lane([&](const std::shared_ptr<Lane>& lane) {
        updated = updated || (lane->update && lane->update->graph.lock().get() == graph);
    });
    if (updated)
        return refuse(s, reply, acl::RT_TASK_GROUP_STATUS,
                      "aclmdlRIDestroy: a stream updates a task group of the graph");
    graph->dying = true;
    // What the program has launched before is dispatched before; the vendor knows what is still running.
    after(lanes_of(s), false, [this, session = &s, graph = graph->shared_from_this(), reply] {
        worker_of(*reply.ring).post([this, s = session->shared_from_this(), graph, reply] {
            std::unique_lock lock(graph->mutex);
            const int32_t e = graph->destroy();
            lock.unlock();
            const Failure failure{e, e ? vendor_.message("aclmdlRIDestroy", e) : ""};
            post([this, s, graph, failure, reply] {
                graph->dying = false;
                if (failure.code) return reply.fail(failure);
                graph->over = false;
                if (!s->removed) forget_graph(*s, graph);
                reply.ok();
            });
        });
    });
}

void Dispatcher::graph_text(Session& s, Payload p, const Reply& reply) {
    wire::GraphText o;
    if (!taken(s, p, &o, reply, "aclmdlRIDebugJsonPrint")) return;
    Graph* graph = s.graphs.find(o.graph);
    if (!graph || !graph->over || graph->dying) {
        return refuse(s, reply, acl::RT_INVALID_HANDLE,
                      "aclmdlRIDebugJsonPrint: " + hex(o.graph) + " is not a graph");
    }
    worker_of(*reply.ring).post([this, graph = graph->shared_from_this(), o, reply] {
        std::lock_guard lock(graph->mutex);
        if (!graph->model)
            return reply.fail(
                {acl::RT_INVALID_HANDLE, "aclmdlRIDebugJsonPrint: the graph has been destroyed"});
        if (o.offset == 0) {
            // The vendor writes a file of a name; the client's is its own affair.
            char path[] = "/tmp/flexnpu-graph-XXXXXX.json";
            const Fd file(mkstemps(path, 5));
            if (file.get() < 0)
                return reply.fail(
                    {acl::RT_INTERNAL, "aclmdlRIDebugJsonPrint: the daemon cannot make a file in /tmp"});
            const int32_t e = Vendor::call(vendor_.aclmdlRIDebugJsonPrint, graph->model,
                                           static_cast<const char*>(path), uint32_t(o.flags));
            graph->text.clear();
            const Fd again(e ? -1 : ::open(path, O_RDONLY | O_CLOEXEC));
            char chunk[4096];
            for (ssize_t n; again.get() >= 0 && (n = read(again.get(), chunk, sizeof(chunk))) > 0;)
                graph->text.append(chunk, size_t(n));
            unlink(path);
            if (e) return reply.fail({e, vendor_.message("aclmdlRIDebugJsonPrint", e)});
        }
        if (o.offset > graph->text.size())
            return reply.fail({acl::INVALID_PARAM, "aclmdlRIDebugJsonPrint: the text ends before that"});
        uint64_t words[wire::kReplyWords] = {graph->text.size()};
        const size_t n = std::min(graph->text.size() - o.offset, (wire::kReplyWords - 1) * sizeof(uint64_t));
        std::memcpy(words + 1, graph->text.data() + o.offset, n);
        reply.send(0, "", words, 1 + wire::round8(n) / 8);
    });
}

void Dispatcher::control_graph(Session& s, Payload p, const Reply& reply) {
    wire::ControlGraph o;
    if (!take(p, &o) || o.what < wire::kAbortGraph || o.what > wire::kPrintGraph) {
        count_.malformed++;
        return refuse(s, reply, acl::INVALID_PARAM, "FlexNPU: malformed question about a graph");
    }
    Graph* graph = s.graphs.find(o.graph);
    if (!graph || !graph->over || graph->dying)
        return refuse(s, reply, acl::RT_INVALID_HANDLE, "aclmdlRI: " + hex(o.graph) + " is not a graph");
    auto job = [this, graph = graph->shared_from_this(), what = o.what, reply] {
        worker_of(*reply.ring).post([this, graph, what, reply] {
            const char* name = what == wire::kAbortGraph    ? "aclmdlRIAbort"
                               : what == wire::kUpdateGraph ? "aclmdlRIUpdate"
                                                            : "aclmdlRIDebugPrint";
            std::lock_guard lock(graph->mutex);
            if (!graph->model)
                return reply.fail(
                    {acl::RT_INVALID_HANDLE, std::string(name) + ": the graph has been destroyed"});
            const int32_t e = Vendor::call(what == wire::kAbortGraph    ? vendor_.aclmdlRIAbort
                                           : what == wire::kUpdateGraph ? vendor_.aclmdlRIUpdate
                                                                        : vendor_.aclmdlRIDebugPrint,
                                           graph->model);
            if (e)
                reply.fail({e, vendor_.message(name, e)});
            else
                reply.ok();
        });
    };
    // An abort is for what is running; the others mean the graph as launched so far.
    if (o.what == wire::kAbortGraph) return job();
    after(lanes_of(s), false, std::move(job));
}

// On the reaper's thread, when nothing of the session is dispatched any more: captures end, replays have
// their time, graphs go.
void Dispatcher::tear_down_graphs(Session& s) {
    if (s.graphs.size() == 0) return;
    s.graphs.each([](const std::shared_ptr<Graph>& graph) { graph->abandon(); });
    s.each_lane([&](const std::shared_ptr<Lane>& lane) {
        lane->capture.reset();
        lane->ending.reset();
        lane->group.reset();
        lane->update.reset();
        if (lane->before_capture) vendor_.aclrtDestroyEvent(std::exchange(lane->before_capture, nullptr));
        if (vendor_.aclrtSynchronizeStreamWithTimeout(lane->stream, kLastReplayMs) != acl::RT_WAIT_TIMEOUT)
            return;
        // It waits for what its program will not do any more.
        s.graphs.each([this](const std::shared_ptr<Graph>& graph) {
            if (graph->model) Vendor::call(vendor_.aclmdlRIAbort, graph->model);
        });
    });
    s.events.each([](const std::shared_ptr<Event>& e) {
        e->mark->capture.reset();
        e->mark->previous.reset();
    });
    s.graphs.each([](const std::shared_ptr<Graph>& graph) { graph->destroy(); });
    s.groups = Table<TaskGroup>(wire::HandleKind::task_group);
    s.graphs = Table<Graph>(wire::HandleKind::graph);
}

}  // namespace flexnpu::daemon
