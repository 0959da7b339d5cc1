// Fused attention: FlashAttentionScore (what torch's scaled_dot_product_attention becomes on an NPU),
// PromptFlashAttention, IncreFlashAttention and FusedInferAttentionScore with paged key/value caches
// (vLLM-Ascend).
//
// softmax(scale * Q K^T + bias, masked) V in float32, a block of query rows at a time, rounded once.
//
// A row whose keys are all masked gives zeros. Quantised inputs, prefixes and rope inputs are refused.
#include <cmath>
#include <limits>

#include "attention.hpp"
#include "product.hpp"
#include "registry.hpp"

namespace flexnpu::ops {

using namespace attention;

namespace {

constexpr int64_t kQueryBlock = 64;

}  // namespace

namespace attention {

Window window(const Options& o, int64_t i, int64_t rows, int64_t keys) {
    int64_t low = 0, high = keys - 1;
    const int64_t shift = keys - rows;  // the last row sees the last key
    switch (o.sparse) {
        case kLeftUpCausal: high = i; break;
        case kRightDownCausal: high = i + shift; break;
        case kBand:
            low = i + shift - o.before;
            high = i + shift + o.after;
            break;
        case kDefaultMask:
            if (o.has_mask) {
                low = i - o.before;
                high = i + o.after;
            }
            break;
        default: break;
    }
    low = std::clamp<int64_t>(low, 0, keys);  // tokens before may be negative
    high = std::min(high, keys - 1);
    return {low, std::max(low, high + 1)};
}

Tensor slice_for(const Tensor& t, int64_t batch, int64_t head) {
    Tensor s = t;
    while (s.rank < 4) {  // [S, S] or [B, S, S]
        s = s.unsqueezed(t.rank == 3 && s.rank == 3 ? 1 : 0);
    }
    s = s.selected(0, s.dims[0] == 1 ? 0 : batch);
    return s.selected(0, s.dims[0] == 1 ? 0 : head);
}

int attend(const Options& o, const Sequence& s) {
    const int64_t heads = s.q.dims[0], rows = s.q.dims[1], keys = s.k.dims[1];
    const int64_t group = heads / std::max<int64_t>(s.k.dims[0], 1), width = s.v.dims[2];
    const bool dense_mask = o.dense_mask();
    const auto scores = buffer<float>(kQueryBlock * keys);
    const auto result = buffer<float>(kQueryBlock * width);
    const auto line = buffer<float>(keys);
    for (int64_t h = 0; h < heads; h++) {
        const Tensor q = s.q.selected(0, h), k = s.k.selected(0, h / group), v = s.v.selected(0, h / group);
        const Tensor out = s.out.selected(0, h);
        const Tensor mask = dense_mask ? slice_for(o.mask, s.batch, h) : Tensor{};
        const Tensor bias = o.has_bias ? slice_for(o.bias, s.batch, h) : Tensor{};
        float sink = 0;
        if (o.has_sink) {
            kernels().f32.load(&sink, o.sink.data + h * o.sink.strides[0] * o.sink.element(), o.sink.dtype, 0,
                               1);
        }
        for (int64_t i0 = 0; i0 < rows; i0 += kQueryBlock) {
            const int64_t block = std::min(kQueryBlock, rows - i0);
            int64_t last = 0;
            for (int64_t i = 0; i < block; i++) {
                last = std::max(last, window(o, i0 + i, rows, keys).last);
            }
            Matrix mq = matrix(q, q.data + i0 * q.strides[0] * q.element());
            mq.rows = block;
            Matrix mk = matrix(k, k.data);  // transposed: [width, keys]
            std::swap(mk.rows, mk.columns);
            std::swap(mk.row_stride, mk.column_stride);
            mk.columns = last;
            product(mq, mk, scores.get(), last);
            for (int64_t i = 0; i < block; i++) {
                float* row = scores.get() + i * last;
                const Window w = window(o, i0 + i, rows, keys);
                kernels().scale(row, last, static_cast<float>(o.scale));
                if (o.has_bias) {
                    const int64_t r = bias.dims[0] == 1 ? 0 : i0 + i;
                    kernels().f32.load(line.get(), bias.data + r * bias.strides[0] * bias.element(),
                                       bias.dtype, bias.strides[1] * bias.element(), last);
                    for (int64_t j = 0; j < last; j++) {
                        row[j] += line[j];
                    }
                }
                constexpr float kHidden = -std::numeric_limits<float>::infinity();
                std::fill(row, row + std::min(w.first, last), kHidden);
                std::fill(row + std::min(w.last, last), row + last, kHidden);
                if (dense_mask) {
                    const int64_t r = mask.dims[0] == 1 ? 0 : i0 + i;
                    const char* hidden = mask.data + r * mask.strides[0];
                    for (int64_t j = 0; j < last; j++) {
                        row[j] = hidden[j * mask.strides[1]] ? kHidden : row[j];
                    }
                }
                float high = last > 0 ? kernels().f32.max(row, last) : kHidden;
                if (o.has_sink) {
                    high = std::max(high, sink);
                }
                float total = 0;
                if (high == kHidden) {  // nothing to see
                    std::fill(row, row + last, 0.0f);
                    total = 1;
                } else {
                    total = kernels().exp_sum(row, row, last, high);
                    if (o.has_sink) {
                        total += std::exp(sink - high);
                    }
                    kernels().scale(row, last, 1 / total);
                }
                if (o.has_dropout) {
                    const int64_t first = ((s.batch * heads + h) * rows + i0 + i) * keys;
                    for (int64_t j = 0; j < last; j++) {
                        row[j] *= static_cast<float>(o.dropout(first + j));
                    }
                }
                if (s.has_max || s.has_sum) {
                    for (int64_t c = 0; c < 8; c++) {
                        if (s.has_max) {
                            const Tensor at = s.maximum.selected(0, h).selected(0, i0 + i).selected(0, c);
                            kernels().f32.store(&high, at.data, at.dtype, 0, 1);
                        }
                        if (s.has_sum) {
                            const Tensor at = s.sum.selected(0, h).selected(0, i0 + i).selected(0, c);
                            kernels().f32.store(&total, at.data, at.dtype, 0, 1);
                        }
                    }
                }
                if (s.has_lse) {
                    const float lse = high + std::log(total);
                    const Tensor at = s.lse.selected(0, h).selected(0, i0 + i);
                    kernels().f32.store(&lse, at.data, at.dtype, 0, 1);
                }
            }
            const Matrix mp{reinterpret_cast<char*>(scores.get()), acl::FLOAT, block, last, last, 1};
            Matrix mv = matrix(v, v.data);
            mv.rows = last;
            product(mp, mv, result.get(), width);
            for (int64_t i = 0; i < block; i++) {
                kernels().f32.store(result.get() + i * width,
                                    out.data + (i0 + i) * out.strides[0] * out.element(), out.dtype,
                                    out.strides[1] * out.element(), width);
            }
        }
    }
    return 0;
}

// ---- layouts ----

Tensor as_bnsd(Call& call, const Tensor& t, const std::string& layout, int64_t heads) {
    auto need = [&](int rank) {
        call.require(t.rank == rank, "layout %s needs %d dimensions, not %d", layout.c_str(), rank, t.rank);
    };
    Tensor r = t;
    auto order = [&](std::initializer_list<int> dims) { r = r.permuted_last(dims); };
    if (layout == "BNSD") {
        need(4);
    } else if (layout == "BSND") {
        need(4);
        order({0, 2, 1, 3});
    } else if (layout == "BSH" || layout == "SBH") {
        need(3);
        call.require(heads > 0 && t.dims[2] % heads == 0, "%lld heads do not divide a width of %lld",
                     static_cast<long long>(heads), static_cast<long long>(t.dims[2]));
        r.rank = 4;
        r.dims[2] = heads;
        r.dims[3] = t.dims[2] / heads;
        r.strides[2] = t.strides[2] * r.dims[3];
        r.strides[3] = t.strides[2];
        if (layout == "BSH") {
            order({0, 2, 1, 3});
        } else {
            order({1, 2, 0, 3});
        }
    } else if (layout == "TND") {  // one batch of all tokens; sequences are cut out of it
        need(3);
        order({1, 0, 2});
        r = r.unsqueezed(0);
    } else {
        call.fail("layout %s is not emulated", layout.c_str());
    }
    return r;
}

void require_type(Call& call, const Tensor& t) {
    call.require(t.dtype == acl::FLOAT || t.dtype == acl::FLOAT16 || t.dtype == acl::BF16,
                 "data type %s is not emulated", dtype_name(t.dtype));
}

void take_mask(Call& call, uint32_t i, Options& o) {
    o.has_mask = call.has(i) && call.tensor(i).numel() > 0;
    if (o.has_mask) {
        o.mask = call.tensor(i);
        call.require(acl::element_size(o.mask.dtype) == 1, "a mask of type %s is not emulated",
                     dtype_name(o.mask.dtype));
        call.require(o.mask.rank >= 2 && o.mask.rank <= 4, "the mask has %d dimensions", o.mask.rank);
    }
}
void take_bias(Call& call, uint32_t i, Options& o) {
    o.has_bias = call.has(i) && call.tensor(i).numel() > 0;
    if (o.has_bias) {
        o.bias = call.tensor(i);
        require_type(call, o.bias);
        call.require(o.bias.rank >= 2 && o.bias.rank <= 4, "the position bias has %d dimensions",
                     o.bias.rank);
    }
}

void take_dropout(Call& call, uint32_t i, double keep, int64_t weights, Options& o) {
    call.require(keep > 0 && keep <= 1, "the probability to keep is not in (0, 1]");
    o.keep = keep;
    o.has_dropout = keep < 1;
    if (o.has_dropout) {
        o.kept = call.tensor(i);
        call.require(
            acl::element_size(o.kept.dtype) == 1 && o.kept.contiguous() && o.kept.numel() * 8 >= weights,
            "the dropout mask is too small");
    }
}

void require_covers(Call& call, const Tensor& t, int64_t batch, int64_t heads, int64_t rows, int64_t keys,
                    const char* what) {
    bool fits = (t.dim(-2) == 1 || t.dim(-2) >= rows) && t.dim(-1) >= keys;
    if (t.rank >= 3) {
        fits = fits && (t.dims[0] == 1 || t.dims[0] >= batch);
    }
    if (t.rank == 4) {
        fits = fits && (t.dims[1] == 1 || t.dims[1] == heads);
    }
    if (!fits) {
        call.fail("%s of shape %s does not cover %lld rows and %lld keys", what, t.shape().c_str(),
                  static_cast<long long>(rows), static_cast<long long>(keys));
    }
}

void attention_cost(Call& call, int32_t dtype, double pairs, int64_t heads, int64_t width_qk,
                    int64_t width_v) {
    call.cost.cube_flops = 2 * pairs * static_cast<double>(heads) * static_cast<double>(width_qk + width_v);
    call.cost.cube_dtype = dtype;
    call.cost.vector_flops = 4 * pairs * static_cast<double>(heads);
}

std::vector<uint32_t> range(uint32_t first, uint32_t last) {
    std::vector<uint32_t> numbers;
    for (uint32_t i = first; i <= last; i++) {
        numbers.push_back(i);
    }
    return numbers;
}

std::vector<uint32_t> operator+(std::vector<uint32_t> a, const std::vector<uint32_t>& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
}

}  // namespace attention

}  // namespace flexnpu::ops
