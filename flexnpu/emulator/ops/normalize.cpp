// Softmax, norms, gated activations and rotary embeddings: several passes over a line that stays in
// registers.
//
// Cost: elements times the passes over them (softmax 4: maximum, exponential, sum, division; norms 4; rotary
// 4).
#include <cmath>
#include <numeric>

#include "iterate.hpp"
#include "registry.hpp"

namespace flexnpu::ops {
namespace {

constexpr double kPasses = 4;

// Every element of a tensor, in row-major order.
void load_whole(const Tensor& t, float* out) {
    std::vector<int> dims(static_cast<size_t>(t.rank));
    std::iota(dims.begin(), dims.end(), 0);
    for_each_line({lined(t, dims)}, [&](const Line lines[]) { lines[0].load(out); });
}

Job softmax_job(Call& call, const Tensor& self, int64_t dim_argument, const Tensor& out, bool logarithm) {
    call.require_numeric(self);
    call.require(is_floating(out.dtype), "the output must be floating-point");
    call.require_shape(out, self, "the output");
    const int dim = call.dimension(dim_argument, self);
    const std::vector<int> dims = self.rank == 0 ? std::vector<int>{} : std::vector<int>{dim};
    const Lined to = lined(out, dims), from = lined(self, dims);
    const int64_t n = self.rank == 0 ? 1 : self.dims[dim];
    call.cost.vector_flops = kPasses * static_cast<double>(self.numel());
    return [=] {
        if (self.numel() == 0) {
            return 0;
        }
        if (self.dtype == acl::DOUBLE) {
            const auto row = buffer<double>(n);
            for_each_line({to, from}, [&](const Line lines[]) {
                lines[1].load(row.get());
                const double high = kernels().f64.max(row.get(), n);
                double total = 0;
                for (int64_t i = 0; i < n; i++) {
                    total += std::exp(row[i] - high);
                }
                for (int64_t i = 0; i < n; i++) {
                    row[i] = logarithm ? row[i] - high - std::log(total) : std::exp(row[i] - high) / total;
                }
                lines[0].store(row.get());
            });
            return 0;
        }
        const auto row = buffer<float>(n);
        const auto exponentials = buffer<float>(n);
        for_each_line({to, from}, [&](const Line lines[]) {
            const float* x = lines[1].view(row.get());
            const float high = kernels().f32.max(x, n);
            const float total = kernels().exp_sum(exponentials.get(), x, n, high);
            if (logarithm) {
                const float shift = high + std::log(total);
                for (int64_t i = 0; i < n; i++) {
                    exponentials[i] = x[i] - shift;
                }
            } else {
                kernels().scale(exponentials.get(), n, 1 / total);
            }
            lines[0].store(exponentials.get());
        });
        return 0;
    };
}

// y = x / sqrt(mean(x^2) + epsilon) * gamma, over gamma's dimensions; also the reciprocal root, where asked
// for. `residual` is added first, and the sum is written to `sum`; `bias` is added last.
struct RmsNorm {
    Tensor x, gamma, y;
    bool has_residual = false, has_rstd = false, has_sum = false;
    Tensor residual, rstd, sum;
    bool has_bias = false;
    Tensor bias;
    double epsilon = 1e-6;
    double gamma_offset = 0;  // 1 in Gemma's variant

    int run() const {
        std::vector<int> dims;
        for (int d = x.rank - gamma.rank; d < x.rank; d++) {
            dims.push_back(d);
        }
        const int64_t n = gamma.numel();
        const auto row = buffer<float>(n);
        const auto weight = buffer<float>(n);
        load_whole(gamma, weight.get());
        const auto shift = buffer<float>(n);
        std::fill(shift.get(), shift.get() + n, 0.0f);
        if (has_bias) {
            load_whole(bias, shift.get());
        }
        const auto added = buffer<float>(has_residual ? n : 0);
        std::vector<Lined> operands{lined(y, dims), lined(x, dims)};
        const size_t residual_at = operands.size();
        if (has_residual) {
            operands.push_back(lined(residual, dims));
        }
        const size_t sum_at = operands.size();
        if (has_sum) {
            operands.push_back(lined(sum, dims));
        }
        const size_t rstd_at = operands.size();
        if (has_rstd) {
            operands.push_back(rstd.rank == x.rank ? lined(rstd, dims) : Lined{rstd, 0});
        }
        for_each_line(operands, [&](const Line lines[]) {
            lines[1].load(row.get());
            if (has_residual) {
                lines[residual_at].load(added.get());
                for (int64_t i = 0; i < n; i++) {
                    row[i] += added[i];
                }
            }
            if (has_sum) {
                lines[sum_at].store(row.get());
                lines[sum_at].load(row.get());  // what follows sees the rounded sum
            }
            const float squares = kernels().dot(row.get(), row.get(), n);
            const float scale =
                1.0f / std::sqrt(squares / static_cast<float>(n) + static_cast<float>(epsilon));
            for (int64_t i = 0; i < n; i++) {
                row[i] = row[i] * scale * (weight[i] + static_cast<float>(gamma_offset)) + shift[i];
            }
            lines[0].store(row.get());
            if (has_rstd) {
                kernels().f32.store(&scale, lines[rstd_at].base, rstd.dtype, rstd.element(), 1);
            }
        });
        return 0;
    }
};

void check(Call& call, const RmsNorm& p) {
    call.require(is_floating(p.x.dtype) && is_floating(p.gamma.dtype), "needs floating-point tensors");
    call.require(p.gamma.rank >= 1 && p.gamma.rank <= p.x.rank, "gamma has %d dimensions, the input %d",
                 p.gamma.rank, p.x.rank);
    for (int d = 0; d < p.gamma.rank; d++) {
        call.require(p.gamma.dims[d] == p.x.dims[p.x.rank - p.gamma.rank + d],
                     "gamma does not fit the input's last dimensions");
    }
    call.require_shape(p.y, p.x, "the output");
    if (p.has_bias) {
        call.require(is_floating(p.bias.dtype), "needs floating-point tensors");
        call.require_shape(p.bias, p.gamma, "beta");
    }
    if (p.has_residual) {
        call.require_shape(p.residual, p.x, "the residual");
    }
    if (p.has_sum) {
        call.require_shape(p.sum, p.x, "the sum");
    }
    if (p.has_rstd) {
        call.require(p.rstd.numel() * p.gamma.numel() == p.x.numel(), "rstd has shape %s",
                     p.rstd.shape().c_str());
    }
    call.cost.vector_flops = kPasses * static_cast<double>(p.x.numel());
}

Job rms_norm(Call& call, double gamma_offset) {  // x, gamma, epsilon, y, rstd
    RmsNorm p;
    p.x = call.tensor(0);
    p.gamma = call.tensor(1);
    p.epsilon = call.real(2);
    p.y = call.tensor(3);
    p.gamma_offset = gamma_offset;
    p.has_rstd = call.has(4) && call.tensor(4).numel() > 0;
    if (p.has_rstd) {
        p.rstd = call.tensor(4);
    }
    check(call, p);
    return [p] { return p.run(); };
}

// x1, x2, gamma, (beta,) epsilon, y, rstd, x
Job add_rms_norm(Call& call, bool with_beta) {
    const uint32_t epsilon = with_beta ? 4 : 3;
    RmsNorm p;
    p.x = call.tensor(0);
    p.has_residual = true;
    p.residual = call.tensor(1);
    p.gamma = call.tensor(2);
    p.has_bias = with_beta && call.has(3);
    if (p.has_bias) {
        p.bias = call.tensor(3);
    }
    p.epsilon = call.real(epsilon);
    p.y = call.tensor(epsilon + 1);
    p.has_rstd = call.has(epsilon + 2) && call.tensor(epsilon + 2).numel() > 0;
    if (p.has_rstd) {
        p.rstd = call.tensor(epsilon + 2);
    }
    p.has_sum = call.has(epsilon + 3);
    if (p.has_sum) {
        p.sum = call.tensor(epsilon + 3);
    }
    check(call, p);
    return [p] { return p.run(); };
}

Job layer_norm(Call& call) {  // x, normalized shape, weight, bias, epsilon, y, mean, rstd
    const Tensor x = call.tensor(0), y = call.tensor(5);
    const int rank = static_cast<int>(call.ints(1).size());
    call.require(rank >= 1 && rank <= x.rank, "the normalized shape has %d dimensions", rank);
    call.require(is_floating(x.dtype), "needs a floating-point tensor");
    call.require_shape(y, x, "the output");
    std::vector<int> dims;
    int64_t n = 1;
    for (int d = x.rank - rank; d < x.rank; d++) {
        dims.push_back(d);
        n *= x.dims[d];
    }
    std::array<Tensor, 2> affine;  // weight, bias
    std::array<bool, 2> has_affine{call.has(2), call.has(3)};
    for (uint32_t i = 0; i < 2; i++) {
        if (has_affine[i]) {
            affine[i] = call.tensor(2 + i);
            call.require(affine[i].numel() == n && affine[i].rank == rank, "weight or bias does not fit");
        }
    }
    std::array<Tensor, 2> saved;  // mean, rstd
    std::array<bool, 2> has_saved{call.has(6), call.has(7)};
    for (uint32_t i = 0; i < 2; i++) {
        if (has_saved[i]) {
            saved[i] = call.tensor(6 + i);
            has_saved[i] = saved[i].numel() > 0;
            call.require(!has_saved[i] || (saved[i].contiguous() && saved[i].numel() * n == x.numel()),
                         "mean or rstd does not fit");
        }
    }
    const double epsilon = call.real(4);
    call.cost.vector_flops = kPasses * static_cast<double>(x.numel());
    return [=] {
        const auto row = buffer<float>(n), weight = buffer<float>(n), bias = buffer<float>(n);
        std::fill(weight.get(), weight.get() + n, 1.0f);
        std::fill(bias.get(), bias.get() + n, 0.0f);
        if (has_affine[0]) {
            load_whole(affine[0], weight.get());
        }
        if (has_affine[1]) {
            load_whole(affine[1], bias.get());
        }
        int64_t line = 0;
        for_each_line({lined(y, dims), lined(x, dims)}, [&](const Line lines[]) {
            lines[1].load(row.get());
            const float mean = kernels().f32.sum(row.get(), n) / static_cast<float>(n);
            for (int64_t i = 0; i < n; i++) {
                row[i] -= mean;
            }
            const float variance = kernels().dot(row.get(), row.get(), n) / static_cast<float>(n);
            const float rstd = 1.0f / std::sqrt(variance + static_cast<float>(epsilon));
            for (int64_t i = 0; i < n; i++) {
                row[i] = row[i] * rstd * weight[i] + bias[i];
            }
            lines[0].store(row.get());
            if (has_saved[0]) {
                kernels().f32.store(&mean, saved[0].data + line * saved[0].element(), saved[0].dtype, 4, 1);
            }
            if (has_saved[1]) {
                kernels().f32.store(&rstd, saved[1].data + line * saved[1].element(), saved[1].dtype, 4, 1);
            }
            line++;
        });
        return 0;
    };
}

Job swiglu(Call& call) {  // x, dim, out: silu(first half) * second half
    const Tensor x = call.tensor(0), out = call.tensor(2);
    const int dim = call.dimension(call.integer(1), x);
    call.require(is_floating(x.dtype), "needs a floating-point tensor");
    call.require(x.rank >= 1 && x.dims[dim] % 2 == 0, "the dimension must be even");
    const int64_t half = x.dims[dim] / 2;
    const Tensor gate = x.narrowed(dim, 0, half), up = x.narrowed(dim, half, half);
    call.require_shape(out, gate, "the output");
    return [=] {
        const Loop loop = make_loop({&out, &gate, &up});
        float a[kChunk], b[kChunk];
        for_each_chunk(loop, [&](char* const p[], const int64_t stride[], int64_t n) {
            kernels().f32.load(a, p[1], gate.dtype, stride[1], n);
            kernels().f32.load(b, p[2], up.dtype, stride[2], n);
            kernels().f32.binary[static_cast<int>(Binary::SiluMul)](a, a, b, n, 1);
            kernels().f32.store(a, p[0], out.dtype, stride[0], n);
        });
        return 0;
    };
}

// x * cos + rotated(x) * sin. mode 0 rotates halves, 1 interleaved pairs.
Job rotary_job(Call& call, const Tensor& x, Tensor cosine, Tensor sine, int64_t mode, const Tensor& out) {
    call.require(mode == 0 || mode == 1, "mode %lld is not emulated (0: half, 1: interleaved)",
                 static_cast<long long>(mode));
    call.require(is_floating(x.dtype) && is_floating(cosine.dtype) && is_floating(sine.dtype),
                 "needs floating-point tensors");
    call.require(x.rank >= 1 && x.dim(-1) % 2 == 0, "the last dimension must be even");
    call.require_shape(out, x, "the output");
    call.require_broadcast(x, {&cosine, &sine});
    cosine = cosine.expanded(x);
    sine = sine.expanded(x);
    call.cost.vector_flops = kPasses * static_cast<double>(x.numel());
    const int64_t n = x.dim(-1), half = n / 2;
    return [=] {
        const auto v = buffer<float>(n), c = buffer<float>(n), s = buffer<float>(n), r = buffer<float>(n);
        auto last = [](const Tensor& t) { return Lined{t, 1}; };
        for_each_line({last(out), last(x), last(cosine), last(sine)}, [&](const Line lines[]) {
            lines[1].load(v.get());
            lines[2].load(c.get());
            lines[3].load(s.get());
            for (int64_t i = 0; i < n; i++) {
                const float turned =
                    mode == 0 ? (i < half ? -v[i + half] : v[i - half]) : (i % 2 == 0 ? -v[i + 1] : v[i - 1]);
                r[i] = v[i] * c[i] + turned * s[i];
            }
            lines[0].store(r.get());
        });
        return 0;
    };
}

OPERATOR("aclnnSoftmax", [](Call& call) {
    return softmax_job(call, call.tensor(0), call.integer(1), call.tensor(2), false);
});
OPERATOR("aclnnLogSoftmax",
         [](Call& call) { return softmax_job(call, call.tensor(0), call.integer(1), call.tensor(2), true); });
OPERATOR("aclnnRmsNorm", [](Call& call) { return rms_norm(call, 0); });
OPERATOR("aclnnGemmaRmsNorm", [](Call& call) { return rms_norm(call, 1); });
OPERATOR("aclnnAddRmsNorm", [](Call& call) { return add_rms_norm(call, false); });
OPERATOR("aclnnAddRmsNormBias", [](Call& call) { return add_rms_norm(call, true); });
OPERATOR("aclnnLayerNorm", layer_norm);
OPERATOR("aclnnSwiGlu", swiglu);
OPERATOR("aclnnRotaryPositionEmbedding", [](Call& call) {  // x, cos, sin, mode, out
    return rotary_job(call, call.tensor(0), call.tensor(1), call.tensor(2), call.integer(3), call.tensor(4));
});
OPERATOR("aclnnRotaryPositionEmbeddingV2", [](Call& call) {  // x, cos, sin, mode, rotation matrix, out
    call.require(!call.has(4), "a rotation matrix is not emulated");
    return rotary_job(call, call.tensor(0), call.tensor(1), call.tensor(2), call.integer(3), call.tensor(5));
});
OPERATOR("aclnnApplyRotaryPosEmb", [](Call& call) -> Job {  // query, key (both in place), cos, sin, layout
    const Tensor q = call.tensor(0), k = call.tensor(1), cosine = call.tensor(2), sine = call.tensor(3);
    const Job first = rotary_job(call, q, cosine, sine, 0, q),
              second = rotary_job(call, k, cosine, sine, 0, k);
    call.cost.vector_flops = kPasses * static_cast<double>(q.numel() + k.numel());
    return [=] {
        const int error = first();
        return error ? error : second();
    };
});

}  // namespace
}  // namespace flexnpu::ops
