#include "flexnpu/emulator/hccl/communicator.hpp"

#include <unistd.h>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "acl.gen.h"
#include "flexnpu/api/hccl_types.hpp"
#include "flexnpu/emulator/hccl/rendezvous.hpp"
#include "flexnpu/emulator/runtime/clock.hpp"
#include "flexnpu/emulator/runtime/process.hpp"

namespace flexnpu::emulator::hccl {

namespace types = flexnpu::hccl;

namespace {

// How often a waiting rank looks whether it should go on waiting: nothing wakes it when another process dies.
constexpr uint64_t kLookNs = 50'000'000;

}  // namespace

Communicator::Communicator(int fd, uint32_t ranks, uint32_t rank, int32_t device, const char* name,
                           int64_t execute_timeout_s)
    : ranks(ranks),
      rank(rank),
      device(device),
      mapping_(fd),
      execute_ns_((execute_timeout_s >= 0 ? uint64_t(execute_timeout_s) : hccl::execute_timeout_s()) *
                  1'000'000'000) {
    try {
        join(name);
    } catch (...) {
        leave();
        throw;
    }
}

Communicator::~Communicator() { leave(); }

void Communicator::join(const char* name) {
    Page& shared = page();
    uint32_t none = 0;
    if (!shared.ranks.compare_exchange_strong(none, ranks) && none != ranks) {
        throw Refusal{types::E_PARA, "this rank says that there are " + std::to_string(ranks) +
                                         " ranks, another says " + std::to_string(none)};
    }
    mapping_.use(ranks);
    RankSlot& mine = slot(rank);
    Seat free = Seat::Free;
    if (!mine.seat.compare_exchange_strong(free, Seat::Joining)) {
        throw Refusal{types::E_PARA, "rank " + std::to_string(rank) + " has joined the communicator already"};
    }
    mine.pid = getpid();
    mine.start_time = process_start_time(getpid());
    mine.device = device;
    if (aclrtGetPhyDevIdByUserDevId(device, &mine.device) != 0) {
        throw Refusal{types::E_PARA, "there is no device " + std::to_string(device)};
    }
    std::snprintf(mine.machine, sizeof(mine.machine), "%s", flexnpu_emu_machine());
    if (rank == 0) {
        std::snprintf(shared.name, sizeof(shared.name), "%s", name);
    }
    seated_ = true;
    mine.seat.store(Seat::Joined);
    wake_waiters(shared);
    const uint64_t give_up = now_ns() + connect_timeout_s() * 1'000'000'000;
    auto all_here = [&] {
        for (uint32_t r = 0; r < ranks; ++r) {
            Seat seat = slot(r).seat.load();
            if (seat == Seat::Free || seat == Seat::Joining) {
                return false;
            }
        }
        return true;
    };
    for (;;) {
        uint32_t seen = shared.pulse.load();
        if (all_here()) {
            break;
        }
        if (error() != 0) {
            throw Refusal{error(), error_text()};
        }
        if (now_ns() > give_up) {
            std::string missing;
            for (uint32_t r = 0; r < ranks; ++r) {
                if (slot(r).seat.load() != Seat::Joined) {
                    missing += (missing.empty() ? "" : ", ") + std::to_string(r);
                }
            }
            throw Refusal{types::E_TIMEOUT, "no rank " + missing + " of " + std::to_string(ranks) +
                                                " within " + std::to_string(connect_timeout_s()) +
                                                " s (HCCL_CONNECT_TIMEOUT)"};
        }
        lost(everybody());
        wait_for_change(shared, seen, kLookNs);
    }
    for (uint32_t a = 0; a < ranks; ++a) {
        for (uint32_t b = a + 1; b < ranks; ++b) {
            if (slot(a).device == slot(b).device && std::strcmp(slot(a).machine, slot(b).machine) == 0) {
                throw Refusal{types::E_PARA, "ranks " + std::to_string(a) + " and " + std::to_string(b) +
                                                 " are both on device " + std::to_string(slot(a).device) +
                                                 ": each rank needs a device of its own"};
            }
        }
    }
}

void Communicator::leave() {
    RankSlot& mine = slot(rank);
    if (seated_ && mine.pid == getpid()) {  // not in a forked child
        mine.seat.store(Seat::Left);
        wake_waiters(page());
    }
}

// ---- waiting ----

bool Communicator::lost(uint64_t others) {
    for (uint32_t r = 0; r < ranks; ++r) {
        RankSlot& other = slot(r);
        if ((others >> r & 1) == 0 || other.seat.load() != Seat::Joined) {
            continue;
        }
        if (other.pid != getpid() && process_start_time(other.pid) != other.start_time) {
            fail(types::E_REMOTE,
                 "rank " + std::to_string(r) + " (process " + std::to_string(other.pid) + ") has ended");
            return true;
        }
    }
    return false;
}

bool Communicator::wait(const std::function<bool()>& done, uint64_t others, const Meeting* meeting) {
    const uint64_t give_up = execute_ns_ != 0 ? now_ns() + execute_ns_ : UINT64_MAX;
    uint64_t looked = now_ns();
    for (;;) {
        const uint32_t seen = page().pulse.load();
        // Before anything else: who has done its part and left is not missed.
        if (done()) {
            return true;
        }
        if (error() != 0) {
            return false;
        }
        for (uint32_t r = 0; r < ranks; ++r) {
            if ((others >> r & 1) != 0 && slot(r).seat.load() == Seat::Left) {
                if (done()) {
                    return true;
                }
                fail(types::E_REMOTE, "rank " + std::to_string(r) + " has left the communicator");
                return false;
            }
        }
        const uint64_t now = now_ns();
        if (meeting->cancelled(meeting)) {
            fail(types::E_REMOTE, "the stream of rank " + std::to_string(rank) + " was aborted");
            return false;
        }
        if (now > give_up) {
            fail(types::E_TIMEOUT, "rank " + std::to_string(rank) + " has waited for the others for " +
                                       std::to_string(execute_ns_ / 1'000'000'000) +
                                       " s (HCCL_EXEC_TIMEOUT)");
            return false;
        }
        if (now - looked >= kLookNs) {
            looked = now;
            if (lost(others)) {
                return false;
            }
        }
        wait_for_change(page(), seen, kLookNs);
    }
}

bool Communicator::meet(const Meeting* meeting) {
    const uint64_t phase = ++phase_;
    slot(rank).phase.store(phase);
    wake_waiters(page());
    return wait(
        [&] {
            for (uint32_t r = 0; r < ranks; ++r) {
                if (slot(r).phase.load() < phase) {
                    return false;
                }
            }
            return true;
        },
        everybody(), meeting);
}

void Communicator::fail(int32_t result, const std::string& text) {
    // Each rank has a text of its own: who loses the race finds the winner's whole, and a rank whose process
    // dies here leaves nothing half done.
    {
        std::lock_guard lock(failing_);
        if (error() != 0) {
            return;
        }
        RankSlot& mine = slot(rank);
        std::snprintf(mine.failed, sizeof(mine.failed), "%s", text.c_str());
        uint64_t none = 0;
        if (!page().failure.compare_exchange_strong(none, uint64_t(rank + 1) << 32 | uint32_t(result))) {
            return;
        }
    }
    wake_waiters(page());
}

std::string Communicator::error_text() {
    const uint64_t who = page().failure.load() >> 32;
    return who != 0 ? slot(uint32_t(who - 1)).failed : "";
}

void Communicator::issued() {
    std::lock_guard lock(mutex_);
    ++pending_;
}

void Communicator::over() {
    std::lock_guard lock(mutex_);
    if (--pending_ == 0) {
        idle_.notify_all();
    }
}

void Communicator::drain() {
    std::unique_lock lock(mutex_);
    idle_.wait(lock, [&] { return pending_ == 0; });
}

// ---- resuming ----

bool Communicator::resume() {
    drain();
    const uint64_t give_up = now_ns() + connect_timeout_s() * 1'000'000'000;
    auto come = [&] {
        const uint64_t mine = ++resumed_;
        slot(rank).resumed.store(mine);
        wake_waiters(page());
        for (;;) {
            const uint32_t seen = page().pulse.load();
            bool all = true;
            for (uint32_t r = 0; r < ranks; ++r) {
                all = all && slot(r).resumed.load() >= mine;
            }
            if (all || now_ns() > give_up) {
                return all;
            }
            wait_for_change(page(), seen, kLookNs);
        }
    };
    if (!come()) {
        return false;
    }
    // Nobody runs anything here now: each rank sets back what it writes.
    phase_ = 0;
    slot(rank).phase.store(0);
    for (uint32_t r = 0; r < ranks; ++r) {
        Channel &out = channel(rank, r), &in = channel(r, rank);
        out.offered.store(0);
        out.written.store(0);
        in.accepted.store(0);
        in.read.store(0);
    }
    {
        std::lock_guard lock(order);
        collectives = {};
        sends.fill({});
        receives.fill({});
    }
    if (rank == 0) {
        page().failure.store(0);
    }
    return come();
}

// ---- sub-communicators ----

void Communicator::take_back(Offer* offer) {
    if (offer != nullptr) {
        offer->state.store(0);
    }
}

int Communicator::share(uint64_t id, const uint32_t* members, uint32_t n, uint32_t sub_rank, Offer** made) {
    uint64_t hash = 0xcbf29ce484222325ull;
    for (uint32_t i = 0; i < n; ++i) {
        hash = (hash ^ members[i]) * 0x100000001b3ull;
    }
    Page& shared = page();
    if (sub_rank == 0) {
        Token token = open_rendezvous(n);
        for (Offer& offer : shared.offers) {
            uint32_t free = 0;
            if (!offer.state.compare_exchange_strong(free, 1)) {
                continue;
            }
            offer.id = id;
            offer.members = hash;
            std::memcpy(offer.token, token.bytes, sizeof(token.bytes));
            offer.state.store(2);
            *made = &offer;
            wake_waiters(shared);
            return join_rendezvous(token);
        }
        throw Refusal{types::E_UNAVAIL, "too many sub-communicators are being made at once"};
    }
    const uint64_t give_up = now_ns() + connect_timeout_s() * 1'000'000'000;
    for (;;) {
        const uint32_t seen = shared.pulse.load();
        for (Offer& offer : shared.offers) {
            if (offer.state.load() == 2 && offer.id == id && offer.members == hash) {
                Token token;
                std::memcpy(token.bytes, offer.token, sizeof(token.bytes));
                return join_rendezvous(token);
            }
        }
        if (error() != 0) {
            throw Refusal{error(), error_text()};
        }
        if (now_ns() > give_up) {
            throw Refusal{types::E_TIMEOUT, "rank 0 of the sub-communicator did not come within " +
                                                std::to_string(connect_timeout_s()) +
                                                " s (HCCL_CONNECT_TIMEOUT)"};
        }
        lost(everybody());
        wait_for_change(shared, seen, kLookNs);
    }
}

}  // namespace flexnpu::emulator::hccl
