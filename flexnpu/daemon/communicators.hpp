// A session's communicators: the vendor's, under the session's numbers.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <unordered_set>

#include "flexnpu/daemon/session.hpp"

namespace flexnpu::daemon {

struct Communicator : std::enable_shared_from_this<Communicator> {
    Communicator(Vendor& v, HcclComm h, uint32_t n, uint32_t r) : vendor(v), handle(h), ranks(n), rank(r) {}
    Vendor& vendor;
    HcclComm handle;  // the vendor's; null when it has been destroyed
    // Held while a worker asks the vendor about it, alone while one destroys it: workers of other rings may
    // be asking.
    std::shared_mutex asked;
    const uint32_t ranks, rank;
    Holding place;  // among its session's
    // What has been called once with success: the vendor made its connections then, for which it may have
    // waited for the other ranks. The dispatcher's.
    std::unordered_set<uint64_t> known;
    // Makes calls that may wait. A communicator's calls keep their order, since its lane goes on only after
    // each.
    std::unique_ptr<Worker> worker;
    std::atomic<bool> dropped{false};  // the session has died: nothing more is called
};

struct Communicators {
    ~Communicators();
    // What the session's streams still hold may wait for ranks that wait for this one, or for none: nothing
    // more is called.
    void abandon();
    // Held for each look: communicators are made on workers.
    std::mutex mutex;
    Table<Communicator> table{wire::HandleKind::comm};
    std::vector<std::shared_ptr<Communicator>>
        leaving;  // on their way out: not to be named any more, not yet destroyed
    std::shared_ptr<Communicator> find(uint64_t handle) {
        std::lock_guard lock(mutex);
        Communicator* c = table.find(handle);
        return c ? c->shared_from_this() : nullptr;
    }
};

inline constexpr uint32_t kMostRanks = 1 << 14;

// The vendor's message for an HcclResult.
std::string told(const Vendor& vendor, const char* function, int32_t result);

// The function's name; `of`: wire::Collective::Of.
const char* collective_name(uint32_t of);

// Whether the vendor's call of this item may wait for other ranks.
bool may_block(const CollectiveItem& item);

}  // namespace flexnpu::daemon
