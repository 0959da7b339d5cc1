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
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string_view>
#include <thread>

#include "flexnpu/api/guest.hpp"
#include "flexnpu/emulator/runtime/clock.hpp"
#include "flexnpu/emulator/runtime/fork.hpp"
#include "flexnpu/emulator/runtime/process.hpp"
#include "flexnpu/emulator/runtime/shared_device_lock.hpp"

namespace flexnpu::emulator {

namespace {

// Held while a process looks for the device and makes it. An abstract socket's name: the kernel frees it with
// its holder.
class NameLock {
public:
    explicit NameLock(const std::string& name)
        : fd_(guest::above_standard(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0))) {
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

// Numbers of processes stand in the page. They mean something to processes of one PID namespace only, so each
// namespace has devices of its own.
bool in_our_pid_namespace(const std::string& process) {
    struct stat ours{}, theirs{};
    return stat("/proc/self/ns/pid", &ours) == 0 && stat((process + "/ns/pid").c_str(), &theirs) == 0 &&
           ours.st_ino == theirs.st_ino;
}

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
        const std::string of_process = process_folder(std::atoi(process->d_name));
        const std::string folder = of_process + "/fd";
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
            if (length < 0 || std::string_view(link, size_t(length)) != target ||
                !in_our_pid_namespace(of_process)) {
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

SharedDevice::SharedDevice(const std::string& machine, int index, uint64_t capacity_bytes) {
    std::string name =
        "flexnpu-emu-" + std::to_string(geteuid()) + "-" + machine + "-npu" + std::to_string(index);
    NoFork no_fork;  // a child must not inherit the lock's socket
    NameLock lock(name);
    fd_ = guest::above_standard(find_memfd(name));
    bool create = fd_ < 0;
    if (create) {
        fd_ = guest::above_standard(memfd_create(name.c_str(), MFD_CLOEXEC));
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
