#include "flexnpu/gate/gate.hpp"

#include <algorithm>
#include <bit>
#include <cmath>

namespace flexnpu::gate {

namespace {

constexpr double kPriorBaseUs = 4;        // launch of a small operator
constexpr double kPriorBytesPerUs = 1e6;  // 1 TB/s
constexpr double kPriorMaxUs = 500;       // a guess never blocks more than that
constexpr uint32_t kFirstSamples = 3;
constexpr uint32_t kSampleEvery = 16;
// A sample is far from the estimate by this factor and so many us.
constexpr double kFar = 1.2, kNoiseUs = 2;

bool far_above(double a_us, double b_us) { return a_us > kFar * b_us + kNoiseUs; }

uint64_t mix(uint64_t h, uint64_t v) {
    h ^= v + 0x9e3779b97f4a7c15ULL + (h << 6) + (h >> 2);
    h *= 0xff51afd7ed558ccdULL;
    return h ^ (h >> 33);
}

// Keep the 3 leading significant bits.
uint64_t rounded(uint64_t v) {
    const int width = std::bit_width(v);
    return width <= 3 ? v : (v >> (width - 3)) << (width - 3);
}

double prior_us(OpKey key) {
    const double bytes = std::exp2(static_cast<double>(key.bucket & 0xff) / 4);
    return kPriorBaseUs + bytes / kPriorBytesPerUs;
}

}  // namespace

void ShapeBucket::tensor(std::span<const int64_t> dims, size_t item_size) {
    double n = static_cast<double>(item_size);
    hash_ = mix(hash_, dims.size() + (static_cast<uint64_t>(item_size) << 32));
    for (const int64_t d : dims) {
        const uint64_t size = d > 0 ? static_cast<uint64_t>(d) : 0;
        hash_ = mix(hash_, rounded(size));
        n *= static_cast<double>(size);
    }
    // Dimensions come from a client: their product may be anything.
    const uint64_t add = n < 1e18 ? static_cast<uint64_t>(n) : static_cast<uint64_t>(1e18);
    bytes_ = std::min<uint64_t>(bytes_ + add, 1ULL << 60);
}

uint64_t ShapeBucket::value() const {
    const double quarter_octaves = std::round(4 * std::log2(static_cast<double>(bytes_) + 1));
    return (hash_ & ~0xffULL) | static_cast<uint64_t>(std::clamp(quarter_octaves, 0.0, 255.0));
}

size_t CostModel::Hash::operator()(const OpKey& k) const noexcept {
    return static_cast<size_t>(mix(k.bucket, k.op));
}

OpKey graph_key(uint64_t serial, double us) {
    // As many bytes as an operator of that time moves, so that the first guess is the sum of the parts.
    const double bytes = std::max(0.0, us - kPriorBaseUs) * kPriorBytesPerUs;
    const double quarter_octaves = std::round(4 * std::log2(bytes + 1));
    constexpr uint32_t kGraphOp = UINT32_MAX;
    return {kGraphOp, (serial << 8) | static_cast<uint64_t>(std::clamp(quarter_octaves, 0.0, 255.0))};
}

OpKey kernel_key(uint64_t serial, uint32_t blocks) {
    constexpr uint32_t kKernelOp = UINT32_MAX - 1;
    return {kKernelOp, serial << 24 | uint64_t(std::min(blocks, 0xffffu)) << 8};
}

CostModel::Cost* CostModel::find(OpKey key) const {
    if (last_ == nullptr || !(last_key_ == key)) {
        const auto it = costs_.find(key);
        last_key_ = key;
        last_ = it == costs_.end() ? nullptr : const_cast<Cost*>(&it->second);
    }
    return last_;
}

double CostModel::estimate(OpKey key) const {
    if (const Cost* cost = find(key); cost != nullptr && cost->samples > 0) {
        return cost->us;
    }
    double us = prior_us(key);
    if (const auto it = scales_.find(key.op); it != scales_.end()) {
        us *= std::exp(it->second.log_ratio);
    }
    return std::clamp(us, 0.5, kPriorMaxUs);
}

bool CostModel::wants_sample(OpKey key) {
    if (find(key) == nullptr) {
        if (costs_.size() >= kMaxKeys) {
            costs_.erase(costs_.begin());
            ++evicted_;
        }
        last_ = &costs_.emplace(key, Cost{}).first->second;
        last_->moves_seen = moves_;
    }
    Cost& cost = *last_;
    if (cost.moves_seen != moves_) {
        cost.moves_seen = moves_;
        cost.told = true;
        return true;
    }
    if (cost.asked < kFirstSamples) {
        ++cost.asked;
        cost.uses_until_sample = kSampleEvery;
        return true;
    }
    if (--cost.uses_until_sample > 0) {
        return false;
    }
    cost.told = cost.told && cost.doubted;
    const uint32_t rounds = std::min<uint32_t>(cost.asked - kFirstSamples, 6);
    cost.asked = std::min<uint32_t>(cost.asked + 1, kFirstSamples + 6);
    cost.uses_until_sample = std::min(kSampleEvery << rounds, kSampleRarest);
    return true;
}

// Takes a sample in. Whether the estimate has moved far.
bool CostModel::moved(Cost& cost, float measured_us) {
    const float before_us = cost.us;
    const bool known = cost.samples >= kFirstSamples;
    const bool is_long = known && far_above(measured_us, before_us);
    // A short one is true, and the estimate may not have followed it all the way: it is the second shortest.
    cost.settling =
        known && far_above(before_us, measured_us) ? kDoubts : cost.settling - (cost.settling > 0);
    cost.doubted = is_long || cost.settling > 0;
    if (cost.doubted) {
        cost.uses_until_sample = std::min(cost.uses_until_sample, kDoubtEvery);
    }
    cost.shortest_long =
        is_long && cost.long_ones > 0 ? std::min(cost.shortest_long, measured_us) : measured_us;
    cost.long_ones = is_long ? cost.long_ones + 1 : 0;
    if (cost.long_ones >= kDoubts) {
        cost.long_ones = 0;
        cost.doubted = false;
        cost.recent[0] = cost.us = cost.shortest_long;
        cost.samples = cost.asked = 1;
        return true;
    }
    cost.recent[cost.samples % kRecent] = measured_us;
    ++cost.samples;
    std::array<float, kRecent> sorted = cost.recent;
    const size_t n = std::min<size_t>(cost.samples, kRecent);
    std::sort(sorted.begin(), sorted.begin() + n);
    cost.us = sorted[(n - 1) / 4];
    if (known && far_above(before_us, cost.us)) {
        cost.asked = kFirstSamples;
        return true;
    }
    return false;
}

void CostModel::learn(OpKey key, double measured_us) {
    if (!(measured_us >= 0) || measured_us > 60e6) {
        return;
    }
    const auto it = costs_.find(key);
    if (it == costs_.end()) {
        return;  // evicted since it was asked for
    }
    Cost& cost = it->second;
    ++samples_;
    // Who was told to look does not tell the others: they have been told.
    if (moved(cost, static_cast<float>(measured_us)) && !cost.told) {
        ++moves_;
        cost.moves_seen = moves_;
    }
    if (scales_.size() < kMaxKeys || scales_.contains(key.op)) {
        Scale& scale = scales_[key.op];
        const double log_ratio = std::log(std::max<double>(cost.us, 0.1) / prior_us(key));
        scale.samples = std::min<uint32_t>(scale.samples + 1, 16);
        scale.log_ratio += (log_ratio - scale.log_ratio) / scale.samples;
    }
}

}  // namespace flexnpu::gate
