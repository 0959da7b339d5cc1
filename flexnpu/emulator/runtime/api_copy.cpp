// Copies, fills, and words that streams write and wait for.
#include <sys/mman.h>
#include <algorithm>
#include <cstring>
#include <thread>

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

constexpr size_t kPageBytes = 4096;
// A synchronous copy that ends sooner than this in the device's time does not sleep for it.
constexpr uint64_t kShortNs = 50'000;

struct Side {
    const void* p;
    uint64_t capacity;
    bool device;
    const char* name;
};

// Whether every page of [p, p+size) is mapped. msync with MS_ASYNC does nothing but look.
bool is_mapped(const void* p, uint64_t size) {
    uintptr_t begin = reinterpret_cast<uintptr_t>(p) / kPageBytes * kPageBytes;
    uintptr_t end = reinterpret_cast<uintptr_t>(p) + size;
    return end > begin && msync(reinterpret_cast<void*>(begin), end - begin, MS_ASYNC) == 0;
}

// One end of a copy must lie where the kind says: in one allocation of device memory, or outside all of it.
int32_t check_side(const char* function, const Side& side, uint64_t size) {
    Runtime& runtime = Runtime::get();
    if (size > side.capacity) {
        return fail(acl::RT_PARAM_INVALID, "%s: %llu bytes do not fit in the %s of %llu bytes", function,
                    static_cast<unsigned long long>(size), side.name,
                    static_cast<unsigned long long>(side.capacity));
    }
    if (side.p == nullptr) {
        return fail(acl::INVALID_PARAM, "%s: the %s is null", function, side.name);
    }
    if (side.device) {
        if (!runtime.is_device_range(side.p, size) && !runtime.is_pinned(side.p, size)) {
            return fail(acl::RT_PARAM_INVALID, "%s: the %s, %llu bytes at %p, is not within device memory",
                        function, side.name, static_cast<unsigned long long>(size), side.p);
        }
    } else if (runtime.is_device_address(side.p)) {
        return fail(acl::RT_PARAM_INVALID, "%s: the %s %p is device memory but the kind says host", function,
                    side.name, side.p);
    } else if (!runtime.is_pinned(side.p, size) && !is_mapped(side.p, size)) {
        return fail(acl::RT_PARAM_INVALID, "%s: the %s, %llu bytes at %p, is not within the program's memory",
                    function, side.name, static_cast<unsigned long long>(size), side.p);
    }
    return acl::SUCCESS;
}

enum class Route { HostToHost, HostToDevice, DeviceToHost, DeviceToDevice };

int32_t find_route(const char* function, const void* target, const void* source, int32_t kind, Route* route) {
    Runtime& runtime = Runtime::get();
    switch (kind) {
        case acl::HOST_TO_HOST: *route = Route::HostToHost; return acl::SUCCESS;
        case acl::HOST_TO_DEVICE:
        case acl::HOST_TO_BUF_TO_DEVICE: *route = Route::HostToDevice; return acl::SUCCESS;
        case acl::DEVICE_TO_HOST: *route = Route::DeviceToHost; return acl::SUCCESS;
        case acl::DEVICE_TO_DEVICE:
        case acl::INNER_DEVICE_TO_DEVICE:
        case acl::INTER_DEVICE_TO_DEVICE: *route = Route::DeviceToDevice; return acl::SUCCESS;
        case acl::MEMCPY_DEFAULT: {
            bool to = runtime.is_device_address(target), from = runtime.is_device_address(source);
            *route = to ? (from ? Route::DeviceToDevice : Route::HostToDevice)
                        : (from ? Route::DeviceToHost : Route::HostToHost);
            return acl::SUCCESS;
        }
        default: return fail(acl::RT_PARAM_INVALID, "%s: %d is not a kind of copy", function, kind);
    }
}

emu::Engine engine_of(Route route) {
    switch (route) {
        case Route::HostToDevice: return emu::kHostToDevice;
        case Route::DeviceToHost: return emu::kDeviceToHost;
        default: return emu::kDeviceToDevice;
    }
}

// The device whose engine copies.
std::shared_ptr<emu::Device> copying_device(const void* target, const void* source) {
    Runtime& runtime = Runtime::get();
    if (auto device = runtime.owner(target)) {
        return device;
    }
    if (auto device = runtime.owner(source)) {
        return device;
    }
    auto context = runtime.current_context();
    return context ? context->device : nullptr;
}

// Sleeps until the device's time of a synchronous call has come.
void sleep_until_device(uint64_t end) {
    if (end > emu::now_ns() + kShortNs) {
        std::this_thread::sleep_until(emu::time_point(end));
    }
}

// A copy or a fill on the caller's thread, in device time.
void run_now(const emu::CopyWork& work, Route route) {
    const emu::Settings& settings = Runtime::get().settings();
    auto device = route == Route::HostToHost ? nullptr : copying_device(work.target, work.source);
    if (!device) {
        work.perform();
        return;
    }
    emu::Engine engine = engine_of(route);
    uint64_t begin = emu::now_ns();
    uint64_t duration = settings.profile.copy_ns(emu::copy_direction(engine), work.bytes());
    uint64_t start = device->shared.reserve(engine, begin, duration);
    work.perform(settings.mode, engine);
    uint64_t real = emu::now_ns() - begin;
    if (real > duration) {
        device->shared.extend(engine, real - duration);
        duration = real;
    }
    sleep_until_device(start + duration);
}

// The bytes from the first to the last of a side.
uint64_t extent(uint64_t pitch, const emu::CopyWork& work) { return pitch * (work.rows - 1) + work.width; }

int32_t check_copy(const char* function, const emu::CopyWork& work, uint64_t capacity, int32_t kind,
                   Route* route) {
    if (work.rows > 1 && (work.width > work.target_pitch || work.width > work.source_pitch)) {
        return fail(acl::RT_PARAM_INVALID, "%s: rows of %llu bytes do not fit the pitches", function,
                    static_cast<unsigned long long>(work.width));
    }
    if (int32_t error = find_route(function, work.target, work.source, kind, route)) {
        return error;
    }
    bool to = *route == Route::HostToDevice || *route == Route::DeviceToDevice;
    bool from = *route == Route::DeviceToHost || *route == Route::DeviceToDevice;
    if (int32_t error = check_side(function, {work.target, capacity, to, "destination"},
                                   extent(work.target_pitch, work))) {
        return error;
    }
    uint64_t source_size = extent(work.source_pitch, work);
    return check_side(function, {work.source, source_size, from, "source"}, source_size);
}

int32_t copy_now(const char* function, const emu::CopyWork& work, uint64_t capacity, int32_t kind) {
    if (work.target == nullptr || work.source == nullptr) {
        return fail(acl::INVALID_PARAM, "%s: the destination or the source is null", function);
    }
    if (work.bytes() == 0) {
        return acl::SUCCESS;
    }
    if (int32_t error = Runtime::get().captures.check_unsafe(function)) {
        return error;
    }
    if (int32_t error = emu::check_context(function)) {
        return error;
    }
    Route route;
    if (int32_t error = check_copy(function, work, capacity, kind, &route)) {
        return error;
    }
    run_now(work, route);
    return acl::SUCCESS;
}

int32_t copy_async(const char* function, const emu::CopyWork& work, uint64_t capacity, int32_t kind,
                   aclrtStream handle) {
    std::shared_ptr<emu::Stream> stream;
    if (int32_t error = find_stream(function, handle, &stream)) {
        return error;
    }
    if (work.target == nullptr || work.source == nullptr) {
        return fail(acl::INVALID_PARAM, "%s: the destination or the source is null", function);
    }
    if (work.bytes() == 0) {
        return acl::SUCCESS;
    }
    Route route;
    if (int32_t error = check_copy(function, work, capacity, kind, &route)) {
        return error;
    }
    emu::Task task;
    task.kind = emu::TaskKind::Copy;
    task.engine = engine_of(route);
    task.copy = work;
    Runtime& runtime = Runtime::get();
    uint64_t size = extent(work.source_pitch, work);
    bool pageable =
        (route == Route::HostToDevice && !runtime.is_pinned(work.source, size)) ||
        (route == Route::DeviceToHost && !runtime.is_pinned(work.target, extent(work.target_pitch, work)));
    if (pageable) {
        if (int32_t error = runtime.captures.check_unsafe(function)) {
            return error;
        }
    }
    if (route == Route::HostToDevice && runtime.settings().mode == emu::kModeCompute && pageable) {
        // The program may reuse pageable memory as soon as the call returns. A graph keeps the bytes of the
        // capture.
        std::shared_ptr<void> staging(std::malloc(size), std::free);
        if (!staging) {
            return fail(acl::RT_MEMORY_ALLOCATION, "%s: no host memory for %llu bytes", function,
                        static_cast<unsigned long long>(size));
        }
        std::memcpy(staging.get(), work.source, size);
        task.copy.source = staging.get();
        task.staging = std::move(staging);
    }
    return append(function, *stream, std::move(task));
}

emu::CopyWork plain(void* target, const void* source, size_t size) {
    emu::CopyWork work;
    work.target = target;
    work.source = source;
    work.width = size;
    return work;
}

emu::CopyWork rows(void* target, size_t target_pitch, const void* source, size_t source_pitch, size_t width,
                   size_t height) {
    emu::CopyWork work = plain(target, source, width);
    work.rows = height;
    work.target_pitch = target_pitch;
    work.source_pitch = source_pitch;
    return work;
}

}  // namespace

extern "C" {

aclError aclrtMemcpy(void* target, size_t capacity, const void* source, size_t size, aclrtMemcpyKind kind) {
    return copy_now("aclrtMemcpy", plain(target, source, size), capacity, kind);
}
aclError aclrtMemcpyAsync(void* target, size_t capacity, const void* source, size_t size,
                          aclrtMemcpyKind kind, aclrtStream stream) {
    return copy_async("aclrtMemcpyAsync", plain(target, source, size), capacity, kind, stream);
}
aclError aclrtMemcpyAsyncWithCondition(void* target, size_t capacity, const void* source, size_t size,
                                       aclrtMemcpyKind kind, aclrtStream stream) {
    return copy_async("aclrtMemcpyAsyncWithCondition", plain(target, source, size), capacity, kind, stream);
}
aclError aclrtMemcpy2d(void* target, size_t target_pitch, const void* source, size_t source_pitch,
                       size_t width, size_t height, aclrtMemcpyKind kind) {
    return copy_now("aclrtMemcpy2d", rows(target, target_pitch, source, source_pitch, width, height),
                    UINT64_MAX, kind);
}
aclError aclrtMemcpy2dAsync(void* target, size_t target_pitch, const void* source, size_t source_pitch,
                            size_t width, size_t height, aclrtMemcpyKind kind, aclrtStream stream) {
    return copy_async("aclrtMemcpy2dAsync", rows(target, target_pitch, source, source_pitch, width, height),
                      UINT64_MAX, kind, stream);
}

aclError aclrtMemset(void* target, size_t capacity, int32_t value, size_t size) {
    if (target == nullptr) {
        return fail(acl::INVALID_PARAM, "aclrtMemset: the destination is null");
    }
    if (size == 0) {
        return acl::SUCCESS;
    }
    if (int32_t error = Runtime::get().captures.check_unsafe("aclrtMemset")) {
        return error;
    }
    if (int32_t error = emu::check_context("aclrtMemset")) {
        return error;
    }
    bool device = Runtime::get().is_device_address(target);
    if (int32_t error = check_side("aclrtMemset", {target, capacity, device, "destination"}, size)) {
        return error;
    }
    emu::CopyWork work = plain(target, nullptr, size);
    work.value = value;
    run_now(work, device ? Route::DeviceToDevice : Route::HostToHost);
    return acl::SUCCESS;
}

aclError aclrtMemsetAsync(void* target, size_t capacity, int32_t value, size_t size, aclrtStream handle) {
    std::shared_ptr<emu::Stream> stream;
    if (int32_t error = find_stream("aclrtMemsetAsync", handle, &stream)) {
        return error;
    }
    if (target == nullptr) {
        return fail(acl::INVALID_PARAM, "aclrtMemsetAsync: the destination is null");
    }
    if (size == 0) {
        return acl::SUCCESS;
    }
    if (int32_t error = check_side("aclrtMemsetAsync", {target, capacity, true, "destination"}, size)) {
        return error;
    }
    emu::Task task;
    task.kind = emu::TaskKind::Copy;
    task.engine = emu::kDeviceToDevice;
    task.copy = plain(target, nullptr, size);
    task.copy.value = value;
    return append("aclrtMemsetAsync", *stream, std::move(task));
}

aclError aclrtValueWrite(void* p, uint64_t value, uint32_t, aclrtStream handle) {
    std::shared_ptr<emu::Stream> stream;
    if (int32_t error = find_stream("aclrtValueWrite", handle, &stream)) {
        return error;
    }
    if (reinterpret_cast<uintptr_t>(p) % 8 != 0 || !Runtime::get().is_device_range(p, 8)) {
        return fail(acl::RT_PARAM_INVALID, "aclrtValueWrite: %p is not an aligned word of device memory", p);
    }
    emu::Task task;
    task.kind = emu::TaskKind::ValueWrite;
    task.argument = p;
    task.value = value;
    return append("aclrtValueWrite", *stream, std::move(task));
}

aclError aclrtValueWait(void* p, uint64_t value, uint32_t flag, aclrtStream handle) {
    std::shared_ptr<emu::Stream> stream;
    if (int32_t error = find_stream("aclrtValueWait", handle, &stream)) {
        return error;
    }
    if (flag > 3 || reinterpret_cast<uintptr_t>(p) % 8 != 0 || !Runtime::get().is_device_range(p, 8)) {
        return fail(acl::RT_PARAM_INVALID,
                    "aclrtValueWait: %p is not an aligned word of device memory, or flag %u", p, flag);
    }
    emu::Task task;
    task.kind = emu::TaskKind::ValueWait;
    task.argument = p;
    task.value = value;
    task.flag = flag;
    return append("aclrtValueWait", *stream, std::move(task));
}
}
