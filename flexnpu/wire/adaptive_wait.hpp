// How to wait for something that takes about as long as it has lately taken: when to sleep and when to spin.
//
// Who sleeps is woken late, by tens of microseconds on a virtual machine. Who spins burns a core. So: sleep
// until shortly before the usual time, spin while the event is likely to come, then sleep again. When the
// recent times differ by more than kMostSpinNs, there is no usual time, and the wait is a sleep.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace flexnpu::wire {

class AdaptiveWait {
public:
    static constexpr uint64_t kMostSpinNs = 200'000;
    static constexpr uint64_t kLeastSpinNs = 3'000;
    // How long to spin before any time has been measured.
    static constexpr uint64_t kFirstSpinNs = 50'000;
    // By how much a sleep may overrun, and the margin for everything else.
    static constexpr uint64_t kWakeNs = 40'000;
    static constexpr uint64_t kSlackNs = 10'000;
    // Longer waits are recorded as this long: they are slept through in any case.
    static constexpr uint64_t kLongestNs = 100'000'000;

    // Sleep until spin_from, spin until spin_until, then sleep.
    struct Plan {
        uint64_t spin_from, spin_until;
    };
    // Made of the last kRecent times. The shortest is left out, and so are the longest two if the spin would
    // be too long with them. An average would remember an outlier for long.
    Plan plan(uint64_t now) const {
        if (n_ < kKnown) return {now, now + kFirstSpinNs};
        std::array<uint32_t, kRecent> sorted = recent_;
        const size_t n = std::min<size_t>(n_, kRecent);
        std::sort(sorted.begin(), sorted.begin() + ptrdiff_t(n));
        uint64_t early = sorted[1] > kWakeNs ? sorted[1] - kWakeNs : 0;
        if (early < kWakeNs) early = 0;  // not worth a sleep
        for (size_t i = n; i-- > n - 1 - n / 4;) {
            // An event that is late by a little is likely to come soon.
            const uint64_t late = sorted[i] + (sorted[i] - early) / 4 + kSlackNs;
            if (late <= early + kMostSpinNs) return {now + early, now + late};
        }
        return {now, now + kLeastSpinNs};
    }
    void learn(uint64_t took) {
        recent_[n_++ % kRecent] = uint32_t(std::min(took, kLongestNs));
        missed_ = 0;
    }
    // The event came before anybody looked, so the recorded times may no longer hold. They do not if the
    // look was `prompt`; if it was late, as on a busy host, not when that goes on.
    void missed(bool prompt) {
        if (!prompt && ++missed_ < kMostMissed) return;
        n_ = 0;
        missed_ = 0;
    }

private:
    static constexpr uint32_t kMostMissed = 3;
    static constexpr uint32_t kRecent = 8;
    static constexpr uint32_t kKnown = 3;
    std::array<uint32_t, kRecent> recent_{};
    uint32_t n_ = 0;       // times recorded since they last held no longer
    uint32_t missed_ = 0;  // since one was recorded
};

}  // namespace flexnpu::wire
