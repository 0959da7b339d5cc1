// Functions of two rows.
#include "math.hpp"

namespace flexnpu::ops::FLEXNPU_ISA {
namespace {

inline float m_fmod(float x, float y) { return __builtin_fmodf(x, y); }
inline double m_fmod(double x, double y) { return __builtin_fmod(x, y); }
inline float m_floor(float x) { return __builtin_floorf(x); }
inline double m_floor(double x) { return __builtin_floor(x); }
inline float m_trunc(float x) { return __builtin_truncf(x); }
inline double m_trunc(double x) { return __builtin_trunc(x); }
inline float m_log1p(float x) { return __builtin_log1pf(x); }
inline double m_log1p(double x) { return __builtin_log1p(x); }
inline float m_log(float x) { return __builtin_logf(x); }
inline double m_log(double x) { return __builtin_log(x); }
inline float m_fabs(float x) { return __builtin_fabsf(x); }
inline double m_fabs(double x) { return __builtin_fabs(x); }
inline float m_atan2(float x, float y) { return __builtin_atan2f(x, y); }
inline double m_atan2(double x, double y) { return __builtin_atan2(x, y); }
inline float power(float x, float y) { return __builtin_powf(x, y); }
inline double power(double x, double y) { return __builtin_pow(x, y); }
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

// The remainder takes the divisor's sign; the quotient is rounded down. Integer division by zero gives 0
// here, where the hardware's answer is undefined and the CPU would raise a signal.
template <class T>
inline T remainder(T a, T b) {
    const T r = m_fmod(a, b);
    return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
inline int64_t remainder(int64_t a, int64_t b) {
    if (b == 0 || b == -1) {
        return 0;
    }
    const int64_t r = a % b;
    return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
template <class T>
inline T floor_div(T a, T b) {
    if (b == 0) {
        return a / b;
    }
    const T quotient = (a - remainder(a, b)) / b;
    const T whole = m_floor(quotient);
    return quotient - whole > T(0.5) ? whole + 1 : whole;
}
inline int64_t divide(int64_t a, int64_t b) {
    return b == 0 ? 0 : b == -1 ? int64_t(0 - uint64_t(a)) : a / b;
}
inline int64_t floor_div(int64_t a, int64_t b) {
    const int64_t q = divide(a, b);
    return b != 0 && b != -1 && a % b != 0 && (a < 0) != (b < 0) ? q - 1 : q;
}
template <class T>
inline T maximum(T a, T b) {
    return a != a ? a : a > b ? a : b;  // NaN wins
}
template <class T>
inline T minimum(T a, T b) {
    return a != a ? a : a < b ? a : b;
}
template <class T>
inline T log_add_exp(T a, T b) {
    const T high = a > b ? a : b;
    const T low = a > b ? b : a;
    return high - low == high - low ? high + m_log1p(exp_f(low - high)) : a + b == a + b ? high : a + b;
}

#define FLEXNPU_BINARY(name, ...)                                          \
    template <class T>                                                     \
    struct name {                                                          \
        static T f(T a, T b, [[maybe_unused]] T p) { return __VA_ARGS__; } \
    };

FLEXNPU_BINARY(Add, a + p * b)
FLEXNPU_BINARY(Sub, a - p * b)
FLEXNPU_BINARY(Mul, a* b)
FLEXNPU_BINARY(Div, a / b)
FLEXNPU_BINARY(TruncDiv, m_trunc(a / b))
FLEXNPU_BINARY(FloorDiv, floor_div(a, b))
FLEXNPU_BINARY(Remainder, remainder(a, b))
FLEXNPU_BINARY(Fmod, m_fmod(a, b))
FLEXNPU_BINARY(Pow, power(a, b))
FLEXNPU_BINARY(Maximum, maximum(a, b))
FLEXNPU_BINARY(Minimum, minimum(a, b))
FLEXNPU_BINARY(Atan2, m_atan2(a, b))
FLEXNPU_BINARY(LogicalAnd, T(a != 0 && b != 0))
FLEXNPU_BINARY(LogicalOr, T(a != 0 || b != 0))
FLEXNPU_BINARY(LogicalXor, T((a != 0) != (b != 0)))
FLEXNPU_BINARY(Eq, T(a == b))
FLEXNPU_BINARY(Ne, T(a != b))
FLEXNPU_BINARY(Lt, T(a < b))
FLEXNPU_BINARY(Le, T(a <= b))
FLEXNPU_BINARY(Gt, T(a > b))
FLEXNPU_BINARY(Ge, T(a >= b))
FLEXNPU_BINARY(LogAddExp, log_add_exp(a, b))
FLEXNPU_BINARY(LogAddExp2, log_add_exp(a* T(0.69314718055994530942), b* T(0.69314718055994530942)) *
                               T(1.44269504088896340736))
FLEXNPU_BINARY(SiluMul, a / (T(1) + exp_f(-a)) * b)
FLEXNPU_BINARY(XLogY, b != b ? b : a == 0 ? T(0) : a * m_log(b))

FLEXNPU_BINARY(WrapAdd, int64_t(uint64_t(a) + uint64_t(p) * uint64_t(b)))
FLEXNPU_BINARY(WrapSub, int64_t(uint64_t(a) - uint64_t(p) * uint64_t(b)))
FLEXNPU_BINARY(WrapMul, int64_t(uint64_t(a) * uint64_t(b)))
FLEXNPU_BINARY(IntDiv, divide(a, b))
FLEXNPU_BINARY(IntFmod, b == 0 || b == -1 ? 0 : a % b)
FLEXNPU_BINARY(BitAnd, a& b)
FLEXNPU_BINARY(BitOr, a | b)
FLEXNPU_BINARY(BitXor, a ^ b)
FLEXNPU_BINARY(LeftShift, b < 0 || b > 63 ? 0 : int64_t(uint64_t(a) << b))
FLEXNPU_BINARY(RightShift, b < 0 || b > 63 ? (a < 0 ? -1 : 0) : a >> b)
#undef FLEXNPU_BINARY

template <template <class> class F, class T>
void row(T* out, const T* a, const T* b, int64_t n, T p) {
    for (int64_t i = 0; i < n; i++) {
        out[i] = F<T>::f(a[i], b[i], p);
    }
}

template <class T>
void fill_common(RowKernels<T>& k) {
#define FLEXNPU_SET(name) k.binary[int(Binary::name)] = row<name, T>;
    FLEXNPU_SET(FloorDiv)
    FLEXNPU_SET(Remainder)
    FLEXNPU_SET(Pow)
    FLEXNPU_SET(Maximum)
    FLEXNPU_SET(Minimum)
    FLEXNPU_SET(LogicalAnd)
    FLEXNPU_SET(LogicalOr)
    FLEXNPU_SET(LogicalXor)
    FLEXNPU_SET(Eq)
    FLEXNPU_SET(Ne)
    FLEXNPU_SET(Lt)
    FLEXNPU_SET(Le)
    FLEXNPU_SET(Gt)
    FLEXNPU_SET(Ge)
}

template <class T>
void fill_floating(RowKernels<T>& k) {
    fill_common(k);
    FLEXNPU_SET(Add)
    FLEXNPU_SET(Sub)
    FLEXNPU_SET(Mul)
    FLEXNPU_SET(Div)
    FLEXNPU_SET(TruncDiv)
    FLEXNPU_SET(Fmod)
    FLEXNPU_SET(Atan2)
    FLEXNPU_SET(LogAddExp)
    FLEXNPU_SET(LogAddExp2)
    FLEXNPU_SET(SiluMul)
    FLEXNPU_SET(XLogY)
}
#undef FLEXNPU_SET

}  // namespace

void fill_binary(Kernels& k) {
    fill_floating(k.f32);
    fill_floating(k.f64);
    fill_common(k.i64);
    auto& b = k.i64.binary;
    b[int(Binary::Add)] = row<WrapAdd, int64_t>;
    b[int(Binary::Sub)] = row<WrapSub, int64_t>;
    b[int(Binary::Mul)] = row<WrapMul, int64_t>;
    b[int(Binary::TruncDiv)] = row<IntDiv, int64_t>;
    b[int(Binary::Fmod)] = row<IntFmod, int64_t>;
    b[int(Binary::BitAnd)] = row<BitAnd, int64_t>;
    b[int(Binary::BitOr)] = row<BitOr, int64_t>;
    b[int(Binary::BitXor)] = row<BitXor, int64_t>;
    b[int(Binary::LeftShift)] = row<LeftShift, int64_t>;
    b[int(Binary::RightShift)] = row<RightShift, int64_t>;
}

}  // namespace flexnpu::ops::FLEXNPU_ISA
