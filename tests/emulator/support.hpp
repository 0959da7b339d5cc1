// What the tests of the emulated runtime share.
#pragma once

#include <doctest/doctest.h>

#include <chrono>
#include <functional>
#include <future>
#include <string>

#include "acl.gen.h"
#include "flexnpu/emulator/kernel.hpp"

namespace flexnpu::emulator::test {

// Launches a kernel that takes `us` of device time in the unit profile and runs `body`.
inline aclError launch(aclrtStream stream, double us, std::function<int()> body = {}) {
    auto* held = new std::function<int()>(std::move(body));
    Kernel kernel;
    kernel.name = "aclnnTest";
    kernel.cost.bytes = us * 1e6;
    kernel.run = [](void* self) {
        auto& function = *static_cast<std::function<int()>*>(self);
        return function ? function() : 0;
    };
    kernel.destroy = [](void* self) { delete static_cast<std::function<int()>*>(self); };
    kernel.self = held;
    aclError error =
        aclrtLaunchKernelWithHostArgs(nullptr, 1, stream, nullptr, &kernel, sizeof(kernel), nullptr, 0);
    if (error != 0) {
        delete held;
    }
    return error;
}

struct StreamOwner {
    aclrtStream handle = nullptr;
    StreamOwner() { aclrtCreateStream(&handle); }
    ~StreamOwner() { aclrtDestroyStream(handle); }
    StreamOwner(const StreamOwner&) = delete;
    StreamOwner& operator=(const StreamOwner&) = delete;
    operator aclrtStream() const { return handle; }
};

struct EventOwner {
    aclrtEvent handle = nullptr;
    EventOwner() { aclrtCreateEventExWithFlag(&handle, acl::EVENT_TIME_LINE); }
    ~EventOwner() { aclrtDestroyEvent(handle); }
    EventOwner(const EventOwner&) = delete;
    EventOwner& operator=(const EventOwner&) = delete;
    operator aclrtEvent() const { return handle; }
};

// A kernel's body that waits for the test to let it go, but not for ever.
struct Gate {
    std::promise<void> open;
    std::shared_future<void> opened = open.get_future().share();
    std::function<int()> body() {
        return [opened = opened] {
            return opened.wait_for(std::chrono::seconds(20)) == std::future_status::ready ? 0 : 507000;
        };
    }
};

inline void* device_memory(size_t size) {
    void* p = nullptr;
    REQUIRE(aclrtMalloc(&p, size, 0) == 0);
    return p;
}

}  // namespace flexnpu::emulator::test
