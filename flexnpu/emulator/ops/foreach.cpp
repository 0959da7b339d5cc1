// Operators over lists of tensors (aclnnForeach*), which optimizers use: the same arithmetic for every entry.
//
// The forms, with X the operation:
//   XList          out[i] = a[i] X b[i]            XScalar, XScalarV2   out[i] = a[i] X s
//   XScalarList    out[i] = a[i] X s[i]            X                    out[i] = X(a[i])
// In the first form of a name a scalar comes as a tensor of one element, in V2 as a scalar. Entries of one
// list may be of any shape; those of one index agree.
#include <cmath>

#include "registry.hpp"
#include "values.hpp"

namespace flexnpu::ops {
namespace {

using Tensors = std::vector<Tensor>;
using Unary = double (*)(double);
using Binary = double (*)(double, double);

// A number for each entry of the list, known when the operator runs.
using Numbers = std::function<Values()>;

// The scalar at position i: a tensor of one element or of as many as the list, a scalar, or a list of
// scalars.
Numbers numbers(Call& call, uint32_t i, char kind, size_t entries) {
    if (kind == 'T') {
        const Tensor t = call.tensor(i);
        call.require(t.numel() == 1 || static_cast<size_t>(t.numel()) == entries,
                     "one scalar, or one for each tensor");
        return [t, entries] {
            Values v = values(t);
            v.resize(entries, v[0]);
            return v;
        };
    }
    Values v;
    if (kind == 'C') {
        for (const Scalar& s : call.scalars(i)) {
            v.push_back(s.real);
        }
        call.require(v.size() == entries, "%zu scalars for %zu tensors", v.size(), entries);
    } else {
        v.assign(entries, call.scalar(i).real);
    }
    return [v] { return v; };
}

Tensors list(Call& call, uint32_t i, const Tensors& like) {
    Tensors made = call.tensors(i);
    call.require(made.size() == like.size(), "lists of %zu and %zu tensors", like.size(), made.size());
    for (size_t k = 0; k < made.size(); k++) {
        call.require_shape(made[k], like[k], "a tensor of the list");
    }
    return made;
}

Job unary(Call& call, Unary f) {
    const Tensors a = call.tensors(0), out = list(call, 1, a);
    return [=] {
        for (size_t k = 0; k < a.size(); k++) {
            Values x = values(a[k]);
            for (double& v : x) {
                v = f(v);
            }
            store(out[k], x);
        }
        return 0;
    };
}

// out = f(a, alpha * b), alpha 1 where there is none.
Job of_lists(Call& call, Binary f, char alpha_kind) {
    const Tensors a = call.tensors(0), b = list(call, 1, a);
    const Numbers alpha =
        alpha_kind ? numbers(call, 2, alpha_kind, a.size()) : [n = a.size()] { return Values(n, 1.0); };
    const Tensors out = list(call, alpha_kind ? 3 : 2, a);
    return [=] {
        const Values scale = alpha();
        for (size_t k = 0; k < a.size(); k++) {
            Values x = values(a[k]);
            const Values y = values(b[k]);
            for (size_t i = 0; i < x.size(); i++) {
                x[i] = f(x[i], scale[k] * y[i]);
            }
            store(out[k], x);
        }
        return 0;
    };
}

Job with_scalar(Call& call, Binary f, char kind) {
    const Tensors a = call.tensors(0);
    const Numbers s = numbers(call, 1, kind, a.size());
    const Tensors out = list(call, 2, a);
    return [=] {
        const Values by = s();
        for (size_t k = 0; k < a.size(); k++) {
            Values x = values(a[k]);
            for (double& v : x) {
                v = f(v, by[k]);
            }
            store(out[k], x);
        }
        return 0;
    };
}

// out = a + scalar * f(b, c)
Job add_scaled(Call& call, Binary f, char kind) {
    const Tensors a = call.tensors(0), b = list(call, 1, a), c = list(call, 2, a);
    const Numbers s = numbers(call, 3, kind, a.size());
    const Tensors out = list(call, 4, a);
    return [=] {
        const Values scale = s();
        for (size_t k = 0; k < a.size(); k++) {
            Values x = values(a[k]);
            const Values y = values(b[k]), z = values(c[k]);
            for (size_t i = 0; i < x.size(); i++) {
                x[i] += scale[k] * f(y[i], z[i]);
            }
            store(out[k], x);
        }
        return 0;
    };
}

// out = a + weight * (b - a); the weight is a scalar or a list of tensors.
Job lerp(Call& call, bool by_scalar) {
    const Tensors a = call.tensors(0), b = list(call, 1, a);
    const double weight = by_scalar ? call.scalar(2).real : 0;
    const Tensors weights = by_scalar ? Tensors{} : list(call, 2, a);
    const Tensors out = list(call, 3, a);
    return [=] {
        for (size_t k = 0; k < a.size(); k++) {
            Values x = values(a[k]);
            const Values y = values(b[k]), w = by_scalar ? Values(x.size(), weight) : values(weights[k]);
            for (size_t i = 0; i < x.size(); i++) {
                x[i] += w[i] * (y[i] - x[i]);
            }
            store(out[k], x);
        }
        return 0;
    };
}

// The p-norm of each tensor: out[i] has one element.
Job norm(Call& call) {
    const Tensors a = call.tensors(0), out = call.tensors(2);
    const double p = call.scalar(1).real;
    call.require(a.size() == out.size(), "lists of %zu and %zu tensors", a.size(), out.size());
    for (const Tensor& t : out) {
        call.require(t.numel() == 1, "a norm is one element");
    }
    return [=] {
        for (size_t k = 0; k < a.size(); k++) {
            double sum = 0, most = 0;
            for (double v : values(a[k])) {
                sum += std::pow(std::abs(v), p);
                most = std::max(most, std::abs(v));
            }
            store(out[k], {std::isinf(p) ? most : std::pow(sum, 1 / p)});
        }
        return 0;
    };
}

Job zero(Call& call) {
    const Tensors a = call.tensors(0);
    return [=] {
        for (const Tensor& t : a) {
            store(t, Values(static_cast<size_t>(t.numel())));
        }
        return 0;
    };
}

double add(double x, double y) { return x + y; }
double subtract(double x, double y) { return x - y; }
double multiply(double x, double y) { return x * y; }
double divide(double x, double y) { return x / y; }
double power(double x, double y) { return std::pow(x, y); }
double larger(double x, double y) { return std::isnan(x) || x > y ? x : y; }
double smaller(double x, double y) { return std::isnan(x) || x < y ? x : y; }

#define UNARY(name, expression)   \
    OPERATOR("aclnnForeach" name, \
             [](Call& call) { return unary(call, [](double x) -> double { return expression; }); })
#define SCALARS(name, f)                                                                            \
    OPERATOR("aclnnForeach" name "Scalar", [](Call& call) { return with_scalar(call, f, 'T'); });   \
    OPERATOR("aclnnForeach" name "ScalarV2", [](Call& call) { return with_scalar(call, f, 'S'); }); \
    OPERATOR("aclnnForeach" name "ScalarList", [](Call& call) { return with_scalar(call, f, 'C'); })
#define LISTS(name, f) OPERATOR("aclnnForeach" name "List", [](Call& call) { return of_lists(call, f, 0); })
#define SCALED_LISTS(name, f)                                                                \
    OPERATOR("aclnnForeach" name "List", [](Call& call) { return of_lists(call, f, 'T'); }); \
    OPERATOR("aclnnForeach" name "ListV2", [](Call& call) { return of_lists(call, f, 'S'); })
#define ADD_SCALED(name, f)                                                                        \
    OPERATOR("aclnnForeach" name "List", [](Call& call) { return add_scaled(call, f, 'T'); });     \
    OPERATOR("aclnnForeach" name "Scalar", [](Call& call) { return add_scaled(call, f, 'T'); });   \
    OPERATOR("aclnnForeach" name "ScalarV2", [](Call& call) { return add_scaled(call, f, 'S'); }); \
    OPERATOR("aclnnForeach" name "ScalarList", [](Call& call) { return add_scaled(call, f, 'T'); })

SCALARS("Add", add);
SCALARS("Sub", subtract);
SCALARS("Mul", multiply);
SCALARS("Div", divide);
SCALARS("Maximum", larger);
SCALARS("Minimum", smaller);
SCALARS("Pow", power);
SCALED_LISTS("Add", add);
SCALED_LISTS("Sub", subtract);
LISTS("Mul", multiply);
LISTS("Div", divide);
LISTS("Maximum", larger);
LISTS("Minimum", smaller);
LISTS("Pow", power);
ADD_SCALED("Addcdiv", divide);
ADD_SCALED("Addcmul", multiply);
UNARY("Abs", std::abs(x));
UNARY("Acos", std::acos(x));
UNARY("Asin", std::asin(x));
UNARY("Atan", std::atan(x));
UNARY("Copy", x);
UNARY("Cos", std::cos(x));
UNARY("Cosh", std::cosh(x));
UNARY("Erf", std::erf(x));
UNARY("Erfc", std::erfc(x));
UNARY("Exp", std::exp(x));
UNARY("Expm1", std::expm1(x));
UNARY("Log", std::log(x));
UNARY("Log10", std::log10(x));
UNARY("Log1p", std::log1p(x));
UNARY("Log2", std::log2(x));
UNARY("Neg", -x);
UNARY("Reciprocal", 1 / x);
UNARY("Sigmoid", 1 / (1 + std::exp(-x)));
UNARY("Sign", (x > 0) - (x < 0));
UNARY("Sin", std::sin(x));
UNARY("Sinh", std::sinh(x));
UNARY("Sqrt", std::sqrt(x));
UNARY("Tan", std::tan(x));
UNARY("Tanh", std::tanh(x));
OPERATOR("aclnnForeachLerpScalar", [](Call& call) { return lerp(call, true); });
OPERATOR("aclnnForeachLerpList", [](Call& call) { return lerp(call, false); });
OPERATOR("aclnnForeachNorm", norm);
OPERATOR("aclnnForeachZeroInplace", zero);
OPERATOR("aclnnForeachPowScalarAndTensor", [](Call& call) -> Job {  // scalar, exponents, out
    const Tensors a = call.tensors(1), out = list(call, 2, a);
    const double base = call.scalar(0).real;
    return [=] {
        for (size_t k = 0; k < a.size(); k++) {
            Values x = values(a[k]);
            for (double& v : x) {
                v = std::pow(base, v);
            }
            store(out[k], x);
        }
        return 0;
    };
});

}  // namespace
}  // namespace flexnpu::ops
