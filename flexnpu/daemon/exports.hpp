// What sessions have exported to each other: a key that cannot be guessed, the processes that may use it, and
// what is behind it.
//
// Nothing is copied: the daemon owns all of the device's memory, and an import is a hold on the same
// allocation. The owner's free, or its death, ends the export; those who have imported keep the memory until
// they let go of it, and the first of them is charged for it from then on.
#pragma once

#include <sys/random.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "flexnpu/daemon/device_memory.hpp"

namespace flexnpu::daemon {

// Any thread.
class Exports {
public:
    enum class Kind : uint8_t { memory, physical };
    struct Export {
        Kind kind;
        uint32_t session;  // whose it is
        std::weak_ptr<Allocation> allocation;
        uint64_t address = 0, bytes = 0;  // memory: the part that is exported
        bool any_process = false;
        std::vector<int32_t> processes;
    };
    // 64 hexadecimal digits. Of physical memory the first 16 alone are the key.
    static constexpr size_t kKeyBytes = 64;
    static constexpr size_t kMaxPerSession = 4096, kMaxProcesses = 1024;

    // The new key; empty when this session has exported too much already.
    std::string add(Export one) {
        std::string key = random_key();
        if (one.kind == Kind::physical) key.resize(16);
        std::lock_guard lock(mutex_);
        if (size_t(std::count_if(all_.begin(), all_.end(), [&](const auto& e) {
                return e.second.session == one.session;
            })) >= kMaxPerSession)
            return "";
        all_.emplace(key, std::move(one));
        return key;
    }
    // Lets these processes import too; false if the session has no such export.
    bool allow(uint32_t session, Kind kind, const std::string& key, const std::vector<int32_t>& processes) {
        std::lock_guard lock(mutex_);
        auto at = all_.find(key);
        if (at == all_.end() || at->second.session != session || at->second.kind != kind) return false;
        std::vector<int32_t>& list = at->second.processes;
        if (list.size() + processes.size() > kMaxProcesses) return false;
        list.insert(list.end(), processes.begin(), processes.end());
        return true;
    }
    enum class Answer { granted, unknown, own, not_allowed };
    // What `key` stands for, if this process of this session may have it. A wrong key and one that has ended
    // look the same.
    Answer look_up(uint32_t session, int32_t process, Kind kind, const std::string& key, Export* out,
                   std::shared_ptr<Allocation>* allocation) {
        std::lock_guard lock(mutex_);
        auto at = all_.find(key);
        if (at == all_.end() || at->second.kind != kind) return Answer::unknown;
        const Export& e = at->second;
        if (e.session == session) return Answer::own;
        if (!e.any_process && std::find(e.processes.begin(), e.processes.end(), process) == e.processes.end())
            return Answer::not_allowed;
        *allocation = e.allocation.lock();
        if (!*allocation) return Answer::unknown;
        *out = e;
        return Answer::granted;
    }
    bool remove(uint32_t session, const std::string& key) {
        std::lock_guard lock(mutex_);
        auto at = all_.find(key);
        if (at == all_.end() || at->second.session != session) return false;
        all_.erase(at);
        return true;
    }
    // The session's exports of this allocation (null: all of them) end.
    void forget(uint32_t session, const Allocation* allocation) {
        std::lock_guard lock(mutex_);
        std::erase_if(all_, [&](const auto& e) {
            return e.second.session == session &&
                   (!allocation || e.second.allocation.lock().get() == allocation);
        });
    }

    static std::string random_key() {
        uint8_t bytes[kKeyBytes / 2];
        if (getrandom(bytes, sizeof(bytes), 0) != ssize_t(sizeof(bytes)))
            throw std::runtime_error("getrandom failed");
        std::string out;
        for (const uint8_t b : bytes) {
            out += "0123456789abcdef"[b >> 4];
            out += "0123456789abcdef"[b & 15];
        }
        return out;
    }

private:
    std::mutex mutex_;
    std::map<std::string, Export> all_;
};

}  // namespace flexnpu::daemon
