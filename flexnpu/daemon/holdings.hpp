// How many of the device's objects a session, a user and all together hold, and may.
//
// Each object carries its place in the counts and gives it back when it is gone for good, whoever held it
// last.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "flexnpu/daemon/limits.hpp"

namespace flexnpu::daemon {

struct Failure {
    int32_t code = 0;
    std::string message;
};

// As in counters and options.
const char* plural_of(HeldKind kind);

struct HoldingCounts {
    std::array<std::atomic<uint64_t>, kHeldKinds> n{};
};

// One object's place. Its end gives it back.
class Holding {
public:
    Holding() = default;
    Holding(Holding&& other) noexcept { swap(other); }
    Holding& operator=(Holding&& other) noexcept {
        swap(other);
        return *this;
    }
    ~Holding() {
        for (const auto& counts : counts_) {
            if (counts) counts->n[size_t(kind_)]--;
        }
    }

private:
    friend class Holder;
    void swap(Holding& other) noexcept {
        std::swap(kind_, other.kind_);
        std::swap(counts_, other.counts_);
    }
    HeldKind kind_{};
    std::array<std::shared_ptr<HoldingCounts>, 3> counts_;
};

// A session's accounts. Any thread.
class Holder {
public:
    // A place for one more; false, with *failure set and counted, when a limit is reached. `function`: that
    // the program called.
    bool take(HeldKind kind, const char* function, Holding* out, Failure* failure);
    // How many more may be had.
    uint64_t left(HeldKind kind) const;
    uint64_t held(HeldKind kind) const { return session_->n[size_t(kind)]; }

private:
    friend class Holdings;
    std::shared_ptr<const Limits> limits_;
    uint32_t uid_ = 0;
    std::shared_ptr<HoldingCounts> session_, user_, all_, refused_;
};

// Of one daemon. Any thread.
class Holdings {
public:
    explicit Holdings(const Limits& limits) : limits_(std::make_shared<const Limits>(limits)) {}
    std::shared_ptr<Holder> holder(uint32_t uid);
    void counters(std::map<std::string, uint64_t>* out) const;

private:
    const std::shared_ptr<const Limits> limits_;
    const std::shared_ptr<HoldingCounts> all_ = std::make_shared<HoldingCounts>(),
                                         refused_ = std::make_shared<HoldingCounts>();
    std::mutex mutex_;
    std::map<uint32_t, std::weak_ptr<HoldingCounts>> users_;
};

}  // namespace flexnpu::daemon
