#include "flexnpu/emulator/runtime/runtime.hpp"

#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "flexnpu/emulator/runtime/fork.hpp"

namespace flexnpu::emulator {

namespace {

std::atomic<Runtime*> g_runtime{nullptr};
std::mutex& creation_mutex() {
    static auto* mutex = new std::mutex;
    return *mutex;
}

thread_local void* t_context = nullptr;
// What current_device() has found, and when: a context that had not ended then, of this runtime.
struct FoundDevice {
    const void* context = nullptr;
    uint64_t ended = 0;
    int32_t device = -1;
};
thread_local FoundDevice t_found;

// How long a stream that is destroyed or a process that ends waits for work in flight.
constexpr auto kDrain = std::chrono::seconds(600);
constexpr auto kDrainAtExit = std::chrono::seconds(2);

}  // namespace

Runtime& Runtime::get() {
    Runtime* runtime = g_runtime.load(std::memory_order_acquire);
    if (runtime == nullptr) {
        std::lock_guard lock(creation_mutex());
        runtime = g_runtime.load(std::memory_order_acquire);
        if (runtime == nullptr) {
            install_fork_handlers(&Runtime::forget_after_fork);
            runtime = new Runtime;
            g_runtime.store(runtime, std::memory_order_release);
            static std::once_flag at_exit;
            std::call_once(at_exit, [] {
                std::atexit([] {
                    if (Runtime* last = g_runtime.load(std::memory_order_acquire)) {
                        last->exit();
                    }
                });
            });
        }
    }
    return *runtime;
}

Runtime::Runtime() {
    try {
        settings_ = read_settings();
    } catch (const std::exception& error) {
        settings_error_ = error.what();
        settings_.devices = 0;
        std::fprintf(stderr, "flexnpu emulator: %s\n", error.what());
    }
    devices_.resize(size_t(settings_.devices));
}

// In the child only the forking thread exists: no lock of the old state can be taken, no worker joined. What
// maps the device is dropped, the rest is left behind.
void Runtime::forget_after_fork() {
    Runtime* old = g_runtime.load(std::memory_order_acquire);
    g_runtime.store(nullptr, std::memory_order_release);
    new (&creation_mutex()) std::mutex;
    t_context = nullptr;
    t_found = {};
    if (old == nullptr) {
        return;
    }
    for (Slot& slot : old->devices_) {
        if (slot.device) {
            slot.device->memory.abandon();
            slot.device->shared.abandon();
        }
    }
}

int32_t Runtime::init() {
    if (!settings_error_.empty()) {
        return fail(acl::INVALID_PARAM, "%s", settings_error_.c_str());
    }
    std::unique_lock lock(mutex_);
    if (init_count_ > 0) {
        return fail(acl::REPEAT_INITIALIZE, "aclInit was called already");
    }
    init_count_ = 1;
    return acl::SUCCESS;
}

int32_t Runtime::finalize() {
    {
        std::unique_lock lock(mutex_);
        if (init_count_ == 0) {
            return fail(kRepeatFinalize, "aclFinalize without aclInit");
        }
        init_count_ = 0;
    }
    for (const auto& stream : streams(-1)) {
        stream->synchronize(Clock::now() + kDrainAtExit);
    }
    close_all_devices();
    return acl::SUCCESS;
}

// Work in flight gets a moment; then the workers stop, so that none runs while the process's libraries are
// taken down. The shared page is left by the process's end itself if a worker does not come back.
void Runtime::exit() {
    auto deadline = Clock::now() + kDrainAtExit;
    for (const auto& stream : streams(-1)) {
        if (stream->synchronize(deadline) == Stream::Wait::TimedOut) {
            stream->abort(0, "");
            if (stream->synchronize(deadline + kDrainAtExit) == Stream::Wait::TimedOut) {
                return;
            }
        }
    }
    close_all_devices();
}

void Runtime::close_all_devices() {
    std::vector<std::shared_ptr<Stream>> detached;
    std::vector<std::shared_ptr<Device>> closed;
    {
        std::unique_lock lock(mutex_);
        for (size_t i = 0; i < devices_.size(); ++i) {
            closed.push_back(devices_[i].device);
            detach_device_locked(int32_t(i), detached);
        }
    }
    for (const auto& stream : detached) {
        captures.stream_gone(*stream);
        stream->shut_down(true);
    }
    for (const auto& device : closed) {
        drop_memory(device);
    }
}

std::shared_ptr<Device> Runtime::device(int32_t index) const {
    std::shared_lock lock(mutex_);
    return index >= 0 && size_t(index) < devices_.size() ? devices_[size_t(index)].device : nullptr;
}

std::shared_ptr<Device> Runtime::open_device(int32_t index) {
    if (!settings_error_.empty()) {
        fail(acl::INVALID_PARAM, "%s", settings_error_.c_str());
        return nullptr;
    }
    if (index < 0 || index >= settings_.devices) {
        fail(acl::RT_INVALID_DEVICE, "there is no device %d: this machine has %d (FLEXNPU_EMU_DEVICES)",
             index, settings_.devices);
        return nullptr;
    }
    if (auto open = device(index)) {
        return open;
    }
    std::unique_lock lock(mutex_);
    Slot& slot = devices_[size_t(index)];
    if (!slot.device) {
        try {
            slot.device = std::make_shared<Device>(settings_, index);
        } catch (const std::exception& error) {
            fail(acl::RT_INTERNAL, "%s", error.what());
            std::fprintf(stderr, "flexnpu emulator: %s\n", error.what());
            return nullptr;
        }
    }
    return slot.device;
}

namespace {

// A context has a stream of its own.
int32_t no_streams() {
    return fail(acl::RT_NO_STREAM_RESOURCE, "the device has no more streams: all of its %llu are in use",
                static_cast<unsigned long long>(kMostObjects[uint32_t(DeviceObject::Stream)]));
}

}  // namespace

std::shared_ptr<Context> Runtime::make_context_locked(std::shared_ptr<Device> device, bool primary) {
    auto context = std::make_shared<Context>();
    context->device = std::move(device);
    context->primary = primary;
    context->handle = contexts_.add(context);
    if (context->handle == nullptr) {
        return nullptr;
    }
    DeviceModel model{settings_.profile, context->device->shared, settings_.mode, context->device,
                      settings_.log};
    auto stream = std::make_shared<Stream>(model, next_stream_id_++, 0, 0);
    stream->place = {context->device, context->device->shared, DeviceObject::Stream};
    if (!stream->place) {
        contexts_.remove(context->handle);
        return nullptr;
    }
    stream->context = context->handle;
    stream->device = context->device->index;
    stream->handle = context->default_stream = streams_.add(stream);
    return context;
}

int32_t Runtime::set_device(int32_t index) {
    auto device = open_device(index);
    if (!device) {
        return index < 0 || index >= settings_.devices ? acl::RT_INVALID_DEVICE : acl::RT_INTERNAL;
    }
    std::unique_lock lock(mutex_);
    Slot& slot = devices_[size_t(index)];
    if (slot.device != device) {
        return fail(acl::RT_INVALID_DEVICE, "device %d was reset by another thread", index);
    }
    if (slot.primary == nullptr) {
        auto context = make_context_locked(device, true);
        if (!context) {
            return no_streams();
        }
        slot.primary = context->handle;
    }
    ++slot.references;
    t_context = slot.primary;
    return acl::SUCCESS;
}

int32_t Runtime::reset_device(int32_t index, bool force) {
    if (index < 0 || index >= settings_.devices) {
        return fail(acl::RT_INVALID_DEVICE, "there is no device %d", index);
    }
    for (const auto& stream : streams(index)) {
        stream->synchronize(Clock::now() + kDrain);
    }
    std::vector<std::shared_ptr<Stream>> detached;
    std::shared_ptr<Device> closed;
    {
        std::unique_lock lock(mutex_);
        Slot& slot = devices_[size_t(index)];
        if (slot.references == 0) {
            return fail(acl::RT_INVALID_DEVICE, "device %d is not set", index);
        }
        if (--slot.references > 0 && !force) {
            return acl::SUCCESS;
        }
        closed = slot.device;
        detach_device_locked(index, detached);
    }
    // Not under the lock: what a worker runs may call the runtime.
    for (const auto& stream : detached) {
        captures.stream_gone(*stream);
        stream->shut_down(true);
    }
    drop_memory(closed);
    return acl::SUCCESS;
}

void Runtime::detach_device_locked(int32_t index, std::vector<std::shared_ptr<Stream>>& streams) {
    Slot& slot = devices_[size_t(index)];
    if (!slot.device) {
        return;
    }
    for (const auto& stream : streams_.all()) {
        if (stream->device == index && streams_.remove(stream->handle)) {
            streams.push_back(stream);
        }
    }
    for (const auto& context : contexts_.all()) {
        if (context->device == slot.device) {
            contexts_.remove(context->handle);
            ++contexts_ended_;
        }
    }
    slot = Slot{};
}

bool Runtime::primary_active(int32_t index) const {
    std::shared_lock lock(mutex_);
    return index >= 0 && size_t(index) < devices_.size() && devices_[size_t(index)].references > 0;
}

int32_t Runtime::create_context(void** handle, int32_t index) {
    auto device = open_device(index);
    if (!device) {
        return index < 0 || index >= settings_.devices ? acl::RT_INVALID_DEVICE : acl::RT_INTERNAL;
    }
    std::unique_lock lock(mutex_);
    auto context = make_context_locked(device, false);
    if (!context) {
        return no_streams();
    }
    *handle = t_context = context->handle;
    return acl::SUCCESS;
}

int32_t Runtime::destroy_context(void* handle) {
    auto context = contexts_.get(handle);
    if (!context) {
        return fail(acl::RT_INVALID_HANDLE, "aclrtSetCurrentContext: %p is not a context", handle);
    }
    if (context->primary) {
        return fail(acl::RT_PARAM_INVALID, "the default context of device %d ends with aclrtResetDevice",
                    context->device->index);
    }
    contexts_.remove(handle);
    ++contexts_ended_;
    for (const auto& stream : streams_.all()) {
        if (stream->context == handle && streams_.remove(stream->handle)) {
            captures.stream_gone(*stream);
            stream->synchronize(Clock::now() + kDrain);
            stream->shut_down(true);
        }
    }
    if (t_context == handle) {
        t_context = nullptr;
    }
    return acl::SUCCESS;
}

std::shared_ptr<Context> Runtime::current_context() const {
    return t_context != nullptr ? contexts_.get(t_context) : nullptr;
}

int32_t Runtime::current_device() const {
    if (t_context == nullptr) {
        return -1;
    }
    uint64_t ended = contexts_ended_.load(std::memory_order_acquire);
    if (t_found.context != t_context || t_found.ended != ended) {
        auto context = current_context();
        t_found = {t_context, ended, context ? context->device->index : -1};
    }
    return t_found.device;
}

void* Runtime::current_context_handle() const { return current_context() ? t_context : nullptr; }

int32_t Runtime::set_current_context(void* handle) {
    if (!contexts_.get(handle)) {
        return fail(acl::RT_INVALID_HANDLE, "aclrtSetCurrentContext: %p is not a context", handle);
    }
    t_context = handle;
    return acl::SUCCESS;
}

int32_t Runtime::create_stream(void** handle, uint32_t priority, uint32_t flags) {
    auto context = current_context();
    if (!context) {
        return fail(acl::RT_CONTEXT_NULL, "this thread has no device: call aclrtSetDevice first");
    }
    DeviceModel model{settings_.profile, context->device->shared, settings_.mode, context->device,
                      settings_.log};
    auto stream = std::make_shared<Stream>(model, next_stream_id_++, priority, flags);
    stream->place = {context->device, context->device->shared, DeviceObject::Stream};
    if (!stream->place) {
        return no_streams();
    }
    stream->context = context->handle;
    stream->device = context->device->index;
    std::unique_lock lock(mutex_);
    stream->handle = streams_.add(stream);
    if (stream->handle == nullptr) {
        return no_streams();
    }
    *handle = stream->handle;
    return acl::SUCCESS;
}

int32_t Runtime::destroy_stream(void* handle, bool force) {
    auto stream = handle != nullptr ? streams_.get(handle) : nullptr;
    if (!stream) {
        return fail(acl::RT_INVALID_HANDLE, "%p is not a stream", handle);
    }
    auto context = contexts_.get(stream->context);
    if (context && context->default_stream == handle) {
        return fail(acl::RT_INVALID_HANDLE, "%p is a context's default stream", handle);
    }
    if (!streams_.remove(handle)) {
        return fail(acl::RT_INVALID_HANDLE, "%p is not a stream", handle);
    }
    captures.stream_gone(*stream);
    if (!force) {
        stream->synchronize(Clock::now() + kDrain);
    }
    stream->shut_down(true);
    return acl::SUCCESS;
}

std::shared_ptr<Stream> Runtime::stream(void* handle) const {
    if (handle != nullptr) {
        return streams_.get(handle);
    }
    auto context = current_context();
    return context ? streams_.get(context->default_stream) : nullptr;
}

bool Runtime::is_default(const Stream& stream) const {
    auto context = contexts_.get(stream.context);
    return context && context->default_stream == stream.handle;
}

std::vector<std::shared_ptr<Stream>> Runtime::streams(int32_t device) const {
    auto all = streams_.all();
    if (device >= 0) {
        std::erase_if(all, [device](const auto& stream) { return stream->device != device; });
    }
    return all;
}

std::shared_ptr<Device> Runtime::owner(const void* p) const {
    std::shared_lock lock(mutex_);
    for (const Slot& slot : devices_) {
        if (slot.device && slot.device->memory.contains_address(p)) {
            return slot.device;
        }
    }
    return addresses.owner(p);
}

bool Runtime::is_device_range(const void* p, uint64_t size) const {
    auto device = owner(p);
    return device && (device->memory.contains_range(p, size) || addresses.contains_range(p, size));
}

std::optional<Arena::Block> Runtime::device_block(const void* p) const {
    auto device = owner(p);
    if (!device) {
        return std::nullopt;
    }
    auto block = device->memory.find(p);
    return block ? block : addresses.find(p);
}

void Runtime::drop_memory(const std::shared_ptr<Device>& device) {
    if (!device) {
        return;
    }
    addresses.drop(device.get());
    physical_memory.remove_if([&](const PhysicalMemory& one) { return one.device == device; });
}

void Runtime::add_host(void* p, uint64_t size, bool ours) {
    std::unique_lock lock(host_mutex_);
    host_[reinterpret_cast<uintptr_t>(p)] = {size, ours};
}

bool Runtime::remove_host(void* p, bool ours) {
    std::unique_lock lock(host_mutex_);
    auto at = host_.find(reinterpret_cast<uintptr_t>(p));
    if (at == host_.end() || at->second.ours != ours) {
        return false;
    }
    host_.erase(at);
    return true;
}

bool Runtime::is_pinned(const void* p, uint64_t size) const {
    auto address = reinterpret_cast<uintptr_t>(p);
    std::shared_lock lock(host_mutex_);
    auto at = host_.upper_bound(address);
    if (at == host_.begin()) {
        return false;
    }
    --at;
    uint64_t into = address - at->first;
    return into < at->second.size && size <= at->second.size - into;
}

std::shared_ptr<ReportQueue> Runtime::report_queue(uint64_t thread, bool create) {
    std::lock_guard lock(report_mutex_);
    auto& queue = reports_[thread];
    if (!queue && create) {
        queue = std::make_shared<ReportQueue>();
    }
    return queue;
}

}  // namespace flexnpu::emulator
