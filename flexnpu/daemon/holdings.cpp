#include "flexnpu/daemon/holdings.hpp"

#include <algorithm>

#include "flexnpu/api/resource_errors.h"

namespace flexnpu::daemon {

namespace {

struct KindOf {
    const char* plural;  // as in the options
    int32_t error;
};
constexpr KindOf kKinds[kHeldKinds] = {
    {"streams", acl::RT_NO_STREAM_RESOURCE},   {"events", acl::RT_NO_EVENT_RESOURCE},
    {"graphs", acl::RT_NO_MODEL_RESOURCE},     {"communicators", acl::RT_RESOURCE_ALLOC_FAIL},
    {"binaries", acl::RT_RESOURCE_ALLOC_FAIL},
};

// Adds one if that is within the bound; else how many there are.
bool add(std::atomic<uint64_t>& n, uint64_t most, uint64_t* there) {
    *there = n.load();
    while (*there < most) {
        if (n.compare_exchange_weak(*there, *there + 1)) return true;
    }
    return false;
}

}  // namespace

const char* plural_of(HeldKind kind) { return kKinds[size_t(kind)].plural; }

bool Holder::take(HeldKind kind, const char* function, Holding* out, Failure* failure) {
    const size_t k = size_t(kind);
    const Limits::Objects& most = limits_->objects[k];
    struct Level {
        const std::shared_ptr<HoldingCounts>& counts;
        uint64_t most;
        const char* option;
    };
    const Level levels[] = {{session_, most.per_session, "-per-session"},
                            {user_, most.per_user, "-per-user"},
                            {all_, most.all, ""}};
    Holding taken;
    taken.kind_ = kind;
    for (size_t i = 0; i < std::size(levels); i++) {
        uint64_t there = 0;
        if (add(levels[i].counts->n[k], levels[i].most, &there)) {
            taken.counts_[i] = levels[i].counts;
            continue;
        }
        refused_->n[k]++;
        const std::string plural = kKinds[k].plural;
        std::string text = std::string(function).append(": ");
        if (i == 0)
            text += "this program has ";
        else if (i == 1)
            text.append("the programs of user ").append(std::to_string(uid_)).append(" have ");
        else
            text += "all programs have ";
        text.append(std::to_string(there)).append(" ").append(plural);
        text.append(", as many as ").append(i == 2 ? "the daemon serves" : "may be");
        text.append("; see flexnpud --max-").append(plural).append(levels[i].option);
        *failure = {kKinds[k].error, std::move(text)};
        return false;
    }
    *out = std::move(taken);
    return true;
}

uint64_t Holder::left(HeldKind kind) const {
    const size_t k = size_t(kind);
    const Limits::Objects& most = limits_->objects[k];
    const auto rest = [k](const HoldingCounts& counts, uint64_t bound) {
        return bound - std::min(bound, counts.n[k].load());
    };
    return std::min({rest(*session_, most.per_session), rest(*user_, most.per_user), rest(*all_, most.all)});
}

std::shared_ptr<Holder> Holdings::holder(uint32_t uid) {
    auto made = std::make_shared<Holder>();
    made->limits_ = limits_;
    made->uid_ = uid;
    made->session_ = std::make_shared<HoldingCounts>();
    made->all_ = all_;
    made->refused_ = refused_;
    std::lock_guard lock(mutex_);
    std::erase_if(users_, [](const auto& one) { return one.second.expired(); });
    std::weak_ptr<HoldingCounts>& user = users_[uid];
    made->user_ = user.lock();
    if (!made->user_) user = made->user_ = std::make_shared<HoldingCounts>();
    return made;
}

void Holdings::counters(std::map<std::string, uint64_t>* out) const {
    for (size_t k = 0; k < kHeldKinds; k++) {
        (*out)[std::string("held_") + kKinds[k].plural] = all_->n[k];
        (*out)[std::string("limited_") + kKinds[k].plural] = refused_->n[k];
    }
}

}  // namespace flexnpu::daemon
