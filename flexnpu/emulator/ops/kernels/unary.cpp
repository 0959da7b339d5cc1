// Functions of one row.
#include "math.hpp"

namespace flexnpu::ops::FLEXNPU_ISA {
namespace {

// libm by type.
#define FLEXNPU_LIBM(name)                                            \
    inline float m_##name(float x) { return __builtin_##name##f(x); } \
    inline double m_##name(double x) { return __builtin_##name(x); }
FLEXNPU_LIBM(sqrt)
FLEXNPU_LIBM(exp2)
FLEXNPU_LIBM(expm1)
FLEXNPU_LIBM(log)
FLEXNPU_LIBM(log2)
FLEXNPU_LIBM(log10)
FLEXNPU_LIBM(log1p)
FLEXNPU_LIBM(sin)
FLEXNPU_LIBM(cos)
FLEXNPU_LIBM(tan)
FLEXNPU_LIBM(asin)
FLEXNPU_LIBM(acos)
FLEXNPU_LIBM(atan)
FLEXNPU_LIBM(sinh)
FLEXNPU_LIBM(cosh)
FLEXNPU_LIBM(tanh)
FLEXNPU_LIBM(asinh)
FLEXNPU_LIBM(acosh)
FLEXNPU_LIBM(atanh)
FLEXNPU_LIBM(erf)
FLEXNPU_LIBM(erfc)
FLEXNPU_LIBM(floor)
FLEXNPU_LIBM(ceil)
FLEXNPU_LIBM(rint)
FLEXNPU_LIBM(trunc)
FLEXNPU_LIBM(fabs)
#undef FLEXNPU_LIBM
inline float m_pow(float x, float y) { return __builtin_powf(x, y); }
inline double m_pow(double x, double y) { return __builtin_pow(x, y); }

// The inverse of erf: Giles' approximation, then two Newton steps in double precision.
inline double erfinv(double y) {
    static constexpr double kCentre[] = {2.81022636e-08,  3.43273939e-07, -3.5233877e-06,
                                         -4.39150654e-06, 0.00021858087,  -0.00125372503,
                                         -0.00417768164,  0.246640727,    1.50140941};
    static constexpr double kTail[] = {-0.000200214257, 0.000100950558, 0.00134934322,
                                       -0.00367342844,  0.00573950773,  -0.0076224613,
                                       0.00943887047,   1.00167406,     2.83297682};
    if (!(y > -1.0 && y < 1.0)) {
        return y == 1.0 ? __builtin_inf() : y == -1.0 ? -__builtin_inf() : __builtin_nan("");
    }
    const double w = -__builtin_log((1.0 - y) * (1.0 + y));
    const bool centre = w < 5.0;
    const double t = centre ? w - 2.5 : __builtin_sqrt(w) - 3.0;
    double p = 0;
    for (int i = 0; i < 9; i++) {
        p = p * t + (centre ? kCentre : kTail)[i];
    }
    double x = p * y;
    for (int i = 0; i < 2; i++) {
        x -= (__builtin_erf(x) - y) / (1.12837916709551257390 * __builtin_exp(-x * x));
    }
    return x;
}

template <class T>
inline T power(T x, T y) {
    return m_pow(x, y);
}
// Integers: by squaring, wrapping; a negative exponent gives 0 except for bases 1 and -1, as torch does.
inline int64_t power(int64_t x, int64_t y) {
    if (y < 0) {
        return x == 1 ? 1 : x == -1 ? (y % 2 == 0 ? 1 : -1) : 0;
    }
    uint64_t result = 1;
    for (uint64_t base = uint64_t(x); y; y >>= 1, base *= base) {
        if (y & 1) {
            result *= base;
        }
    }
    return int64_t(result);
}

#define FLEXNPU_UNARY(name, ...)                                                            \
    template <class T>                                                                      \
    struct name {                                                                           \
        static T f(T x, [[maybe_unused]] T p, [[maybe_unused]] T q) { return __VA_ARGS__; } \
    };

FLEXNPU_UNARY(Copy, x)
FLEXNPU_UNARY(Neg, -x)
FLEXNPU_UNARY(Abs, x < 0 ? -x : x)
FLEXNPU_UNARY(Sign, T(x > 0) - T(x < 0))
FLEXNPU_UNARY(Square, x* x)
FLEXNPU_UNARY(Sqrt, m_sqrt(x))
FLEXNPU_UNARY(Rsqrt, T(1) / m_sqrt(x))
FLEXNPU_UNARY(Reciprocal, T(1) / x)
FLEXNPU_UNARY(Exp, exp_f(x))
FLEXNPU_UNARY(Exp2, m_exp2(x))
FLEXNPU_UNARY(Expm1, m_expm1(x))
FLEXNPU_UNARY(Log, m_log(x))
FLEXNPU_UNARY(Log2, m_log2(x))
FLEXNPU_UNARY(Log10, m_log10(x))
FLEXNPU_UNARY(Log1p, m_log1p(x))
FLEXNPU_UNARY(Sin, m_sin(x))
FLEXNPU_UNARY(Cos, m_cos(x))
FLEXNPU_UNARY(Tan, m_tan(x))
FLEXNPU_UNARY(Asin, m_asin(x))
FLEXNPU_UNARY(Acos, m_acos(x))
FLEXNPU_UNARY(Atan, m_atan(x))
FLEXNPU_UNARY(Sinh, m_sinh(x))
FLEXNPU_UNARY(Cosh, m_cosh(x))
FLEXNPU_UNARY(Tanh, m_tanh(x))
FLEXNPU_UNARY(Asinh, m_asinh(x))
FLEXNPU_UNARY(Acosh, m_acosh(x))
FLEXNPU_UNARY(Atanh, m_atanh(x))
FLEXNPU_UNARY(Erf, m_erf(x))
FLEXNPU_UNARY(Erfc, m_erfc(x))
FLEXNPU_UNARY(Erfinv, T(erfinv(double(x))))
FLEXNPU_UNARY(Floor, m_floor(x))
FLEXNPU_UNARY(Ceil, m_ceil(x))
FLEXNPU_UNARY(Round, m_rint(x))
FLEXNPU_UNARY(Trunc, m_trunc(x))
FLEXNPU_UNARY(Frac, x - m_trunc(x))
FLEXNPU_UNARY(Sigmoid, sigmoid_f(x))
FLEXNPU_UNARY(Silu, x / (T(1) + exp_f(-x)))
FLEXNPU_UNARY(Relu, x < 0 ? T(0) : x)
// 1 + erf(x/sqrt2), without its cancellation for negative x.
FLEXNPU_UNARY(Gelu, x* T(0.5) * m_erfc(-x * T(0.70710678118654752440)))
FLEXNPU_UNARY(GeluTanh,
              T(0.5) * x * (T(1) + m_tanh(T(0.79788456080286535588) * (x + T(0.044715) * x * x * x))))
FLEXNPU_UNARY(LogSigmoid, (x < 0 ? x : T(0)) - m_log1p(exp_f(-m_fabs(x))))
FLEXNPU_UNARY(Softplus, x* p > q ? x : m_log1p(exp_f(x * p)) / p)  // p: beta, q: threshold
FLEXNPU_UNARY(Mish, x* m_tanh(Softplus<T>::f(x, T(1), T(20))))
FLEXNPU_UNARY(HardSigmoid, x <= -3 ? T(0) : x >= 3 ? T(1) : x / T(6) + T(0.5))
FLEXNPU_UNARY(HardSwish, x <= -3 ? T(0) : x >= 3 ? x : x * (x + T(3)) / T(6))
FLEXNPU_UNARY(LeakyRelu, x > 0 ? x : x * p)
FLEXNPU_UNARY(Elu, x > 0 ? x : p * m_expm1(x * q))  // p: alpha, q: input scale
FLEXNPU_UNARY(Celu, x > 0 ? x : p * m_expm1(x / p))
FLEXNPU_UNARY(Clamp, (x < p ? p : x) > q ? q : (x < p ? p : x))  // NaN stays
FLEXNPU_UNARY(ClampMin, x < p ? p : x)
FLEXNPU_UNARY(ClampMax, x > p ? p : x)
FLEXNPU_UNARY(PowScalar, power(x, p))
FLEXNPU_UNARY(ScalarPow, power(p, x))
FLEXNPU_UNARY(Affine, x* p + q)
FLEXNPU_UNARY(BitNot, ~x)
FLEXNPU_UNARY(LogicalNot, T(x == 0))
FLEXNPU_UNARY(IsFinite, T(x - x == 0))
FLEXNPU_UNARY(IsInf, T(m_fabs(x) == T(__builtin_inf())))
FLEXNPU_UNARY(IsPosInf, T(x == T(__builtin_inf())))
FLEXNPU_UNARY(IsNegInf, T(x == -T(__builtin_inf())))
FLEXNPU_UNARY(SignBit, T(__builtin_signbit(x) != 0))
FLEXNPU_UNARY(Threshold, x <= p ? q : x)
#undef FLEXNPU_UNARY

template <template <class> class F, class T>
void row(T* out, const T* a, int64_t n, T p, T q) {
    for (int64_t i = 0; i < n; i++) {
        out[i] = F<T>::f(a[i], p, q);
    }
}

// Exponents that transformers uses need no libm: x^2 in RMS norms.
template <class T>
void pow_row(T* out, const T* a, int64_t n, T p, T q) {
    if (p == T(2)) {
        row<Square, T>(out, a, n, p, q);
    } else if (p == T(1)) {
        row<Copy, T>(out, a, n, p, q);
    } else if (p == T(3)) {
        for (int64_t i = 0; i < n; i++) {
            out[i] = a[i] * a[i] * a[i];
        }
    } else if (T(0.5) != T(0) && p == T(0.5)) {
        if constexpr (T(0.5) != T(0)) {
            row<Sqrt, T>(out, a, n, p, q);
        }
    } else if (T(0.5) != T(0) && p == T(-0.5)) {
        if constexpr (T(0.5) != T(0)) {
            row<Rsqrt, T>(out, a, n, p, q);
        }
    } else {
        row<PowScalar, T>(out, a, n, p, q);
    }
}

template <class T>
void fill_floating(RowKernels<T>& k) {
#define FLEXNPU_SET(name) k.unary[int(Unary::name)] = row<name, T>;
    FLEXNPU_SET(Copy)
    FLEXNPU_SET(Neg)
    FLEXNPU_SET(Abs)
    FLEXNPU_SET(Sign)
    FLEXNPU_SET(Square)
    FLEXNPU_SET(Sqrt)
    FLEXNPU_SET(Rsqrt)
    FLEXNPU_SET(Reciprocal)
    FLEXNPU_SET(Exp)
    FLEXNPU_SET(Exp2)
    FLEXNPU_SET(Expm1)
    FLEXNPU_SET(Log)
    FLEXNPU_SET(Log2)
    FLEXNPU_SET(Log10)
    FLEXNPU_SET(Log1p)
    FLEXNPU_SET(Sin)
    FLEXNPU_SET(Cos)
    FLEXNPU_SET(Tan)
    FLEXNPU_SET(Asin)
    FLEXNPU_SET(Acos)
    FLEXNPU_SET(Atan)
    FLEXNPU_SET(Sinh)
    FLEXNPU_SET(Cosh)
    FLEXNPU_SET(Tanh)
    FLEXNPU_SET(Asinh)
    FLEXNPU_SET(Acosh)
    FLEXNPU_SET(Atanh)
    FLEXNPU_SET(Erf)
    FLEXNPU_SET(Erfc)
    FLEXNPU_SET(Erfinv)
    FLEXNPU_SET(Floor)
    FLEXNPU_SET(Ceil)
    FLEXNPU_SET(Round)
    FLEXNPU_SET(Trunc)
    FLEXNPU_SET(Frac)
    FLEXNPU_SET(Sigmoid)
    FLEXNPU_SET(Silu)
    FLEXNPU_SET(Relu)
    FLEXNPU_SET(Gelu)
    FLEXNPU_SET(GeluTanh)
    FLEXNPU_SET(LogSigmoid)
    FLEXNPU_SET(Mish)
    FLEXNPU_SET(Softplus)
    FLEXNPU_SET(HardSigmoid)
    FLEXNPU_SET(HardSwish)
    FLEXNPU_SET(LeakyRelu)
    FLEXNPU_SET(Elu)
    FLEXNPU_SET(Celu)
    FLEXNPU_SET(Clamp)
    FLEXNPU_SET(ClampMin)
    FLEXNPU_SET(ClampMax)
    FLEXNPU_SET(ScalarPow)
    FLEXNPU_SET(Affine)
    FLEXNPU_SET(LogicalNot)
    FLEXNPU_SET(IsFinite)
    FLEXNPU_SET(IsInf)
    FLEXNPU_SET(IsPosInf)
    FLEXNPU_SET(IsNegInf)
    FLEXNPU_SET(SignBit)
    FLEXNPU_SET(Threshold)
    k.unary[int(Unary::PowScalar)] = pow_row<T>;
}

template <class T>
void fill_integer(RowKernels<T>& k) {
    FLEXNPU_SET(Copy)
    FLEXNPU_SET(Neg)
    FLEXNPU_SET(Abs)
    FLEXNPU_SET(Sign)
    FLEXNPU_SET(Square)
    FLEXNPU_SET(Relu)
    FLEXNPU_SET(Clamp)
    FLEXNPU_SET(ClampMin)
    FLEXNPU_SET(ClampMax)
    FLEXNPU_SET(ScalarPow)
    FLEXNPU_SET(Affine)
    FLEXNPU_SET(BitNot)
    FLEXNPU_SET(LogicalNot)
    FLEXNPU_SET(Threshold)
    k.unary[int(Unary::PowScalar)] = pow_row<T>;
    // Nothing to do to a whole number.
    k.unary[int(Unary::Floor)] = row<Copy, T>;
    k.unary[int(Unary::Ceil)] = row<Copy, T>;
    k.unary[int(Unary::Round)] = row<Copy, T>;
    k.unary[int(Unary::Trunc)] = row<Copy, T>;
#undef FLEXNPU_SET
}

}  // namespace

void fill_unary(Kernels& k) {
    fill_floating(k.f32);
    fill_floating(k.f64);
    fill_integer(k.i64);
}

}  // namespace flexnpu::ops::FLEXNPU_ISA
