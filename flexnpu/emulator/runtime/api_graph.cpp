// Graph capture, replay, task groups and updates.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "acl.gen.h"
#include "flexnpu/emulator/runtime/lookup.hpp"
#include "flexnpu/emulator/runtime/runtime.hpp"

namespace emu = flexnpu::emulator;
namespace acl = flexnpu::acl;
using emu::append;
using emu::fail;
using emu::find_stream;
using emu::Runtime;

namespace {

constexpr uint32_t kJsonVerbose = 1;

// Queues a replay on the stream.
int32_t execute(const char* function, aclmdlRI model, emu::Stream& stream) {
    std::shared_ptr<emu::Graph> graph;
    if (int32_t error = Runtime::get().captures.find(function, model, &graph)) {
        return error;
    }
    if (graph->device != stream.device) {
        return fail(acl::RT_PARAM_INVALID, "%s: the graph is of device %d, the stream of device %d", function,
                    graph->device, stream.device);
    }
    auto replay = std::make_shared<emu::Replay>();
    replay->graph = std::move(graph);
    // Numbered now: what waits for such an event from here on waits for this replay.
    for (const auto& event : replay->graph->recorded) {
        replay->records.push_back(event->next_record());
    }
    emu::Task task;
    task.kind = emu::TaskKind::Replay;
    task.replay = replay;
    int32_t error = append(function, stream, std::move(task));
    if (error != 0) {
        for (size_t i = 0; i < replay->records.size(); ++i) {
            replay->graph->recorded[i]->complete(replay->records[i], emu::now_ns());
        }
    }
    return error;
}

}  // namespace

extern "C" {

aclError aclmdlRICaptureBegin(aclrtStream handle, aclmdlRICaptureMode mode) {
    std::shared_ptr<emu::Stream> stream;
    if (int32_t error = find_stream("aclmdlRICaptureBegin", handle, &stream)) {
        return error;
    }
    Runtime& runtime = Runtime::get();
    return runtime.captures.begin("aclmdlRICaptureBegin", *stream, runtime.is_default(*stream), mode);
}

aclError aclmdlRICaptureEnd(aclrtStream handle, aclmdlRI* model) {
    std::shared_ptr<emu::Stream> stream;
    if (model == nullptr) {
        return fail(acl::INVALID_PARAM, "aclmdlRICaptureEnd: the output is null");
    }
    if (int32_t error = find_stream("aclmdlRICaptureEnd", handle, &stream)) {
        return error;
    }
    return Runtime::get().captures.end("aclmdlRICaptureEnd", *stream, model);
}

aclError aclmdlRICaptureGetInfo(aclrtStream handle, aclmdlRICaptureStatus* status, aclmdlRI* model) {
    if (status == nullptr && model == nullptr) {
        return fail(acl::INVALID_PARAM, "aclmdlRICaptureGetInfo: both outputs are null");
    }
    std::shared_ptr<emu::Stream> stream;
    if (int32_t error = find_stream("aclmdlRICaptureGetInfo", handle, &stream)) {
        return error;
    }
    aclmdlRI graph = nullptr;
    int32_t now = Runtime::get().captures.status(*stream, &graph);
    if (status != nullptr) {
        *status = now;
    }
    if (model != nullptr) {
        *model = graph;
    }
    return acl::SUCCESS;
}

aclError aclmdlRICaptureThreadExchangeMode(aclmdlRICaptureMode* mode) {
    if (mode == nullptr) {
        return fail(acl::INVALID_PARAM, "aclmdlRICaptureThreadExchangeMode: the mode is null");
    }
    if (*mode < acl::CAPTURE_GLOBAL || *mode > acl::CAPTURE_RELAXED) {
        return fail(acl::RT_PARAM_INVALID, "aclmdlRICaptureThreadExchangeMode: %d is not a mode of capture",
                    *mode);
    }
    *mode = emu::Captures::exchange_mode(*mode);
    return acl::SUCCESS;
}

aclError aclmdlRIExecuteAsync(aclmdlRI model, aclrtStream handle) {
    std::shared_ptr<emu::Stream> stream;
    if (int32_t error = find_stream("aclmdlRIExecuteAsync", handle, &stream)) {
        return error;
    }
    return execute("aclmdlRIExecuteAsync", model, *stream);
}

// On the context's default stream, as nothing names another.
aclError aclmdlRIExecute(aclmdlRI model, int32_t timeout_ms) {
    if (timeout_ms < -1 || timeout_ms == 0) {
        return fail(acl::RT_PARAM_INVALID, "aclmdlRIExecute: %d ms is not a timeout", timeout_ms);
    }
    std::shared_ptr<emu::Stream> stream;
    if (int32_t error = find_stream("aclmdlRIExecute", nullptr, &stream)) {
        return error;
    }
    if (int32_t error = execute("aclmdlRIExecute", model, *stream)) {
        return error;
    }
    return timeout_ms == -1 ? aclrtSynchronizeStream(nullptr)
                            : aclrtSynchronizeStreamWithTimeout(nullptr, timeout_ms);
}

aclError aclmdlRIAbort(aclmdlRI model) {
    std::shared_ptr<emu::Graph> graph;
    if (int32_t error = Runtime::get().captures.find("aclmdlRIAbort", model, &graph)) {
        return error;
    }
    graph->abort();
    return acl::SUCCESS;
}

aclError aclmdlRIDestroy(aclmdlRI model) { return Runtime::get().captures.destroy("aclmdlRIDestroy", model); }

aclError aclmdlRIGetId(aclmdlRI model, uint32_t* id) {
    auto graph = Runtime::get().captures.find_any(model);
    if (id == nullptr || !graph) {
        return fail(acl::RT_PARAM_INVALID, "aclmdlRIGetId: %p is not a graph, or the output is null", model);
    }
    *id = graph->id;
    return acl::SUCCESS;
}

aclError aclmdlRISetName(aclmdlRI model, const char* name) {
    auto graph = Runtime::get().captures.find_any(model);
    if (name == nullptr || !graph) {
        return fail(acl::RT_PARAM_INVALID, "aclmdlRISetName: %p is not a graph, or the name is null", model);
    }
    graph->set_name(name);
    return acl::SUCCESS;
}

aclError aclmdlRIGetName(aclmdlRI model, uint32_t size, char* name) {
    auto graph = Runtime::get().captures.find_any(model);
    if (name == nullptr || size == 0 || !graph) {
        return fail(acl::RT_PARAM_INVALID,
                    "aclmdlRIGetName: %p is not a graph, or there is no room for the name", model);
    }
    std::string text = graph->name();
    size_t length = std::min<size_t>(text.size(), size - 1);
    std::memcpy(name, text.data(), length);
    name[length] = '\0';
    return acl::SUCCESS;
}

aclError aclmdlRIDebugPrint(aclmdlRI model) {
    std::shared_ptr<emu::Graph> graph;
    if (int32_t error = Runtime::get().captures.find("aclmdlRIDebugPrint", model, &graph)) {
        return error;
    }
    std::string text = emu::describe(*graph);
    std::fwrite(text.data(), 1, text.size(), stderr);  // there is no log of CANN's here
    return acl::SUCCESS;
}

aclError aclmdlRIDebugJsonPrint(aclmdlRI model, const char* path, uint32_t flags) {
    std::shared_ptr<emu::Graph> graph;
    if (path == nullptr || flags > kJsonVerbose) {
        return fail(acl::RT_PARAM_INVALID,
                    "aclmdlRIDebugJsonPrint: the path is null or the flags %u are unknown", flags);
    }
    if (int32_t error = Runtime::get().captures.find("aclmdlRIDebugJsonPrint", model, &graph)) {
        return error;
    }
    std::string text = emu::describe_json(*graph, flags == kJsonVerbose);
    std::FILE* file = std::fopen(path, "w");
    bool written = file != nullptr && std::fwrite(text.data(), 1, text.size(), file) == text.size();
    if ((file != nullptr && std::fclose(file) != 0) || !written) {
        return fail(acl::RT_PARAM_INVALID, "aclmdlRIDebugJsonPrint: %s cannot be written", path);
    }
    return acl::SUCCESS;
}

aclError aclmdlRICaptureTaskGrpBegin(aclrtStream handle) {
    std::shared_ptr<emu::Stream> stream;
    if (int32_t error = find_stream("aclmdlRICaptureTaskGrpBegin", handle, &stream)) {
        return error;
    }
    return Runtime::get().captures.group_begin("aclmdlRICaptureTaskGrpBegin", *stream);
}

aclError aclmdlRICaptureTaskGrpEnd(aclrtStream handle, aclrtTaskGrp* group) {
    std::shared_ptr<emu::Stream> stream;
    if (group == nullptr) {
        return fail(acl::INVALID_PARAM, "aclmdlRICaptureTaskGrpEnd: the output is null");
    }
    if (int32_t error = find_stream("aclmdlRICaptureTaskGrpEnd", handle, &stream)) {
        return error;
    }
    return Runtime::get().captures.group_end("aclmdlRICaptureTaskGrpEnd", *stream, group);
}

aclError aclmdlRICaptureTaskUpdateBegin(aclrtStream handle, aclrtTaskGrp group) {
    std::shared_ptr<emu::Stream> stream;
    if (int32_t error = find_stream("aclmdlRICaptureTaskUpdateBegin", handle, &stream)) {
        return error;
    }
    return Runtime::get().captures.update_begin("aclmdlRICaptureTaskUpdateBegin", *stream, group);
}

// Asynchronous, as in CANN: the group has its new arguments when the stream gets there. A replay that has
// begun takes them for the tasks that it has not reached.
aclError aclmdlRICaptureTaskUpdateEnd(aclrtStream handle) {
    std::shared_ptr<emu::Stream> stream;
    if (int32_t error = find_stream("aclmdlRICaptureTaskUpdateEnd", handle, &stream)) {
        return error;
    }
    emu::Task task;
    task.kind = emu::TaskKind::GraphUpdate;
    if (int32_t error =
            Runtime::get().captures.update_end("aclmdlRICaptureTaskUpdateEnd", *stream, &task.update)) {
        return error;
    }
    return append("aclmdlRICaptureTaskUpdateEnd", *stream, std::move(task));
}

aclError aclmdlInitDump() { return acl::SUCCESS; }
aclError aclmdlFinalizeDump() { return acl::SUCCESS; }
aclError aclmdlSetDump(const char*) { return acl::SUCCESS; }
}
