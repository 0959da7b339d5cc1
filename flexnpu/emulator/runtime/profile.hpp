// The modelled chip, and the time that it takes for an operator or a copy.
#pragma once

#include <cstdint>
#include <string>

#include "flexnpu/emulator/kernel.hpp"
#include "flexnpu/emulator/runtime/slowdown.hpp"

namespace flexnpu::emulator {

// Figures of one device, read from a TOML profile (flexnpu/emulator/profiles/). Rates are per second.
struct Profile {
    std::string name;
    std::string soc;  // answer of aclrtGetSocName
    uint64_t memory_bytes = 0;
    uint64_t l2_bytes = 0;
    int64_t cube_cores = 0;
    int64_t vector_cores = 0;
    // Peak rates in operations a second.
    double fp16 = 0, bf16 = 0, fp32 = 0, int8 = 0;
    double vector = 0;
    double memory_rate = 0;  // bytes a second
    // The share of a peak that an operator reaches.
    double compute_efficiency = 1, memory_efficiency = 1;
    // What every operator costs before its work: by kind, in nanoseconds.
    double mma_static_ns = 0, vector_static_ns = 0;
    // A graph: what a replay costs before its first task, and the share of an operator's static cost that is
    // left.
    double replay_static_ns = 0;
    double graph_static_share = 1;
    // Copies between host and device.
    double h2d_rate = 0, d2h_rate = 0;  // bytes a second
    double copy_static_ns = 0;
    // The link to the other devices: bytes a second in each direction, and what each step of a collective
    // costs besides.
    double link_rate = 0, link_step_ns = 0;
    uint32_t stream_depth = 4096;  // launches that a stream holds before a launch blocks
    // Multiplies every time that the functions below answer. Not from the file.
    Slowdown slowdown;

    // Device time of an operator in nanoseconds: the roofline (Williams, Waterman, Patterson, CACM 52(4),
    // 2009)
    //     static(kind) + max(cube/(peak*eff), vector/(peak*eff), bytes/(rate*eff)),
    // kind mma when it uses the matrix unit. `static_share` scales the static part.
    uint64_t kernel_ns(const KernelCost& cost, double static_share = 1) const;
    enum class Copy { HostToDevice, DeviceToHost, DeviceToDevice };
    // Device time of a copy or a fill of that many bytes; a copy within the device reads and writes.
    uint64_t copy_ns(Copy direction, uint64_t bytes) const;
    // What a graph's replay costs before its first task.
    uint64_t replay_ns() const;
    // The link as it is now: bytes a second, and nanoseconds a step of a collective.
    double link_rate_now() const { return link_rate / slowdown.factor(); }
    double link_step_ns_now() const { return link_step_ns * slowdown.factor(); }
};

// Reads a profile. `which` is a path, or the name of a file in `directory` without its suffix.
// Throws std::runtime_error that names the file and the field.
Profile load_profile(const std::string& which, const std::string& directory);

}  // namespace flexnpu::emulator
