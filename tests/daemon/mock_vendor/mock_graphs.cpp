// Graphs of the mock vendor.
#include "flexnpu/api/host_objects.hpp"
#include "mock_state.hpp"

using namespace mock;

extern "C" {

aclError aclmdlRICaptureBegin(aclrtStream s, aclmdlRICaptureMode mode) {
    auto* stream = static_cast<Stream*>(s);
    std::lock_guard lock(mutex);
    // Another mode would forbid the daemon's other threads their calls.
    if (mode != acl::CAPTURE_RELAXED) return fail(acl::INVALID_PARAM, "a capture that is not relaxed");
    if (stream->capture) return fail(acl::RT_STREAM_CAPTURED, "is being captured");
    auto* m = new Model{uint32_t(1000 + ++models)};
    all_models.push_back(m);
    log_locked({'B', 0, s, 0, 0, 0, m});
    stream->capture = m;
    stream->origin = true;
    return 0;
}
aclError aclmdlRICaptureEnd(aclrtStream s, aclmdlRI* out) {
    auto* stream = static_cast<Stream*>(s);
    std::lock_guard lock(mutex);
    Model* m = stream->capture;
    *out = nullptr;
    if (!m) return fail(acl::RT_STREAM_NOT_CAPTURED, "is not being captured");
    if (!stream->origin) return fail(acl::RT_CAPTURE_UNMATCHED, "not the stream of the begin");
    for (Stream* other : all_streams) {
        if (other->capture == m) other->capture = nullptr, other->origin = other->in_group = false;
    }
    log_locked({'E', 0, s, 0, 0, 0, m});
    if (m->invalid) {
        models--;
        return fail(acl::RT_CAPTURE_INVALIDATED, "the capture is invalid");
    }
    *out = m;
    return 0;
}
aclError aclmdlRICaptureGetInfo(aclrtStream s, aclmdlRICaptureStatus* status, aclmdlRI* out) {
    std::lock_guard lock(mutex);
    Model* m = static_cast<Stream*>(s)->capture;
    *status = !m ? acl::CAPTURE_NONE : m->invalid ? acl::CAPTURE_INVALIDATED : acl::CAPTURE_ACTIVE;
    *out = m;
    return 0;
}
aclError aclmdlRIGetId(aclmdlRI m, uint32_t* id) { return *id = static_cast<Model*>(m)->id, 0; }
aclError aclmdlRICaptureTaskGrpBegin(aclrtStream s) {
    auto* stream = static_cast<Stream*>(s);
    if (!stream->capture || stream->in_group)
        return fail(acl::RT_TASK_GROUP_STATUS, "no capture, or a group is open");
    stream->in_group = true;
    log({'g', 0, s, 0, 0, 0});
    return 0;
}
aclError aclmdlRICaptureTaskGrpEnd(aclrtStream s, aclrtTaskGrp* out) {
    auto* stream = static_cast<Stream*>(s);
    if (!stream->capture || !stream->in_group) return fail(acl::RT_TASK_GROUP_STATUS, "no group is open");
    stream->in_group = false;
    log({'G', 0, s, 0, 0, 0});
    auto* group = new Group{stream->capture.load()};
    all_groups.push_back(group);
    *out = group;
    return 0;
}
aclError aclmdlRICaptureTaskUpdateBegin(aclrtStream s, aclrtTaskGrp group) {
    auto* stream = static_cast<Stream*>(s);
    if (failing_update || stream->capture || stream->update)
        return fail(acl::RT_TASK_GROUP_STATUS, "captures or updates");
    stream->update = static_cast<Group*>(group)->model;
    log({'u', 0, s, reinterpret_cast<uint64_t>(group), 0, 0});
    return 0;
}
aclError aclmdlRICaptureTaskUpdateEnd(aclrtStream s) {
    auto* stream = static_cast<Stream*>(s);
    if (!stream->update) return fail(acl::RT_TASK_GROUP_STATUS, "updates nothing");
    log({'U', 0, s, 0, 0, 0});
    stream->update = nullptr;
    return 0;
}
aclError aclmdlRIExecuteAsync(aclmdlRI m, aclrtStream s) {
    auto* stream = static_cast<Stream*>(s);
    std::lock_guard lock(mutex);
    if (stream->capture) return fail(acl::RT_STREAM_CAPTURED, "is being captured");
    log_locked({'x', 0, s, 0, 0, 0, m});
    if (sticky) stream->stuck = static_cast<Model*>(m);
    return 0;
}
aclError aclmdlRIAbort(aclmdlRI m) {
    std::lock_guard lock(mutex);
    for (Stream* s : all_streams) {
        if (s->stuck == m) s->stuck = nullptr;
    }
    return 0;
}
aclError aclmdlRIDestroy(aclmdlRI m) {
    std::lock_guard lock(mutex);
    for (Stream* s : all_streams) {
        if (s->stuck == m) return fail(107037, "the graph is running");
    }
    log_locked({'d', 0, nullptr, 0, 0, 0, m});
    models--;
    return 0;
}
aclError aclmdlRIDebugJsonPrint(aclmdlRI m, const char* path, uint32_t flags) {
    FILE* file = fopen(path, "w");
    if (!file) return fail(acl::INVALID_PARAM, "no such file");
    fprintf(file, "{\"id\": %u, \"flags\": %u, \"padding\": \"%05000d\"}\n", static_cast<Model*>(m)->id,
            flags, 0);
    fclose(file);
    return 0;
}
aclError aclrtValueWait(void* p, uint64_t value, uint32_t flag, aclrtStream s) {
    log({'V', flag, s, reinterpret_cast<uint64_t>(p), value, 0});
    return 0;
}
aclError aclrtValueWrite(void* p, uint64_t value, uint32_t flag, aclrtStream s) {
    log({'v', flag, s, reinterpret_cast<uint64_t>(p), value, 0});
    return 0;
}

}  // extern "C"
