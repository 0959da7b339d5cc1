// Elementary functions in a form that the compiler turns into vector code. Everything else calls libm element
// by element.
#pragma once

#include "isa.hpp"

namespace flexnpu::ops::FLEXNPU_ISA {

// exp(x) to about 1 ulp: x = n ln2 + r with |r| <= ln2/2, a polynomial for e^r (the coefficients of the
// Cephes library's expf), and a multiplication by 2^n in two halves so that subnormal results come out right.
static inline float exp_f(float x) {
    float c = x > 89.0f ? 89.0f : x;  // comparisons in this order let NaN through
    c = c < -104.0f ? -104.0f : c;
    const float shifted = fma_f(c, 1.44269504088896341f, 12582912.0f);  // 1.5 * 2^23: rounds to an integer
    const float n = shifted - 12582912.0f;
    float r = fma_f(n, -0.693359375f, c);
    r = fma_f(n, 2.12194440e-4f, r);
    float p = 1.9875691500e-4f;
    p = fma_f(p, r, 1.3981999507e-3f);
    p = fma_f(p, r, 8.3334519073e-3f);
    p = fma_f(p, r, 4.1665795894e-2f);
    p = fma_f(p, r, 1.6666665459e-1f);
    p = fma_f(p, r, 5.0000001201e-1f);
    p = fma_f(p, r * r, r) + 1.0f;
    const int32_t exponent = int32_t(bits_of(shifted)) - 0x4B400000;
    const int32_t half = exponent >> 1;
    const float s1 = float_of(uint32_t(half + 127) << 23);
    const float s2 = float_of(uint32_t(exponent - half + 127) << 23);
    const float y = p * s1 * s2;
    return x != x ? x : y;
}

static inline double exp_f(double x) { return __builtin_exp(x); }

static inline float sigmoid_f(float x) { return 1.0f / (1.0f + exp_f(-x)); }
static inline double sigmoid_f(double x) { return 1.0 / (1.0 + exp_f(-x)); }

static inline float fma_t(float a, float b, float c) { return fma_f(a, b, c); }
static inline double fma_t(double a, double b, double c) { return a * b + c; }

}  // namespace flexnpu::ops::FLEXNPU_ISA
