#include "flexnpu/daemon/polling.hpp"

#include <algorithm>

#include "flexnpu/daemon/session.hpp"

namespace flexnpu::daemon {

namespace {

using wire::Kind;

// Spin for a record that is likely to come within this time; sleep for others.
constexpr uint64_t kMostSpinNs = 80'000;
// By how much a record that woke us was there earlier than we saw it.
constexpr uint64_t kWokenNs = 30'000;
// While a client is busy, look into the rings this often without being woken: an asynchronous call then costs
// its caller no system call, and us one timer for several calls.
constexpr uint64_t kShortNapNs = 50'000;
constexpr uint64_t kLongNapNs = 200'000;
// So many records a nap are a row of operators.
constexpr uint64_t kRow = 4;
// This long after the last asynchronous record, sleep until somebody rings: naps cost more than the caller's
// system call then.
constexpr uint64_t kNapForNs = 400'000;
// A ring without a record for so long is not lively any more.
constexpr uint64_t kLivelyNs = 20'000'000;

}  // namespace

// How long after this record, or its answer, the client's next one comes is learnt by kind. Operators come in
// rows: what follows one is not foretold, and naps do for them.
void Polling::taken(const std::shared_ptr<Ring>& ring, const wire::Record& record, uint64_t now) {
    Arrivals& a = ring->arrivals;
    if (a.last != Kind::launch) {
        const uint64_t at = slept_ ? now - kWokenNs : now;
        const auto after = [at](uint64_t then) { return at > then ? at - then : 0; };
        a.after_record[size_t(a.last)].learn(after(a.since));
        if (a.answered_at) a.after_answer[size_t(a.last)].learn(after(a.answered_at));
    }
    slept_ = false;
    a.last = record.kind < Kind::count_ ? record.kind : Kind::invalid;
    a.question = record.request;
    a.since = now;
    a.answered_at = 0;
    a.spin_until = 0;
    if (a.last != Kind::launch) {
        const auto plan = a.after_record[size_t(a.last)].plan(now);
        if (plan.spin_until <= now + kMostSpinNs) a.spin_until = plan.spin_until;
        a.nap = plan.spin_from == now;
    } else {
        a.nap = true;
    }
    if (!a.lively) {
        a.lively = true;
        lively_.push_back(ring);
    }
}

bool Polling::expecting(uint64_t now, bool* nap) {
    bool spin = false;
    std::erase_if(lively_, [&](const std::shared_ptr<Ring>& ring) {
        Arrivals& a = ring->arrivals;
        if (a.question && !a.answered_at &&
            ring->consumer.header().reply.load(std::memory_order_relaxed) == a.question) {
            a.answered_at = now;
            const auto plan = a.after_answer[size_t(a.last)].plan(now);
            if (plan.spin_until <= now + kMostSpinNs) a.spin_until = std::max(a.spin_until, plan.spin_until);
        }
        spin |= now < a.spin_until;
        *nap |= a.nap && !a.question && now - a.since < kNapForNs;
        const bool over = ring->closed || now - std::max(a.since, a.answered_at) > kLivelyNs;
        if (over) a.lively = false;
        return over;
    });
    return spin;
}

uint64_t Polling::nap_ns(uint64_t records) {
    const uint64_t found = records - records_;
    records_ = records;
    if (found >= kRow)
        nap_ns_ = kShortNapNs;
    else if (found == 0)
        nap_ns_ *= 2;
    nap_ns_ = std::clamp(nap_ns_, kShortNapNs, kLongNapNs);
    return nap_ns_;
}

}  // namespace flexnpu::daemon
