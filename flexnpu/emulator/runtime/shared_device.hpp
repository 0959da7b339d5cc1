// What the processes that use one emulated device share: its engines' timelines and the memory that each
// process holds.
//
// The state lives in a memfd that every user of the device has open. A process that opens the device looks
// for it in the file descriptors of its user's processes (/proc/PID/fd) and makes it when there is none, so
// that nothing is left on the machine when the last user ends, however it ends. Timelines are single atomic
// words: a process may be killed between any two instructions and leaves them usable. The table of users is
// under a robust mutex.
#pragma once

#include <pthread.h>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

namespace flexnpu::emulator {

enum Engine : uint32_t {
    kCompute = 0,
    kHostToDevice = 1,
    kDeviceToHost = 2,
    kDeviceToDevice = 3,
    kLink = 4,  // to the other devices
    kEngines = 5,
};

// What a device has a fixed number of, for all processes.
enum class DeviceObject : uint32_t { Stream, Event };
inline constexpr uint32_t kDeviceObjects = 2;
// Of A2 and A3: CANN's documentation.
inline constexpr uint64_t kMostObjects[kDeviceObjects] = {1984, 65536};

// A device engine does one thing at a time, for all processes, in the order of reservation.
struct EngineLine {
    std::atomic<uint64_t> free_ns;  // when what is reserved so far ends
    std::atomic<uint64_t> busy_ns;  // sum of all reservations
};

struct DevicePage {
    static constexpr uint64_t kMagic = 0x666c6578656d7531ull;
    static constexpr uint32_t kMaxUsers = 256;
    struct User {
        int32_t pid;  // 0: slot is free
        uint64_t start_time;
        uint64_t bytes;
        uint64_t objects[kDeviceObjects];
    };

    // Memory that one user has exported, and who has imported it.
    struct Export {
        static constexpr uint32_t kPeers = 32;
        struct Peer {
            int32_t pid;
            uint64_t start_time;
        };
        char key[64];  // empty: the slot is free
        Peer owner;
        bool ended;      // the owner has freed it; importers keep it
        uint64_t inode;  // of the owner's memory file
        uint64_t offset, size;
        bool any_process;
        int32_t allowed[kPeers];
        uint32_t allowed_count;
        Peer importers[kPeers];
    };
    static constexpr uint32_t kExports = 4096;

    // An event that its owner records and others wait for.
    struct IpcEvent {
        std::atomic<uint64_t> id;  // 0: the slot is free
        int32_t pid;
        uint64_t start_time;
        std::atomic<uint64_t> recorded, completed;
    };
    static constexpr uint32_t kIpcEvents = 1024;

    std::atomic<uint64_t> magic;  // set last, when the page is ready
    uint64_t size;
    uint64_t capacity_bytes;
    uint64_t created_ns;
    EngineLine engines[kEngines];
    std::atomic<uint64_t> cube_ns;  // the part of the compute engine's busy time that used the matrix unit
    pthread_mutex_t mutex;          // robust; guards users
    User users[kMaxUsers];
    IpcEvent events[kIpcEvents];  // made under the mutex
    Export exports[kExports];     // under the mutex too
};

class SharedDevice {
public:
    // Joins device `index` of the emulated machine `machine`. Throws std::runtime_error.
    SharedDevice(const std::string& machine, int index, uint64_t capacity_bytes);
    ~SharedDevice();
    SharedDevice(const SharedDevice&) = delete;
    SharedDevice& operator=(const SharedDevice&) = delete;

    // Takes the engine for `duration` at the first free time from `ready` on; the start in CLOCK_MONOTONIC
    // ns.
    uint64_t reserve(Engine engine, uint64_t ready, uint64_t duration);
    // The reservation made last turned out to take `extra` longer: everything reserved later moves on.
    void extend(Engine engine, uint64_t extra);
    void count_cube(uint64_t ns) { page_->cube_ns.fetch_add(ns, std::memory_order_relaxed); }
    uint64_t busy_ns(Engine engine) const {
        return page_->engines[engine].busy_ns.load(std::memory_order_relaxed);
    }
    uint64_t cube_ns() const { return page_->cube_ns.load(std::memory_order_relaxed); }

    // Counts `bytes` as held by this process; false when the device has not that much left.
    bool take_memory(uint64_t bytes);
    void give_memory(uint64_t bytes);
    uint64_t capacity() const { return page_->capacity_bytes; }
    // Counts an object as held by this process; false when the device has no more of that kind.
    bool take_object(DeviceObject kind);
    void give_object(DeviceObject kind);
    uint64_t objects_left(DeviceObject kind);
    // Bytes held by all live processes.
    uint64_t used();
    // Live processes that have the device open.
    uint32_t users();

    // Exported memory. `offset`: in this process's memory file `fd`.
    std::string add_export(int fd, uint64_t offset, uint64_t size, bool any_process, size_t key_bytes);
    bool allow_export(const std::string& key, const int32_t* processes, size_t n);
    enum class Import { Done, Unknown, Own, NotAllowed, NotReachable, Full };
    struct Imported {
        int fd = -1;  // the caller's to close
        uint64_t offset = 0, size = 0;
    };
    Import take_import(const std::string& key, Imported* out);
    void end_import(const std::string& key);
    bool end_export(const std::string& key);
    // This process gives the memory back. False: others still have it, and it must not be used again.
    bool end_exports(uint64_t offset, uint64_t size);

    // A slot for an event of this process, or null; its number is its place.
    DevicePage::IpcEvent* make_event();
    DevicePage::IpcEvent* event(uint32_t number) {
        return number < DevicePage::kIpcEvents ? &page_->events[number] : nullptr;
    }
    uint32_t number_of(const DevicePage::IpcEvent* event) const { return uint32_t(event - page_->events); }
    static bool owner_lives(const DevicePage::IpcEvent& event);

    // In a forked child: drops the mapping without touching the parent's entry.
    void abandon();

private:
    class Lock;
    std::atomic<bool> exported_{false};  // whether this process has ever exported anything
    DevicePage::Export* find_export_locked(const std::string& key);
    void reap_exports_locked();
    uint64_t sum_locked(bool reap);
    uint64_t count_locked(DeviceObject kind);
    void enter(uint64_t capacity_bytes, const std::string& name);

    DevicePage* page_ = nullptr;
    int fd_ = -1;
    uint32_t slot_ = 0;
};

// An object's place among those that its device has. Its end gives it back, unless the device has been
// closed.
class DevicePlace {
public:
    DevicePlace() = default;
    // Empty when the device has no more of that kind.
    DevicePlace(const std::shared_ptr<void>& owner, SharedDevice& shared, DeviceObject kind)
        : owner_(owner), shared_(shared.take_object(kind) ? &shared : nullptr), kind_(kind) {}
    DevicePlace(DevicePlace&& other) noexcept { *this = std::move(other); }
    DevicePlace& operator=(DevicePlace&& other) noexcept {
        std::swap(owner_, other.owner_);
        std::swap(shared_, other.shared_);
        std::swap(kind_, other.kind_);
        return *this;
    }
    ~DevicePlace() {
        const auto open = owner_.lock();
        if (open && shared_ != nullptr) {
            shared_->give_object(kind_);
        }
    }
    explicit operator bool() const { return shared_ != nullptr; }

private:
    std::weak_ptr<void> owner_;  // of the device
    SharedDevice* shared_ = nullptr;
    DeviceObject kind_{};
};

}  // namespace flexnpu::emulator
