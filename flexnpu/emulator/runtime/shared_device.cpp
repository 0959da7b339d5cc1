#include "flexnpu/emulator/runtime/shared_device.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string_view>
#include <thread>

#include "flexnpu/emulator/runtime/clock.hpp"
#include "flexnpu/emulator/runtime/fork.hpp"
#include "flexnpu/emulator/runtime/process.hpp"

namespace flexnpu::emulator {

namespace {

[[noreturn]] void throw_errno(const std::string& what) {
    throw std::runtime_error(what + ": " + std::strerror(errno));
}

// Held while a process looks for the device and makes it. An abstract socket's name: the kernel frees it with
// its holder.
class NameLock {
public:
    explicit NameLock(const std::string& name) : fd_(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
        if (fd_ < 0) {
            throw_errno("cannot make a socket");
        }
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        size_t length = std::min(name.size(), sizeof(address.sun_path) - 1);
        std::memcpy(address.sun_path + 1, name.data(), length);
        auto size = socklen_t(offsetof(sockaddr_un, sun_path) + 1 + length);
        uint64_t give_up = now_ns() + 10'000'000'000ull;
        while (bind(fd_, reinterpret_cast<sockaddr*>(&address), size) != 0) {
            if (errno != EADDRINUSE || now_ns() > give_up) {
                int error = errno;
                close(fd_);
                errno = error;
                throw_errno("cannot lock " + name);
            }
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
    }
    ~NameLock() { close(fd_); }
    NameLock(const NameLock&) = delete;
    NameLock& operator=(const NameLock&) = delete;

private:
    int fd_;
};

struct CloseDirectory {
    void operator()(DIR* directory) const { closedir(directory); }
};
using Directory = std::unique_ptr<DIR, CloseDirectory>;

// An open descriptor of the memfd `name` that another process of this user holds, or -1.
int find_memfd(const std::string& name) {
    std::string target = "/memfd:" + name + " (deleted)";
    Directory processes(opendir("/proc"));
    if (!processes) {
        throw_errno("cannot read /proc, which processes need to find the emulated device");
    }
    uid_t self = geteuid();
    while (dirent* process = readdir(processes.get())) {
        if (process->d_name[0] < '0' || process->d_name[0] > '9') {
            continue;
        }
        std::string folder = std::string("/proc/") + process->d_name + "/fd";
        struct stat owner{};
        if (stat(folder.c_str(), &owner) != 0 || owner.st_uid != self) {
            continue;
        }
        Directory files(opendir(folder.c_str()));
        if (!files) {
            continue;
        }
        while (dirent* file = readdir(files.get())) {
            char link[256];
            ssize_t length = readlinkat(dirfd(files.get()), file->d_name, link, sizeof(link));
            if (length < 0 || std::string_view(link, size_t(length)) != target) {
                continue;
            }
            int fd = openat(dirfd(files.get()), file->d_name, O_RDWR | O_CLOEXEC);
            if (fd >= 0) {
                return fd;
            }
        }
    }
    return -1;
}

}  // namespace

class SharedDevice::Lock {
public:
    explicit Lock(DevicePage* page) : page_(page) {
        if (pthread_mutex_lock(&page_->mutex) == EOWNERDEAD) {
            // The holder died inside. Every change of the table is one word, so the table is as good as
            // before.
            pthread_mutex_consistent(&page_->mutex);
        }
    }
    ~Lock() { pthread_mutex_unlock(&page_->mutex); }
    Lock(const Lock&) = delete;
    Lock& operator=(const Lock&) = delete;

private:
    DevicePage* page_;
};

SharedDevice::SharedDevice(const std::string& machine, int index, uint64_t capacity_bytes) {
    std::string name =
        "flexnpu-emu-" + std::to_string(geteuid()) + "-" + machine + "-npu" + std::to_string(index);
    NoFork no_fork;  // a child must not inherit the lock's socket
    NameLock lock(name);
    fd_ = find_memfd(name);
    bool create = fd_ < 0;
    if (create) {
        fd_ = memfd_create(name.c_str(), MFD_CLOEXEC);
        if (fd_ < 0 || ftruncate(fd_, sizeof(DevicePage)) != 0) {
            throw_errno("cannot make the emulated device's shared page");
        }
    }
    void* memory = mmap(nullptr, sizeof(DevicePage), PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0);
    if (memory == MAP_FAILED) {
        int error = errno;
        close(fd_);
        errno = error;
        throw_errno("cannot map the emulated device's shared page");
    }
    page_ = static_cast<DevicePage*>(memory);
    if (page_->magic.load(std::memory_order_acquire) != DevicePage::kMagic) {
        // New, or its maker died before it was ready; the lock is ours.
        new (memory) DevicePage{};
        page_->size = sizeof(DevicePage);
        page_->capacity_bytes = capacity_bytes;
        page_->created_ns = now_ns();
        pthread_mutexattr_t attributes;
        pthread_mutexattr_init(&attributes);
        pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
        pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
        pthread_mutex_init(&page_->mutex, &attributes);
        pthread_mutexattr_destroy(&attributes);
        page_->magic.store(DevicePage::kMagic, std::memory_order_release);
    }
    try {
        enter(capacity_bytes, name);
    } catch (...) {
        abandon();
        throw;
    }
}

void SharedDevice::enter(uint64_t capacity_bytes, const std::string& name) {
    if (page_->size != sizeof(DevicePage)) {
        throw std::runtime_error("device " + name + " is in use by another version of the emulator");
    }
    if (page_->capacity_bytes != capacity_bytes) {
        throw std::runtime_error("device " + name + " is in use with " +
                                 std::to_string(page_->capacity_bytes >> 20) +
                                 " MiB of memory, this profile has " + std::to_string(capacity_bytes >> 20) +
                                 " MiB: use the same FLEXNPU_EMU_PROFILE, or another FLEXNPU_EMU_MACHINE");
    }
    Lock lock(page_);
    sum_locked(true);
    for (uint32_t i = 0; i < DevicePage::kMaxUsers; ++i) {
        DevicePage::User& user = page_->users[i];
        if (user.pid == 0) {
            user.bytes = 0;
            std::fill(std::begin(user.objects), std::end(user.objects), 0);
            user.start_time = process_start_time(getpid());
            user.pid = getpid();
            slot_ = i;
            return;
        }
    }
    throw std::runtime_error("device " + name + " has " + std::to_string(DevicePage::kMaxUsers) +
                             " users already, which is the most that it serves");
}

SharedDevice::~SharedDevice() {
    if (page_ == nullptr) {
        return;
    }
    {
        Lock lock(page_);
        page_->users[slot_].pid = 0;
    }
    abandon();
}

void SharedDevice::abandon() {
    if (page_ != nullptr) {
        munmap(page_, sizeof(DevicePage));
        close(fd_);
        page_ = nullptr;
        fd_ = -1;
    }
}

uint64_t SharedDevice::reserve(Engine engine, uint64_t ready, uint64_t duration) {
    EngineLine& line = page_->engines[engine];
    uint64_t free = line.free_ns.load(std::memory_order_relaxed);
    uint64_t start;
    do {
        start = std::max(ready, free);
    } while (!line.free_ns.compare_exchange_weak(free, start + duration, std::memory_order_relaxed));
    line.busy_ns.fetch_add(duration, std::memory_order_relaxed);
    return start;
}

void SharedDevice::extend(Engine engine, uint64_t extra) {
    page_->engines[engine].free_ns.fetch_add(extra, std::memory_order_relaxed);
    page_->engines[engine].busy_ns.fetch_add(extra, std::memory_order_relaxed);
}

// Memory held by all users; with `reap`, entries of dead processes are freed first.
uint64_t SharedDevice::sum_locked(bool reap) {
    uint64_t sum = 0;
    for (DevicePage::User& user : page_->users) {
        if (user.pid == 0) {
            continue;
        }
        if (reap && user.pid != getpid() && process_start_time(user.pid) != user.start_time) {
            user.pid = 0;
            continue;
        }
        sum += user.bytes;
    }
    return sum;
}

bool SharedDevice::take_memory(uint64_t bytes) {
    Lock lock(page_);
    for (bool reap : {false, true}) {
        uint64_t used = sum_locked(reap);
        if (used <= page_->capacity_bytes && bytes <= page_->capacity_bytes - used) {
            page_->users[slot_].bytes += bytes;
            return true;
        }
    }
    return false;
}

void SharedDevice::give_memory(uint64_t bytes) {
    Lock lock(page_);
    page_->users[slot_].bytes -= std::min(bytes, page_->users[slot_].bytes);
}

uint64_t SharedDevice::count_locked(DeviceObject kind) {
    uint64_t sum = 0;
    for (const DevicePage::User& user : page_->users) {
        sum += user.pid != 0 ? user.objects[uint32_t(kind)] : 0;
    }
    return sum;
}

bool SharedDevice::take_object(DeviceObject kind) {
    Lock lock(page_);
    if (count_locked(kind) >= kMostObjects[uint32_t(kind)]) {
        sum_locked(true);  // entries of dead processes go
        if (count_locked(kind) >= kMostObjects[uint32_t(kind)]) {
            return false;
        }
    }
    page_->users[slot_].objects[uint32_t(kind)]++;
    return true;
}

void SharedDevice::give_object(DeviceObject kind) {
    Lock lock(page_);
    uint64_t& held = page_->users[slot_].objects[uint32_t(kind)];
    held -= std::min<uint64_t>(1, held);
}

uint64_t SharedDevice::objects_left(DeviceObject kind) {
    Lock lock(page_);
    sum_locked(true);
    const uint64_t most = kMostObjects[uint32_t(kind)];
    return most - std::min(most, count_locked(kind));
}

uint64_t SharedDevice::used() {
    Lock lock(page_);
    return sum_locked(true);
}

// ---- exports ----

namespace {

bool is_live(const DevicePage::Export::Peer& peer) {
    return peer.pid != 0 && process_start_time(peer.pid) == peer.start_time;
}

std::string random_key(size_t bytes) {
    std::string key;
    while (key.size() < bytes) {
        uint8_t byte = 0;
        if (getrandom(&byte, 1, 0) != 1) {
            throw_errno("getrandom");
        }
        key += "0123456789abcdef"[byte >> 4];
        key += "0123456789abcdef"[byte & 15];
    }
    return key;
}

// The memory file with this inode, opened from the process that has it; -1 if it cannot be reached.
int open_inode(int32_t pid, uint64_t inode) {
    std::string folder = "/proc/" + std::to_string(pid) + "/fd";
    Directory files(opendir(folder.c_str()));
    while (dirent* file = files ? readdir(files.get()) : nullptr) {
        struct stat status{};
        if (fstatat(dirfd(files.get()), file->d_name, &status, 0) != 0 || status.st_ino != inode) {
            continue;
        }
        char link[256];
        ssize_t length = readlinkat(dirfd(files.get()), file->d_name, link, sizeof(link));
        if (length > 0 && std::string_view(link, size_t(length)).starts_with("/memfd:flexnpu-emu-memory")) {
            return openat(dirfd(files.get()), file->d_name, O_RDWR | O_CLOEXEC);
        }
    }
    return -1;
}

}  // namespace

DevicePage::Export* SharedDevice::find_export_locked(const std::string& key) {
    for (DevicePage::Export& one : page_->exports) {
        if (!key.empty() && key.size() <= sizeof(one.key) &&
            std::string_view(one.key, strnlen(one.key, sizeof(one.key))) == key) {
            return &one;
        }
    }
    return nullptr;
}

// A slot is free again when its owner is gone and so are all that imported from it.
void SharedDevice::reap_exports_locked() {
    for (DevicePage::Export& one : page_->exports) {
        if (one.key[0] == 0) {
            continue;
        }
        bool held = !one.ended && is_live(one.owner);
        for (auto& peer : one.importers) {
            if (peer.pid != 0 && !is_live(peer)) {
                peer = {};
            }
            held = held || peer.pid != 0;
        }
        if (!held) {
            one = {};
        }
    }
}

std::string SharedDevice::add_export(int fd, uint64_t offset, uint64_t size, bool any_process,
                                     size_t key_bytes) {
    struct stat status{};
    if (fstat(fd, &status) != 0) {
        return "";
    }
    exported_ = true;
    Lock lock(page_);
    reap_exports_locked();
    for (DevicePage::Export& one : page_->exports) {
        if (one.key[0] == 0) {
            std::string key = random_key(key_bytes);
            one = {};
            one.owner = {getpid(), process_start_time(getpid())};
            one.inode = status.st_ino;
            one.offset = offset;
            one.size = size;
            one.any_process = any_process;
            std::memcpy(one.key, key.data(), key.size());
            return key;
        }
    }
    return "";
}

bool SharedDevice::allow_export(const std::string& key, const int32_t* processes, size_t n) {
    Lock lock(page_);
    DevicePage::Export* one = find_export_locked(key);
    if (one == nullptr || one->owner.pid != getpid() || one->allowed_count + n > DevicePage::Export::kPeers) {
        return false;
    }
    std::copy_n(processes, n, one->allowed + one->allowed_count);
    one->allowed_count += uint32_t(n);
    return true;
}

SharedDevice::Import SharedDevice::take_import(const std::string& key, Imported* out) {
    Lock lock(page_);
    reap_exports_locked();
    DevicePage::Export* one = find_export_locked(key);
    if (one == nullptr || one->ended || !is_live(one->owner)) {
        return Import::Unknown;
    }
    if (one->owner.pid == getpid()) {
        return Import::Own;
    }
    if (!one->any_process && std::find(one->allowed, one->allowed + one->allowed_count, getpid()) ==
                                 one->allowed + one->allowed_count) {
        return Import::NotAllowed;
    }
    auto slot = std::find_if(std::begin(one->importers), std::end(one->importers),
                             [](const auto& peer) { return peer.pid == 0; });
    if (slot == std::end(one->importers)) {
        return Import::Full;
    }
    *out = {open_inode(one->owner.pid, one->inode), one->offset, one->size};
    if (out->fd < 0) {
        return Import::NotReachable;
    }
    *slot = {getpid(), process_start_time(getpid())};
    return Import::Done;
}

void SharedDevice::end_import(const std::string& key) {
    Lock lock(page_);
    if (DevicePage::Export* one = find_export_locked(key)) {
        for (auto& peer : one->importers) {
            if (peer.pid == getpid()) {
                peer = {};
                break;
            }
        }
    }
    reap_exports_locked();
}

bool SharedDevice::end_export(const std::string& key) {
    Lock lock(page_);
    DevicePage::Export* one = find_export_locked(key);
    if (one == nullptr || one->owner.pid != getpid()) {
        return false;
    }
    // No import after this; who has it keeps it, and so must we: the entry stays for end_exports().
    bool imported = std::any_of(std::begin(one->importers), std::end(one->importers), is_live);
    if (!imported) {
        *one = {};
    } else {
        one->allowed_count = 0;
        one->any_process = false;
    }
    return true;
}

bool SharedDevice::end_exports(uint64_t offset, uint64_t size) {
    if (!exported_.load()) {
        return true;
    }
    Lock lock(page_);
    bool free = true;
    for (DevicePage::Export& one : page_->exports) {
        if (one.key[0] == 0 || one.owner.pid != getpid() || one.offset < offset ||
            one.offset >= offset + size) {
            continue;
        }
        if (std::any_of(std::begin(one.importers), std::end(one.importers), is_live)) {
            one.ended = true;
            free = false;
        } else {
            one = {};
        }
    }
    return free;
}

bool SharedDevice::owner_lives(const DevicePage::IpcEvent& event) {
    return process_start_time(event.pid) == event.start_time;
}

DevicePage::IpcEvent* SharedDevice::make_event() {
    Lock lock(page_);
    for (DevicePage::IpcEvent& one : page_->events) {
        if (one.id.load() != 0 && owner_lives(one)) {
            continue;
        }
        uint64_t id = 0;
        while (id == 0) {
            if (getrandom(&id, sizeof(id), 0) != sizeof(id)) {
                throw_errno("getrandom");
            }
        }
        one.pid = getpid();
        one.start_time = process_start_time(getpid());
        one.recorded = one.completed = 0;
        one.id = id;
        return &one;
    }
    return nullptr;
}

uint32_t SharedDevice::users() {
    Lock lock(page_);
    sum_locked(true);
    return uint32_t(std::count_if(std::begin(page_->users), std::end(page_->users),
                                  [](const DevicePage::User& user) { return user.pid != 0; }));
}

}  // namespace flexnpu::emulator
