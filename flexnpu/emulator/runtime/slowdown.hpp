// How much slower than its profile a modelled chip runs: one factor for all modelled times.
#pragma once

#include <cstdint>
#include <string>

namespace flexnpu::emulator {

class Slowdown {
public:
    static constexpr double kLeast = 1e-3, kMost = 1e3;

    Slowdown() = default;
    // `text`: a number, or the path of a file of 8 bytes with a double in the host's byte order. The file is
    // mapped, so that its owner can change the factor while programs run. Throws std::runtime_error.
    explicit Slowdown(const std::string& text);

    // The factor now. What a file holds that is no factor counts as 1.
    double factor() const;

private:
    double fixed_ = 1;
    const uint64_t* shared_ = nullptr;  // mapped for the life of the process
};

}  // namespace flexnpu::emulator
