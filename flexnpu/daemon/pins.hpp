// Host memory shared with programs, registered with the vendor as page-locked: its copy engine then reads and
// writes it in place, where it would stage an asynchronous copy once more. How much may be registered is
// bounded, for page-locked memory is lost to the rest of the machine; what is beyond the bound, or what the
// vendor refuses, stays as it is: copies are correct either way.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "flexnpu/daemon/limits.hpp"

namespace flexnpu::daemon {

class Vendor;

// Of one daemon. Any thread that has entered the vendor's device.
class Pins : public std::enable_shared_from_this<Pins> {
public:
    Pins(Vendor& vendor, const Limits& limits) : vendor_(vendor), limits_(limits) {}

    // A registration of one range; its end undoes it, before the memory is unmapped.
    class Pin {
    public:
        Pin(std::shared_ptr<Pins> pins, uint32_t uid, void* address, uint64_t bytes)
            : pins_(std::move(pins)), uid_(uid), address_(address), bytes_(bytes) {}
        ~Pin() { pins_->undo(*this); }
        Pin(const Pin&) = delete;
        Pin& operator=(const Pin&) = delete;

    private:
        friend class Pins;
        const std::shared_ptr<Pins> pins_;
        const uint32_t uid_;
        void* const address_;
        const uint64_t bytes_;
    };

    // Registers [address, address + bytes), page-aligned, on behalf of a user; nullptr, and counted, when it
    // is not to be had.
    std::unique_ptr<Pin> pin(uint32_t uid, void* address, uint64_t bytes);

    void counters(std::map<std::string, uint64_t>* out) const;

private:
    bool take(uint32_t uid, uint64_t bytes);
    void give(uint32_t uid, uint64_t bytes);
    void undo(const Pin& pin);

    Vendor& vendor_;
    const Limits limits_;
    std::mutex mutex_;
    uint64_t bytes_ = 0;
    std::map<uint32_t, uint64_t> users_;
    std::atomic<uint64_t> made_{0}, over_limit_{0}, refused_{0};
};

}  // namespace flexnpu::daemon
