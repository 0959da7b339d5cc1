// How to wait for something that takes about as long as it has lately taken.
//
// Whoever sleeps is woken late, by tens of microseconds on a virtual machine; whoever spins burns a core. So:
// sleep until shortly before the usual time, spin while it is likely to come, and sleep again if it has not.
// What cannot be foretold to within kMostSpinNs is slept for at once.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace flexnpu::wire {

class Patience {
public:
    static constexpr uint64_t kMostSpinNs = 200'000;
    static constexpr uint64_t kLeastSpinNs = 3'000;
    // How long to spin while nothing is known.
    static constexpr uint64_t kFirstSpinNs = 50'000;
    // What a sleep may last too long, and what is left for the rest.
    static constexpr uint64_t kWakeNs = 40'000;
    static constexpr uint64_t kSlackNs = 10'000;
    // Longer waits count as this long: they are slept through anyway.
    static constexpr uint64_t kLongestNs = 100'000'000;

    // Sleep until spin_from, spin until spin_until, then sleep.
    struct Plan {
        uint64_t spin_from, spin_until;
    };
    // From the last kRecent times, but for the shortest, and for the longest two if they would make the spin
    // too long: an average would take long to forget one that was far off.
    Plan plan(uint64_t now) const {
        if (n_ < kKnown) return {now, now + kFirstSpinNs};
        std::array<uint32_t, kRecent> sorted = recent_;
        const size_t n = std::min<size_t>(n_, kRecent);
        std::sort(sorted.begin(), sorted.begin() + ptrdiff_t(n));
        uint64_t early = sorted[1] > kWakeNs ? sorted[1] - kWakeNs : 0;
        if (early < kWakeNs) early = 0;  // not worth a sleep
        for (size_t i = n; i-- > n - 1 - n / 4;) {
            // What has not come by then is likely to come soon.
            const uint64_t late = sorted[i] + (sorted[i] - early) / 4 + kSlackNs;
            if (late <= early + kMostSpinNs) return {now + early, now + late};
        }
        return {now, now + kLeastSpinNs};
    }
    void learn(uint64_t took) { recent_[n_++ % kRecent] = uint32_t(std::min(took, kLongestNs)); }
    // It was over before anybody looked: how long it takes is not known any more.
    void forget() { n_ = 0; }

private:
    static constexpr uint32_t kRecent = 8;
    static constexpr uint32_t kKnown = 3;
    std::array<uint32_t, kRecent> recent_{};
    uint32_t n_ = 0;  // learnt
};

}  // namespace flexnpu::wire
