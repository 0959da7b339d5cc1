// What a step of a dense transformer asks of the device, operator by operator.
//
// The operators are those of vLLM-Ascend's fused eager step, ten a layer. Operations and bytes follow the
// emulator's operators (flexnpu/emulator/ops): a product of m x k and k x n is 2 m n k operations and moves
// its three matrices; attention is 4 operations for each pair of query and key, head and element, and moves
// queries, results and the cache once; what is element-wise takes its passes and moves what it reads and
// writes.
#pragma once

#include <cstdint>
#include <vector>

#include "flexnpu/device/device.hpp"
#include "flexnpu/gate/gate.hpp"

namespace flexnpu::simulation {

struct Shape {
    uint32_t layers = 28, hidden = 3584, heads = 28, kv_heads = 4, head_size = 128, ffn = 18944;
    uint32_t vocabulary = 152064;
    uint32_t bytes = 2;  // of an element

    double kv_bytes() const { return 2.0 * layers * kv_heads * head_size * bytes; }  // a token
};

// Static times of a kernel, us: before it takes cores, and on them.
struct StaticTimes {
    double mma_launch = 2.5, mma = 2.5, vector_launch = 1, vector = 1;
};

// What a step computes.
struct Batch {
    uint32_t tokens = 0;
    uint32_t sequences = 0;  // and so rows of the vocabulary's product
    double pairs = 0;        // of a query and a key
    double context = 0;      // tokens of the cache that are read
};

struct Operator {
    device::Kernel kernel;
    gate::OpKey key;
};

// A step's operators in their order: some, the layer's as often as there are layers, some more.
class Step {
public:
    Step(const Shape& shape, const StaticTimes& times, const Batch& batch);
    uint32_t size() const {
        return static_cast<uint32_t>(before_.size() + layers_ * layer_.size() + after_.size());
    }
    const Operator& at(uint32_t i) const {
        if (i < before_.size()) {
            return before_[i];
        }
        i -= static_cast<uint32_t>(before_.size());
        const uint32_t inner = layers_ * static_cast<uint32_t>(layer_.size());
        return i < inner ? layer_[i % layer_.size()] : after_[i - inner];
    }

private:
    uint32_t layers_;
    std::vector<Operator> before_, layer_, after_;
};

}  // namespace flexnpu::simulation
