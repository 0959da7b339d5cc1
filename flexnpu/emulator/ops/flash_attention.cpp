// FlashAttentionScore: what torch's scaled_dot_product_attention becomes on an NPU.
#include <cmath>
#include <limits>

#include "attention.hpp"
#include "registry.hpp"

namespace flexnpu::ops {

using namespace attention;

namespace {

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
    call.require(call.real(at.keep) >= 1 || layout != "TND", "dropout in layout TND is not emulated");
    take_dropout(call, 4, call.real(at.keep), q.dims[0] * heads * q.dims[2] * k.dims[2], o);
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

}  // namespace
}  // namespace flexnpu::ops
