// Operators that compute each element from the same element of their inputs: unary, binary, comparisons,
// logic, select.
#include "elementwise.hpp"

#include <cmath>

namespace flexnpu::ops {
namespace {

template <class T>
UnaryFn<T> find(Unary op) {
    return kernels().rows<T>().unary[static_cast<int>(op)];
}
template <class T>
BinaryFn<T> find(Binary op) {
    return kernels().rows<T>().binary[static_cast<int>(op)];
}

template <class Op>
bool knows(Compute compute, Op op) {
    return with_compute(compute, [&]<class T>() { return find<T>(op) != nullptr; });
}

// The compute type that the operator has; integers go to float32 where it is only defined on real numbers, as
// in torch.
template <class Op>
Compute resolve(const Call& call, Compute compute, Op op, int32_t dtype) {
    if (!knows(compute, op) && compute == Compute::kWhole) {
        compute = Compute::kFloat;
    }
    call.require(knows(compute, op), "not defined for %s", dtype_name(dtype));
    return compute;
}

}  // namespace

Job unary_job(Call& call, Unary op, const Tensor& in, const Tensor& out, Scalar p, Scalar q) {
    call.require_numeric(in);
    call.require_numeric(out);
    call.require_broadcast(out, {&in});
    Compute compute = compute_of({in.dtype});
    if (compute == Compute::kWhole &&
        (op == Unary::PowScalar || op == Unary::ScalarPow || op == Unary::Clamp || op == Unary::ClampMin ||
         op == Unary::ClampMax || op == Unary::Threshold) &&
        (p.floating() || q.floating()) && is_floating(out.dtype)) {
        compute = Compute::kFloat;
    }
    if (op == Unary::BitNot && in.dtype == acl::BOOL) {
        op = Unary::LogicalNot;
    }
    compute = resolve(call, compute, op, in.dtype);
    return [=] {
        const Loop loop = make_loop({&out, &in});
        with_compute(compute, [&]<class T>() {
            const UnaryFn<T> f = find<T>(op);
            alignas(64) T in_row[kChunk];
            alignas(64) T out_row[kChunk];
            for_each_chunk(loop, [&](char* const ptr[], const int64_t stride[], int64_t n) {
                const T* a = fetch<T>(ptr[1], in.dtype, stride[1], n, in_row);
                T* result = target<T>(ptr[0], out.dtype, stride[0], out_row);
                f(result, a, n, p.as<T>(), q.as<T>());
                commit(result, ptr[0], out.dtype, stride[0], n);
            });
        });
        return 0;
    };
}

Job binary_job(Call& call, Binary op, const Tensor& a, const Tensor& b, const Tensor& out, Scalar alpha,
               bool truth) {
    call.require_numeric(a);
    call.require_numeric(b);
    call.require_numeric(out);
    call.require_broadcast(out, {&a, &b});
    Compute compute = compute_of({a.dtype, b.dtype});
    if (!truth && compute == Compute::kWhole && is_floating(out.dtype)) {
        compute = Compute::kFloat;
    }
    compute = resolve(call, compute, op, a.dtype);
    return [=] {
        const Loop loop = make_loop({&out, &a, &b});
        with_compute(compute, [&]<class T>() {
            const BinaryFn<T> f = find<T>(op);
            const T p = alpha.as<T>();
            alignas(64) T a_row[kChunk];
            alignas(64) T b_row[kChunk];
            alignas(64) T out_row[kChunk];
            for_each_chunk(loop, [&](char* const ptr[], const int64_t stride[], int64_t n) {
                const T* x = fetch<T>(ptr[1], a.dtype, stride[1], n, a_row);
                const T* y = fetch<T>(ptr[2], b.dtype, stride[2], n, b_row);
                T* result = target<T>(ptr[0], out.dtype, stride[0], out_row);
                f(result, x, y, n, p);
                commit(result, ptr[0], out.dtype, stride[0], n);
            });
        });
        return 0;
    };
}

namespace {

const Scalar kOne{acl::INT64, 1, 1};

// Float scalars do not widen a tensor's type: they are rounded to float32 with a float16, bfloat16 or float32
// tensor, and turn an integer tensor's computation into float32.
int32_t scalar_compute_dtype(const Scalar& s, const Tensor& t) {
    return !s.floating() ? acl::INT64 : t.dtype == acl::DOUBLE ? acl::DOUBLE : acl::FLOAT;
}

// One operand is a scalar: it is kept in the job and read as a 0-dim tensor.
Job binary_scalar_job(Call& call, Binary op, const Tensor& t, Scalar s, bool scalar_first, const Tensor& out,
                      Scalar alpha, bool truth) {
    call.require_numeric(t);
    call.require_numeric(out);
    call.require_broadcast(out, {&t});
    Compute compute = compute_of({t.dtype, scalar_compute_dtype(s, t)});
    if (!truth && compute == Compute::kWhole && is_floating(out.dtype)) {
        compute = Compute::kFloat;
    }
    compute = resolve(call, compute, op, t.dtype);
    return [=] {
        const Loop loop = make_loop({&out, &t});
        with_compute(compute, [&]<class T>() {
            const BinaryFn<T> f = find<T>(op);
            const T p = alpha.as<T>();
            alignas(64) T t_row[kChunk];
            alignas(64) T s_row[kChunk];
            alignas(64) T out_row[kChunk];
            std::fill(s_row, s_row + kChunk, s.as<T>());
            for_each_chunk(loop, [&](char* const ptr[], const int64_t stride[], int64_t n) {
                const T* x = fetch<T>(ptr[1], t.dtype, stride[1], n, t_row);
                T* result = target<T>(ptr[0], out.dtype, stride[0], out_row);
                f(result, scalar_first ? s_row : x, scalar_first ? x : s_row, n, p);
                commit(result, ptr[0], out.dtype, stride[0], n);
            });
        });
        return 0;
    };
}

// Rows. T: tensor, S: scalar, in the order of the arguments; o is the last argument.

Prepare unary(Unary op, double p = 0, double q = 0) {
    return [=](Call& call) {
        return unary_job(call, op, call.tensor(0), call.tensor(call.count() - 1),
                         {acl::DOUBLE, p, int64_t(p)}, {acl::DOUBLE, q, int64_t(q)});
    };
}
Prepare inplace_unary(Unary op, double p = 0, double q = 0) {
    return [=](Call& call) {
        const Tensor t = call.tensor(0);
        return unary_job(call, op, t, t, {acl::DOUBLE, p, int64_t(p)}, {acl::DOUBLE, q, int64_t(q)});
    };
}
// Parameters p and q are the scalar arguments 1 and 2, where there are.
Prepare unary_scalars(Unary op, int scalars, bool inplace = false) {
    return [=](Call& call) {
        const Tensor in = call.tensor(0);
        const Tensor out = inplace ? in : call.tensor(call.count() - 1);
        return unary_job(call, op, in, out, scalars > 0 ? call.scalar(1) : kOne,
                         scalars > 1 ? call.scalar(2) : kOne);
    };
}
Prepare binary_tensors(Binary op, bool truth = false) {  // T T o
    return [=](Call& call) {
        return binary_job(call, op, call.tensor(0), call.tensor(1), call.tensor(2), kOne, truth);
    };
}
Prepare inplace_tensors(Binary op, bool truth = false) {  // o T
    return [=](Call& call) {
        const Tensor self = call.tensor(0);
        return binary_job(call, op, self, call.tensor(1), self, kOne, truth);
    };
}
Prepare binary_scalar(Binary op, bool truth = false) {  // T S o
    return [=](Call& call) {
        return binary_scalar_job(call, op, call.tensor(0), call.scalar(1), false, call.tensor(2), kOne,
                                 truth);
    };
}
Prepare scalar_binary(Binary op) {  // S T o
    return [=](Call& call) {
        return binary_scalar_job(call, op, call.tensor(1), call.scalar(0), true, call.tensor(2), kOne, false);
    };
}
Prepare inplace_scalar(Binary op, bool truth = false) {  // o S
    return [=](Call& call) {
        const Tensor self = call.tensor(0);
        return binary_scalar_job(call, op, self, call.scalar(1), false, self, kOne, truth);
    };
}
Prepare alpha_tensors(Binary op) {  // T T S(alpha) o
    return [=](Call& call) {
        return binary_job(call, op, call.tensor(0), call.tensor(1), call.tensor(3), call.scalar_or(2, 1),
                          false);
    };
}
Prepare inplace_alpha_tensors(Binary op) {  // o T S(alpha)
    return [=](Call& call) {
        const Tensor self = call.tensor(0);
        return binary_job(call, op, self, call.tensor(1), self, call.scalar_or(2, 1), false);
    };
}
Prepare alpha_scalar(Binary op) {  // T S S(alpha) o
    return [=](Call& call) {
        return binary_scalar_job(call, op, call.tensor(0), call.scalar(1), false, call.tensor(3),
                                 call.scalar_or(2, 1), false);
    };
}
Prepare inplace_alpha_scalar(Binary op) {  // o S S(alpha)
    return [=](Call& call) {
        const Tensor self = call.tensor(0);
        return binary_scalar_job(call, op, self, call.scalar(1), false, self, call.scalar_or(2, 1), false);
    };
}

// out = other - alpha * self.
Job rsub(Call& call, bool scalar) {
    if (scalar) {
        const Scalar alpha = call.scalar_or(2, 1);
        const Tensor self = call.tensor(0), out = call.tensor(3);
        return binary_scalar_job(call, Binary::Sub, self, call.scalar(1), true, out, alpha, false);
    }
    return binary_job(call, Binary::Sub, call.tensor(1), call.tensor(0), call.tensor(3), call.scalar_or(2, 1),
                      false);
}

// Rounded quotients: mode 0 none, 1 towards zero, 2 down.
Binary division(Call& call, int64_t mode) {
    call.require(mode >= 0 && mode <= 2, "rounding mode %lld is not one of 0, 1, 2",
                 static_cast<long long>(mode));
    return mode == 0 ? Binary::Div : mode == 1 ? Binary::TruncDiv : Binary::FloorDiv;
}

Job clamp(Call& call, bool inplace) {
    const Tensor in = call.tensor(0);
    const Tensor out = inplace ? in : call.tensor(3);
    if (call.has(1) && call.has(2)) {
        return unary_job(call, Unary::Clamp, in, out, call.scalar(1), call.scalar(2));
    }
    call.require(call.has(1) || call.has(2), "needs a lower or an upper bound");
    return call.has(1) ? unary_job(call, Unary::ClampMin, in, out, call.scalar(1), kOne)
                       : unary_job(call, Unary::ClampMax, in, out, call.scalar(2), kOne);
}

// A job of three inputs: f(T* out, const T* a, const T* b, const T* c, n).
template <class F>
Job ternary_job(Call& call, const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& c, F f) {
    for (const Tensor* t : {&out, &a, &b, &c}) {
        call.require_numeric(*t);
    }
    call.require_broadcast(out, {&a, &b, &c});
    const Compute compute = compute_of({a.dtype, b.dtype, c.dtype});
    return [=] {
        const Loop loop = make_loop({&out, &a, &b, &c});
        with_compute(compute, [&]<class T>() {
            alignas(64) T rows[4][kChunk];
            for_each_chunk(loop, [&](char* const p[], const int64_t stride[], int64_t n) {
                const T* x = fetch<T>(p[1], a.dtype, stride[1], n, rows[1]);
                const T* y = fetch<T>(p[2], b.dtype, stride[2], n, rows[2]);
                const T* z = fetch<T>(p[3], c.dtype, stride[3], n, rows[3]);
                f(rows[0], x, y, z, n);
                kernels().rows<T>().store(rows[0], p[0], out.dtype, stride[0], n);
            });
        });
        return 0;
    };
}

Job clamp_tensor(Call& call) {
    return ternary_job(call, call.tensor(3), call.tensor(0), call.tensor(1), call.tensor(2),
                       [](auto* out, const auto* x, const auto* low, const auto* high, int64_t n) {
                           for (int64_t i = 0; i < n; i++) {
                               const auto v = x[i] < low[i] ? low[i] : x[i];
                               out[i] = v > high[i] ? high[i] : v;
                           }
                       });
}

// out = self + value * t1 * t2, or with a quotient.
Job add_product(Call& call, bool inplace, bool divide) {
    const Tensor self = call.tensor(0), a = call.tensor(1), b = call.tensor(2);
    const Scalar value = call.scalar(3);
    call.require(!divide || compute_of({self.dtype, a.dtype, b.dtype}) != Compute::kWhole,
                 "needs floating-point tensors");
    return ternary_job(
        call, inplace ? self : call.tensor(4), self, a, b,
        [value, divide]<class T>(T* out, const T* x, const T* y, const T* z, int64_t n) {
            const T v = value.as<T>();
            for (int64_t i = 0; i < n; i++) {
                if constexpr (std::is_integral_v<T>) {
                    // Unsigned, for it may wrap.
                    out[i] = static_cast<T>(uint64_t(x[i]) + uint64_t(v) * uint64_t(y[i]) * uint64_t(z[i]));
                } else {
                    out[i] = x[i] + v * (divide ? y[i] / z[i] : y[i] * z[i]);
                }
            }
        });
}

template <class T>
void lerp_row(T* out, const T* a, const T* b, const T* w, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const T d = b[i] - a[i];
        out[i] = w[i] < T(0.5) && w[i] > T(-0.5) ? a[i] + w[i] * d : b[i] - d * (1 - w[i]);
    }
}

Job lerp(Call& call, bool inplace, bool scalar) {
    const Tensor self = call.tensor(0), end = call.tensor(1);
    const Tensor out = inplace ? self : call.tensor(3);
    call.require(is_floating(self.dtype), "needs a floating-point tensor");
    if (scalar) {
        const Scalar weight = call.scalar(2);
        return ternary_job(call, out, self, end, end,
                           [weight]<class T>(T* o, const T* a, const T* b, const T*, int64_t n) {
                               std::vector<T> w(static_cast<size_t>(n), weight.as<T>());
                               lerp_row(o, a, b, w.data(), n);
                           });
    }
    return ternary_job(
        call, out, self, end, call.tensor(2),
        []<class T>(T* o, const T* a, const T* b, const T* w, int64_t n) { lerp_row(o, a, b, w, n); });
}

// out = condition ? self : other
Job where_job(Call& call, const Tensor& condition, const Tensor& a, const Tensor& b, const Tensor& out) {
    for (const Tensor* t : {&condition, &a, &b, &out}) {
        call.require_numeric(*t);
    }
    call.require(condition.dtype == acl::BOOL || condition.dtype == acl::UINT8,
                 "the condition must be bool or uint8");
    call.require_broadcast(out, {&condition, &a, &b});
    const Compute compute = compute_of({a.dtype, b.dtype});
    return [=] {
        const Loop loop = make_loop({&out, &condition, &a, &b});
        with_compute(compute, [&]<class T>() {
            alignas(64) T a_row[kChunk];
            alignas(64) T b_row[kChunk];
            alignas(64) T out_row[kChunk];
            uint8_t truth[kChunk];
            for_each_chunk(loop, [&](char* const p[], const int64_t stride[], int64_t n) {
                for (int64_t i = 0; i < n; i++) {
                    truth[i] = static_cast<uint8_t>(p[1][i * stride[1]]);
                }
                const T* x = fetch<T>(p[2], a.dtype, stride[2], n, a_row);
                const T* y = fetch<T>(p[3], b.dtype, stride[3], n, b_row);
                T* result = target<T>(p[0], out.dtype, stride[0], out_row);
                kernels().rows<T>().where(result, truth, x, y, n);
                commit(result, p[0], out.dtype, stride[0], n);
            });
        });
        return 0;
    };
}

Job masked_fill(Call& call, bool scalar) {
    const Tensor self = call.tensor(0), mask = call.tensor(1);
    call.require_numeric(self);
    call.require(mask.dtype == acl::BOOL || mask.dtype == acl::UINT8, "the mask must be bool");
    call.require_broadcast(self, {&mask});
    if (!scalar) {
        const Tensor value = call.tensor(2);
        call.require(value.numel() == 1, "the value must have one element");
        return where_job(call, mask, value, self, self);
    }
    const Scalar value = call.scalar(2);
    const Compute compute = compute_of({self.dtype});
    return [=] {
        const Loop loop = make_loop({&self, &mask});
        with_compute(compute, [&]<class T>() {
            const T fill = value.as<T>();
            for_each_row(loop, [&](char* const p[], const int64_t stride[], int64_t n) {
                for (int64_t i = 0; i < n; i++) {
                    if (p[1][i * stride[1]]) {
                        kernels().rows<T>().store(&fill, p[0] + i * stride[0], self.dtype, self.element(), 1);
                    }
                }
            });
        });
        return 0;
    };
}

// |a - b| <= absolute + relative * |b|; infinities are close to themselves only.
Job is_close(Call& call) {
    const Tensor a = call.tensor(0), b = call.tensor(1), out = call.tensor(5);
    const double relative = call.real(2), absolute = call.real(3);
    const bool equal_nan = call.boolean(4);
    call.require_numeric(a);
    call.require_numeric(b);
    call.require_broadcast(out, {&a, &b});
    return [=] {
        const Loop loop = make_loop({&out, &a, &b});
        double x[kChunk], y[kChunk], r[kChunk];
        for_each_chunk(loop, [&](char* const p[], const int64_t stride[], int64_t n) {
            kernels().f64.load(x, p[1], a.dtype, stride[1], n);
            kernels().f64.load(y, p[2], b.dtype, stride[2], n);
            for (int64_t i = 0; i < n; i++) {
                const bool close =
                    x[i] == y[i] || (std::isfinite(x[i]) && std::isfinite(y[i]) &&
                                     std::fabs(x[i] - y[i]) <= absolute + relative * std::fabs(y[i]));
                r[i] = close || (equal_nan && std::isnan(x[i]) && std::isnan(y[i]));
            }
            kernels().f64.store(r, p[0], out.dtype, stride[0], n);
        });
        return 0;
    };
}

Job nan_to_num(Call& call, bool inplace) {  // self, nan, positive infinity, negative infinity, out
    const Tensor self = call.tensor(0), out = inplace ? self : call.tensor(4);
    const double nan = call.real(1), high = call.real(2), low = call.real(3);
    call.require_numeric(self);
    call.require_shape(out, self, "the output");
    return [=] {
        const Loop loop = make_loop({&out, &self});
        double row[kChunk];
        for_each_chunk(loop, [&](char* const p[], const int64_t stride[], int64_t n) {
            kernels().f64.load(row, p[1], self.dtype, stride[1], n);
            for (int64_t i = 0; i < n; i++) {
                row[i] = std::isnan(row[i]) ? nan : std::isinf(row[i]) ? (row[i] > 0 ? high : low) : row[i];
            }
            kernels().f64.store(row, p[0], out.dtype, stride[0], n);
        });
        return 0;
    };
}

// One bool: whether all elements are equal.
Job equal(Call& call) {
    const Tensor a = call.tensor(0), b = call.tensor(1), out = call.tensor(2);
    call.require_numeric(a);
    call.require_numeric(b);
    call.require(out.dtype == acl::BOOL && out.numel() == 1, "the output must be one bool");
    return [=] {
        bool same = a.same_shape(b);
        if (same) {
            const Loop loop = make_loop({&a, &b});
            with_compute(compute_of({a.dtype, b.dtype}), [&]<class T>() {
                T x[kChunk], y[kChunk];
                for_each_chunk(loop, [&](char* const p[], const int64_t stride[], int64_t n) {
                    kernels().rows<T>().load(x, p[0], a.dtype, stride[0], n);
                    kernels().rows<T>().load(y, p[1], b.dtype, stride[1], n);
                    for (int64_t i = 0; i < n; i++) {
                        same &= x[i] == y[i];
                    }
                });
            });
        }
        *out.data = same;
        return 0;
    };
}

// In T...o and in place.
#define UNARY_PAIR(name, op)                  \
    OPERATOR("aclnn" name, unary(Unary::op)); \
    OPERATOR("aclnnInplace" name, inplace_unary(Unary::op))

UNARY_PAIR("Acos", Acos);
UNARY_PAIR("Acosh", Acosh);
UNARY_PAIR("Asin", Asin);
UNARY_PAIR("Asinh", Asinh);
UNARY_PAIR("Atan", Atan);
UNARY_PAIR("Atanh", Atanh);
UNARY_PAIR("Ceil", Ceil);
UNARY_PAIR("Cos", Cos);
UNARY_PAIR("Cosh", Cosh);
UNARY_PAIR("Erf", Erf);
UNARY_PAIR("Erfc", Erfc);
UNARY_PAIR("Erfinv", Erfinv);
UNARY_PAIR("Exp", Exp);
UNARY_PAIR("Exp2", Exp2);
UNARY_PAIR("Expm1", Expm1);
UNARY_PAIR("Floor", Floor);
UNARY_PAIR("Frac", Frac);
UNARY_PAIR("Hardsigmoid", HardSigmoid);
UNARY_PAIR("Hardswish", HardSwish);
UNARY_PAIR("Log", Log);
UNARY_PAIR("Log10", Log10);
UNARY_PAIR("Log1p", Log1p);
UNARY_PAIR("Log2", Log2);
UNARY_PAIR("LogicalNot", LogicalNot);
UNARY_PAIR("Mish", Mish);
UNARY_PAIR("Neg", Neg);
UNARY_PAIR("Reciprocal", Reciprocal);
UNARY_PAIR("Relu", Relu);
UNARY_PAIR("Round", Round);
UNARY_PAIR("Rsqrt", Rsqrt);
UNARY_PAIR("Sigmoid", Sigmoid);
UNARY_PAIR("Sin", Sin);
UNARY_PAIR("Sinh", Sinh);
UNARY_PAIR("Sqrt", Sqrt);
UNARY_PAIR("Tan", Tan);
UNARY_PAIR("Tanh", Tanh);
UNARY_PAIR("Trunc", Trunc);
#undef UNARY_PAIR

OPERATOR("aclnnAbs", unary(Unary::Abs));
OPERATOR("aclnnBitwiseNot", unary(Unary::BitNot));
OPERATOR("aclnnIsFinite", unary(Unary::IsFinite));
OPERATOR("aclnnIsInf", unary(Unary::IsInf));
OPERATOR("aclnnIsNegInf", unary(Unary::IsNegInf));
OPERATOR("aclnnIsPosInf", unary(Unary::IsPosInf));
OPERATOR("aclnnLogSigmoid", unary(Unary::LogSigmoid));
OPERATOR("aclnnSign", unary(Unary::Sign));
OPERATOR("aclnnSignbit", unary(Unary::SignBit));
OPERATOR("aclnnSilu", unary(Unary::Silu));
OPERATOR("aclnnSquare", unary(Unary::Square));
OPERATOR("aclnnGelu", unary(Unary::GeluTanh));  // the tanh form, as on the chip
OPERATOR("aclnnGeluV2", [](Call& call) {        // approximate: 0 erf, 1 tanh
    return unary_job(call, call.integer(1) == 0 ? Unary::Gelu : Unary::GeluTanh, call.tensor(0),
                     call.tensor(2), kOne, kOne);
});
OPERATOR("aclnnSwish", [](Call& call) -> Job {  // x * sigmoid(beta x), only for the beta that makes it SiLU
    call.require(call.scalar_or(1, 1).real == 1, "only beta = 1 is emulated");
    return unary_job(call, Unary::Silu, call.tensor(0), call.tensor(2), kOne, kOne);
});
OPERATOR("aclnnSoftplus", unary_scalars(Unary::Softplus, 2));
OPERATOR("aclnnLeakyRelu", unary_scalars(Unary::LeakyRelu, 1));
OPERATOR("aclnnInplaceLeakyRelu", unary_scalars(Unary::LeakyRelu, 1, true));
OPERATOR("aclnnThreshold", unary_scalars(Unary::Threshold, 2));
OPERATOR("aclnnInplaceThreshold", unary_scalars(Unary::Threshold, 2, true));
OPERATOR("aclnnCelu", unary_scalars(Unary::Celu, 1));
OPERATOR("aclnnHardtanh", unary_scalars(Unary::Clamp, 2));
OPERATOR("aclnnInplaceHardtanh", unary_scalars(Unary::Clamp, 2, true));
OPERATOR("aclnnClampMin", unary_scalars(Unary::ClampMin, 1));
OPERATOR("aclnnClampMax", unary_scalars(Unary::ClampMax, 1));
OPERATOR("aclnnInplaceClampMax", unary_scalars(Unary::ClampMax, 1, true));
OPERATOR("aclnnClamp", [](Call& call) { return clamp(call, false); });
OPERATOR("aclnnClampTensor", clamp_tensor);
OPERATOR("aclnnClampMinTensor", binary_tensors(Binary::Maximum));
OPERATOR("aclnnClampMaxTensor", binary_tensors(Binary::Minimum));
OPERATOR("aclnnInplaceClampMinTensor", inplace_tensors(Binary::Maximum));
OPERATOR("aclnnInplaceClampMaxTensor", inplace_tensors(Binary::Minimum));
OPERATOR("aclnnPowTensorScalar", unary_scalars(Unary::PowScalar, 1));
OPERATOR("aclnnInplacePowTensorScalar", unary_scalars(Unary::PowScalar, 1, true));
OPERATOR("aclnnPowScalarTensor", [](Call& call) {
    return unary_job(call, Unary::ScalarPow, call.tensor(1), call.tensor(2), call.scalar(0), kOne);
});
OPERATOR("aclnnPowTensorTensor", binary_tensors(Binary::Pow));
OPERATOR("aclnnInplacePowTensorTensor", inplace_tensors(Binary::Pow));

OPERATOR("aclnnAdd", alpha_tensors(Binary::Add));
OPERATOR("aclnnInplaceAdd", inplace_alpha_tensors(Binary::Add));
OPERATOR("aclnnAdds", alpha_scalar(Binary::Add));
OPERATOR("aclnnInplaceAdds", inplace_alpha_scalar(Binary::Add));
OPERATOR("aclnnAddV3", [](Call& call) {  // S T S(alpha) o
    return binary_scalar_job(call, Binary::Add, call.tensor(1), call.scalar(0), true, call.tensor(3),
                             call.scalar_or(2, 1), false);
});
OPERATOR("aclnnSub", alpha_tensors(Binary::Sub));
OPERATOR("aclnnInplaceSub", inplace_alpha_tensors(Binary::Sub));
OPERATOR("aclnnSubs", alpha_scalar(Binary::Sub));
OPERATOR("aclnnInplaceSubs", inplace_alpha_scalar(Binary::Sub));
OPERATOR("aclnnRsub", [](Call& call) { return rsub(call, false); });
OPERATOR("aclnnRsubs", [](Call& call) { return rsub(call, true); });
OPERATOR("aclnnMul", binary_tensors(Binary::Mul));
OPERATOR("aclnnInplaceMul", inplace_tensors(Binary::Mul));
OPERATOR("aclnnMuls", binary_scalar(Binary::Mul));
OPERATOR("aclnnInplaceMuls", inplace_scalar(Binary::Mul));
OPERATOR("aclnnDiv", binary_tensors(Binary::Div));
OPERATOR("aclnnInplaceDiv", inplace_tensors(Binary::Div));
OPERATOR("aclnnDivs", binary_scalar(Binary::Div));
OPERATOR("aclnnInplaceDivs", inplace_scalar(Binary::Div));
OPERATOR("aclnnDivMod", [](Call& call) {
    return binary_job(call, division(call, call.integer(2)), call.tensor(0), call.tensor(1), call.tensor(3),
                      kOne, false);
});
OPERATOR("aclnnInplaceDivMod", [](Call& call) {
    const Tensor self = call.tensor(0);
    return binary_job(call, division(call, call.integer(2)), self, call.tensor(1), self, kOne, false);
});
OPERATOR("aclnnDivMods", [](Call& call) {
    return binary_scalar_job(call, division(call, call.integer(2)), call.tensor(0), call.scalar(1), false,
                             call.tensor(3), kOne, false);
});
OPERATOR("aclnnInplaceDivMods", [](Call& call) {
    const Tensor self = call.tensor(0);
    return binary_scalar_job(call, division(call, call.integer(2)), self, call.scalar(1), false, self, kOne,
                             false);
});
OPERATOR("aclnnFloorDivide", binary_tensors(Binary::FloorDiv));
OPERATOR("aclnnInplaceFloorDivide", inplace_tensors(Binary::FloorDiv));
OPERATOR("aclnnFloorDivides", binary_scalar(Binary::FloorDiv));
OPERATOR("aclnnInplaceFloorDivides", inplace_scalar(Binary::FloorDiv));
OPERATOR("aclnnRemainderTensorTensor", binary_tensors(Binary::Remainder));
OPERATOR("aclnnInplaceRemainderTensorTensor", inplace_tensors(Binary::Remainder));
OPERATOR("aclnnRemainderTensorScalar", binary_scalar(Binary::Remainder));
OPERATOR("aclnnInplaceRemainderTensorScalar", inplace_scalar(Binary::Remainder));
OPERATOR("aclnnRemainderScalarTensor", scalar_binary(Binary::Remainder));
OPERATOR("aclnnFmodTensor", binary_tensors(Binary::Fmod));
OPERATOR("aclnnInplaceFmodTensor", inplace_tensors(Binary::Fmod));
OPERATOR("aclnnFmodScalar", binary_scalar(Binary::Fmod));
OPERATOR("aclnnInplaceFmodScalar", inplace_scalar(Binary::Fmod));
OPERATOR("aclnnMaximum", binary_tensors(Binary::Maximum));
OPERATOR("aclnnMinimum", binary_tensors(Binary::Minimum));
OPERATOR("aclnnAtan2", binary_tensors(Binary::Atan2));
OPERATOR("aclnnLogAddExp", binary_tensors(Binary::LogAddExp));
OPERATOR("aclnnLogAddExp2", binary_tensors(Binary::LogAddExp2));
OPERATOR("aclnnXLogYTensor", binary_tensors(Binary::XLogY));
OPERATOR("aclnnXLogYScalarOther", binary_scalar(Binary::XLogY));
OPERATOR("aclnnXLogYScalarSelf", scalar_binary(Binary::XLogY));

#define COMPARISON(name, op)                                                   \
    OPERATOR("aclnn" name "Tensor", binary_tensors(Binary::op, true));         \
    OPERATOR("aclnn" name "Scalar", binary_scalar(Binary::op, true));          \
    OPERATOR("aclnnInplace" name "Tensor", inplace_tensors(Binary::op, true)); \
    OPERATOR("aclnnInplace" name "Scalar", inplace_scalar(Binary::op, true))
COMPARISON("Eq", Eq);
COMPARISON("Ne", Ne);
COMPARISON("Lt", Lt);
COMPARISON("Le", Le);
COMPARISON("Gt", Gt);
COMPARISON("Ge", Ge);
#undef COMPARISON

OPERATOR("aclnnLogicalAnd", binary_tensors(Binary::LogicalAnd, true));
OPERATOR("aclnnInplaceLogicalAnd", inplace_tensors(Binary::LogicalAnd, true));
OPERATOR("aclnnLogicalOr", binary_tensors(Binary::LogicalOr, true));
OPERATOR("aclnnInplaceLogicalOr", inplace_tensors(Binary::LogicalOr, true));
OPERATOR("aclnnLogicalXor", binary_tensors(Binary::LogicalXor, true));

#define BITWISE(name, op)                                                             \
    OPERATOR("aclnnBitwise" name "Tensor", binary_tensors(Binary::op, true));         \
    OPERATOR("aclnnBitwise" name "Scalar", binary_scalar(Binary::op, true));          \
    OPERATOR("aclnnInplaceBitwise" name "Tensor", inplace_tensors(Binary::op, true)); \
    OPERATOR("aclnnInplaceBitwise" name "Scalar", inplace_scalar(Binary::op, true))
BITWISE("And", BitAnd);
BITWISE("Or", BitOr);
BITWISE("Xor", BitXor);
#undef BITWISE
OPERATOR("aclnnBitwiseAndTensorOut", binary_tensors(Binary::BitAnd, true));
OPERATOR("aclnnRightShift", binary_tensors(Binary::RightShift, true));

OPERATOR("aclnnAddcmul", [](Call& call) { return add_product(call, false, false); });
OPERATOR("aclnnInplaceAddcmul", [](Call& call) { return add_product(call, true, false); });
OPERATOR("aclnnAddcdiv", [](Call& call) { return add_product(call, false, true); });
OPERATOR("aclnnInplaceAddcdiv", [](Call& call) { return add_product(call, true, true); });
OPERATOR("aclnnLerp", [](Call& call) { return lerp(call, false, false); });
OPERATOR("aclnnInplaceLerp", [](Call& call) { return lerp(call, true, false); });
OPERATOR("aclnnLerps", [](Call& call) { return lerp(call, false, true); });
OPERATOR("aclnnInplaceLerps", [](Call& call) { return lerp(call, true, true); });
OPERATOR("aclnnSWhere", [](Call& call) {
    return where_job(call, call.tensor(0), call.tensor(1), call.tensor(2), call.tensor(3));
});
OPERATOR("aclnnInplaceMaskedFillScalar", [](Call& call) { return masked_fill(call, true); });
OPERATOR("aclnnInplaceMaskedFillTensor", [](Call& call) { return masked_fill(call, false); });
OPERATOR("aclnnIsClose", is_close);
OPERATOR("aclnnNanToNum", [](Call& call) { return nan_to_num(call, false); });
OPERATOR("aclnnInplaceNanToNum", [](Call& call) { return nan_to_num(call, true); });
OPERATOR("aclnnEqual", equal);

}  // namespace
}  // namespace flexnpu::ops
