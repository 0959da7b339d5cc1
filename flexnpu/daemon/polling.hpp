// When the dispatching thread polls the rings and when it may sleep.
//
// Whoever sleeps is woken late; whoever polls burns a core. So the thread learns, for each ring and each kind
// of record, how soon its client lately did something after the like of it, and polls for as long as the next
// record is likely to come at once.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "flexnpu/wire/adaptive_wait.hpp"
#include "flexnpu/wire/layout.hpp"

namespace flexnpu::daemon {

struct Ring;

// What a ring's client did last, and how soon it lately did something after the like of it.
struct Arrivals {
    wire::Kind last = wire::Kind::invalid;
    uint32_t question = 0;     // the last record's request number; 0: none
    uint64_t since = 0;        // when it was taken, ns
    uint64_t answered_at = 0;  // when its answer was seen, ns; 0: not yet
    uint64_t spin_until = 0;
    bool nap = false;     // rather than sleep: the next one is not known to take its time
    bool lively = false;  // among the rings with a record lately
    wire::AdaptiveWait after_record[size_t(wire::Kind::count_)], after_answer[size_t(wire::Kind::count_)];
};

class Polling {
public:
    // A record of this kind has been taken from the ring.
    void taken(const std::shared_ptr<Ring>& ring, const wire::Record& record, uint64_t now);
    // Whether a record is likely to come at once. `nap`: asynchronous ones are likely to come before long.
    bool expecting(uint64_t now, bool* nap);
    // How long to nap, ns, for who has taken so many records so far. Operators that come one by one, as from
    // an interpreter, are waited for longer: naps that find nothing cost more than they save.
    uint64_t nap_ns(uint64_t records);
    // The thread has slept since the last record was taken.
    void slept() { slept_ = true; }

private:
    std::vector<std::shared_ptr<Ring>> lively_;  // rings with a record lately
    bool slept_ = false;
    uint64_t nap_ns_ = 0;
    uint64_t records_ = 0;  // before the last nap
};

}  // namespace flexnpu::daemon
