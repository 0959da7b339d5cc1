// What narrows the choice of the next token: top-k and top-p filters over logits.
//
// Cost: a sort and a softmax a line.
#include <cmath>
#include <limits>

#include "iterate.hpp"
#include "registry.hpp"

namespace flexnpu::ops {
namespace {

// The lines of a filter's parameter: [lines] or [lines, 1].
Tensor parameter(Call& call, uint32_t i, int64_t lines, const char* what) {
    const Tensor t = call.tensor(i);
    call.require(t.rank >= 1 && t.numel() == lines && t.dims[0] == lines, "%s has shape %s for %lld lines",
                 what, t.shape().c_str(), static_cast<long long>(lines));
    return t.rank == 1 ? t : t.narrowed(1, 0, 1);
}

using Choice = std::pair<float, int64_t>;  // logit and position

// NaN is greater than every number, as in torch.
bool before(const Choice& a, const Choice& b) {
    if (std::isnan(a.first) || std::isnan(b.first)) {
        return std::isnan(a.first) == std::isnan(b.first) ? a.second < b.second : std::isnan(b.first);
    }
    return a < b;
}

double parameter_of(const Tensor& t, int64_t line) {
    double value;
    kernels().f64.load(&value, t.data + line * t.strides[0] * t.element(), t.dtype, 0, 1);
    return value;
}

// logits [lines, n], p or null, k or null, out: logits that are not chosen become -inf. Top-k drops what is
// less than the k-th largest. Of what is left, in ascending order, top-p drops while the sum of probabilities
// is at most 1 - p; the largest stays.
Job top_k_top_p(Call& call) {
    const Tensor logits = call.tensor(0), out = call.tensor(3);
    const bool has_p = call.has(1), has_k = call.has(2);
    call.require(has_p || has_k, "neither k nor p is given");
    call.require(logits.rank == 2, "the logits must have 2 dimensions, not %d", logits.rank);
    call.require(is_floating(logits.dtype) && logits.dtype == out.dtype,
                 "needs logits and an output of one floating-point type");
    call.require_shape(out, logits, "the output");
    const int64_t count = logits.dims[0], n = logits.dims[1];
    Tensor p, k;
    if (has_p) {
        p = parameter(call, 1, count, "p");
        call.require(is_floating(p.dtype), "p must be floating-point");
    }
    if (has_k) {
        k = parameter(call, 2, count, "k");
        call.require(is_integral(k.dtype), "k must be an integer");
    }
    call.cost.vector_flops =
        static_cast<double>(logits.numel()) * (4 + std::log2(static_cast<double>(std::max<int64_t>(n, 2))));
    return [=] {
        if (logits.numel() == 0) {
            return 0;
        }
        const auto row = buffer<float>(n), kept = buffer<float>(n);
        std::vector<Choice> ascending;
        int64_t line = 0;
        for_each_line({Lined{out, 1}, Lined{logits, 1}}, [&](const Line lines[]) {
            lines[1].load(row.get());
            ascending.clear();
            for (int64_t i = 0; i < n; i++) {
                ascending.emplace_back(row[i], i);
            }
            std::sort(ascending.begin(), ascending.end(), before);
            size_t first = 0;
            if (has_k) {
                const auto wanted = std::clamp<int64_t>(static_cast<int64_t>(parameter_of(k, line)), 1, n);
                const float least = ascending[static_cast<size_t>(n - wanted)].first;
                first = static_cast<size_t>(
                    std::lower_bound(ascending.begin(), ascending.end(), Choice(least, -1), before) -
                    ascending.begin());
            }
            if (has_p) {
                const float high = ascending.back().first;
                double total = 0, below = 0;
                for (size_t i = first; i < ascending.size(); i++) {
                    total += std::exp(double(ascending[i].first) - high);
                }
                const double drop = (1 - parameter_of(p, line)) * total;
                while (first + 1 < ascending.size()) {
                    below += std::exp(double(ascending[first].first) - high);
                    if (below > drop) {
                        break;
                    }
                    first++;
                }
            }
            std::fill(kept.get(), kept.get() + n, -std::numeric_limits<float>::infinity());
            for (size_t i = first; i < ascending.size(); i++) {
                kept[ascending[i].second] = ascending[i].first;
            }
            lines[0].store(kept.get());
            line++;
        });
        return 0;
    };
}

OPERATOR("aclnnApplyTopKTopP", top_k_top_p);
OPERATOR("aclnnApplyTopKTopPCustom", top_k_top_p);

}  // namespace
}  // namespace flexnpu::ops
