// PromptFlashAttention, IncreFlashAttention and FusedInferAttentionScore, with paged key/value caches
// (vLLM-Ascend).
#include <cmath>
#include <limits>

#include "attention.hpp"
#include "iterate.hpp"
#include "registry.hpp"

namespace flexnpu::ops {

using namespace attention;

namespace {

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
OPERATOR("aclnnFusedInferAttentionScoreV4", [](Call& call) {
    return infer_attention(call, {.lists = true,
                                  .query_lengths = 5,
                                  .key_lengths = 6,
                                  .block_table = 14,
                                  .refused = range(7, 13) + range(15, 22) + range(24, 28),
                                  .heads = 29,
                                  .scale = 30,
                                  .before = 31,
                                  .after = 32,
                                  .layout = 33,
                                  .kv_heads = 34,
                                  .sparse = 35,
                                  .block_size = 37,
                                  .lse_flag = 39,
                                  .lse = 44,
                                  .out = 43});
});

}  // namespace
}  // namespace flexnpu::ops
