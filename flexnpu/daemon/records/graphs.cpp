#include "flexnpu/daemon/records/graphs.hpp"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "flexnpu/daemon/graphs.hpp"

namespace flexnpu::daemon {

void GraphRecords::value(Session& s, Payload p) {
    wire::ValueOp o;
    if (!take(p, &o) || o.wait > 1) {
        return malformed(s);
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
    push(*lane, std::make_unique<Item>(ValueItem{o.address, o.value, o.flag, o.wait != 0}));
}

void GraphRecords::launch(Session& s, Payload p, wire::StepWord step) {
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
    auto item = std::make_unique<Item>(ReplayItem{graph->shared_from_this()});
    item->step = step;
    for (const auto& e : graph->uses) {
        e->mark->users++;
        item->uses.push_back(e->mark);
    }
    for (const auto& e : graph->records) {
        e->renew(std::make_shared<Mark>(e->mark));
        e->mark->pending = e->mark->recorded = true;
        item->makes.push_back(e->mark);
    }
    push(*lane, std::move(item));
}

void GraphRecords::destroy(Session& s, Payload p, const Reply& reply) {
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
    after(Lanes::all_of(s), false, [this, session = &s, graph = graph->shared_from_this(), reply] {
        worker_of(*reply.ring).post([this, s = session->shared_from_this(), graph, reply] {
            std::unique_lock lock(graph->mutex);
            const int32_t e = graph->destroy();
            lock.unlock();
            const Failure failure{e, e ? vendor_.message("aclmdlRIDestroy", e) : ""};
            post([this, s, graph, failure, reply] {
                graph->dying = false;
                if (failure.code) return reply.fail(failure);
                graph->over = false;
                if (!s->removed) captures_.forget(*s, graph);
                reply.ok();
            });
        });
    });
}

void GraphRecords::text(Session& s, Payload p, const Reply& reply) {
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

void GraphRecords::control(Session& s, Payload p, const Reply& reply) {
    wire::ControlGraph o;
    if (!take(p, &o) || o.what < wire::kAbortGraph || o.what > wire::kPrintGraph) {
        return malformed(s, reply, "question about a graph");
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
    after(Lanes::all_of(s), false, std::move(job));
}

}  // namespace flexnpu::daemon
