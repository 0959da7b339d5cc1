#include "flexnpu/daemon/pins.hpp"

#include "flexnpu/daemon/vendor.hpp"

namespace flexnpu::daemon {

std::unique_ptr<Pins::Pin> Pins::pin(uint32_t uid, void* address, uint64_t bytes) {
    if (!take(uid, bytes)) {
        over_limit_++;
        return nullptr;
    }
    // What cannot be unregistered is not registered: the memory goes when its program says so.
    const int32_t e = vendor_.aclrtHostUnregister ? Vendor::call(vendor_.aclrtHostRegisterV2, address, bytes,
                                                                 uint32_t(acl::HOST_REG_PINNED))
                                                  : int32_t(acl::API_NOT_SUPPORTED);
    if (e) {
        refused_++;
        give(uid, bytes);
        return nullptr;
    }
    made_++;
    return std::make_unique<Pin>(shared_from_this(), uid, address, bytes);
}

bool Pins::take(uint32_t uid, uint64_t bytes) {
    std::lock_guard lock(mutex_);
    const auto mine = users_.find(uid);
    const uint64_t used = mine == users_.end() ? 0 : mine->second;
    if (bytes > limits_.pinned_bytes - bytes_ || bytes > limits_.pinned_bytes_per_user - used) return false;
    bytes_ += bytes;
    users_[uid] += bytes;
    return true;
}

void Pins::give(uint32_t uid, uint64_t bytes) {
    std::lock_guard lock(mutex_);
    bytes_ -= bytes;
    if ((users_[uid] -= bytes) == 0) users_.erase(uid);
}

void Pins::undo(const Pin& pin) {
    vendor_.aclrtHostUnregister(pin.address_);
    give(pin.uid_, pin.bytes_);
}

void Pins::counters(std::map<std::string, uint64_t>* out) const {
    (*out)["pinned"] = made_;
    (*out)["unpinned_over_limit"] = over_limit_;
    (*out)["unpinned_by_vendor"] = refused_;
}

}  // namespace flexnpu::daemon
