// Whether the device's copy engine is busy with large copies: on workers, and in streams until when those may
// take. Calls nothing.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <map>
#include <string>

#include "flexnpu/wire/futex.hpp"
#include "flexnpu/wire/layout.hpp"

namespace flexnpu::daemon {

// Copies above this size keep the device's copy engine for longer than a dispatcher can wait.
inline constexpr uint64_t kLargeCopy = wire::kQuickCopy;

class CopyEngine {
public:
    // A copy between host and device has been given to a stream. The dispatching thread's, as are the next.
    void given(uint64_t bytes) {
        if (bytes > kLargeCopy) until_ns_ = std::max(until_ns_, wire::now_ns()) + bytes / kSlowCopyBytesPerNs;
    }
    // Whether a small copy made here and now could queue behind a large one, and all lanes with it.
    bool slow() const { return large_.load(std::memory_order_relaxed) > 0 || wire::now_ns() < until_ns_; }
    void count_copy() { copies_++; }
    void counters(std::map<std::string, uint64_t>* out) const { (*out)["copies"] = copies_; }

    // A worker makes a large copy. Any thread.
    void begin_large() { large_++; }
    void end_large() { large_--; }

private:
    static constexpr uint64_t kSlowCopyBytesPerNs = 8;  // a cautious 8 GB/s
    std::atomic<uint32_t> large_{0};
    uint64_t until_ns_ = 0;
    uint64_t copies_ = 0;
};

}  // namespace flexnpu::daemon
