// Losses and the gradients of activations, softmax, layer norm and embedding: what a training step of a small
// network needs beyond the operators of inference.
//
// Written to be right and short: every tensor is gathered into doubles, computed, and stored. Cost: the
// default of registry.hpp.
#include <cmath>
#include <numbers>

#include "registry.hpp"
#include "values.hpp"

namespace flexnpu::ops {
namespace {

enum Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2 };

// out = f(a, b), element by element; a and b broadcast to out.
template <class F>
Job map2(Call& call, const Tensor& a, const Tensor& b, const Tensor& out, F f) {
    call.require_numeric(a);
    call.require_numeric(b);
    call.require_broadcast(out, {&a, &b});
    return [=] {
        const Values x = values(a.expanded(out)), y = values(b.expanded(out));
        Values z(x.size());
        for (size_t i = 0; i < z.size(); i++) {
            z[i] = f(x[i], y[i]);
        }
        store(out, z);
        return 0;
    };
}

int64_t reduction(Call& call, uint32_t at) {
    const int64_t r = call.integer(at);
    call.require(r >= kNone && r <= kSum, "reduction is %lld: 0 none, 1 mean, 2 sum",
                 static_cast<long long>(r));
    return r;
}

// loss(self, target) by element, then reduced.
template <class F>
Job pair_loss(Call& call, int64_t how, const Tensor& out, F f) {
    const Tensor self = call.tensor(0), target = call.tensor(1);
    call.require_numeric(self);
    call.require_shape(target, self, "the target");
    if (how == kNone) {
        return map2(call, self, target, out, f);
    }
    call.require(out.numel() == 1, "a reduced loss is one element, the output has %lld",
                 static_cast<long long>(out.numel()));
    return [=] {
        const Values x = values(self), y = values(target);
        double total = 0;
        for (size_t i = 0; i < x.size(); i++) {
            total += f(x[i], y[i]);
        }
        store(out, {how == kMean ? total / static_cast<double>(x.size()) : total});
        return 0;
    };
}

// grad * derivative(self, target), divided by the number of elements for a mean.
template <class F>
Job pair_loss_gradient(Call& call, int64_t how, const Tensor& out, F derivative) {
    const Tensor grad = call.tensor(0), self = call.tensor(1), target = call.tensor(2);
    call.require_numeric(self);
    call.require_shape(target, self, "the target");
    call.require_shape(out, self, "the gradient");
    call.require_broadcast(self, {&grad});
    return [=] {
        const Values g = values(grad.expanded(self)), x = values(self), y = values(target);
        const double scale = how == kMean ? 1.0 / static_cast<double>(x.size()) : 1.0;
        Values z(x.size());
        for (size_t i = 0; i < z.size(); i++) {
            z[i] = g[i] * scale * derivative(x[i], y[i]);
        }
        store(out, z);
        return 0;
    };
}

// Negative log-likelihood of class indices: x[N, C] or [C], target [N] or none.
struct Nll {
    Tensor x, target, weight;
    bool has_weight = false;
    int64_t ignored = -100;

    int64_t classes() const { return x.dim(-1); }
    // f(row, class, weight) for every row that counts; an error for a class that does not exist.
    template <class F>
    int each(F f) const {
        const Values classes_of = values(target), weights = has_weight ? values(weight) : Values{};
        for (size_t row = 0; row < classes_of.size(); row++) {
            const auto c = static_cast<int64_t>(classes_of[row]);
            if (c == ignored) {
                continue;
            }
            if (c < 0 || c >= classes()) {
                return kAicoreException;
            }
            f(row, c, has_weight ? weights[static_cast<size_t>(c)] : 1.0);
        }
        return 0;
    }
};

Nll nll(Call& call, uint32_t x, uint32_t target, uint32_t weight, uint32_t ignored) {
    Nll n{.x = call.tensor(x), .target = call.tensor(target), .weight = {}};
    call.require(n.x.rank == 1 || n.x.rank == 2, "needs [N,C] or [C], not %s", n.x.shape().c_str());
    call.require(n.target.numel() == (n.x.rank == 2 ? n.x.dims[0] : 1), "a target for each row");
    if (call.has(weight)) {
        n.weight = call.tensor(weight);
        n.has_weight = true;
        call.require(n.weight.numel() == n.classes(), "a weight for each class");
    }
    n.ignored = call.integer(ignored);
    return n;
}

Job nll_loss(Call& call) {  // self, target, weight, reduction, ignore index, out, total weight
    const Nll n = nll(call, 0, 1, 2, 4);
    const int64_t how = reduction(call, 3);
    const Tensor out = call.tensor(5), total_weight = call.tensor(6);
    return [=] {
        const Values x = values(n.x);
        Values loss(static_cast<size_t>(n.target.numel()));
        double sum = 0, weights = 0;
        const int error = n.each([&](size_t row, int64_t c, double w) {
            loss[row] = -w * x[row * static_cast<size_t>(n.classes()) + static_cast<size_t>(c)];
            sum += loss[row];
            weights += w;
        });
        if (error) {
            return error;
        }
        store(out, how == kNone ? loss : Values{how == kMean ? sum / weights : sum});
        store(total_weight, {weights});
        return 0;
    };
}

Job nll_loss_gradient(Call& call) {  // grad, self, target, weight, reduction, ignore index, total weight, out
    const Tensor grad = call.tensor(0), total_weight = call.tensor(6), out = call.tensor(7);
    const Nll n = nll(call, 1, 2, 3, 5);
    const int64_t how = reduction(call, 4);
    call.require_shape(out, n.x, "the gradient");
    call.require(how == kNone ? grad.numel() == n.target.numel() : grad.numel() == 1,
                 "the incoming gradient has the loss's shape");
    return [=] {
        const Values g = values(grad);
        const double divisor = how == kMean ? values(total_weight)[0] : 1.0;
        Values z(static_cast<size_t>(n.x.numel()));
        const int error = n.each([&](size_t row, int64_t c, double w) {
            z[row * static_cast<size_t>(n.classes()) + static_cast<size_t>(c)] =
                -w * g[how == kNone ? row : 0] / divisor;
        });
        if (error) {
            return error;
        }
        store(out, z);
        return 0;
    };
}

// Of softmax or its logarithm along a dimension, from the result y:
//   softmax: (g - sum(g * y)) * y      logarithm: g - exp(y) * sum(g)
Job softmax_gradient(Call& call, bool logarithm) {  // grad, output, dim, out
    const Tensor grad = call.tensor(0), y = call.tensor(1), out = call.tensor(3);
    const std::vector<int> dims =
        y.rank == 0 ? std::vector<int>{} : std::vector<int>{call.dimension(call.integer(2), y)};
    call.require_shape(grad, y, "the incoming gradient");
    call.require_shape(out, y, "the gradient");
    const int64_t n = y.rank == 0 ? 1 : y.dims[dims[0]];
    call.cost.vector_flops = 4.0 * static_cast<double>(y.numel());
    return [=] {
        if (y.numel() == 0) {
            return 0;
        }
        Values g(static_cast<size_t>(n)), p(g.size());
        for_each_line({lined(out, dims), lined(grad, dims), lined(y, dims)}, [&](const Line lines[]) {
            lines[1].load(g.data());
            lines[2].load(p.data());
            double sum = 0;
            for (size_t i = 0; i < g.size(); i++) {
                sum += logarithm ? g[i] : g[i] * p[i];
            }
            for (size_t i = 0; i < g.size(); i++) {
                g[i] = logarithm ? g[i] - std::exp(p[i]) * sum : (g[i] - sum) * p[i];
            }
            lines[0].store(g.data());
        });
        return 0;
    };
}

Job layer_norm_gradient(Call& call) {
    // grad, input, normalized shape, mean, rstd, weight, bias, mask, grad input, grad weight, grad bias
    const Tensor grad = call.tensor(0), x = call.tensor(1), mean = call.tensor(3), rstd = call.tensor(4);
    const std::vector<int64_t> shape = call.ints(2);
    int64_t n = 1;
    for (int64_t d : shape) {
        n *= d;
    }
    call.require_shape(grad, x, "the incoming gradient");
    call.require(n > 0 && x.numel() % n == 0 && mean.numel() == x.numel() / n && rstd.numel() == mean.numel(),
                 "the normalized shape, mean and rstd do not fit the input");
    const bool has_weight = call.has(5);
    const Tensor weight = has_weight ? call.tensor(5) : Tensor{};
    call.require(!has_weight || weight.numel() == n, "the weight does not fit the normalized shape");
    Tensor outputs[3];
    bool wanted[3];
    for (uint32_t i = 0; i < 3; i++) {
        wanted[i] = call.has(8 + i);
        if (wanted[i]) {
            outputs[i] = call.tensor(8 + i);
            call.require(outputs[i].numel() == (i == 0 ? x.numel() : n), "a gradient's shape does not fit");
        }
    }
    const Tensor to_x = outputs[0], to_weight = outputs[1], to_bias = outputs[2];
    const bool want_x = wanted[0], want_weight = wanted[1], want_bias = wanted[2];
    call.cost.vector_flops = 8.0 * static_cast<double>(x.numel());
    return [=] {
        const Values g = values(grad), in = values(x), means = values(mean), roots = values(rstd);
        const Values w = has_weight ? values(weight) : Values(static_cast<size_t>(n), 1.0);
        Values gx(in.size()), gw(w.size()), gb(w.size());
        const auto columns = static_cast<size_t>(n);
        for (size_t row = 0; row < means.size(); row++) {
            const size_t at = row * columns;
            double sum = 0, dot = 0;
            for (size_t i = 0; i < columns; i++) {
                const double hat = (in[at + i] - means[row]) * roots[row], gi = g[at + i] * w[i];
                sum += gi;
                dot += gi * hat;
                gw[i] += g[at + i] * hat;
                gb[i] += g[at + i];
            }
            for (size_t i = 0; i < columns; i++) {
                const double hat = (in[at + i] - means[row]) * roots[row];
                gx[at + i] = roots[row] * (g[at + i] * w[i] - (sum + hat * dot) / static_cast<double>(n));
            }
        }
        if (want_x) {
            store(to_x, gx);
        }
        if (want_weight) {
            store(to_weight, gw);
        }
        if (want_bias) {
            store(to_bias, gb);
        }
        return 0;
    };
}

Job embedding_gradient(
    Call& call) {  // grad [..., D], indices [...], rows, padding index, scale by frequency, out [rows, D]
    const Tensor grad = call.tensor(0), indices = call.tensor(1), out = call.tensor(5);
    const int64_t rows = call.integer(2);
    const auto padding = static_cast<int64_t>(call.integer(3));
    const bool by_frequency = call.boolean(4);
    call.require(grad.rank >= 1 && out.rank == 2 && out.dims[0] == rows && out.dims[1] == grad.dim(-1),
                 "the gradient is [rows, D]");
    call.require(grad.numel() == indices.numel() * grad.dim(-1),
                 "a row of the incoming gradient for each index");
    return [=] {
        const Values g = values(grad), at = values(indices);
        const auto width = static_cast<size_t>(grad.dim(-1));
        Values z(static_cast<size_t>(rows) * width), seen(static_cast<size_t>(rows));
        for (double index : at) {
            if (index < 0 || index >= static_cast<double>(rows)) {
                return static_cast<int>(kAicoreException);
            }
            seen[static_cast<size_t>(index)]++;
        }
        for (size_t i = 0; i < at.size(); i++) {
            const auto row = static_cast<size_t>(at[i]);
            if (static_cast<int64_t>(row) == padding) {
                continue;
            }
            for (size_t d = 0; d < width; d++) {
                z[row * width + d] += g[i * width + d] / (by_frequency ? seen[row] : 1.0);
            }
        }
        store(out, z);
        return 0;
    };
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

double gelu_derivative(double x) {
    const double density = std::exp(-x * x / 2) / std::sqrt(2 * std::numbers::pi);
    return 0.5 * (1 + std::erf(x / std::numbers::sqrt2)) + x * density;
}

double gelu_tanh_derivative(double x) {
    const double root = std::sqrt(2 / std::numbers::pi), t = std::tanh(root * (x + 0.044715 * x * x * x));
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * root * (1 + 3 * 0.044715 * x * x);
}

double smooth_l1(double difference, double beta) {
    const double a = std::abs(difference);
    return a < beta ? 0.5 * a * a / beta : a - 0.5 * beta;
}

double smooth_l1_derivative(double difference, double beta) {
    return std::abs(difference) < beta ? difference / beta : (difference > 0) - (difference < 0);
}

double square(double x) { return x * x; }

OPERATOR("aclnnMseLoss", [](Call& call) {  // self, target, reduction, out
    return pair_loss(call, reduction(call, 2), call.tensor(3),
                     [](double x, double y) { return square(x - y); });
});
OPERATOR("aclnnMseLossBackward", [](Call& call) {  // grad, self, target, reduction, out
    return pair_loss_gradient(call, reduction(call, 3), call.tensor(4),
                              [](double x, double y) { return 2 * (x - y); });
});
OPERATOR("aclnnSmoothL1Loss", [](Call& call) {  // self, target, reduction, beta, out
    return pair_loss(call, reduction(call, 2), call.tensor(4),
                     [beta = call.real(3)](double x, double y) { return smooth_l1(x - y, beta); });
});
OPERATOR("aclnnSmoothL1LossBackward", [](Call& call) {  // grad, self, target, reduction, beta, out
    return pair_loss_gradient(
        call, reduction(call, 3), call.tensor(5),
        [beta = call.real(4)](double x, double y) { return smooth_l1_derivative(x - y, beta); });
});
OPERATOR("aclnnNLLLoss", nll_loss);
OPERATOR("aclnnNLLLossBackward", nll_loss_gradient);
OPERATOR("aclnnLogSoftmaxBackward", [](Call& call) { return softmax_gradient(call, true); });
OPERATOR("aclnnSoftmaxBackward", [](Call& call) { return softmax_gradient(call, false); });
OPERATOR("aclnnLayerNormBackward", layer_norm_gradient);
OPERATOR("aclnnEmbeddingDenseBackward", embedding_gradient);
// grad, self (or the result, where the gradient is simplest in it), out
OPERATOR("aclnnThresholdBackward", [](Call& call) {
    return map2(call, call.tensor(0), call.tensor(1), call.tensor(3),
                [threshold = call.scalar(2).real](double g, double x) { return x > threshold ? g : 0; });
});
OPERATOR("aclnnGeluBackward", [](Call& call) {
    return map2(call, call.tensor(0), call.tensor(1), call.tensor(2),
                [](double g, double x) { return g * gelu_derivative(x); });
});
OPERATOR("aclnnGeluBackwardV2", [](Call& call) {  // grad, self, approximation, out
    const bool by_tanh = call.text(2) == "tanh";
    return map2(call, call.tensor(0), call.tensor(1), call.tensor(3), [by_tanh](double g, double x) {
        return g * (by_tanh ? gelu_tanh_derivative(x) : gelu_derivative(x));
    });
});
OPERATOR("aclnnSiluBackward", [](Call& call) {
    return map2(call, call.tensor(0), call.tensor(1), call.tensor(2),
                [](double g, double x) { return g * sigmoid(x) * (1 + x * (1 - sigmoid(x))); });
});
OPERATOR("aclnnSigmoidBackward", [](Call& call) {
    return map2(call, call.tensor(0), call.tensor(1), call.tensor(2),
                [](double g, double y) { return g * y * (1 - y); });
});
OPERATOR("aclnnTanhBackward", [](Call& call) {
    return map2(call, call.tensor(0), call.tensor(1), call.tensor(2),
                [](double g, double y) { return g * (1 - y * y); });
});

}  // namespace
}  // namespace flexnpu::ops
