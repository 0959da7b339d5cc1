// Memory that one process of an emulated device exports to others.
#include <dirent.h>
#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string_view>

#include "flexnpu/emulator/runtime/process.hpp"
#include "flexnpu/emulator/runtime/shared_device_lock.hpp"

namespace flexnpu::emulator {

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
    std::string folder = process_folder(pid) + "/fd";
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

}  // namespace flexnpu::emulator
