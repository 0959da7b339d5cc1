// One rank's end of a communicator.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "flexnpu/emulator/hccl/page.hpp"
#include "flexnpu/emulator/hccl/refusal.hpp"
#include "flexnpu/emulator/kernel.hpp"

namespace flexnpu::emulator::hccl {

// The order in which one rank's operations on something shared take place: that of their calls.
//
// A captured operation has no place of its own: it takes the next one each time that it is replayed.
struct CallOrder {
    uint64_t issued = 0;
    uint64_t done = 0;
};

class Communicator {
public:
    // Takes seat `rank` of `ranks` on `device` and waits until all are taken. Throws Refusal.
    Communicator(int fd, uint32_t ranks, uint32_t rank, int32_t device, const char* name,
                 int64_t execute_timeout_s);
    // Leaves: whoever still waits for this rank is told.
    ~Communicator();
    Communicator(const Communicator&) = delete;
    Communicator& operator=(const Communicator&) = delete;

    const uint32_t ranks;
    const uint32_t rank;
    const int32_t device;
    Page& page() { return mapping_.page(); }
    RankSlot& slot(uint32_t r) { return page().slots[r]; }
    char* window(uint32_t r) { return mapping_.window(r); }
    Channel& channel(uint32_t from, uint32_t to) { return page().channels[from * kMaxRanks + to]; }
    char* channel_window(uint32_t from, uint32_t to) { return mapping_.channel(from, to); }
    std::string name() { return page().name; }

    // ---- tasks ----

    // Waits until `done` holds. False, with the communicator failed, when one of `others` (a bit each) has
    // gone, when the time of a collective is over, or when `meeting`'s stream was aborted.
    bool wait(const std::function<bool()>& done, uint64_t others, const Meeting* meeting);
    // Comes to the next meeting of all ranks, and waits for them.
    bool meet(const Meeting* meeting);
    uint64_t everybody() const { return ranks == 64 ? ~uint64_t(0) : (uint64_t(1) << ranks) - 1; }

    // The order of collectives, and of sends to and receives from each rank.
    std::mutex order;
    CallOrder collectives;
    std::array<CallOrder, kMaxRanks> sends, receives;
    // A task that has a place in an order was issued; it has run, or never will.
    void issued();
    void over();

    // ---- errors ----

    // The first failure is the communicator's, for all ranks.
    void fail(int32_t result, const std::string& text);
    int32_t error() { return int32_t(uint32_t(page().failure.load())); }
    // What the first fail() was told, once error() is not 0.
    std::string error_text();
    // Whether a rank's process has ended without leaving; fails then.
    bool lost(uint64_t others);

    // ---- the whole ----

    // Waits for this rank's tasks; called before the last reference goes.
    void drain();
    // With all other ranks: forgets a failure. False after the connect timeout.
    bool resume();
    // To make a sub-communicator of these ranks (numbers in this one), of which this rank is number `rank`: a
    // descriptor of its memory. `offer`: to be given back with take_back() when all have joined; null where
    // this rank made none.
    int share(uint64_t id, const uint32_t* members, uint32_t n, uint32_t rank, Offer** offer);
    static void take_back(Offer* offer);

private:
    void leave();
    void join(const char* name);

    Mapping mapping_;
    const uint64_t execute_ns_;
    bool seated_ = false;
    uint64_t phase_ = 0;
    uint64_t resumed_ = 0;
    std::mutex failing_;  // this rank's text
    std::mutex mutex_;
    std::condition_variable idle_;
    uint64_t pending_ = 0;
};

}  // namespace flexnpu::emulator::hccl
