#include "flexnpu/daemon/device_memory.hpp"

#include <algorithm>

#include "flexnpu/daemon/vendor.hpp"

namespace flexnpu::daemon {

Allocation::~Allocation() {
    if (kind_ == Kind::memory)
        vendor_.aclrtFree(it_);
    else
        vendor_.aclrtFreePhysical(it_);
    if (payer_) payer_->refund(bytes_);
}

void Allocation::join(const std::shared_ptr<Account>& who, bool charged) {
    std::lock_guard lock(mutex_);
    holders_.push_back(who);
    if (charged) payer_ = who;
}

void Allocation::leave(const std::shared_ptr<Account>& who) {
    std::lock_guard lock(mutex_);
    holders_.erase(std::find(holders_.begin(), holders_.end(), who));
    if (payer_ != who || holders_.empty() ||
        std::find(holders_.begin(), holders_.end(), who) != holders_.end())
        return;
    payer_->refund(bytes_);
    payer_ = holders_.front();
    payer_->adopt(bytes_);
}

Held::Held(std::shared_ptr<Allocation> allocation, std::shared_ptr<Account> who, bool charged)
    : allocation_(std::move(allocation)), who_(std::move(who)) {
    allocation_->join(who_, charged);
}

Held::~Held() { allocation_->leave(who_); }

std::string over_quota(const char* function, const Account& account, uint64_t bytes) {
    return std::string(function) + ": " + std::to_string(bytes) + " bytes asked for, " +
           std::to_string(account.used()) + " of this session's quota of " + std::to_string(account.quota()) +
           " bytes are used (flexnpud --quota, flexnpu run --quota)";
}

int32_t allocate_memory(Vendor& vendor, const std::shared_ptr<Account>& account, const MemoryRequest& ask,
                        std::shared_ptr<Held>* out, std::string* message) {
    if (!account->charge(ask.bytes)) {
        *message = over_quota(ask.function, *account, ask.bytes);
        return acl::RT_MEMORY_ALLOCATION;
    }
    void* p = nullptr;
    const int32_t e = ask.align32 ? vendor.aclrtMallocAlign32(&p, ask.bytes, ask.policy)
                                  : vendor.aclrtMalloc(&p, ask.bytes, ask.policy);
    if (e) {
        account->refund(ask.bytes);
        *message = vendor.message(ask.function, e);
        return e;
    }
    *out = std::make_shared<Held>(
        std::make_shared<Allocation>(vendor, Allocation::Kind::memory, p, ask.bytes), account, true);
    return 0;
}

int32_t allocate_physical(Vendor& vendor, const std::shared_ptr<Account>& account, uint64_t bytes,
                          const aclrtPhysicalMemProp& properties, std::shared_ptr<Held>* out,
                          std::string* message) {
    if (!account->charge(bytes)) {
        *message = over_quota("aclrtMallocPhysical", *account, bytes);
        return acl::RT_MEMORY_ALLOCATION;
    }
    aclrtDrvMemHandle handle = nullptr;
    if (const int32_t e = vendor.aclrtMallocPhysical(&handle, bytes, &properties, 0)) {
        account->refund(bytes);
        *message = vendor.message("aclrtMallocPhysical", e);
        return e;
    }
    *out = std::make_shared<Held>(
        std::make_shared<Allocation>(vendor, Allocation::Kind::physical, handle, bytes), account, true);
    return 0;
}

}  // namespace flexnpu::daemon
