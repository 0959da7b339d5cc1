#include "flexnpu/emulator/runtime/profile.hpp"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string_view>

#define TOML_EXCEPTIONS 1
#include <toml++/toml.h>

#include "flexnpu/api/acl_consts.h"

namespace flexnpu::emulator {

namespace {

constexpr double kGib = 1024.0 * 1024.0 * 1024.0;
// No operator of a sane shape takes longer; a cost beyond it is an error of the caller that must not wedge
// the device.
constexpr double kLongestNs = 60e9;

uint64_t to_ns(double ns) {
    if (!(ns > 0)) {
        return 0;
    }
    return uint64_t(std::llround(std::min(ns, kLongestNs)));
}

// Reads fields of a profile, remembers which were read and refuses the others.
class Reader {
public:
    Reader(const toml::table& root, std::string file) : root_(root), file_(std::move(file)) {}

    double number(const char* path, double minimum) {
        double value = require<double>(path, "a number");
        if (!(value >= minimum) || !std::isfinite(value)) {
            throw std::runtime_error(file_ + ": " + path + " must be a number of at least " +
                                     std::to_string(minimum));
        }
        return value;
    }

    std::string text(const char* path) { return require<std::string>(path, "a string"); }

    // A misspelt field would otherwise be a silent default.
    void refuse_others() const { check(root_, ""); }

private:
    template <class T>
    T require(const char* path, const char* kind) {
        known_.insert(path);
        auto value = root_.at_path(path).value<T>();
        if (!value) {
            throw std::runtime_error(file_ + ": " + path + " must be given as " + kind);
        }
        return *value;
    }

    void check(const toml::table& table, const std::string& prefix) const {
        for (auto&& [key, value] : table) {
            std::string path = prefix + std::string(key.str());
            if (const toml::table* inner = value.as_table()) {
                check(*inner, path + ".");
            } else if (!known_.contains(path) && key.str() != "src" && key.str() != "description") {
                throw std::runtime_error(file_ + ": " + path + " is not a field of a profile");
            }
        }
    }

    const toml::table& root_;
    std::string file_;
    std::set<std::string, std::less<>> known_;
};

std::string profile_names(const std::string& directory) {
    std::set<std::string> names;
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator(directory, ignored)) {
        if (entry.path().extension() == ".toml") {
            names.insert(entry.path().stem());
        }
    }
    std::string text;
    for (const auto& name : names) {
        text += (text.empty() ? "" : ", ") + name;
    }
    return text.empty() ? "none" : text;
}

}  // namespace

uint64_t Profile::kernel_ns(const KernelCost& cost, double static_share) const {
    bool mma = cost.cube_flops > 0;
    double peak = fp32;
    switch (cost.cube_dtype) {
        case acl::FLOAT16: peak = fp16; break;
        case acl::BF16: peak = bf16; break;
        case acl::INT8:
        case acl::UINT8:
        case acl::INT4: peak = int8; break;
        default: break;
    }
    double work = std::max({cost.cube_flops / (peak * compute_efficiency),
                            cost.vector_flops / (vector * compute_efficiency),
                            cost.bytes / (memory_rate * memory_efficiency)});
    return to_ns(((mma ? mma_static_ns : vector_static_ns) * static_share + work * 1e9) * slowdown.factor());
}

uint64_t Profile::copy_ns(Copy direction, uint64_t bytes) const {
    double seconds = 0;
    switch (direction) {
        case Copy::HostToDevice: seconds = double(bytes) / h2d_rate; break;
        case Copy::DeviceToHost: seconds = double(bytes) / d2h_rate; break;
        case Copy::DeviceToDevice: seconds = 2.0 * double(bytes) / (memory_rate * memory_efficiency); break;
    }
    return to_ns((copy_static_ns + seconds * 1e9) * slowdown.factor());
}

uint64_t Profile::replay_ns() const { return to_ns(replay_static_ns * slowdown.factor()); }

Profile load_profile(const std::string& which, const std::string& directory) {
    bool is_path = which.find('/') != std::string::npos || which.ends_with(".toml");
    std::string file = is_path ? which : directory + "/" + which + ".toml";
    if (!std::filesystem::exists(file)) {
        throw std::runtime_error("no device profile " + file + " (FLEXNPU_EMU_PROFILE is a path or one of: " +
                                 profile_names(directory) + ")");
    }
    toml::table root;
    try {
        root = toml::parse_file(file);
    } catch (const toml::parse_error& error) {
        std::ostringstream text;
        text << file << ": line " << error.source().begin.line << ": " << error.description();
        throw std::runtime_error(text.str());
    }
    constexpr double kPositive = 1e-9;
    Reader in(root, file);
    Profile p;
    p.name = in.text("name");
    p.soc = in.text("soc");
    p.cube_cores = int64_t(in.number("cores.cube", 1));
    p.vector_cores = int64_t(in.number("cores.vector", 1));
    p.fp16 = in.number("compute.fp16_tflops", kPositive) * 1e12;
    p.bf16 = in.number("compute.bf16_tflops", kPositive) * 1e12;
    p.fp32 = in.number("compute.fp32_tflops", kPositive) * 1e12;
    p.int8 = in.number("compute.int8_tops", kPositive) * 1e12;
    p.vector = in.number("compute.vector_fp16_tflops", kPositive) * 1e12;
    p.compute_efficiency = in.number("compute.efficiency", kPositive);
    p.memory_bytes = uint64_t(in.number("memory.size_gib", kPositive) * kGib);
    p.l2_bytes = uint64_t(in.number("memory.l2_mib", 0) * 1024 * 1024);
    p.memory_rate = in.number("memory.rate_tibps", kPositive) * 1024 * kGib;
    p.memory_efficiency = in.number("memory.efficiency", kPositive);
    p.mma_static_ns = in.number("static_us.mma", 0) * 1e3;
    p.vector_static_ns = in.number("static_us.vector", 0) * 1e3;
    p.replay_static_ns = in.number("graph.replay_us", 0) * 1e3;
    p.graph_static_share = in.number("graph.static_share", 0);
    p.h2d_rate = in.number("copy.h2d_gbps", kPositive) * 1e9;
    p.d2h_rate = in.number("copy.d2h_gbps", kPositive) * 1e9;
    p.copy_static_ns = in.number("copy.static_us", 0) * 1e3;
    p.link_rate = in.number("link.rate_gbps", kPositive) * 1e9;
    p.link_step_ns = in.number("link.step_us", 0) * 1e3;
    p.stream_depth = uint32_t(in.number("stream_depth", 1));
    in.refuse_others();
    return p;
}

}  // namespace flexnpu::emulator
