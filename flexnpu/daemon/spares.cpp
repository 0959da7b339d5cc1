#include "flexnpu/daemon/spares.hpp"

#include "flexnpu/daemon/vendor.hpp"
#include "flexnpu/wire/layout.hpp"

namespace flexnpu::daemon {

namespace {

constexpr uint32_t kEventFlags = acl::EVENT_SYNC | acl::EVENT_TIME_LINE;
constexpr size_t kBuffersASlab = 64;

}  // namespace

void* Spares::event() {
    if (!events_.empty()) {
        void* e = events_.back();
        events_.pop_back();
        return e;
    }
    void* e = nullptr;
    return vendor_.aclrtCreateEventWithFlag(&e, kEventFlags) == 0 ? e : nullptr;
}

uint8_t* Spares::buffer() {
    if (buffers_.empty()) {
        void* slab = nullptr;
        if (vendor_.aclrtMallocHost(&slab, kBuffersASlab * wire::kInlineBytes) != 0) return nullptr;
        slabs_.push_back(slab);
        for (size_t i = 0; i < kBuffersASlab; i++)
            buffers_.push_back(static_cast<uint8_t*>(slab) + i * wire::kInlineBytes);
    }
    uint8_t* b = buffers_.back();
    buffers_.pop_back();
    return b;
}

void Spares::release() {
    for (void* e : events_) vendor_.aclrtDestroyEvent(e);
    for (void* p : slabs_) vendor_.aclrtFreeHost(p);
    events_.clear();
    buffers_.clear();
    slabs_.clear();
}

}  // namespace flexnpu::daemon
