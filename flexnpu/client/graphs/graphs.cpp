// Graphs: capture, replay, task groups and their updates, values in device memory that streams write and wait
// for.
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <string>

#include "acl.gen.h"
#include "flexnpu/client/devices.hpp"
#include "flexnpu/client/error.hpp"
#include "flexnpu/client/graphs/graphs.hpp"
#include "flexnpu/client/session/session.hpp"

namespace acl = flexnpu::acl;
namespace wire = flexnpu::wire;
using flexnpu::client::Capture;
using flexnpu::client::Channel;
using flexnpu::client::fail;
using flexnpu::client::number;
using flexnpu::client::Session;
using wire::Kind;

namespace flexnpu::client {

namespace {

// How the calling thread wants unsafe calls to be treated, see Graphs::unsafe().
thread_local aclmdlRICaptureMode thread_mode = acl::CAPTURE_GLOBAL;

pid_t this_thread_id() { return pid_t(syscall(SYS_gettid)); }

}  // namespace

void Graphs::add(uint64_t graph, uint32_t id) {
    std::lock_guard lock(mutex_);
    graphs_[graph] = {id, {}};
}

void Graphs::drop(uint64_t graph) {
    std::lock_guard lock(mutex_);
    auto it = graphs_.find(graph);
    if (it == graphs_.end()) return;
    for (uint64_t group : it->second.groups) groups_.erase(group);
    graphs_.erase(it);
}

bool Graphs::has(uint64_t graph, uint32_t* id) const {
    std::lock_guard lock(mutex_);
    auto it = graphs_.find(graph);
    if (it == graphs_.end()) return false;
    if (id) *id = it->second.id;
    return true;
}

void Graphs::add_group(uint64_t graph, uint64_t group) {
    std::lock_guard lock(mutex_);
    auto it = graphs_.find(graph);
    if (it == graphs_.end()) return;
    it->second.groups.push_back(group);
    groups_[group] = graph;
}

uint64_t Graphs::graph_of_group(uint64_t group) const {
    std::lock_guard lock(mutex_);
    auto it = groups_.find(group);
    return it == groups_.end() ? 0 : it->second;
}

void Graphs::begin(const Capture& capture) {
    std::lock_guard lock(mutex_);
    streams_[capture.origin] = std::make_shared<Capture>(capture);
    count_.fetch_add(1, std::memory_order_relaxed);
}

void Graphs::end(uint64_t origin) {
    std::lock_guard lock(mutex_);
    auto it = streams_.find(origin);
    if (it == streams_.end() || it->second->origin != origin) return;
    const std::shared_ptr<Capture> capture = it->second;
    std::erase_if(streams_, [&](const auto& s) { return s.second == capture; });
    std::erase_if(events_, [&](const auto& e) { return e.second.lock() == capture; });
    count_.fetch_sub(1, std::memory_order_relaxed);
}

std::shared_ptr<Capture> Graphs::of(uint64_t stream) {
    if (!any()) return nullptr;
    std::lock_guard lock(mutex_);
    auto it = streams_.find(stream);
    return it == streams_.end() ? nullptr : it->second;
}

void Graphs::add_real_event(uint64_t event) {
    std::lock_guard lock(mutex_);
    real_events_.insert(event);
    real_count_.store(uint32_t(real_events_.size()), std::memory_order_relaxed);
}

void Graphs::forget_event(uint64_t event) {
    if (!any() && real_count_.load(std::memory_order_relaxed) == 0) return;
    std::lock_guard lock(mutex_);
    events_.erase(event);
    real_events_.erase(event);
    real_count_.store(uint32_t(real_events_.size()), std::memory_order_relaxed);
}

void Graphs::recorded(uint64_t event, uint64_t stream) {
    std::lock_guard lock(mutex_);
    auto it = streams_.find(stream);
    if (it != streams_.end() && !real_events_.count(event))
        events_[event] = it->second;
    else
        events_.erase(event);
}

void Graphs::waited(uint64_t stream, uint64_t event) {
    std::lock_guard lock(mutex_);
    auto it = events_.find(event);
    if (it == events_.end()) return;
    if (auto capture = it->second.lock()) streams_.try_emplace(stream, std::move(capture));
}

// The rule of the vendor: a capture of the global mode forbids such calls to all threads, one of the
// thread-local mode to its own; a thread that has switched to the relaxed mode
// (aclmdlRICaptureThreadExchangeMode) may make them, and one that has switched to thread-local only minds its
// own.
int32_t Graphs::unsafe(const char* function) {
    if (!any() || thread_mode == acl::CAPTURE_RELAXED) return 0;
    const pid_t self = this_thread_id();
    bool forbidden = false;
    std::lock_guard lock(mutex_);
    for (auto& [stream, capture] : streams_) {
        const bool own = capture->thread == self;
        if (capture->mode == acl::CAPTURE_RELAXED ||
            (!own && (capture->mode != acl::CAPTURE_GLOBAL || thread_mode != acl::CAPTURE_GLOBAL)))
            continue;
        capture->invalid = forbidden = true;
    }
    if (!forbidden) return 0;
    return fail(acl::RT_CAPTURE_MODE_NOT_SUPPORT,
                "%s: not while a stream is being captured; see aclmdlRICaptureThreadExchangeMode", function);
}

void Graphs::doubt(uint64_t stream) {
    if (auto capture = of(stream)) capture->doubtful = true;
}

}  // namespace flexnpu::client

namespace {

void* handle(uint64_t h) { return reinterpret_cast<void*>(h); }

#define CHANNEL(c)                   \
    Channel* c = Session::channel(); \
    if (!c) return flexnpu::client::last_error()
// Of the graph's device, whatever the thread's.
#define GRAPH_CHANNEL(c, graph)                                        \
    Session* of_graph = Session::holder(number(graph));                \
    Channel* c = of_graph ? of_graph->mine() : Session::any_channel(); \
    if (!c) return flexnpu::client::last_error()
#define CHECK(e) \
    if (aclError error = (e)) return error

aclError check_stream(Channel& c, const char* function, aclrtStream s) {
    return flexnpu::client::check_stream(c.session(), function, number(s));
}
// A graph that exists, captured or being captured.
aclError check_graph(Channel& c, const char* function, aclmdlRI g) {
    if (c.session().graphs.has(number(g))) return 0;
    return fail(acl::RT_INVALID_HANDLE, "%s: %p is not a graph", function, g);
}

aclError control(const char* function, aclmdlRI g, uint32_t what) {
    GRAPH_CHANNEL(c, g);
    CHECK(check_graph(*c, function, g));
    return c->call(Kind::control_graph, wire::ControlGraph{number(g), what, 0});
}

aclError value_op(const char* function, void* address, uint64_t value, uint32_t flag, aclrtStream s,
                  bool wait) {
    if (!address) return fail(acl::INVALID_PARAM, "%s: the address is null", function);
    CHANNEL(c);
    CHECK(check_stream(*c, function, s));
    return c->post(Kind::value_op,
                   wire::ValueOp{number(s), number(address) ^ c->session().tag(), value, flag, wait});
}

// The vendor's description of a graph.
aclError text_of(Channel& c, aclmdlRI g, uint32_t flags, std::string* out) {
    for (uint64_t all = 1; out->size() < all;) {
        CHECK(c.call(Kind::graph_text, wire::GraphText{number(g), out->size(), flags}));
        all = c.words()[0];
        const size_t n =
            std::min(all - std::min(all, uint64_t(out->size())), (wire::kReplyWords - 1) * sizeof(uint64_t));
        if (n == 0) break;
        out->append(reinterpret_cast<const char*>(c.words() + 1), n);
    }
    return 0;
}

}  // namespace

extern "C" {

aclError aclmdlRICaptureBegin(aclrtStream s, aclmdlRICaptureMode mode) {
    if (mode < acl::CAPTURE_GLOBAL || mode > acl::CAPTURE_RELAXED)
        return fail(acl::INVALID_PARAM, "aclmdlRICaptureBegin: %d is not a mode", mode);
    CHANNEL(c);
    CHECK(check_stream(*c, "aclmdlRICaptureBegin", s));
    CHECK(c->call(Kind::capture_begin, wire::StreamOp{number(s), -1}));
    Session& session = c->session();
    const uint64_t graph = c->words()[0];
    session.graphs.add(graph, uint32_t(c->words()[1]));
    session.graphs.begin({graph, number(s), mode, flexnpu::client::this_thread_id()});
    session.steps.capture_begun(number(s));
    return 0;
}

aclError aclmdlRICaptureEnd(aclrtStream s, aclmdlRI* model) {
    if (!model) return fail(acl::INVALID_PARAM, "aclmdlRICaptureEnd: model is null");
    CHANNEL(c);
    CHECK(check_stream(*c, "aclmdlRICaptureEnd", s));
    Session& session = c->session();
    const auto capture = session.graphs.of(number(s));
    if (!capture)
        return fail(acl::RT_STREAM_NOT_CAPTURED, "aclmdlRICaptureEnd: the stream is not being captured");
    if (capture->origin != number(s))
        return fail(acl::RT_CAPTURE_UNMATCHED, "aclmdlRICaptureEnd: the capture was begun on another stream");
    if (capture->mode != acl::CAPTURE_RELAXED && capture->thread != flexnpu::client::this_thread_id()) {
        return fail(acl::RT_CAPTURE_WRONG_THREAD,
                    "aclmdlRICaptureEnd: another thread has begun the capture, and not in the relaxed mode");
    }
    const int32_t e = c->call(Kind::capture_end, wire::CaptureEnd{number(s), capture->invalid});
    session.graphs.end(number(s));
    session.steps.capture_ended(number(s), e ? 0 : capture->graph);
    if (e) session.graphs.drop(capture->graph);
    *model = e ? nullptr : handle(capture->graph);
    return e;
}

aclError aclmdlRICaptureGetInfo(aclrtStream s, aclmdlRICaptureStatus* status, aclmdlRI* model) {
    if (!status) return fail(acl::INVALID_PARAM, "aclmdlRICaptureGetInfo: status is null");
    *status = acl::CAPTURE_NONE;
    if (model) *model = nullptr;
    CHANNEL(c);
    CHECK(check_stream(*c, "aclmdlRICaptureGetInfo", s));
    const auto capture = c->session().graphs.of(number(s));
    if (!capture) return 0;
    *status = capture->invalid ? acl::CAPTURE_INVALIDATED : acl::CAPTURE_ACTIVE;
    if (model) *model = handle(capture->graph);
    if (capture->doubtful && !capture->invalid) {
        CHECK(c->call(Kind::capture_info, wire::GraphOp{capture->graph, number(s)}));
        *status = aclmdlRICaptureStatus(c->words()[0]);
    }
    return 0;
}

aclError aclmdlRICaptureThreadExchangeMode(aclmdlRICaptureMode* mode) {
    if (!mode || *mode < acl::CAPTURE_GLOBAL || *mode > acl::CAPTURE_RELAXED) {
        return fail(acl::INVALID_PARAM, "aclmdlRICaptureThreadExchangeMode: not a mode");
    }
    std::swap(flexnpu::client::thread_mode, *mode);
    return 0;
}

aclError aclmdlRICaptureTaskGrpBegin(aclrtStream s) {
    CHANNEL(c);
    CHECK(check_stream(*c, "aclmdlRICaptureTaskGrpBegin", s));
    return c->call(Kind::group_begin, wire::StreamOp{number(s), -1});
}
aclError aclmdlRICaptureTaskGrpEnd(aclrtStream s, aclrtTaskGrp* group) {
    if (!group) return fail(acl::INVALID_PARAM, "aclmdlRICaptureTaskGrpEnd: group is null");
    CHANNEL(c);
    CHECK(check_stream(*c, "aclmdlRICaptureTaskGrpEnd", s));
    CHECK(c->call(Kind::group_end, wire::StreamOp{number(s), -1}));
    const uint64_t g = c->words()[0];
    if (const auto capture = c->session().graphs.of(number(s)))
        c->session().graphs.add_group(capture->graph, g);
    *group = handle(g);
    return 0;
}
// Two records, which nobody waits for: a decode step updates a group a layer.
aclError aclmdlRICaptureTaskUpdateBegin(aclrtStream s, aclrtTaskGrp group) {
    CHANNEL(c);
    CHECK(check_stream(*c, "aclmdlRICaptureTaskUpdateBegin", s));
    const uint64_t graph = c->session().graphs.graph_of_group(number(group));
    if (!graph) {
        return fail(acl::RT_INVALID_HANDLE, "aclmdlRICaptureTaskUpdateBegin: %p is not a task group", group);
    }
    c->session().steps.updating(number(s), graph);
    return c->post(Kind::update_begin, wire::GraphOp{number(group), number(s)});
}
aclError aclmdlRICaptureTaskUpdateEnd(aclrtStream s) {
    CHANNEL(c);
    CHECK(check_stream(*c, "aclmdlRICaptureTaskUpdateEnd", s));
    c->session().steps.updating(number(s), 0);
    return c->post(Kind::update_end, wire::StreamOp{number(s), -1});
}

aclError aclmdlRIExecuteAsync(aclmdlRI g, aclrtStream s) {
    CHANNEL(c);
    CHECK(check_graph(*c, "aclmdlRIExecuteAsync", g));
    CHECK(check_stream(*c, "aclmdlRIExecuteAsync", s));
    Session& session = c->session();
    uint8_t* p = c->open(sizeof(wire::GraphOp));
    if (!p) return session.gone();
    const wire::GraphOp replay{number(g), number(s)};
    std::memcpy(p, &replay, sizeof(replay));
    // As an operator's launch: the first of a step is not kept waiting.
    const bool opens = !session.step_open.load(std::memory_order_relaxed);
    if (opens) session.step_open.store(true, std::memory_order_relaxed);
    const flexnpu::client::Steps::Launched step = session.steps.graph(number(s), number(g));
    c->close(sizeof(replay), Kind::launch_graph, opens, step.word());
    session.replayed.store(number(g), std::memory_order_relaxed);
    session.page().launches.fetch_add(1, std::memory_order_relaxed);
    return 0;
}
aclError aclmdlRIExecute(aclmdlRI g, int32_t timeout_ms) {
    CHECK(aclmdlRIExecuteAsync(g, nullptr));
    return aclrtSynchronizeStreamWithTimeout(nullptr, timeout_ms);
}
aclError aclmdlRIDestroy(aclmdlRI g) {
    GRAPH_CHANNEL(c, g);
    CHECK(check_graph(*c, "aclmdlRIDestroy", g));
    CHECK(c->call(Kind::destroy_graph, wire::GraphOp{number(g), 0}));
    c->session().graphs.drop(number(g));
    c->session().steps.graph_destroyed(number(g));
    return 0;
}
aclError aclmdlRIAbort(aclmdlRI g) { return control("aclmdlRIAbort", g, wire::kAbortGraph); }
aclError aclmdlRIUpdate(aclmdlRI g) { return control("aclmdlRIUpdate", g, wire::kUpdateGraph); }

aclError aclmdlRIGetId(aclmdlRI g, uint32_t* id) {
    if (!id) return fail(acl::INVALID_PARAM, "aclmdlRIGetId: id is null");
    GRAPH_CHANNEL(c, g);
    if (c->session().graphs.has(number(g), id)) return 0;
    return fail(acl::RT_INVALID_HANDLE, "aclmdlRIGetId: %p is not a graph", g);
}

// The vendor prints where its process prints, which is the daemon's log.
aclError aclmdlRIDebugPrint(aclmdlRI g) { return control("aclmdlRIDebugPrint", g, wire::kPrintGraph); }
aclError aclmdlRIDebugJsonPrint(aclmdlRI g, const char* path, uint32_t flags) {
    if (!path) return fail(acl::INVALID_PARAM, "aclmdlRIDebugJsonPrint: path is null");
    GRAPH_CHANNEL(c, g);
    CHECK(check_graph(*c, "aclmdlRIDebugJsonPrint", g));
    std::string text;
    CHECK(text_of(*c, g, flags, &text));
    FILE* file = fopen(path, "we");
    if (!file) return fail(acl::INVALID_PARAM, "aclmdlRIDebugJsonPrint: cannot write %s: %m", path);
    const bool written = fwrite(text.data(), 1, text.size(), file) == text.size();
    return fclose(file) == 0 && written
               ? 0
               : fail(acl::RT_INTERNAL, "aclmdlRIDebugJsonPrint: cannot write %s", path);
}

aclError aclrtValueWait(void* address, uint64_t value, uint32_t flag, aclrtStream s) {
    return value_op("aclrtValueWait", address, value, flag, s, true);
}
aclError aclrtValueWrite(void* address, uint64_t value, uint32_t flag, aclrtStream s) {
    return value_op("aclrtValueWrite", address, value, flag, s, false);
}

}  // extern "C"
