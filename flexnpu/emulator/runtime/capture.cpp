#include "flexnpu/emulator/runtime/capture.hpp"

#include <pthread.h>
#include <algorithm>
#include <utility>

#include "flexnpu/emulator/runtime/errors.hpp"

namespace flexnpu::emulator {

namespace {

thread_local int32_t t_mode = acl::CAPTURE_GLOBAL;

uint64_t this_thread() { return uint64_t(pthread_self()); }

void merge(std::vector<uint32_t>& into, const std::vector<uint32_t>& from) {
    into.insert(into.end(), from.begin(), from.end());
    std::sort(into.begin(), into.end());
    into.erase(std::unique(into.begin(), into.end()), into.end());
}

}  // namespace

Captures::Chain* Captures::chain_locked(Stream& stream) {
    auto at = chains_.find(&stream);
    return at != chains_.end() ? &at->second : nullptr;
}

int32_t Captures::refuse_invalid(const char* function, const Capture& capture) {
    return fail(acl::RT_CAPTURE_INVALIDATED, "%s: the capture is invalid: %s", function,
                capture.invalid.c_str());
}

void Captures::invalidate_locked(Capture& capture, const char* function, const char* what) {
    if (capture.invalid.empty()) {
        capture.invalid = std::string(function) + " " + what;
    }
}

// The capture takes no more tasks, and its streams are ordinary ones again.
void Captures::finish_locked(Capture& capture) {
    capture.over = true;
    std::erase_if(chains_, [&](auto& entry) {
        if (entry.second.capture.get() != &capture) {
            return false;
        }
        entry.first->divert = Stream::Divert::None;
        return true;
    });
    active_.fetch_sub(1);
}

int32_t Captures::begin(const char* function, Stream& stream, bool default_stream, int32_t mode) {
    if (mode < acl::CAPTURE_GLOBAL || mode > acl::CAPTURE_RELAXED) {
        return fail(acl::RT_PARAM_INVALID, "%s: %d is not a mode of capture", function, mode);
    }
    if (default_stream) {
        return fail(acl::RT_CAPTURE_IMPLICIT, "%s: the default stream cannot be captured", function);
    }
    std::lock_guard lock(mutex_);
    if (chain_locked(stream) != nullptr) {
        return fail(acl::RT_STREAM_CAPTURED, "%s: the stream is being captured already", function);
    }
    if (updates_.contains(&stream)) {
        return fail(acl::RT_TASK_GROUP_STATUS, "%s: the stream is updating a task group", function);
    }
    auto capture = std::make_shared<Capture>();
    capture->graph = std::make_shared<Graph>(next_id_++, stream.device);
    capture->graph->handle = graphs_.add(capture->graph);
    if (capture->graph->handle == nullptr) {
        return fail(acl::RT_INTERNAL, "%s: no more graphs", function);
    }
    capture->origin = &stream;
    capture->mode = mode;
    capture->thread = this_thread();
    chains_[&stream] = {capture, {}};
    active_.fetch_add(1);
    stream.divert = Stream::Divert::Capture;
    return acl::SUCCESS;
}

// A stream is joined when its last task comes before what the origin would do next.
bool Captures::unjoined_locked(const Capture& capture) const {
    const auto& nodes = capture.graph->nodes;
    std::vector<bool> before(nodes.size(), false);
    for (uint32_t node : chains_.at(capture.origin).frontier) {
        before[node] = true;
    }
    for (size_t i = nodes.size(); i-- > 0;) {
        if (before[i]) {
            for (uint32_t node : nodes[i].after) {
                before[node] = true;
            }
        }
    }
    return std::find(before.begin(), before.end(), false) != before.end();
}

int32_t Captures::end(const char* function, Stream& stream, void** graph) {
    *graph = nullptr;
    std::lock_guard lock(mutex_);
    Chain* chain = chain_locked(stream);
    if (chain == nullptr) {
        return fail(acl::RT_STREAM_NOT_CAPTURED, "%s: the stream is not being captured", function);
    }
    std::shared_ptr<Capture> capture = chain->capture;
    if (capture->origin != &stream) {
        return fail(acl::RT_CAPTURE_UNMATCHED, "%s: the capture began on another stream", function);
    }
    if (capture->mode != acl::CAPTURE_RELAXED && capture->thread != this_thread()) {
        return fail(acl::RT_CAPTURE_WRONG_THREAD, "%s: only the thread that began this capture may end it",
                    function);
    }
    int32_t error = acl::SUCCESS;
    if (!capture->invalid.empty()) {
        error = refuse_invalid(function, *capture);
    } else if (capture->group) {
        error = fail(acl::RT_TASK_GROUP_STATUS, "%s: a task group was begun and not ended", function);
    } else if (unjoined_locked(*capture)) {
        error = fail(acl::RT_STREAM_UNJOINED,
                     "%s: tasks of another stream were captured that the capturing stream does not wait for",
                     function);
    }
    finish_locked(*capture);
    if (error != acl::SUCCESS) {
        forget(*capture->graph);
        return error;
    }
    capture->graph->seal();
    *graph = capture->graph->handle;
    return acl::SUCCESS;
}

int32_t Captures::status(Stream& stream, void** graph) {
    *graph = nullptr;
    if (stream.divert.load() != Stream::Divert::Capture) {
        return acl::CAPTURE_NONE;
    }
    std::lock_guard lock(mutex_);
    Chain* chain = chain_locked(stream);
    if (chain == nullptr) {
        return acl::CAPTURE_NONE;
    }
    *graph = chain->capture->graph->handle;
    return chain->capture->invalid.empty() ? acl::CAPTURE_ACTIVE : acl::CAPTURE_INVALIDATED;
}

uint32_t Captures::add_node_locked(Chain& chain, Stream& stream, Task&& task) {
    Graph& graph = *chain.capture->graph;
    auto index = uint32_t(graph.nodes.size());
    GraphNode& node = graph.nodes.emplace_back();
    if (task.kind == TaskKind::Kernel) {
        node.held = std::make_shared<HeldKernel>(task.kernel);
        task.kernel = Kernel{};
    } else if (task.kind == TaskKind::Callback) {
        node.reports = stream.report_queue();
    }
    node.task = std::move(task);
    node.stream = stream.id;
    node.after = chain.frontier;
    chain.frontier = {index};
    if (chain.capture->group) {
        node.group = graph.groups;
        chain.capture->group->nodes.push_back(index);
    }
    return index;
}

int32_t Captures::take(const char* function, Stream& stream, Task& task, bool* taken) {
    *taken = true;
    std::lock_guard lock(mutex_);
    if (auto update = updates_.find(&stream); update != updates_.end()) {
        TaskUpdate& work = *update->second;
        size_t place = work.kernels.size();
        if (task.kind != TaskKind::Kernel) {
            work.failed = true;
            return fail(acl::RT_INTERNAL, "%s: only operators can update a task group", function);
        }
        if (place >= work.group->nodes.size()) {
            work.failed = true;
            return fail(acl::RT_INTERNAL,
                        "%s: the task group has %zu operators, the update brings %s as one more", function,
                        work.group->nodes.size(), task.kernel.name);
        }
        auto before = work.graph->kernel(work.group->nodes[place]);
        if (before->kernel.op != task.kernel.op) {
            work.failed = true;
            return fail(acl::RT_INTERNAL, "%s: operator %zu of the task group is %s, the update brings %s",
                        function, place, before->kernel.name, task.kernel.name);
        }
        work.kernels.push_back(std::make_shared<HeldKernel>(task.kernel));
        return acl::SUCCESS;
    }
    Chain* chain = chain_locked(stream);
    if (chain == nullptr) {
        *taken = false;
        return acl::SUCCESS;
    }
    Capture& capture = *chain->capture;
    if (!capture.invalid.empty()) {
        return refuse_invalid(function, capture);
    }
    if (capture.group && capture.group_stream != &stream) {
        return fail(acl::RT_TASK_GROUP_INTERRUPTED,
                    "%s: a task group is being recorded on another stream of the capture", function);
    }
    switch (task.kind) {
        case TaskKind::Kernel: break;
        case TaskKind::Copy:
        case TaskKind::HostFunction:
        case TaskKind::Callback:
        case TaskKind::ValueWrite:
        case TaskKind::ValueWait:
            if (capture.group) {
                return fail(kNotSupported, "%s: a task group can hold operators only", function);
            }
            break;
        case TaskKind::Replay:
            // A graph within a graph: CANN documents none.
            invalidate_locked(capture, function, "was called on a capturing stream");
            return fail(acl::RT_STREAM_CAPTURED, "%s: a graph cannot be captured into another", function);
        default:
            invalidate_locked(capture, function, "cannot be captured");
            return fail(kNotSupported, "%s cannot be captured", function);
    }
    add_node_locked(*chain, stream, std::move(task));
    return acl::SUCCESS;
}

int32_t Captures::record(const char* function, const std::shared_ptr<Event>& event, Stream& stream,
                         bool* handled) {
    *handled = false;
    if (stream.divert.load() == Stream::Divert::None && !event->captured.load()) {
        return acl::SUCCESS;
    }
    std::lock_guard lock(mutex_);
    Chain* chain = chain_locked(stream);
    if (chain == nullptr) {
        // An ordinary record: the event is an ordinary one again.
        event->mark.reset();
        event->captured = false;
        return acl::SUCCESS;
    }
    *handled = true;
    Capture& capture = *chain->capture;
    if (!capture.invalid.empty()) {
        return refuse_invalid(function, capture);
    }
    if (capture.group) {
        return fail(kNotSupported, "%s: a task group can hold operators only", function);
    }
    if ((event->flags & acl::EVENT_EXTERNAL) != 0) {
        Graph& graph = *capture.graph;
        Task task;
        task.kind = TaskKind::EventRecord;
        task.event = event;
        uint32_t node = add_node_locked(*chain, stream, std::move(task));
        graph.nodes[node].record = uint32_t(graph.recorded.size());
        graph.recorded.push_back(event);
        return acl::SUCCESS;
    }
    event->mark = std::make_shared<CaptureMark>(CaptureMark{chain->capture, chain->frontier});
    event->captured = true;
    return acl::SUCCESS;
}

int32_t Captures::wait(const char* function, const std::shared_ptr<Event>& event,
                       const std::shared_ptr<Stream>& stream, bool* handled) {
    *handled = false;
    if (stream->divert.load() == Stream::Divert::None && !event->captured.load()) {
        return acl::SUCCESS;
    }
    std::lock_guard lock(mutex_);
    Chain* chain = chain_locked(*stream);
    std::shared_ptr<Capture> capture = chain != nullptr ? chain->capture : nullptr;
    if (capture && !capture->invalid.empty()) {
        *handled = true;
        return refuse_invalid(function, *capture);
    }
    if (capture && (event->flags & acl::EVENT_EXTERNAL) != 0) {
        *handled = true;
        Task task;
        task.kind = TaskKind::EventWait;
        task.event = event;
        add_node_locked(*chain, *stream, std::move(task));
        return acl::SUCCESS;
    }
    if (!event->mark) {
        if (!capture || event->current() == 0) {
            return acl::SUCCESS;  // nothing captured, or nothing to wait for
        }
        *handled = true;
        invalidate_locked(*capture, function, "waited for an event that was recorded outside the capture");
        return fail(acl::RT_CAPTURE_DEPENDENCY,
                    "%s: a capturing stream cannot wait for an event that was recorded outside its capture; "
                    "create the event "
                    "as an external one",
                    function);
    }
    *handled = true;
    CaptureMark& mark = *event->mark;
    if (mark.capture->over) {
        if (capture) {
            invalidate_locked(*capture, function, "waited for an event of another capture");
        }
        return fail(acl::RT_EVENT_CAPTURED, "%s: the event was recorded in a capture that has ended",
                    function);
    }
    if (!mark.capture->invalid.empty()) {
        return refuse_invalid(function, *mark.capture);
    }
    if (capture && capture != mark.capture) {
        invalidate_locked(*capture, function, "waited for an event of another capture");
        invalidate_locked(*mark.capture, function, "made another capture depend on this one");
        return fail(acl::RT_CAPTURE_CONFLICT, "%s: the event belongs to another capture than the stream",
                    function);
    }
    if (!capture) {
        if (updates_.contains(stream.get())) {
            return fail(acl::RT_TASK_GROUP_STATUS, "%s: the stream is updating a task group", function);
        }
        chains_[stream.get()] = {mark.capture, mark.frontier};
        stream->divert = Stream::Divert::Capture;
        return acl::SUCCESS;
    }
    merge(chain->frontier, mark.frontier);
    return acl::SUCCESS;
}

int32_t Captures::reset(const char* function, const std::shared_ptr<Event>& event, Stream& stream,
                        bool* handled) {
    *handled = false;
    if (stream.divert.load() != Stream::Divert::Capture) {
        return acl::SUCCESS;
    }
    std::lock_guard lock(mutex_);
    Chain* chain = chain_locked(stream);
    if (chain == nullptr) {
        return acl::SUCCESS;
    }
    *handled = true;
    Capture& capture = *chain->capture;
    if (!capture.invalid.empty()) {
        return refuse_invalid(function, capture);
    }
    if ((event->flags & acl::EVENT_EXTERNAL) != 0) {
        Task task;
        task.kind = TaskKind::EventReset;
        task.event = event;
        add_node_locked(*chain, stream, std::move(task));
        return acl::SUCCESS;
    }
    if (event->mark && event->mark->capture == chain->capture) {
        return acl::SUCCESS;  // waits for it are edges of the graph already: nothing is left to reset
    }
    invalidate_locked(capture, function, "reset an event that was recorded outside the capture");
    return fail(acl::RT_CAPTURE_DEPENDENCY, "%s: the event was recorded outside the capture", function);
}

int32_t Captures::check_stream(const char* function, Stream& stream) {
    if (stream.divert.load() != Stream::Divert::Capture) {
        return acl::SUCCESS;
    }
    std::lock_guard lock(mutex_);
    Chain* chain = chain_locked(stream);
    if (chain == nullptr) {
        return acl::SUCCESS;
    }
    invalidate_locked(*chain->capture, function, "was called on a capturing stream");
    return fail(acl::RT_STREAM_CAPTURED, "%s: the stream is being captured: its tasks do not run", function);
}

int32_t Captures::check_event(const char* function, Event& event) {
    if (!event.captured.load()) {
        return acl::SUCCESS;
    }
    std::lock_guard lock(mutex_);
    if (!event.mark) {
        return acl::SUCCESS;
    }
    if (!event.mark->capture->over) {
        invalidate_locked(*event.mark->capture, function, "was called on an event of the capture");
    }
    return fail(acl::RT_EVENT_CAPTURED,
                "%s: the event was last recorded on a capturing stream: it never completes", function);
}

int32_t Captures::check_device(const char* function, int32_t device) {
    if (active_.load() == 0) {
        return acl::SUCCESS;
    }
    std::lock_guard lock(mutex_);
    int32_t error = acl::SUCCESS;
    for (auto& [stream, chain] : chains_) {
        if (stream->device == device) {
            invalidate_locked(*chain.capture, function,
                              "was called while the device's streams were captured");
            error = acl::RT_STREAM_CAPTURED;
        }
    }
    return error == acl::SUCCESS
               ? error
               : fail(error, "%s: a stream of device %d is being captured", function, device);
}

int32_t Captures::check_unsafe(const char* function) {
    if (active_.load() == 0 || t_mode == acl::CAPTURE_RELAXED) {
        return acl::SUCCESS;
    }
    std::lock_guard lock(mutex_);
    for (auto& [stream, chain] : chains_) {
        const Capture& capture = *chain.capture;
        bool own = capture.thread == this_thread();
        bool forbids = own ? capture.mode != acl::CAPTURE_RELAXED
                           : capture.mode == acl::CAPTURE_GLOBAL && t_mode == acl::CAPTURE_GLOBAL;
        if (forbids) {
            return fail(acl::RT_CAPTURE_MODE_NOT_SUPPORT,
                        "%s: forbidden during a capture of this mode; aclmdlRICaptureThreadExchangeMode to "
                        "RELAXED allows it",
                        function);
        }
    }
    return acl::SUCCESS;
}

int32_t Captures::exchange_mode(int32_t mode) { return std::exchange(t_mode, mode); }

void Captures::stream_aborted(Stream& stream) {
    if (stream.divert.load() == Stream::Divert::None) {
        return;
    }
    std::lock_guard lock(mutex_);
    if (Chain* chain = chain_locked(stream)) {
        invalidate_locked(*chain->capture, "aclrtStreamAbort", "was called on a capturing stream");
    }
}

void Captures::stream_gone(Stream& stream) {
    if (stream.divert.load() == Stream::Divert::None) {
        return;
    }
    std::shared_ptr<TaskUpdate> update;  // its kernels are given back without the lock
    std::lock_guard lock(mutex_);
    stream.divert = Stream::Divert::None;
    if (auto at = updates_.find(&stream); at != updates_.end()) {
        update = std::move(at->second);
        update->group->updating = false;
        updates_.erase(at);
    }
    Chain* chain = chain_locked(stream);
    if (chain == nullptr) {
        return;
    }
    std::shared_ptr<Capture> capture = chain->capture;
    if (capture->origin == &stream) {
        finish_locked(*capture);
        forget(*capture->graph);
    } else {
        invalidate_locked(*capture, "aclrtDestroyStream", "was called on a capturing stream");
        chains_.erase(&stream);
    }
}

int32_t Captures::find(const char* function, void* handle, std::shared_ptr<Graph>* graph) const {
    *graph = graphs_.get(handle);
    if (!*graph) {
        return fail(acl::RT_PARAM_INVALID, "%s: %p is not a graph", function, handle);
    }
    if (!(*graph)->sealed()) {
        return fail(acl::RT_MODEL_CAPTURED, "%s: the graph is still being captured", function);
    }
    return acl::SUCCESS;
}

void Captures::forget(const Graph& graph) {
    graphs_.remove(graph.handle);
    for (void* group : graph.group_handles) {
        groups_.remove(group);
    }
}

// Replays in flight keep the graph until they end.
int32_t Captures::destroy(const char* function, void* handle) {
    std::shared_ptr<Graph> graph;
    if (int32_t error = find(function, handle, &graph)) {
        return error;
    }
    if (!graphs_.remove(handle)) {
        return fail(acl::RT_PARAM_INVALID, "%s: %p is not a graph", function, handle);
    }
    forget(*graph);
    return acl::SUCCESS;
}

}  // namespace flexnpu::emulator
