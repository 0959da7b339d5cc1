// Inner loops of the operators, compiled once for each instruction set and chosen once for the machine.
//
// Everything here works on contiguous rows and raw pointers; shapes, strides and element types are the
// business of the layer above (iterate.hpp), which brings rows into one of three compute types:
//   float    float32, float16 and bfloat16 (each operator rounds once, when it stores its result)
//   double   float64
//   int64_t  integers and booleans
//
// The same input gives the same bits in any thread and process of a machine: no loop depends on the address
// or on the number of threads, and every sum has a fixed order.
//
// The sources are compiled with instruction-set flags, so they use no inline function of the standard
// library: such a function could be merged by the linker with a copy that the machine must run without these
// instructions.
#pragma once

#include <cstdint>

namespace flexnpu::ops {

// clang-format off
#define FLEXNPU_UNARY_LIST(X) \
    X(Copy) X(Neg) X(Abs) X(Sign) X(Square) X(Sqrt) X(Rsqrt) X(Reciprocal) \
    X(Exp) X(Exp2) X(Expm1) X(Log) X(Log2) X(Log10) X(Log1p) \
    X(Sin) X(Cos) X(Tan) X(Asin) X(Acos) X(Atan) X(Sinh) X(Cosh) X(Tanh) X(Asinh) X(Acosh) X(Atanh) \
    X(Erf) X(Erfc) X(Erfinv) X(Floor) X(Ceil) X(Round) X(Trunc) X(Frac) \
    X(Sigmoid) X(Silu) X(Relu) X(Gelu) X(GeluTanh) X(LogSigmoid) X(Mish) X(Softplus) \
    X(HardSigmoid) X(HardSwish) X(LeakyRelu) X(Elu) X(Celu) X(Clamp) X(ClampMin) X(ClampMax) \
    X(PowScalar) X(ScalarPow) X(Affine) X(BitNot) X(LogicalNot) \
    X(IsFinite) X(IsInf) X(IsPosInf) X(IsNegInf) X(SignBit) X(Threshold)

#define FLEXNPU_BINARY_LIST(X) \
    X(Add) X(Sub) X(Mul) X(Div) X(TruncDiv) X(FloorDiv) X(Remainder) X(Fmod) X(Pow) X(Maximum) X(Minimum) \
    X(Atan2) X(BitAnd) X(BitOr) X(BitXor) X(LeftShift) X(RightShift) X(LogicalAnd) X(LogicalOr) \
    X(LogicalXor) X(Eq) X(Ne) X(Lt) X(Le) X(Gt) X(Ge) X(LogAddExp) X(LogAddExp2) X(SiluMul) X(XLogY)
// clang-format on

#define FLEXNPU_ENUMERATOR(name) name,
enum class Unary : int { FLEXNPU_UNARY_LIST(FLEXNPU_ENUMERATOR) kCount };
enum class Binary : int { FLEXNPU_BINARY_LIST(FLEXNPU_ENUMERATOR) kCount };
#undef FLEXNPU_ENUMERATOR

// out[i] = f(a[i]); p and q are the operator's constants (bounds of a clamp, an exponent ...). out may be a.
template <class T>
using UnaryFn = void (*)(T* out, const T* a, int64_t n, T p, T q);
// out[i] = f(a[i], b[i]); p is alpha of an addition or subtraction. Comparisons give 0 or 1. out may be a or
// b.
template <class T>
using BinaryFn = void (*)(T* out, const T* a, const T* b, int64_t n, T p);

// C[m,n] = A[m,k] * B[k,n] in float32. A is row-major with unit column stride; C is row-major and
// overwritten. B has any strides and one of the three narrow types. Each element is one sum in ascending k:
// its bits do not depend on m, so a row computed alone equals the same row computed in a batch.
struct Gemm {
    int64_t m, n, k;
    const float* a;
    int64_t lda;
    const void* b;
    int32_t b_dtype;
    int64_t b_row, b_col;  // strides of B in elements, along k and along n
    float* c;
    int64_t ldc;
    float* scratch;  // gemm_scratch(n) floats
};

template <class T>
struct RowKernels {
    // Loads n elements of `dtype`, `stride` bytes apart, into a contiguous row; stores one.
    void (*load)(T* out, const void* in, int32_t dtype, int64_t stride, int64_t n);
    void (*store)(const T* in, void* out, int32_t dtype, int64_t stride, int64_t n);
    UnaryFn<T> unary[static_cast<int>(Unary::kCount)];  // null where the type does not know the function
    BinaryFn<T> binary[static_cast<int>(Binary::kCount)];
    T (*sum)(const T* a, int64_t n);
    T (*max)(const T* a, int64_t n);  // NaN if any is
    T (*min)(const T* a, int64_t n);
    void (*where)(T* out, const uint8_t* condition, const T* a, const T* b, int64_t n);
};

struct Kernels {
    const char* isa;
    RowKernels<float> f32;
    RowKernels<double> f64;
    RowKernels<int64_t> i64;
    // out[i] = exp(a[i] - shift); returns the sum. out may be a.
    float (*exp_sum)(float* out, const float* a, int64_t n, float shift);
    void (*scale)(float* a, int64_t n, float factor);
    float (*dot)(const float* a, const float* b, int64_t n);
    void (*gemm)(const Gemm&);
    int64_t (*gemm_scratch)(int64_t n);

    template <class T>
    const RowKernels<T>& rows() const {
        if constexpr (sizeof(T) == sizeof(float)) {
            return f32;
        } else if constexpr (T(0.5) == T(0)) {
            return i64;
        } else {
            return f64;
        }
    }
};

// AVX-512 gains nothing over AVX2 on the machines measured (Zen 4: 76 against 75 GFLOP/s on one core), so it
// has no set. The best set for this machine, or the one named by FLEXNPU_EMU_ISA (baseline, avx2) where it
// can run.
const Kernels& kernels();

}  // namespace flexnpu::ops
