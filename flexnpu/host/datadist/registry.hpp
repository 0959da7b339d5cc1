// The memory that an engine has registered, as it is exported to others.
#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "abi.hpp"
#include "messages.hpp"

namespace flexnpu::host::datadist {

inline void* pointer(uint64_t address) { return reinterpret_cast<void*>(address); }
std::string hex(uint64_t value);
// "aclrtX failed with 107000: <the library's text>".
std::string acl_error(const char* function, int32_t code);

// A part of device memory under a key of its own, until this ends.
class Exported {
public:
    // Sets *wrong and returns null where AscendCL refuses.
    static std::shared_ptr<Exported> allocation(uint64_t address, uint64_t bytes, std::string* wrong);
    // Of the physical memory that is mapped at `address`: all of it.
    static std::shared_ptr<Exported> physical(uint64_t address, std::string* wrong);
    ~Exported();
    Exported(const Exported&) = delete;
    Exported& operator=(const Exported&) = delete;

    const Piece& piece() const { return piece_; }

private:
    Exported() = default;
    Piece piece_{};
    aclrtDrvMemHandle handle_ = nullptr;
};

class Registry {
public:
    // A handle, or null and *wrong.
    void* add(uint64_t address, uint64_t bytes, bool on_host, std::string* wrong);
    enum class Removed { done, unknown, busy };
    // Waits for transfers of others that have begun, but not for ever: `busy`.
    Removed remove(void* handle);
    // Whether one registration holds all of it; *on_host: of which kind.
    bool holds(uint64_t address, uint64_t bytes, bool* on_host) const;

    Table table(const std::string& engine) const;
    uint64_t generation() const;
    // Between these no memory goes. Any thread.
    void begin_transfer();
    void end_transfers(uint32_t n);

private:
    struct Entry {
        Range range;
        std::vector<std::shared_ptr<Exported>> pieces;
        bool leaving = false;
    };
    bool export_all(Entry* entry, std::string* wrong);

    mutable std::mutex mutex_;
    std::condition_variable ended_;
    uint64_t generation_ = 1, next_ = 1;
    uint32_t running_ = 0;                                  // transfers of others
    std::map<uint64_t, Entry> entries_;                     // by handle
    std::map<uint64_t, std::weak_ptr<Exported>> physical_;  // by the mapping's address
};

}  // namespace flexnpu::host::datadist
