// Names and vector types of the instruction set that a source is being compiled for. FLEXNPU_ISA is its
// namespace.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "flexnpu/api/acl_consts.h"
#include "kernels.hpp"

#if defined(__F16C__)
#include <immintrin.h>
#endif

#ifndef FLEXNPU_ISA
#error "compile with -DFLEXNPU_ISA=<namespace>"
#endif

namespace flexnpu::ops::FLEXNPU_ISA {

#if defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

using vec = float __attribute__((vector_size(kLanes * 4)));
using vec_u = float __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

static inline vec load(const float* p) { return *reinterpret_cast<const vec_u*>(p); }
static inline void store(float* p, vec v) { *reinterpret_cast<vec_u*>(p) = v; }

// Fused where the instruction set has it. The sources are compiled with -ffp-contract=off, so that what is
// fused is written down and does not change with the loop's shape.
static inline float fma_f(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

static inline uint32_t bits_of(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}
static inline float float_of(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static inline float bf16_to_float(uint16_t h) { return float_of(uint32_t(h) << 16); }

// To nearest, ties to even; NaN stays NaN.
static inline uint16_t float_to_bf16(float x) {
    const uint32_t u = bits_of(x);
    const uint32_t rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
    return uint16_t((u & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
}

static inline float half_to_float(uint16_t h) {
#if defined(__F16C__)
    return _cvtsh_ss(h);
#elif defined(__aarch64__)
    __fp16 x;
    memcpy(&x, &h, sizeof x);
    return x;
#else
    const uint32_t sign = uint32_t(h & 0x8000u) << 16;
    const uint32_t magnitude = h & 0x7FFFu;
    if (magnitude >= 0x7C00u) {
        return float_of(sign | 0x7F800000u | ((magnitude & 0x3FFu) << 13));
    }
    // Scaling by 2^112 puts the exponent right and normalises subnormal numbers.
    return float_of(bits_of(float_of(magnitude << 13) * 0x1p112f) | sign);
#endif
}

static inline uint16_t float_to_half(float x) {
#if defined(__F16C__)
    return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__aarch64__)
    const __fp16 h = static_cast<__fp16>(x);
    uint16_t u;
    memcpy(&u, &h, sizeof u);
    return u;
#else
    const uint32_t u = bits_of(x);
    const uint16_t sign = uint16_t((u >> 16) & 0x8000u);
    const uint32_t magnitude = u & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) {
        return uint16_t(sign | 0x7E00u);
    }
    if (magnitude >= 0x477FF000u) {  // rounds to 65536 or more
        return uint16_t(sign | 0x7C00u);
    }
    if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 leaves the rounded value in the low bits
        return uint16_t(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3F000000u));
    }
    return uint16_t(sign | ((magnitude + 0xFFFu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13));
#endif
}

// Each source fills its part of the table.
void fill_convert(Kernels&);
void fill_unary(Kernels&);
void fill_binary(Kernels&);
void fill_reduce(Kernels&);
void fill_gemm(Kernels&);

// Loads a contiguous row of float32, float16 or bfloat16.
void load_narrow(float* out, const void* in, int32_t dtype, int64_t n);

}  // namespace flexnpu::ops::FLEXNPU_ISA
