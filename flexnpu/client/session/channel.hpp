// A thread's ring to its daemon: records, and questions whose answers come back in the ring's slot.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "flexnpu/wire/adaptive_wait.hpp"
#include "flexnpu/wire/ring.hpp"

namespace flexnpu::client {

class Session;

// How often a sleeping call looks whether the daemon lives, ns.
inline constexpr uint64_t kSliceNs = 100'000'000;

// A ring and the right to use it: one thread at a time.
//
// A question waits for its answer as long as the daemon lives. Only calls that have a time-out in the
// program's own API are given up. The slot then stays the old question's until its answer has come: the next
// question waits for that first, so no late answer can be taken for another's.
class Channel {
public:
    Channel(Session& session, wire::RingMap map) : session_(session), producer_(std::move(map)) {}

    // Starts an asynchronous record with `payload` bytes; returns where they go, or nullptr when the daemon
    // is gone or `until_ns` has come. Waits while the ring is full.
    uint8_t* open(size_t payload, uint64_t until_ns = UINT64_MAX);
    // Publishes it. No answer will come. A napping dispatcher sees it within its nap; `soon`: wakes it.
    void close(size_t payload, wire::Kind kind, bool soon = false, wire::StepWord step = {});

    // Sends a record of `head` and up to two byte strings behind it, and waits for the answer. Returns its
    // status with message and last error recorded; the answer's words stay in words() until the next call.
    int32_t call(wire::Kind kind, const void* head, size_t head_bytes, const void* more = nullptr,
                 size_t more_bytes = 0, const void* rest = nullptr, size_t rest_bytes = 0);
    template <wire::Plain T>
    int32_t call(wire::Kind kind, const T& head) {
        return call(kind, &head, sizeof(head));
    }
    // The same with the deadline (ns of CLOCK_MONOTONIC, < 0: none) that the record holds as well: the daemon
    // answers by then, and one that does not is not waited for much longer.
    template <wire::Plain T>
    int32_t call_until(wire::Kind kind, const T& head) {
        give_up_ns_ = head.deadline_ns < 0 ? UINT64_MAX : uint64_t(head.deadline_ns) + kGraceNs;
        const int32_t e = call(kind, &head, sizeof(head));
        give_up_ns_ = UINT64_MAX;
        return e;
    }
    // call() in two steps: what is posted between them is not answered, and finish() waits for the answer to
    // what was begun.
    int32_t begin(wire::Kind kind, const void* head, size_t head_bytes, const void* more = nullptr,
                  size_t more_bytes = 0, const void* rest = nullptr, size_t rest_bytes = 0);
    int32_t finish();
    // `soon`: a napping dispatcher is woken, see close().
    template <wire::Plain T>
    int32_t post(wire::Kind kind, const T& head, bool soon = false) {
        uint8_t* p = open(sizeof(head));
        if (!p) return gone();
        std::memcpy(p, &head, sizeof(head));
        close(sizeof(head), kind, soon);
        return 0;
    }
    const uint64_t* words() { return producer_.header().data; }
    // Whether an answer may still come: then nobody else may use the ring.
    bool asking() const { return asking_ != 0; }

    Session& session() { return session_; }

private:
    // How long after its deadline a call's answer may come.
    static constexpr uint64_t kGraceNs = 500'000'000;

    enum class Wait { answered, gone, late };
    // Until the answer to `request`, by a plan made at `start`.
    Wait wait(uint32_t request, wire::AdaptiveWait::Plan plan, uint64_t start);
    int32_t gone();
    int32_t late();
    void publish(size_t payload, wire::Kind kind, uint32_t request, wire::StepWord step = {});

    Session& session_;
    wire::Producer producer_;
    uint32_t request_ = 0;
    uint32_t asking_ = 0;  // the question whose answer has not been seen; 0: none
    uint64_t give_up_ns_ = UINT64_MAX;
    // How long answers take: by kind of call; of copies that ride in the answer; of synchronises behind a
    // replay, by graph.
    static constexpr size_t kSmallCopy = size_t(wire::Kind::count_), kReplays = kSmallCopy + 1, kReplayed = 8;
    wire::AdaptiveWait waits_[kReplays + kReplayed];
    size_t wait_of_ = 0;  // of the call under way
};

}  // namespace flexnpu::client
