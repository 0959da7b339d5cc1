// Copies in batches, and the resources that a thread takes over from a stream.
#include "acl.gen.h"
#include "flexnpu/api/host_objects.hpp"
#include "flexnpu/client/error.hpp"
#include "flexnpu/client/session/session.hpp"

namespace acl = flexnpu::acl;
using flexnpu::client::fail;
using flexnpu::client::Session;

namespace {

// One copy after the other: the direction of each follows from its addresses, whatever the attributes say of
// them.
aclError copy_batch(const char* function, void** to, size_t* room, void** from, size_t* bytes, size_t n,
                    size_t* failed, bool now, aclrtStream stream) {
    if (!to || !room || !from || !bytes || n == 0)
        return fail(acl::INVALID_PARAM, "%s: null pointer, or nothing to copy", function);
    for (size_t i = 0; i < n; i++) {
        const aclError e =
            now ? aclrtMemcpy(to[i], room[i], from[i], bytes[i], acl::MEMCPY_DEFAULT)
                : aclrtMemcpyAsync(to[i], room[i], from[i], bytes[i], acl::MEMCPY_DEFAULT, stream);
        if (e == 0) continue;
        if (failed) *failed = i;
        return e;
    }
    return 0;
}

// The stream whose limits of cores the calling thread has taken over. The daemon makes first calls for all
// programs on a thread of its own, so what the limits are can be asked, and they hold for launches on that
// stream; a first call does not see them.
thread_local aclrtStream resources_of = nullptr;

aclError check_stream(const char* function, aclrtStream stream) {
    Session* s = Session::get();
    if (!s) return flexnpu::client::last_error();
    if (stream && !s->streams.has(reinterpret_cast<uint64_t>(stream)))
        return fail(acl::RT_INVALID_HANDLE, "%s: %p is not a stream", function, stream);
    return 0;
}

}  // namespace

extern "C" {

aclError aclrtMemcpyBatch(void** to, size_t* room, void** from, size_t* bytes, size_t n,
                          aclrtMemcpyBatchAttr*, size_t*, size_t, size_t* failed) {
    return copy_batch("aclrtMemcpyBatch", to, room, from, bytes, n, failed, true, nullptr);
}
aclError aclrtMemcpyBatchAsync(void** to, size_t* room, void** from, size_t* bytes, size_t n,
                               aclrtMemcpyBatchAttr*, size_t*, size_t, size_t* failed, aclrtStream stream) {
    return copy_batch("aclrtMemcpyBatchAsync", to, room, from, bytes, n, failed, false, stream);
}
aclError aclrtMemcpyBatchV2(void** to, size_t* room, void** from, size_t* bytes, size_t n,
                            aclrtMemcpyBatchAttr*, size_t*, size_t) {
    return copy_batch("aclrtMemcpyBatchV2", to, room, from, bytes, n, nullptr, true, nullptr);
}
aclError aclrtMemcpyBatchAsyncV2(void** to, size_t* room, void** from, size_t* bytes, size_t n,
                                 aclrtMemcpyBatchAttr*, size_t*, size_t, aclrtStream stream) {
    return copy_batch("aclrtMemcpyBatchAsyncV2", to, room, from, bytes, n, nullptr, false, stream);
}

aclError aclrtCmoAsync(void* address, size_t bytes, aclrtCmoType type, aclrtStream stream) {
    if (aclError e = check_stream("aclrtCmoAsync", stream)) return e;
    if (!address || bytes == 0) return fail(acl::INVALID_PARAM, "aclrtCmoAsync: null address, or size 0");
    flexnpu::client::Channel* c = Session::channel();
    if (!c) return flexnpu::client::last_error();
    const flexnpu::wire::CacheHint ask{reinterpret_cast<uint64_t>(stream),
                                       reinterpret_cast<uint64_t>(address), bytes, type};
    return c->post(flexnpu::wire::Kind::cache_hint, ask);
}

aclError aclrtUseStreamResInCurrentThread(aclrtStream stream) {
    if (aclError e = check_stream("aclrtUseStreamResInCurrentThread", stream)) return e;
    resources_of = stream;
    return 0;
}
aclError aclrtUnuseStreamResInCurrentThread(aclrtStream stream) {
    if (aclError e = check_stream("aclrtUnuseStreamResInCurrentThread", stream)) return e;
    resources_of = nullptr;
    return 0;
}
aclError aclrtGetResInCurrentThread(aclrtDevResLimitType type, uint32_t* value) {
    if (!value) return fail(acl::INVALID_PARAM, "aclrtGetResInCurrentThread: value is null");
    return resources_of ? aclrtGetStreamResLimit(resources_of, type, value)
                        : aclrtGetDeviceResLimit(0, type, value);
}

}  // extern "C"

int32_t flexnpu::api::invalid_argument(const char* function) {
    return fail(acl::INVALID_PARAM, "%s: an argument is null, or not what it should be", function);
}
