// The gradient of fused attention: FlashAttentionScoreGrad in the layouts of fixed length.
//
// With P = softmax(scale * Q K^T + bias, masked), Y = P V and D = dY V^T: dV = P^T dY, dS = P * (D - rowsum(P
// * D)), dQ = scale * dS K, dK = scale * dS^T Q, dbias = dS (Dao et al., FlashAttention, arXiv 2205.14135,
// appendix B.2). P is computed anew; the softmax's statistics and the forward result, which the chip reads
// instead, are not looked at. In doubles, rounded once. Lengths of several sequences in one batch (TND)
// and prefixes are refused. Dropout multiplies P by M: dV = (P M)^T dY, and D = (dY V^T) M.
#include <algorithm>
#include <cmath>
#include <limits>

#include "attention.hpp"
#include "values.hpp"

namespace flexnpu::ops {
namespace {

using namespace attention;

struct Positions {
    uint32_t scale, keep, before, after, heads, layout, sparse, out;  // out: dq, dk, dv, dbias
};

// Tensors as [batch, heads, rows, width].
struct Problem {
    Options o;
    Tensor q, k, v, dy, dq, dk, dv, dbias;
    bool want_dbias = false;

    int run() const {
        const int64_t heads = q.dims[1], group = heads / k.dims[1];
        for (int64_t b = 0; b < q.dims[0]; b++) {
            for (int64_t kv = 0; kv < k.dims[1]; kv++) {
                const Tensor key = k.selected(0, b).selected(0, kv), value = v.selected(0, b).selected(0, kv);
                const Values ks = values(key), vs = values(value);
                Values dks(ks.size()), dvs(vs.size());
                for (int64_t h = kv * group; h < (kv + 1) * group; h++) {
                    one(b, h, ks, vs, dks, dvs);
                }
                store(dk.selected(0, b).selected(0, kv), dks);
                store(dv.selected(0, b).selected(0, kv), dvs);
            }
        }
        return 0;
    }

    // One head; adds to its key's and value's gradients.
    void one(int64_t b, int64_t h, const Values& ks, const Values& vs, Values& dks, Values& dvs) const {
        const int64_t heads = q.dims[1], rows = q.dims[2], keys = k.dims[2], width = q.dims[3],
                      out_width = v.dims[3];
        const Values qs = values(q.selected(0, b).selected(0, h)),
                     grad = values(dy.selected(0, b).selected(0, h));
        Values dqs(qs.size()), dss(want_dbias ? size_t(rows * keys) : 0), p(static_cast<size_t>(keys)),
            d(static_cast<size_t>(keys));
        const auto dot = [](const double* x, const double* y, int64_t n) {
            double sum = 0;
            for (int64_t i = 0; i < n; i++) {
                sum += x[i] * y[i];
            }
            return sum;
        };
        const auto add = [](double factor, const double* x, double* to, int64_t n) {
            for (int64_t i = 0; i < n; i++) {
                to[i] += factor * x[i];
            }
        };
        const auto per_row = [&](const Tensor& t) {  // [rows or 1, keys], as values
            const Tensor s = slice_for(t, b, h);
            return values(s.narrowed(0, 0, s.dims[0] == 1 ? 1 : rows).narrowed(1, 0, keys));
        };
        const Values hidden = o.dense_mask() ? per_row(o.mask) : Values{},
                     bias = o.has_bias ? per_row(o.bias) : Values{};
        const auto at = [&](const Values& all, int64_t i, int64_t j) {
            return all[static_cast<size_t>((all.size() == size_t(keys) ? 0 : i * keys) + j)];
        };
        constexpr double kHidden = -std::numeric_limits<double>::infinity();
        for (int64_t i = 0; i < rows; i++) {
            const Window w = window(o, i, rows, keys);
            const double* row = qs.data() + i * width;
            double high = kHidden, total = 0, mean = 0;
            for (int64_t j = 0; j < keys; j++) {
                double& s = p[size_t(j)];
                s = kHidden;
                if (j >= w.first && j < w.last && (hidden.empty() || at(hidden, i, j) == 0)) {
                    s = o.scale * dot(row, ks.data() + j * width, width) +
                        (bias.empty() ? 0 : at(bias, i, j));
                }
                high = std::max(high, s);
            }
            if (high == kHidden) {
                continue;  // it sees nothing, and its result does not depend on anything
            }
            for (double& s : p) {
                s = std::exp(s - high);
                total += s;
            }
            const double* dyr = grad.data() + i * out_width;
            for (int64_t j = 0; j < keys; j++) {
                p[size_t(j)] /= total;
                const double m = o.has_dropout ? o.dropout(((b * heads + h) * rows + i) * keys + j) : 1;
                d[size_t(j)] = m * dot(dyr, vs.data() + j * out_width, out_width);
                mean += p[size_t(j)] * d[size_t(j)];
                add(m * p[size_t(j)], dyr, dvs.data() + j * out_width, out_width);
            }
            for (int64_t j = 0; j < keys; j++) {
                const double ds = p[size_t(j)] * (d[size_t(j)] - mean);
                add(o.scale * ds, ks.data() + j * width, dqs.data() + i * width, width);
                add(o.scale * ds, row, dks.data() + j * width, width);
                if (want_dbias) {
                    dss[size_t(i * keys + j)] = ds;
                }
            }
        }
        store(dq.selected(0, b).selected(0, h), dqs);
        if (want_dbias) {
            store(dbias.selected(0, b).selected(0, h), dss);
        }
    }
};

// query, key, value, dy, bias, dropout mask, padding mask, mask, maximum, sum, softmax input, attention,
// prefix, ...
Job attention_gradient(Call& call, const Positions& at) {
    const std::string layout = call.text(at.layout);
    call.require(layout != "TND", "layout TND is not emulated");
    const int64_t heads = call.integer(at.heads);
    Problem p;
    p.o.scale = call.real(at.scale);
    p.o.before = call.integer(at.before);
    p.o.after = call.integer(at.after);
    p.o.sparse = call.integer(at.sparse);
    call.require(p.o.sparse >= 0 && p.o.sparse <= 4, "sparse mode %lld is not emulated",
                 static_cast<long long>(p.o.sparse));
    take_bias(call, 4, p.o);
    take_mask(call, 7, p.o);
    const Tensor query = call.tensor(0), key = call.tensor(1);
    call.require(heads > 0, "%lld heads", static_cast<long long>(heads));
    const auto bnsd = [&](uint32_t i, int64_t n) {
        const Tensor t = call.tensor(i);
        require_type(call, t);
        return as_bnsd(call, t, layout, n);
    };
    p.q = bnsd(0, heads);
    call.require(p.q.dims[1] == heads && p.q.dims[3] > 0, "the query must have %lld heads of some width",
                 static_cast<long long>(heads));
    const int64_t kv_heads = layout == "BSH" || layout == "SBH" ? key.dims[2] / p.q.dims[3] : 0;
    p.k = bnsd(1, kv_heads);
    p.v = bnsd(2, kv_heads);
    p.dy = bnsd(3, heads);
    p.dq = bnsd(at.out, heads);
    p.dk = bnsd(at.out + 1, kv_heads);
    p.dv = bnsd(at.out + 2, kv_heads);
    call.require(p.k.dims[0] == p.q.dims[0] && p.k.dims[1] > 0 && heads % p.k.dims[1] == 0 &&
                     p.k.dims[3] == p.q.dims[3],
                 "query and key do not fit");
    call.require(p.v.dims[0] == p.k.dims[0] && p.v.dims[1] == p.k.dims[1] && p.v.dims[2] == p.k.dims[2],
                 "key and value do not fit");
    call.require(p.dy.dims[0] == p.q.dims[0] && p.dy.dims[1] == heads && p.dy.dims[2] == p.q.dims[2] &&
                     p.dy.dims[3] == p.v.dims[3],
                 "the output's gradient does not fit");
    call.require_shape(p.dq, p.q, "the query's gradient");
    call.require_shape(p.dk, p.k, "the key's gradient");
    call.require_shape(p.dv, p.v, "the value's gradient");
    take_dropout(call, 5, call.real(at.keep), p.q.dims[0] * heads * p.q.dims[2] * p.k.dims[2], p.o);
    if (p.o.dense_mask()) {
        require_covers(call, p.o.mask, p.q.dims[0], heads, p.q.dims[2], p.k.dims[2], "the mask");
    }
    if (p.o.has_bias) {
        require_covers(call, p.o.bias, p.q.dims[0], heads, p.q.dims[2], p.k.dims[2], "the position bias");
        if (call.has(at.out + 3) && call.tensor(at.out + 3).numel() > 0) {
            p.dbias = call.tensor(at.out + 3);
            p.want_dbias = true;
            call.require(p.dbias.rank == 4 && p.dbias.dims[0] == p.q.dims[0] && p.dbias.dims[1] == heads &&
                             p.dbias.dims[2] == p.q.dims[2] && p.dbias.dims[3] == p.k.dims[2],
                         "a bias of shape %s has no emulated gradient", p.dbias.shape().c_str());
        }
    }
    // Five products where the forward call has two: the usual count.
    const double pairs = static_cast<double>(p.q.dims[0] * p.q.dims[2]) * static_cast<double>(p.k.dims[2]);
    attention_cost(call, query.dtype, pairs, heads, p.q.dims[3], p.v.dims[3]);
    call.cost.cube_flops *= 2.5;
    return [p] { return p.run(); };
}

OPERATOR("aclnnFlashAttentionScoreGrad", [](Call& call) {
    return attention_gradient(call, {.scale = 13,
                                     .keep = 14,
                                     .before = 15,
                                     .after = 16,
                                     .heads = 17,
                                     .layout = 18,
                                     .sparse = 20,
                                     .out = 21});
});
OPERATOR("aclnnFlashAttentionScoreGradV2", [](Call& call) {
    return attention_gradient(call, {.scale = 15,
                                     .keep = 16,
                                     .before = 17,
                                     .after = 18,
                                     .heads = 19,
                                     .layout = 20,
                                     .sparse = 22,
                                     .out = 24});
});

}  // namespace
}  // namespace flexnpu::ops
