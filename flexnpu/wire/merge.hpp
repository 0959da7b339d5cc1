// Program order over a session's rings.
//
// Each record carries a number from one counter of the session, taken before the record is published. Claim:
// if record X happened before record Y in the program (same thread, or X's thread told Y's thread in any way
// that orders memory), next() gives X before Y, although they may stand in different rings.
//   1. X's number is smaller than Y's: both come from one atomic counter, and X took its number before Y did.
//   2. Within a ring, numbers grow. So a ring whose head record we have seen can hold nothing smaller than
//   that head.
//   3. When we see Y at a ring's head (acquire of that ring's `head`), everything that happened before Y's
//   publication is visible to
//      reads that we make afterwards: X has been published (release of its ring's `head`) before.
//   4. next() takes the smallest visible head m and then looks once more into each ring that was empty. If
//   all are still empty, no record that
//      happened before m is outstanding: by 3 it would be visible, and by 2 and 1 it would be a head smaller
//      than m. Otherwise it starts again with the larger set of heads, at most once a ring.
// A record without a happens-before relation to m may overtake it; the program cannot tell.
//
// A client that writes other numbers only disorders itself.
#pragma once

#include <cstddef>

#include "flexnpu/wire/ring.hpp"

namespace flexnpu::wire {

struct Merged {
    Look look = Look::empty;
    size_t ring = 0;
    Record record{};
};

// Rings: a container of pointers to things with a member `consumer` and members `Record head; bool has_head;`
// for our use.
template <class Rings>
Merged next(Rings& rings) {
    // True when ring r has a head now.
    auto look = [&](size_t r, Merged& broken) {
        auto& ring = *rings[r];
        if (ring.has_head) return true;
        switch (ring.consumer.peek(&ring.head)) {
            case Look::record: ring.has_head = true; return true;
            case Look::broken: broken = {Look::broken, r, {}}; return false;
            case Look::empty: break;
        }
        return false;
    };
    Merged result;
    for (;;) {
        size_t best = rings.size();
        bool fresh = false;
        for (size_t r = 0; r < rings.size(); ++r) {
            const bool had = rings[r]->has_head;
            if (!look(r, result)) {
                if (result.look == Look::broken) return result;
                continue;
            }
            fresh |= !had;
            if (best == rings.size() || rings[r]->head.sequence < rings[best]->head.sequence) best = r;
        }
        if (best == rings.size()) return result;
        if (fresh && rings.size() > 1)
            continue;  // the rings that were empty before a fresh head was seen are looked at once more
        result = {Look::record, best, rings[best]->head};
        return result;
    }
}

}  // namespace flexnpu::wire
