#include "simulation/model.hpp"

#include <algorithm>
#include <array>
#include <cmath>

namespace flexnpu::simulation {

namespace {

// Names of operators, for the gate's keys.
enum Name : uint32_t {
    kEmbedding = 1,
    kNorm,
    kQkv,
    kRope,
    kCache,
    kAttention,
    kOut,
    kGateUp,
    kSwiGlu,
    kDown,
    kLogits,
    kSample
};

constexpr double kNormPasses = 4, kRopePasses = 4, kSoftmaxPasses = 4, kSwiGluPasses = 5;
constexpr double kVectorBlock = 4096;  // elements; assumed

class Builder {
public:
    Builder(const Shape& shape, const StaticTimes& times) : shape_(shape), times_(times) {}

    Operator product(Name name, double rows, double inner, double outer) const {
        Operator op = make(name, device::Unit::Cube, rows, outer, inner);
        op.kernel.cube_ops = 2 * rows * inner * outer;
        op.kernel.bytes = shape_.bytes * (rows * inner + inner * outer + rows * outer);
        return op;
    }

    // `moved`: elements read and written.
    Operator elementwise(Name name, double rows, double width, double passes, double moved) const {
        Operator op = make(name, device::Unit::Vector, rows, width, 1);
        op.kernel.vector_ops = passes * rows * width;
        op.kernel.bytes = shape_.bytes * moved;
        op.kernel.blocks =
            static_cast<uint32_t>(std::clamp(std::ceil(rows * width / kVectorBlock), 1.0, 48.0));
        return op;
    }

    Operator attention(const Batch& batch) const {
        const double width = double(shape_.heads) * shape_.head_size;
        // The gate's key has the context, for a decode step's attention grows with it.
        Operator op = make(kAttention, device::Unit::Mixed, batch.tokens, batch.context, 1);
        op.kernel.cube_ops = 4 * batch.pairs * width;
        op.kernel.vector_ops = kSoftmaxPasses * batch.pairs * shape_.heads;
        op.kernel.bytes = shape_.bytes *
                          (2 * batch.tokens * width + 2 * batch.context * shape_.kv_heads * shape_.head_size);
        // A block a key-value head of each sequence, and one more for each 128 queries.
        const double blocks = double(batch.sequences) * shape_.kv_heads + batch.tokens / 128.0;
        op.kernel.blocks = static_cast<uint32_t>(std::clamp(blocks, 1.0, 24.0));
        return op;
    }

private:
    Operator make(Name name, device::Unit unit, double rows, double columns, double inner) const {
        Operator op;
        op.kernel.unit = unit;
        const bool vector = unit == device::Unit::Vector;
        op.kernel.launch_us = vector ? times_.vector_launch : times_.mma_launch;
        op.kernel.static_us = vector ? times_.vector : times_.mma;
        gate::ShapeBucket bucket;
        const std::array<int64_t, 2> result{int64_t(rows), int64_t(columns)};
        const std::array<int64_t, 2> weights{int64_t(inner), int64_t(columns)};
        bucket.tensor(result, shape_.bytes);
        bucket.tensor(weights, shape_.bytes);
        op.key = {name, bucket.value()};
        return op;
    }

    const Shape& shape_;
    const StaticTimes& times_;
};

}  // namespace

Step::Step(const Shape& shape, const StaticTimes& times, const Batch& batch) : layers_(shape.layers) {
    const Builder build(shape, times);
    const double n = batch.tokens, hidden = shape.hidden, ffn = shape.ffn, rows = batch.sequences;
    const double query = double(shape.heads) * shape.head_size;
    const double key = double(shape.kv_heads) * shape.head_size;
    before_ = {build.elementwise(kEmbedding, n, hidden, 1, 2 * n * hidden)};
    layer_ = {
        build.elementwise(kNorm, n, hidden, kNormPasses, 4 * n * hidden),
        build.product(kQkv, n, hidden, query + 2 * key),
        build.elementwise(kRope, n, query + key, kRopePasses, 2 * n * (query + key)),
        build.elementwise(kCache, n, 2 * key, 1, 4 * n * key),
        build.attention(batch),
        build.product(kOut, n, query, hidden),
        build.elementwise(kNorm, n, hidden, kNormPasses, 4 * n * hidden),
        build.product(kGateUp, n, hidden, 2 * ffn),
        build.elementwise(kSwiGlu, n, ffn, kSwiGluPasses, 3 * n * ffn),
        build.product(kDown, n, ffn, hidden),
    };
    after_ = {
        build.elementwise(kNorm, n, hidden, kNormPasses, 4 * n * hidden),
        build.product(kLogits, rows, hidden, shape.vocabulary),
        build.elementwise(kSample, rows, shape.vocabulary, 1, rows * shape.vocabulary),
    };
}

}  // namespace flexnpu::simulation
