// Device memory as the daemon holds it for its clients: who pays for it, and when it goes back to the vendor.
//
// This is the one place where device memory is charged: what aclrtMalloc and its family give, physical memory
// of the virtual memory calls, and the workspaces that the daemon itself needs for a session's operators.
// Memory that several sessions hold (exported by one, imported by others) is charged once: to its owner, and
// when the owner lets go or dies, to one of those who still hold it.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

struct aclrtPhysicalMemProp;

namespace flexnpu::daemon {

class Vendor;

// What one session holds of the device's memory, and may. Any thread.
class Account {
public:
    // 0: no quota but the device's own size.
    explicit Account(uint64_t quota = 0) : quota_(quota) {}
    // False, and nothing changed, when the quota does not allow it.
    bool charge(uint64_t bytes) {
        std::lock_guard lock(mutex_);
        if (quota_ && (bytes > quota_ || used_ > quota_ - bytes)) return false;
        used_ += bytes;
        return true;
    }
    // Charges what cannot be refused: memory whose owner is gone and that this session still holds.
    void adopt(uint64_t bytes) {
        std::lock_guard lock(mutex_);
        used_ += bytes;
    }
    void refund(uint64_t bytes) {
        std::lock_guard lock(mutex_);
        used_ -= bytes;
    }
    uint64_t quota() const { return quota_; }
    uint64_t used() const {
        std::lock_guard lock(mutex_);
        return used_;
    }
    uint64_t left() const {
        std::lock_guard lock(mutex_);
        return quota_ == 0 ? UINT64_MAX : used_ < quota_ ? quota_ - used_ : 0;
    }

private:
    const uint64_t quota_;
    mutable std::mutex mutex_;
    uint64_t used_ = 0;
};

// A piece of device memory, or of physical memory that has no address until it is mapped. Goes back to the
// vendor with its last holder.
class Allocation {
public:
    enum class Kind : uint8_t { memory, physical };
    Allocation(Vendor& vendor, Kind kind, void* it, uint64_t bytes)
        : vendor_(vendor), kind_(kind), it_(it), bytes_(bytes) {}
    ~Allocation();
    Allocation(const Allocation&) = delete;
    Allocation& operator=(const Allocation&) = delete;

    Kind kind() const { return kind_; }
    void* vendor_handle() const { return it_; }  // of physical memory
    uint64_t address() const { return reinterpret_cast<uint64_t>(it_); }
    uint64_t bytes() const { return bytes_; }

private:
    friend class Held;
    void join(const std::shared_ptr<Account>& who, bool charged);
    void leave(const std::shared_ptr<Account>& who);

    Vendor& vendor_;
    const Kind kind_;
    void* const it_;
    const uint64_t bytes_;
    std::mutex mutex_;
    std::shared_ptr<Account> payer_;
    std::vector<std::shared_ptr<Account>> holders_;
};

// One session's hold on an allocation. Its end may call the vendor: let it end where that may block.
class Held {
public:
    // `charged`: `who` has been charged for it already. Otherwise somebody else pays.
    Held(std::shared_ptr<Allocation> allocation, std::shared_ptr<Account> who, bool charged);
    ~Held();
    Held(const Held&) = delete;
    Held& operator=(const Held&) = delete;
    const std::shared_ptr<Allocation>& allocation() const { return allocation_; }
    uint64_t address() const { return allocation_->address(); }
    uint64_t bytes() const { return allocation_->bytes(); }

private:
    std::shared_ptr<Allocation> allocation_;
    std::shared_ptr<Account> who_;
};

// What the vendor is asked for.
struct MemoryRequest {
    const char* function;  // as the program called it
    uint64_t bytes;
    int32_t policy = 0;
    bool align32 = false;
};

// Charges and allocates. On failure an ACL error, with *message set.
int32_t allocate_memory(Vendor& vendor, const std::shared_ptr<Account>& account, const MemoryRequest& ask,
                        std::shared_ptr<Held>* out, std::string* message);

// The same for physical memory, which has no address until it is mapped.
int32_t allocate_physical(Vendor& vendor, const std::shared_ptr<Account>& account, uint64_t bytes,
                          const aclrtPhysicalMemProp& properties, std::shared_ptr<Held>* out,
                          std::string* message);

// Why `account` refuses `bytes`.
std::string over_quota(const char* function, const Account& account, uint64_t bytes);

}  // namespace flexnpu::daemon
