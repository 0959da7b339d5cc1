// Fused attention: FlashAttentionScore (what torch's scaled_dot_product_attention becomes on an NPU),
// PromptFlashAttention, IncreFlashAttention and FusedInferAttentionScore with paged key/value caches
// (vLLM-Ascend).
//
// softmax(scale * Q K^T + bias, masked) V in float32, a block of query rows at a time, rounded once.
//
// A row whose keys are all masked gives zeros. Quantised inputs, dropout, prefixes and rope inputs are
// refused.
#include <cmath>
#include <limits>

#include "attention.hpp"
#include "product.hpp"
#include "registry.hpp"

namespace flexnpu::ops {

using namespace attention;

namespace {

constexpr int64_t kQueryBlock = 64;

// One sequence of one batch: [heads, rows, width] views.
struct Sequence {
    Tensor q, k, v, out;
    int64_t batch = 0;
    bool has_max = false, has_sum = false, has_lse = false;
    Tensor maximum, sum;  // [heads, rows, 8]
    Tensor lse;           // [heads, rows]
};

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

}  // namespace attention

namespace {

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

}  // namespace

// ---- layouts ----

namespace attention {

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

}  // namespace attention

namespace {

// ---- FlashAttentionScore ----

struct FlashPositions {
    uint32_t sink = 0;     // 0: none
    uint32_t lengths = 0;  // of the two arrays of cumulative lengths; 0: none
    uint32_t scale, keep, before, after, heads, layout, sparse, maximum, sum, out;
};

Job flash_attention(Call& call, const FlashPositions& at) {
    const std::string layout = call.text(at.layout);
    const int64_t heads = call.integer(at.heads);
    Options o;
    o.scale = call.real(at.scale);
    o.before = call.integer(at.before);
    o.after = call.integer(at.after);
    o.sparse = call.integer(at.sparse);
    call.require(o.sparse >= 0 && o.sparse <= 4, "sparse mode %lld is not emulated",
                 static_cast<long long>(o.sparse));
    call.require(call.real(at.keep) >= 1, "dropout is not emulated");
    take_bias(call, 3, o);
    take_mask(call, 6, o);
    if (at.sink && call.has(at.sink)) {
        o.has_sink = true;
        o.sink = call.tensor(at.sink);
        require_type(call, o.sink);
        call.require(o.sink.rank == 1 && o.sink.dims[0] == heads, "the sink must have one element a head");
    }
    const Tensor query = call.tensor(0), key = call.tensor(1), value = call.tensor(2),
                 attention = call.tensor(at.out);
    for (const Tensor* t : {&query, &key, &value, &attention}) {
        require_type(call, *t);
    }
    const Tensor q = as_bnsd(call, query, layout, heads);
    const int64_t width = q.dims[3];
    call.require(width > 0, "the heads have no width");
    const int64_t kv_heads = layout == "BSH" || layout == "SBH" ? key.dims[2] / width : 0;
    const Tensor k = as_bnsd(call, key, layout, kv_heads), v = as_bnsd(call, value, layout, kv_heads);
    const Tensor out = as_bnsd(call, attention, layout, heads);
    call.require(q.dims[1] == heads, "the query has %lld heads, not %lld", static_cast<long long>(q.dims[1]),
                 static_cast<long long>(heads));
    call.require(k.dims[1] > 0 && heads % k.dims[1] == 0 && v.dims[1] == k.dims[1],
                 "key and value heads do not fit");
    call.require(
        k.dims[0] == q.dims[0] && v.dims[0] == q.dims[0] && v.dims[2] == k.dims[2] && k.dims[3] == width,
        "query, key and value do not fit");
    call.require(out.dims[0] == q.dims[0] && out.dims[1] == heads && out.dims[2] == q.dims[2] &&
                     out.dims[3] == v.dims[3],
                 "the output does not fit");
    // [batch, heads, rows, 8], or [tokens, heads, 8]
    auto statistic = [&](uint32_t i, Tensor& t) {
        if (!call.has(i) || call.tensor(i).numel() == 0) {
            return false;
        }
        t = call.tensor(i);
        if (t.rank == 3) {
            t = t.permuted_last({1, 0, 2}).unsqueezed(0);
        }
        call.require(t.rank == 4 && t.dims[0] == q.dims[0] && t.dims[1] == heads && t.dims[2] == q.dims[2] &&
                         t.dims[3] == 8,
                     "softmax statistics do not fit");
        return true;
    };
    Tensor maximum, sum;
    const bool has_max = statistic(at.maximum, maximum), has_sum = statistic(at.sum, sum);

    std::vector<Sequence> sequences;
    double pairs = 0;
    auto add = [&](int64_t batch, int64_t q0, int64_t q1, int64_t k0, int64_t k1) {
        call.require(q0 <= q1 && q1 <= q.dims[2] && k0 <= k1 && k1 <= k.dims[2],
                     "sequence lengths exceed the tokens");
        Sequence s;
        auto cut = [&](const Tensor& t, int64_t start, int64_t end) {
            return t.selected(0, layout == "TND" ? 0 : batch).narrowed(1, start, end - start);
        };
        s.q = cut(q, q0, q1);
        s.k = cut(k, k0, k1);
        s.v = cut(v, k0, k1);
        s.out = cut(out, q0, q1);
        s.batch = batch;
        s.has_max = has_max;
        s.has_sum = has_sum;
        if (has_max) {
            s.maximum = cut(maximum, q0, q1);
        }
        if (has_sum) {
            s.sum = cut(sum, q0, q1);
        }
        if (o.has_mask && o.sparse <= kAllMask) {
            require_covers(call, o.mask, batch + 1, heads, q1 - q0, k1 - k0, "the mask");
        }
        if (o.has_bias) {
            require_covers(call, o.bias, batch + 1, heads, q1 - q0, k1 - k0, "the position bias");
        }
        pairs += static_cast<double>(q1 - q0) * static_cast<double>(k1 - k0);
        sequences.push_back(s);
    };
    if (at.lengths && layout == "TND") {
        const std::vector<int64_t> q_ends = call.ints(at.lengths), k_ends = call.ints(at.lengths + 1);
        call.require(!q_ends.empty() && q_ends.size() == k_ends.size(),
                     "TND needs as many query as key lengths");
        for (size_t b = 0; b < q_ends.size(); b++) {
            add(static_cast<int64_t>(b), b ? q_ends[b - 1] : 0, q_ends[b], b ? k_ends[b - 1] : 0, k_ends[b]);
        }
    } else {
        for (int64_t b = 0; b < q.dims[0]; b++) {
            add(b, 0, q.dims[2], 0, k.dims[2]);
        }
    }
    attention_cost(call, query.dtype, pairs, heads, width, v.dims[3]);
    return [o, sequences] {
        for (const Sequence& s : sequences) {
            if (const int error = attend(o, s)) {
                return error;
            }
        }
        return 0;
    };
}

// ---- inference: PromptFlashAttention, IncreFlashAttention, FusedInferAttentionScore ----

struct InferPositions {
    bool lists;                      // key and value are tensor lists
    int query_lengths, key_lengths;  // integer arrays; -1: none
    int block_table;                 // -1: none
    std::vector<uint32_t> refused;   // inputs that must be null
    uint32_t heads, scale;
    int before, after;  // -1: none
    uint32_t layout, kv_heads;
    int sparse, block_size;  // -1: none
    int lse_flag, lse;       // -1: none
    uint32_t out;
};

struct Paged {
    bool used = false;
    Tensor table;       // [batch, blocks], int32
    Tensor key, value;  // [blocks, heads, block, width]
    std::vector<int64_t> lengths;
};

Job infer_attention(Call& call, const InferPositions& at) {
    for (uint32_t i : at.refused) {
        call.require(!call.has(i), "argument %u (quantisation, prefix, padding or rope) is not emulated", i);
    }
    std::string layout = call.text(at.layout), out_layout = layout;
    if (layout == "BNSD_BSND") {
        layout = "BNSD";
        out_layout = "BSND";
    }
    const int64_t heads = call.integer(at.heads);
    int64_t kv_heads = call.integer(at.kv_heads);
    kv_heads = kv_heads == 0 ? heads : kv_heads;
    call.require(heads > 0 && kv_heads > 0 && heads % kv_heads == 0, "%lld heads for %lld key/value heads",
                 static_cast<long long>(heads), static_cast<long long>(kv_heads));
    Options o;
    o.scale = call.real(at.scale);
    o.before = at.before < 0 ? kUnlimited : call.integer(uint32_t(at.before));
    o.after = at.after < 0 ? kUnlimited : call.integer(uint32_t(at.after));
    o.sparse = at.sparse < 0 ? kAllMask : call.integer(uint32_t(at.sparse));
    call.require(o.sparse >= 0 && o.sparse <= 4, "sparse mode %lld is not emulated",
                 static_cast<long long>(o.sparse));
    take_bias(call, 3, o);
    take_mask(call, 4, o);
    const Tensor query = call.tensor(0), attention = call.tensor(at.out);
    auto single = [&](uint32_t i) {
        if (!at.lists) {
            return call.tensor(i);
        }
        const std::vector<Tensor> list = call.tensors(i);
        call.require(list.size() == 1, "a list of %zu key or value tensors is not emulated", list.size());
        return list[0];
    };
    const Tensor key = single(1), value = single(2);
    for (const Tensor* t : {&query, &key, &value, &attention}) {
        require_type(call, *t);
    }
    const Tensor q = as_bnsd(call, query, layout, heads), out = as_bnsd(call, attention, out_layout, heads);
    call.require(
        q.dims[1] == heads && out.dims[1] == heads && out.dims[0] == q.dims[0] && out.dims[2] == q.dims[2],
        "query and output do not fit");

    Paged paged;
    paged.used = at.block_table >= 0 && call.has(uint32_t(at.block_table));
    Tensor k, v;
    if (paged.used) {
        paged.table = call.tensor(uint32_t(at.block_table));
        call.require(paged.table.rank == 2 && paged.table.dtype == acl::INT32,
                     "the block table must be a 2-dim int32 tensor");
        // [blocks, block, heads*width] or [blocks, heads, block, width]
        paged.key = as_bnsd(call, key, key.rank == 3 ? "BSH" : "BNSD", kv_heads);
        paged.value = as_bnsd(call, value, value.rank == 3 ? "BSH" : "BNSD", kv_heads);
        k = paged.key;
        v = paged.value;
    } else {
        k = as_bnsd(call, key, layout, kv_heads);
        v = as_bnsd(call, value, layout, kv_heads);
    }
    call.require(k.dims[1] == kv_heads && v.dims[1] == kv_heads && k.dims[3] == q.dims[3] &&
                     v.dims[2] == k.dims[2] && v.dims[0] == k.dims[0] && out.dims[3] == v.dims[3],
                 "query, key and value do not fit");

    const std::vector<int64_t> q_given =
        at.query_lengths < 0 ? std::vector<int64_t>{} : call.ints(uint32_t(at.query_lengths));
    const std::vector<int64_t> k_given =
        at.key_lengths < 0 ? std::vector<int64_t>{} : call.ints(uint32_t(at.key_lengths));
    const bool tokens = layout == "TND";
    call.require(!tokens || !q_given.empty(), "TND needs the query lengths");
    call.require(!paged.used || !k_given.empty(), "a paged cache needs the key lengths");
    call.require(paged.used || tokens || k.dims[0] == q.dims[0], "query and key batches differ");
    const auto batches = tokens ? static_cast<int64_t>(q_given.size()) : q.dims[0];
    call.require(!paged.used || paged.table.dims[0] >= batches, "the block table has too few rows");
    const bool want_lse =
        at.lse >= 0 && at.lse_flag >= 0 && call.boolean(uint32_t(at.lse_flag)) && call.has(uint32_t(at.lse));
    Tensor lse;
    if (want_lse) {  // [batch, heads, rows, 1] or [tokens, heads, 1]
        lse = call.tensor(uint32_t(at.lse));
        lse = tokens ? lse.permuted_last({1, 0, 2}).unsqueezed(0) : lse;
        call.require(
            lse.rank == 4 && lse.dims[0] == q.dims[0] && lse.dims[1] == heads && lse.dims[2] == q.dims[2],
            "the log-sum-exp output does not fit");
    }

    std::vector<Sequence> sequences;
    double pairs = 0, cached = 0;
    // One length may stand for all batches.
    auto length = [](const std::vector<int64_t>& given, int64_t b, int64_t whole) {
        return given.empty()
                   ? whole
                   : given[given.size() == 1 ? 0 : std::min(static_cast<size_t>(b), given.size() - 1)];
    };
    for (int64_t b = 0; b < batches; b++) {
        int64_t q0 = 0, q1 = 0, k0 = 0, k1 = 0;
        if (tokens) {
            q0 = b ? q_given[static_cast<size_t>(b - 1)] : 0;
            q1 = q_given[static_cast<size_t>(b)];
        } else {
            q1 = std::min(length(q_given, b, q.dims[2]), q.dims[2]);
        }
        if (tokens && !paged.used) {
            call.require(k_given.size() == q_given.size(), "TND needs as many key as query lengths");
            k0 = b ? k_given[static_cast<size_t>(b - 1)] : 0;
            k1 = k_given[static_cast<size_t>(b)];
        } else {
            k1 = length(k_given, b, k.dims[2]);
        }
        const int64_t available = paged.used ? paged.table.dims[1] * k.dims[2] : k.dims[2];
        call.require(0 <= q0 && q0 <= q1 && q1 <= q.dims[2] && 0 <= k0 && k0 <= k1 && k1 <= available,
                     "sequence lengths of batch %lld exceed the tokens", static_cast<long long>(b));
        Sequence s;
        s.batch = b;
        const int64_t row = tokens ? 0 : b;
        s.q = q.selected(0, row).narrowed(1, q0, q1 - q0);
        s.out = out.selected(0, row).narrowed(1, q0, q1 - q0);
        s.has_lse = want_lse;
        if (want_lse) {
            s.lse = lse.selected(0, row).narrowed(1, q0, q1 - q0).selected(2, 0);
        }
        if (!paged.used) {
            s.k = k.selected(0, row).narrowed(1, k0, k1 - k0);
            s.v = v.selected(0, row).narrowed(1, k0, k1 - k0);
        }
        if (o.has_mask && o.sparse <= kAllMask) {
            require_covers(call, o.mask, b + 1, heads, q1 - q0, k1 - k0, "the mask");
        }
        if (o.has_bias) {
            require_covers(call, o.bias, b + 1, heads, q1 - q0, k1 - k0, "the position bias");
        }
        paged.lengths.push_back(k1 - k0);
        pairs += static_cast<double>(q1 - q0) * static_cast<double>(k1 - k0);
        cached += static_cast<double>(k1 - k0);
        sequences.push_back(s);
    }
    attention_cost(call, query.dtype, pairs, heads, q.dims[3], v.dims[3]);
    if (paged.used) {  // only the pages in use are read
        call.cost.bytes = query.bytes() + attention.bytes() +
                          cached * static_cast<double>(kv_heads * (k.dims[3] + v.dims[3]) * key.element());
    }
    const char* name = call.name();
    return [=] {
        for (Sequence s : sequences) {
            std::unique_ptr<float[]> keys, values;
            if (paged.used) {
                // Gather the sequence's pages.
                const int64_t n = paged.lengths[static_cast<size_t>(s.batch)], block = paged.key.dims[2];
                keys = buffer<float>(kv_heads * n * paged.key.dims[3]);
                values = buffer<float>(kv_heads * n * paged.value.dims[3]);
                s.k = dense(keys.get(), acl::FLOAT, {kv_heads, n, paged.key.dims[3]});
                s.v = dense(values.get(), acl::FLOAT, {kv_heads, n, paged.value.dims[3]});
                for (int64_t t = 0; t < n; t += block) {
                    int64_t page;
                    const Tensor entry = paged.table.selected(0, s.batch).selected(0, t / block);
                    kernels().i64.load(&page, entry.data, entry.dtype, 0, 1);
                    if (page < 0 || page >= paged.key.dims[0]) {
                        return flexnpu_emu_fail(kAicoreException, "%s: page %lld of %lld", name,
                                                static_cast<long long>(page),
                                                static_cast<long long>(paged.key.dims[0]));
                    }
                    const int64_t length = std::min(block, n - t);
                    copy_tensor(s.k.narrowed(1, t, length),
                                paged.key.selected(0, page).narrowed(1, 0, length));
                    copy_tensor(s.v.narrowed(1, t, length),
                                paged.value.selected(0, page).narrowed(1, 0, length));
                }
            }
            if (const int error = attend(o, s)) {
                return error;
            }
        }
        return 0;
    };
}

std::vector<uint32_t> range(uint32_t first, uint32_t last) {
    std::vector<uint32_t> r;
    for (uint32_t i = first; i <= last; i++) {
        r.push_back(i);
    }
    return r;
}
std::vector<uint32_t> operator+(std::vector<uint32_t> a, const std::vector<uint32_t>& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
}

// query, key, value, bias, dropout mask, padding mask, mask, prefix, ...
OPERATOR("aclnnFlashAttentionScore", [](Call& call) {
    return flash_attention(call, {.scale = 8,
                                  .keep = 9,
                                  .before = 10,
                                  .after = 11,
                                  .heads = 12,
                                  .layout = 13,
                                  .sparse = 15,
                                  .maximum = 16,
                                  .sum = 17,
                                  .out = 19});
});
OPERATOR("aclnnFlashAttentionScoreV2", [](Call& call) {
    return flash_attention(call, {.scale = 10,
                                  .keep = 11,
                                  .before = 12,
                                  .after = 13,
                                  .heads = 14,
                                  .layout = 15,
                                  .sparse = 17,
                                  .maximum = 19,
                                  .sum = 20,
                                  .out = 22});
});
OPERATOR("aclnnFlashAttentionScoreV3", [](Call& call) {
    return flash_attention(call, {.sink = 7,
                                  .scale = 11,
                                  .keep = 12,
                                  .before = 13,
                                  .after = 14,
                                  .heads = 15,
                                  .layout = 16,
                                  .sparse = 18,
                                  .maximum = 20,
                                  .sum = 21,
                                  .out = 23});
});
OPERATOR("aclnnFlashAttentionVarLenScore", [](Call& call) {
    return flash_attention(call, {.lengths = 8,
                                  .scale = 10,
                                  .keep = 11,
                                  .before = 12,
                                  .after = 13,
                                  .heads = 14,
                                  .layout = 15,
                                  .sparse = 17,
                                  .maximum = 18,
                                  .sum = 19,
                                  .out = 21});
});
OPERATOR("aclnnFlashAttentionVarLenScoreV4", [](Call& call) {
    return flash_attention(call, {.lengths = 8,
                                  .scale = 10,
                                  .keep = 11,
                                  .before = 12,
                                  .after = 13,
                                  .heads = 14,
                                  .layout = 15,
                                  .sparse = 17,
                                  .maximum = 19,
                                  .sum = 20,
                                  .out = 22});
});

OPERATOR("aclnnPromptFlashAttention", [](Call& call) {
    return infer_attention(call, {.lists = false,
                                  .query_lengths = 5,
                                  .key_lengths = -1,
                                  .block_table = -1,
                                  .refused = {},
                                  .heads = 6,
                                  .scale = 7,
                                  .before = 8,
                                  .after = 9,
                                  .layout = 10,
                                  .kv_heads = 11,
                                  .sparse = -1,
                                  .block_size = -1,
                                  .lse_flag = -1,
                                  .lse = -1,
                                  .out = 12});
});
OPERATOR("aclnnPromptFlashAttentionV2", [](Call& call) {
    return infer_attention(call, {.lists = false,
                                  .query_lengths = 5,
                                  .key_lengths = 6,
                                  .block_table = -1,
                                  .refused = range(7, 11),
                                  .heads = 12,
                                  .scale = 13,
                                  .before = 14,
                                  .after = 15,
                                  .layout = 16,
                                  .kv_heads = 17,
                                  .sparse = 18,
                                  .block_size = -1,
                                  .lse_flag = -1,
                                  .lse = -1,
                                  .out = 19});
});
OPERATOR("aclnnPromptFlashAttentionV3", [](Call& call) {
    return infer_attention(call, {.lists = false,
                                  .query_lengths = 5,
                                  .key_lengths = 6,
                                  .block_table = -1,
                                  .refused = range(7, 11),
                                  .heads = 12,
                                  .scale = 13,
                                  .before = 14,
                                  .after = 15,
                                  .layout = 16,
                                  .kv_heads = 17,
                                  .sparse = 18,
                                  .block_size = -1,
                                  .lse_flag = -1,
                                  .lse = -1,
                                  .out = 20});
});
OPERATOR("aclnnIncreFlashAttention", [](Call& call) {
    return infer_attention(call, {.lists = true,
                                  .query_lengths = -1,
                                  .key_lengths = 5,
                                  .block_table = -1,
                                  .refused = {},
                                  .heads = 6,
                                  .scale = 7,
                                  .before = -1,
                                  .after = -1,
                                  .layout = 8,
                                  .kv_heads = 9,
                                  .sparse = -1,
                                  .block_size = -1,
                                  .lse_flag = -1,
                                  .lse = -1,
                                  .out = 10});
});
OPERATOR("aclnnIncreFlashAttentionV4", [](Call& call) {
    return infer_attention(call, {.lists = true,
                                  .query_lengths = -1,
                                  .key_lengths = 5,
                                  .block_table = 13,
                                  .refused = range(6, 12) + range(14, 14),
                                  .heads = 15,
                                  .scale = 16,
                                  .before = -1,
                                  .after = -1,
                                  .layout = 17,
                                  .kv_heads = 18,
                                  .sparse = -1,
                                  .block_size = 19,
                                  .lse_flag = -1,
                                  .lse = -1,
                                  .out = 21});
});
OPERATOR("aclnnFusedInferAttentionScore", [](Call& call) {
    return infer_attention(call, {.lists = true,
                                  .query_lengths = 5,
                                  .key_lengths = 6,
                                  .block_table = 14,
                                  .refused = range(7, 13) + range(15, 16),
                                  .heads = 17,
                                  .scale = 18,
                                  .before = 19,
                                  .after = 20,
                                  .layout = 21,
                                  .kv_heads = 22,
                                  .sparse = 23,
                                  .block_size = 25,
                                  .lse_flag = 27,
                                  .lse = 29,
                                  .out = 28});
});
OPERATOR("aclnnFusedInferAttentionScoreV2", [](Call& call) {
    return infer_attention(call, {.lists = true,
                                  .query_lengths = 5,
                                  .key_lengths = 6,
                                  .block_table = 14,
                                  .refused = range(7, 13) + range(15, 22),
                                  .heads = 24,
                                  .scale = 25,
                                  .before = 26,
                                  .after = 27,
                                  .layout = 28,
                                  .kv_heads = 29,
                                  .sparse = 30,
                                  .block_size = 32,
                                  .lse_flag = 34,
                                  .lse = 38,
                                  .out = 37});
});
OPERATOR("aclnnFusedInferAttentionScoreV3", [](Call& call) {
    return infer_attention(call, {.lists = true,
                                  .query_lengths = 5,
                                  .key_lengths = 6,
                                  .block_table = 14,
                                  .refused = range(7, 13) + range(15, 22) + range(24, 26),
                                  .heads = 27,
                                  .scale = 28,
                                  .before = 29,
                                  .after = 30,
                                  .layout = 31,
                                  .kv_heads = 32,
                                  .sparse = 33,
                                  .block_size = 35,
                                  .lse_flag = 37,
                                  .lse = 41,
                                  .out = 40});
});

}  // namespace
}  // namespace flexnpu::ops
