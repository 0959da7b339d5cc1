// Sums, extremes, exponentials of a row. A sum keeps 64 partial sums, whatever the vector length, and adds
// them in a fixed order.
#include "math.hpp"

namespace flexnpu::ops::FLEXNPU_ISA {
namespace {

constexpr int kParts = 64;

// Adds the parts pairwise, which also keeps the rounding error small.
template <class T>
T fold(T* part) {
    for (int width = kParts / 2; width > 0; width /= 2) {
        for (int j = 0; j < width; j++) {
            part[j] += part[j + width];
        }
    }
    return part[0];
}

template <class T>
T sum(const T* a, int64_t n) {
    T part[kParts] = {};
    int64_t i = 0;
    for (; i + kParts <= n; i += kParts) {
        for (int j = 0; j < kParts; j++) {
            part[j] += a[i + j];
        }
    }
    for (int j = 0; i < n; i++, j++) {
        part[j] += a[i];
    }
    return fold(part);
}

template <class T, bool kMax>
T extreme(const T* a, int64_t n) {
    T part[kParts];
    for (int j = 0; j < kParts; j++) {
        part[j] = a[0];
    }
    int64_t i = 0;
    for (; i + kParts <= n; i += kParts) {
        for (int j = 0; j < kParts; j++) {
            const T x = a[i + j];
            part[j] = (kMax ? x > part[j] : x < part[j]) || x != x ? x : part[j];
        }
    }
    for (; i < n; i++) {
        const T x = a[i];
        part[0] = (kMax ? x > part[0] : x < part[0]) || x != x ? x : part[0];
    }
    // A NaN in a part may have been replaced by nothing: no comparison with it holds, so it stays.
    T best = part[0];
    for (int j = 1; j < kParts; j++) {
        const T x = part[j];
        best = best != best ? best : (kMax ? x > best : x < best) || x != x ? x : best;
    }
    return best;
}

float exp_sum(float* out, const float* a, int64_t n, float shift) {
    for (int64_t i = 0; i < n; i++) {
        out[i] = exp_f(a[i] - shift);
    }
    return sum(out, n);
}

void scale(float* a, int64_t n, float factor) {
    for (int64_t i = 0; i < n; i++) {
        a[i] *= factor;
    }
}

template <class T>
void where(T* out, const uint8_t* condition, const T* a, const T* b, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        out[i] = condition[i] ? a[i] : b[i];
    }
}

template <class T>
void fill(RowKernels<T>& k) {
    k.sum = sum<T>;
    k.max = extreme<T, true>;
    k.min = extreme<T, false>;
    k.where = where<T>;
}

}  // namespace

void fill_reduce(Kernels& k) {
    fill(k.f32);
    fill(k.f64);
    fill(k.i64);
    k.exp_sum = exp_sum;
    k.scale = scale;
}

}  // namespace flexnpu::ops::FLEXNPU_ISA
