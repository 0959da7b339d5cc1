// Random numbers: a counter-based generator, so that (seed, offset, position) alone decides a number, in any
// order and process. The numbers are not those of the vendor's hardware, nor of torch's CPU generator.
#include <cmath>
#include <numeric>

#include "iterate.hpp"
#include "registry.hpp"

namespace flexnpu::ops {
namespace {

// Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
class Philox {
public:
    Philox(uint64_t seed, uint64_t offset) : seed_(seed), offset_(offset) {}

    // 64 random bits for a position.
    uint64_t bits(uint64_t position) const {
        uint32_t c[4] = {uint32_t(position), uint32_t(position >> 32), uint32_t(offset_),
                         uint32_t(offset_ >> 32)};
        uint32_t k0 = uint32_t(seed_), k1 = uint32_t(seed_ >> 32);
        for (int round = 0; round < 10; round++) {
            const uint64_t p0 = uint64_t(0xD2511F53u) * c[0], p1 = uint64_t(0xCD9E8D57u) * c[2];
            const uint32_t next[4] = {uint32_t(p1 >> 32) ^ c[1] ^ k0, uint32_t(p1),
                                      uint32_t(p0 >> 32) ^ c[3] ^ k1, uint32_t(p0)};
            std::copy(next, next + 4, c);
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        return uint64_t(c[0]) << 32 | c[1];
    }
    // In [0, 1), and in (0, 1].
    double uniform(uint64_t position) const { return static_cast<double>(bits(position) >> 11) * 0x1p-53; }
    double positive(uint64_t position) const { return 1.0 - uniform(position); }
    double normal(uint64_t position) const {  // Box and Muller
        return std::sqrt(-2 * std::log(positive(2 * position))) *
               std::cos(6.283185307179586476925 * uniform(2 * position + 1));
    }

private:
    uint64_t seed_, offset_;
};

// out[i] = f(generator, i), i counting in row-major order of a contiguous tensor (in order of memory
// otherwise).
template <class F>
Job generate(Call& call, const Tensor& out, int64_t seed, int64_t offset, F f) {
    call.require_numeric(out);
    return [=] {
        const Philox generator(static_cast<uint64_t>(seed), static_cast<uint64_t>(offset));
        const Loop loop = make_loop({&out});
        double row[kChunk];
        uint64_t position = 0;
        for_each_chunk(loop, [&](char* const p[], const int64_t stride[], int64_t n) {
            for (int64_t i = 0; i < n; i++) {
                row[i] = f(generator, position++);
            }
            kernels().f64.store(row, p[0], out.dtype, stride[0], n);
        });
        return 0;
    };
}

Job uniform(Call& call) {  // self, from, to, seed, offset
    const double from = call.real(1), to = call.real(2);
    call.require(from <= to, "from is greater than to");
    const Tensor self = call.tensor(0);
    // Rounding to a short type must not reach the upper bound, which is excluded.
    const double step = self.dtype == acl::FLOAT16 ? 0x1p11
                        : self.dtype == acl::BF16  ? 0x1p8
                        : self.dtype == acl::FLOAT ? 0x1p24
                                                   : 0x1p53;
    return generate(call, self, call.integer(3), call.integer(4), [=](const Philox& g, uint64_t i) {
        return from + std::floor(g.uniform(i) * step) / step * (to - from);
    });
}

Job normal(Call& call) {  // self, mean, deviation, seed, offset
    const double mean = call.real(1), deviation = call.real(2);
    return generate(call, call.tensor(0), call.integer(3), call.integer(4),
                    [=](const Philox& g, uint64_t i) { return mean + deviation * g.normal(i); });
}

Job normal_out(Call& call) {  // mean, deviation, seed, offset, out
    const double mean = call.real(0), deviation = call.real(1);
    return generate(call, call.tensor(4), call.integer(2), call.integer(3),
                    [=](const Philox& g, uint64_t i) { return mean + deviation * g.normal(i); });
}

Job random_integers(Call& call) {  // self, from, to, seed, offset
    const int64_t from = call.integer(1), to = call.integer(2);
    call.require(from < to, "from must be less than to");
    const auto range = static_cast<uint64_t>(to) - static_cast<uint64_t>(from);
    const Tensor self = call.tensor(0);
    call.require_numeric(self);
    const int64_t seed = call.integer(3), offset = call.integer(4);
    return [=] {
        const Philox generator(static_cast<uint64_t>(seed), static_cast<uint64_t>(offset));
        const Loop loop = make_loop({&self});
        uint64_t position = 0;
        for_each_row(loop, [&](char* const p[], const int64_t stride[], int64_t n) {
            for (int64_t i = 0; i < n; i++) {
                const int64_t x = from + static_cast<int64_t>(generator.bits(position++) % range);
                kernels().i64.store(&x, p[0] + i * stride[0], self.dtype, self.element(), 1);
            }
        });
        return 0;
    };
}

Job bernoulli(Call& call, const Tensor& out, double p, int64_t seed, int64_t offset) {
    call.require(p >= 0 && p <= 1, "the probability is not in [0, 1]");
    return generate(call, out, seed, offset,
                    [=](const Philox& g, uint64_t i) { return double(g.uniform(i) < p); });
}

Job bernoulli_tensor(Call& call, const Tensor& out, const Tensor& probability, int64_t seed, int64_t offset) {
    call.require_numeric(out);
    call.require_numeric(probability);
    call.require_broadcast(out, {&probability});
    return [=] {
        const Philox generator(static_cast<uint64_t>(seed), static_cast<uint64_t>(offset));
        const Loop loop = make_loop({&out, &probability});
        double row[kChunk];
        uint64_t position = 0;
        for_each_chunk(loop, [&](char* const p[], const int64_t stride[], int64_t n) {
            kernels().f64.load(row, p[1], probability.dtype, stride[1], n);
            for (int64_t i = 0; i < n; i++) {
                row[i] = generator.uniform(position++) < row[i];
            }
            kernels().f64.store(row, p[0], out.dtype, stride[0], n);
        });
        return 0;
    };
}

// One bit an element, eight a byte, least significant first: 1 keeps the element.
Job dropout_mask(Call& call, const Tensor& mask) {  // shape, probability of dropping, seed, offset, ..., mask
    int64_t n = 1;
    for (int64_t d : call.ints(0)) {
        n *= d;
    }
    const double p = call.real(1);
    const int64_t seed = call.integer(2), offset = call.integer(3);
    call.require(p >= 0 && p <= 1, "the probability is not in [0, 1]");
    call.require(mask.dtype == acl::UINT8 && mask.contiguous() && mask.numel() * 8 >= n,
                 "the mask is too small");
    return [=] {
        const Philox generator(static_cast<uint64_t>(seed), static_cast<uint64_t>(offset));
        std::memset(mask.data, 0, static_cast<size_t>(mask.numel()));
        for (int64_t i = 0; i < n; i++) {
            const bool keep = generator.uniform(static_cast<uint64_t>(i)) >= p;
            mask.data[i / 8] = static_cast<char>(mask.data[i / 8] | keep << (i % 8));
        }
        return 0;
    };
}

Job dropout_apply(Call& call) {  // self, mask, probability of dropping, out
    const Tensor self = call.tensor(0), mask = call.tensor(1), out = call.tensor(3);
    const double p = call.real(2);
    call.require_shape(out, self, "the output");
    call.require(is_floating(self.dtype), "needs a floating-point tensor");
    call.require(mask.dtype == acl::UINT8 && mask.contiguous() && mask.numel() * 8 >= self.numel(),
                 "the mask is too small");
    return [=] {
        const float scale = p < 1 ? static_cast<float>(1 / (1 - p)) : 0.0f;
        const Loop loop = make_loop({&out, &self});
        int64_t position = 0;
        float row[kChunk];
        for_each_chunk(loop, [&](char* const ptr[], const int64_t stride[], int64_t n) {
            kernels().f32.load(row, ptr[1], self.dtype, stride[1], n);
            for (int64_t i = 0; i < n; i++, position++) {
                row[i] = mask.data[position / 8] >> (position % 8) & 1 ? row[i] * scale : 0.0f;
            }
            kernels().f32.store(row, ptr[0], out.dtype, stride[0], n);
        });
        return 0;
    };
}

Job exponential(Call& call) {  // self, count, lambda, seed, offset
    const double lambda = call.real(2);
    call.require(lambda > 0, "lambda must be positive");
    return generate(call, call.tensor(0), call.integer(3), call.integer(4),
                    [=](const Philox& g, uint64_t i) { return -std::log(g.positive(i)) / lambda; });
}

Job permutation(Call& call) {  // n, seed, offset, out
    const int64_t n = call.integer(0), seed = call.integer(1), offset = call.integer(2);
    const Tensor out = call.tensor(3);
    call.require(out.rank == 1 && out.dims[0] == n, "the output must have n elements");
    call.require_numeric(out);
    return [=] {
        const Philox generator(static_cast<uint64_t>(seed), static_cast<uint64_t>(offset));
        std::vector<int64_t> order(static_cast<size_t>(n));
        std::iota(order.begin(), order.end(), 0);
        for (size_t i = order.size(); i > 1; i--) {
            std::swap(order[i - 1], order[generator.bits(i) % i]);
        }
        kernels().i64.store(order.data(), out.data, out.dtype, out.strides[0] * out.element(), n);
        return 0;
    };
}

// Draws from the distribution in each line of the last dimension. Without replacement: the order of p / q for
// exponential q, which draws in proportion to p (Efraimidis and Spirakis, 2006).
Job multinomial(Call& call) {  // self, samples, replacement, seed, offset, out
    const Tensor self = call.tensor(0), out = call.tensor(5);
    const int64_t samples = call.integer(1), seed = call.integer(3), offset = call.integer(4);
    const bool replacement = call.boolean(2);
    call.require(self.rank >= 1 && self.rank <= 2 && out.rank == self.rank && out.dim(-1) == samples,
                 "the output does not fit");
    call.require(is_floating(self.dtype) && is_integral(out.dtype),
                 "needs probabilities and integer samples");
    const int64_t n = self.dim(-1);
    call.require(replacement || samples <= n, "cannot draw %lld of %lld without replacement",
                 static_cast<long long>(samples), static_cast<long long>(n));
    const char* name = call.name();
    return [=] {
        const Philox generator(static_cast<uint64_t>(seed), static_cast<uint64_t>(offset));
        const auto p = buffer<double>(n);
        std::vector<int64_t> drawn(static_cast<size_t>(samples));
        uint64_t position = 0;
        int error = 0;
        for_each_line({Lined{out, 1}, Lined{self, 1}}, [&](const Line lines[]) {
            lines[1].load(p.get());
            double total = 0;
            int64_t last_possible = -1;
            for (int64_t i = 0; i < n; i++) {
                if (!(p[i] >= 0) || std::isinf(p[i])) {
                    error = flexnpu_emu_fail(kAicoreException,
                                             "%s: a probability is negative, infinite or NaN", name);
                    return;
                }
                total += p[i];
                last_possible = p[i] > 0 ? i : last_possible;
            }
            if (last_possible < 0) {
                error = flexnpu_emu_fail(kAicoreException, "%s: all probabilities are zero", name);
                return;
            }
            if (replacement || samples == 1) {
                for (int64_t& sample : drawn) {
                    const double target = generator.uniform(position++) * total;
                    double below = 0;
                    sample = last_possible;
                    for (int64_t i = 0; i <= last_possible; i++) {
                        below += p[i];
                        if (target < below) {
                            sample = i;
                            break;
                        }
                    }
                }
            } else {
                for (int64_t i = 0; i < n; i++) {
                    p[i] /= -std::log(generator.positive(position++));
                }
                std::vector<int64_t> order(static_cast<size_t>(n));
                std::iota(order.begin(), order.end(), 0);
                std::partial_sort(
                    order.begin(), order.begin() + samples, order.end(),
                    [&](int64_t a, int64_t b) { return p[a] > p[b] || (p[a] == p[b] && a < b); });
                std::copy(order.begin(), order.begin() + samples, drawn.begin());
            }
            lines[0].store(drawn.data());
        });
        return error;
    };
}

OPERATOR("aclnnInplaceUniform", uniform);
OPERATOR("aclnnInplaceNormal", normal);
OPERATOR("aclnnNormalFloatFloat", normal_out);
OPERATOR("aclnnInplaceRandom", random_integers);
OPERATOR("aclnnBernoulli", [](Call& call) {  // self, p, seed, offset, out
    return bernoulli(call, call.tensor(4), call.scalar(1).real, call.integer(2), call.integer(3));
});
OPERATOR("aclnnInplaceBernoulli", [](Call& call) {  // self, p, seed, offset
    return bernoulli(call, call.tensor(0), call.scalar(1).real, call.integer(2), call.integer(3));
});
OPERATOR("aclnnBernoulliTensor", [](Call& call) {  // self, p, seed, offset, out
    return bernoulli_tensor(call, call.tensor(4), call.tensor(1), call.integer(2), call.integer(3));
});
OPERATOR("aclnnInplaceBernoulliTensor", [](Call& call) {
    return bernoulli_tensor(call, call.tensor(0), call.tensor(1), call.integer(2), call.integer(3));
});
OPERATOR("aclnnDropoutGenMask", [](Call& call) { return dropout_mask(call, call.tensor(4)); });
OPERATOR("aclnnDropoutGenMaskV2", [](Call& call) { return dropout_mask(call, call.tensor(5)); });
OPERATOR("aclnnDropoutDoMask", dropout_apply);
OPERATOR("aclnnSimThreadExponential", exponential);
OPERATOR("aclnnRandperm", permutation);
OPERATOR("aclnnMultinomial", multinomial);

}  // namespace
}  // namespace flexnpu::ops
