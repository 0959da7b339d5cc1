// How to wait for something that takes about as long as it has lately taken.
//
// Whoever sleeps is woken late, by tens of microseconds on a virtual machine; whoever spins burns a core. So: sleep until shortly before the
// usual time, spin while it is likely to come, and sleep again if it has not. What cannot be foretold to within kMostSpinNs is slept for at once.
#pragma once

#include <algorithm>
#include <cstdint>

namespace flexnpu::wire {

class Patience {
public:
    static constexpr uint64_t kMostSpinNs = 200'000;
    static constexpr uint64_t kLeastSpinNs = 3'000;
    // What a sleep may last too long, and what is left for the rest.
    static constexpr uint64_t kWakeNs = 40'000;
    static constexpr uint64_t kSlackNs = 5'000;
    // Longer waits count as this long: they are slept through anyway.
    static constexpr uint64_t kLongestNs = 100'000'000;

    // Sleep until spin_from, spin until spin_until, then sleep.
    struct Plan {
        uint64_t spin_from, spin_until;
    };
    Plan plan(uint64_t now) const {
        const uint64_t margin = 2 * spread_;
        uint64_t early = usual_ > margin + kWakeNs ? usual_ - margin - kWakeNs : 0;
        if (early < kWakeNs) early = 0;  // not worth a sleep
        const uint64_t late = usual_ + margin + kSlackNs;
        if (late - early > kMostSpinNs) return {now, now + kLeastSpinNs};
        return {now + early, now + late};
    }
    // Exponential averages of the time and of its distance from the average, as TCP keeps them for its time-outs (RFC 6298).
    void learn(uint64_t took) {
        took = std::min(took, kLongestNs);
        const uint64_t off = took > usual_ ? took - usual_ : usual_ - took;
        spread_ = spread_ - spread_ / 4 + off / 4;
        usual_ = usual_ - usual_ / 8 + took / 8;
    }

private:
    uint64_t usual_ = 30'000;
    uint64_t spread_ = 10'000;
};

}  // namespace flexnpu::wire
