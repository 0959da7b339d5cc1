// Task groups of captures (aclmdlRICaptureTaskGrpBegin ... End) and their updates.
#include <utility>

#include "flexnpu/emulator/runtime/capture.hpp"
#include "flexnpu/emulator/runtime/errors.hpp"

namespace flexnpu::emulator {

int32_t Captures::group_begin(const char* function, Stream& stream) {
    std::lock_guard lock(mutex_);
    Chain* chain = chain_locked(stream);
    if (chain == nullptr) {
        return fail(acl::RT_STREAM_NOT_CAPTURED, "%s: the stream is not being captured", function);
    }
    Capture& capture = *chain->capture;
    if (!capture.invalid.empty()) {
        return refuse_invalid(function, capture);
    }
    if (capture.group) {
        return fail(acl::RT_TASK_GROUP_STATUS, "%s: a task group is being recorded already", function);
    }
    capture.group = std::make_shared<TaskGroup>();
    capture.group->graph = capture.graph;
    capture.group_stream = &stream;
    ++capture.graph->groups;
    return acl::SUCCESS;
}

int32_t Captures::group_end(const char* function, Stream& stream, void** handle) {
    *handle = nullptr;
    std::lock_guard lock(mutex_);
    Chain* chain = chain_locked(stream);
    if (chain == nullptr) {
        return fail(acl::RT_STREAM_NOT_CAPTURED, "%s: the stream is not being captured", function);
    }
    Capture& capture = *chain->capture;
    if (!capture.group || capture.group_stream != &stream) {
        return fail(acl::RT_TASK_GROUP_STATUS, "%s: no task group was begun on the stream", function);
    }
    auto group = std::exchange(capture.group, nullptr);
    capture.group_stream = nullptr;
    if (!capture.invalid.empty()) {
        return refuse_invalid(function, capture);
    }
    *handle = groups_.add(group);
    if (*handle == nullptr) {
        return fail(acl::RT_INTERNAL, "%s: no more task groups", function);
    }
    capture.graph->group_handles.push_back(*handle);
    return acl::SUCCESS;
}

int32_t Captures::update_begin(const char* function, Stream& stream, void* handle) {
    std::lock_guard lock(mutex_);
    auto group = groups_.get(handle);
    auto graph = group ? group->graph.lock() : nullptr;
    if (!group || !graph) {
        return fail(acl::RT_PARAM_INVALID, "%s: %p is not a task group of a live graph", function, handle);
    }
    if (chain_locked(stream) != nullptr) {
        return fail(acl::RT_STREAM_CAPTURED, "%s: the stream is being captured", function);
    }
    if (!graph->sealed()) {
        return fail(acl::RT_MODEL_CAPTURED, "%s: the graph of the task group is still being captured",
                    function);
    }
    if (updates_.contains(&stream)) {
        return fail(acl::RT_TASK_GROUP_STATUS, "%s: the stream is updating a task group already", function);
    }
    if (group->updating) {
        return fail(acl::RT_TASK_GROUP_STATUS, "%s: the task group is being updated already", function);
    }
    group->updating = true;
    auto update = std::make_shared<TaskUpdate>();
    update->graph = std::move(graph);
    update->group = std::move(group);
    updates_[&stream] = std::move(update);
    stream.divert = Stream::Divert::Update;
    return acl::SUCCESS;
}

int32_t Captures::update_end(const char* function, Stream& stream, std::shared_ptr<TaskUpdate>* update) {
    std::lock_guard lock(mutex_);
    auto at = updates_.find(&stream);
    if (at == updates_.end()) {
        return fail(acl::RT_TASK_GROUP_STATUS, "%s: the stream is not updating a task group", function);
    }
    *update = std::move(at->second);
    updates_.erase(at);
    stream.divert = Stream::Divert::None;
    TaskUpdate& work = **update;
    work.group->updating = false;
    if (work.failed) {
        return fail(acl::RT_INTERNAL, "%s: an operator of the update was refused: nothing is updated",
                    function);
    }
    if (work.kernels.size() != work.group->nodes.size()) {
        return fail(acl::RT_INTERNAL,
                    "%s: the task group has %zu operators, the update %zu: nothing is updated", function,
                    work.group->nodes.size(), work.kernels.size());
    }
    return acl::SUCCESS;
}

}  // namespace flexnpu::emulator
