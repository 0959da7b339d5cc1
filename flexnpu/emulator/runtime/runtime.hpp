// The state of the emulated CANN in this process: devices, contexts, handles, host memory.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "flexnpu/emulator/runtime/capture.hpp"
#include "flexnpu/emulator/runtime/errors.hpp"
#include "flexnpu/emulator/runtime/event.hpp"
#include "flexnpu/emulator/runtime/handles.hpp"
#include "flexnpu/emulator/runtime/memory.hpp"
#include "flexnpu/emulator/runtime/profile.hpp"
#include "flexnpu/emulator/runtime/shared_device.hpp"
#include "flexnpu/emulator/runtime/stream.hpp"
#include "flexnpu/emulator/runtime/virtual_memory.hpp"

namespace flexnpu::emulator {

// The environment, read once.
struct Settings {
    Profile profile;
    Mode mode = kModeCompute;
    Missing missing = kMissingError;
    int32_t devices = 1;           // that the program sees
    std::vector<int32_t> visible;  // which of the machine's each is
    std::string machine = "default";
    std::shared_ptr<TaskLog> log;  // null: none is kept
};

// Reads FLEXNPU_EMU_{PROFILE,SLOWDOWN,MODE,MISSING,DEVICES,MACHINE,LOG} and ASCEND_RT_VISIBLE_DEVICES.
// Throws std::runtime_error that names the variable.
Settings read_settings();

struct Device {
    Device(const Settings& settings, int32_t index)
        : index(index),
          shared(settings.machine, settings.visible[size_t(index)], settings.profile.memory_bytes),
          memory(shared) {}
    const int32_t index;  // the program's number
    SharedDevice shared;
    Arena memory;
};

struct Context {
    std::shared_ptr<Device> device;
    void* handle = nullptr;
    bool primary = false;
    void* default_stream = nullptr;  // the context's own
};

class Runtime {
public:
    // The process's runtime; made at first use and again in a forked child. Never destroyed.
    static Runtime& get();

    const Settings& settings() const { return settings_; }
    // Empty, or why the settings cannot be used.
    const std::string& settings_error() const { return settings_error_; }

    int32_t init();
    int32_t finalize();
    // At the end of the process.
    void exit();

    int32_t set_device(int32_t index);
    int32_t reset_device(int32_t index, bool force);
    // The device's shared state; opens it if nobody did. Null with an error recorded when it cannot be.
    std::shared_ptr<Device> open_device(int32_t index);
    // The device if it is open.
    std::shared_ptr<Device> device(int32_t index) const;
    bool primary_active(int32_t index) const;

    int32_t create_context(void** handle, int32_t device);
    int32_t destroy_context(void* handle);
    // The calling thread's context, or null.
    std::shared_ptr<Context> current_context() const;
    void* current_context_handle() const;
    // The device of that context, or -1. For every call: it looks the context up only when some context has
    // ended since.
    int32_t current_device() const;
    int32_t set_current_context(void* handle);

    int32_t create_stream(void** handle, uint32_t priority, uint32_t flags);
    int32_t destroy_stream(void* handle, bool force);
    // The stream, the context's default one for a null handle; null when there is none.
    std::shared_ptr<Stream> stream(void* handle) const;
    bool is_default(const Stream& stream) const;
    // Streams of a device (-1: all).
    std::vector<std::shared_ptr<Stream>> streams(int32_t device) const;

    HandleTable<Event> events{HandleKind::Event};
    std::atomic<uint32_t> next_event_id{0};

    Captures captures;

    // Device memory.
    std::shared_ptr<Device> owner(const void* p) const;
    bool is_device_address(const void* p) const { return owner(p) != nullptr || addresses.is_reserved(p); }
    bool is_device_range(const void* p, uint64_t size) const;
    // The allocation, or the piece of mapped memory, that holds p.
    std::optional<Arena::Block> device_block(const void* p) const;
    AddressSpace addresses;
    HandleTable<PhysicalMemory> physical_memory{HandleKind::Physical};

    // Host memory that the device may reach: page-locked by us or registered.
    void add_host(void* p, uint64_t size, bool ours);
    bool remove_host(void* p, bool ours);
    bool is_pinned(const void* p, uint64_t size) const;
    // Whether p lies in memory from aclrtMallocHost or a registered range.
    bool knows_host(const void* p) const { return is_pinned(p, 1); }

    std::shared_ptr<ReportQueue> report_queue(uint64_t thread, bool create);

private:
    Runtime();
    static void forget_after_fork();
    // Takes a device apart: its streams, still running, go to `streams`.
    void detach_device_locked(int32_t index, std::vector<std::shared_ptr<Stream>>& streams);
    void close_all_devices();
    // Once its streams are at rest.
    void drop_memory(const std::shared_ptr<Device>& device);
    std::shared_ptr<Context> make_context_locked(std::shared_ptr<Device> device, bool primary);

    Settings settings_;
    std::string settings_error_;

    mutable std::shared_mutex mutex_;
    int32_t init_count_ = 0;
    struct Slot {
        std::shared_ptr<Device> device;
        void* primary = nullptr;
        int32_t references = 0;
    };
    std::vector<Slot> devices_;
    HandleTable<Context> contexts_{HandleKind::Context};
    std::atomic<uint64_t> contexts_ended_{1};
    HandleTable<Stream> streams_{HandleKind::Stream};
    std::atomic<int32_t> next_stream_id_{0};

    mutable std::shared_mutex host_mutex_;
    struct HostBlock {
        uint64_t size;
        bool ours;
    };
    std::map<uintptr_t, HostBlock> host_;

    std::mutex report_mutex_;
    std::unordered_map<uint64_t, std::shared_ptr<ReportQueue>> reports_;
};

}  // namespace flexnpu::emulator
