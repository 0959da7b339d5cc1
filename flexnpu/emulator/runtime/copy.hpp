// What a copy or a fill moves: rows of bytes, one row for the plain calls.
#pragma once

#include <cstdint>
#include <cstring>

#include "flexnpu/emulator/kernel.hpp"
#include "flexnpu/emulator/runtime/profile.hpp"
#include "flexnpu/emulator/runtime/shared_device.hpp"

namespace flexnpu::emulator {

struct CopyWork {
    void* target = nullptr;
    const void* source = nullptr;  // null: fill with `value`
    int32_t value = 0;
    uint64_t width = 0;  // bytes of a row
    uint64_t rows = 1;
    uint64_t target_pitch = 0, source_pitch = 0;

    uint64_t bytes() const { return width * rows; }

    void perform() const {
        for (uint64_t row = 0; row < rows; ++row) {
            char* to = static_cast<char*>(target) + row * target_pitch;
            if (source != nullptr) {
                std::memmove(to, static_cast<const char*>(source) + row * source_pitch, width);
            } else {
                std::memset(to, value, width);
            }
        }
    }

    // Moves the bytes as the mode has it. In `time` mode device memory is never touched and reads as zero.
    void perform(Mode mode, Engine engine) const {
        if (mode == kModeCompute) {
            perform();
        } else if (engine == kDeviceToHost) {
            CopyWork zeros = *this;
            zeros.source = nullptr;
            zeros.value = 0;
            zeros.perform();
        }
    }
};

// As the log names it.
inline const char* copy_name(Engine engine) {
    switch (engine) {
        case kHostToDevice: return "copy-to-device";
        case kDeviceToHost: return "copy-to-host";
        default: return "copy-within-device";
    }
}

inline Profile::Copy copy_direction(Engine engine) {
    switch (engine) {
        case kHostToDevice: return Profile::Copy::HostToDevice;
        case kDeviceToHost: return Profile::Copy::DeviceToHost;
        default: return Profile::Copy::DeviceToDevice;
    }
}

}  // namespace flexnpu::emulator
