// Which of an operator's first calls may be made on the dispatching thread.
//
// The vendor may compile an operator when it is first asked about, for seconds. So the first call for a shape
// is made beside the dispatching thread, unless the calls for other shapes of its kind (the operator, and its
// dimensions rounded as the cost model rounds them) have lately all been quick: a step that meets a new shape
// at every layer must not go by way of another thread each time. A kind that was wrongly taken for quick has
// to prove itself for longer, and a session that has cost the others too much this way gets no more credit.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <utility>

#include "flexnpu/gate/gate.hpp"

namespace flexnpu::daemon {

// Of one session. The dispatcher's.
class FirstCalls {
public:
    static constexpr uint64_t kQuickNs = 1'000'000;
    static constexpr uint64_t kMostStalledNs = 200'000'000;  // of the dispatching thread, in all

    bool quick(gate::OpKey key) const {
        if (stalled_ns_ > kMostStalledNs) return false;
        const auto at = kinds_.find({key.op, key.bucket});
        return at != kinds_.end() && at->second.seen >= at->second.needed;
    }
    // A call made beside the dispatching thread has returned without an error.
    void learn(gate::OpKey key, uint64_t took_ns) {
        if (kinds_.size() >= kMostKinds) kinds_.clear();
        Kind& kind = kinds_[{key.op, key.bucket}];
        kind.seen = took_ns <= kQuickNs ? kind.seen + 1 : 0;
    }
    // A call made on the dispatching thread.
    void learn_inline(gate::OpKey key, uint64_t took_ns) {
        if (took_ns <= kQuickNs) return;
        stalled_ns_ += took_ns;
        Kind& kind = kinds_[{key.op, key.bucket}];
        kind.seen = 0;
        kind.needed = std::min<uint32_t>(kind.needed * 4, kMostNeeded);
    }

private:
    static constexpr size_t kMostKinds = 8192;
    static constexpr uint32_t kMostNeeded = 1 << 16;
    struct Kind {
        uint32_t seen = 0;  // quick ones in a row
        uint32_t needed = 3;
    };
    std::map<std::pair<uint32_t, uint64_t>, Kind> kinds_;
    uint64_t stalled_ns_ = 0;
};

}  // namespace flexnpu::daemon
