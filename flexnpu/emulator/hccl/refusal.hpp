// Why a communicator cannot be made, and how long its ranks are waited for.
#pragma once

#include <cstdint>
#include <string>

namespace flexnpu::emulator::hccl {

// Thrown by whoever makes or joins a communicator.
struct Refusal {
    int32_t result;  // an HcclResult
    std::string text;
};

// Limits in seconds, from the environment: how long ranks are waited for when a communicator is made, and in
// a collective (0: for ever).
uint64_t connect_timeout_s();
uint64_t execute_timeout_s();

}  // namespace flexnpu::emulator::hccl
