// Events and host buffers of the vendor's that the daemon uses again. The dispatching thread's.
#pragma once

#include <cstdint>
#include <vector>

namespace flexnpu::daemon {

class Vendor;

class Spares {
public:
    explicit Spares(Vendor& vendor) : vendor_(vendor) {}
    Spares(const Spares&) = delete;
    Spares& operator=(const Spares&) = delete;

    // A timing event for a marker, or nullptr.
    void* event();
    void give_event(void* event) { events_.push_back(event); }
    // Of wire::kInlineBytes bytes in the vendor's host memory, so that asynchronous copies may read it; or
    // nullptr.
    uint8_t* buffer();
    void give_buffer(uint8_t* buffer) { buffers_.push_back(buffer); }
    // Gives everything back to the vendor.
    void release();

private:
    Vendor& vendor_;
    std::vector<void*> events_;
    std::vector<uint8_t*> buffers_;
    std::vector<void*> slabs_;
};

}  // namespace flexnpu::daemon
