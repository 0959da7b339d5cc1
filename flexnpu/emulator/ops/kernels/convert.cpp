// Loading rows of any element type into a compute type, and storing them.
#include "isa.hpp"

namespace flexnpu::ops::FLEXNPU_ISA {
namespace {

// One tag a storage type: how to read and write an element as float, double or int64.
struct Half {
    using raw = uint16_t;
    static float get(raw h) { return half_to_float(h); }
    static raw put(float x) { return float_to_half(x); }
};
struct Brain {
    using raw = uint16_t;
    static float get(raw h) { return bf16_to_float(h); }
    static raw put(float x) { return float_to_bf16(x); }
};
template <class T>
struct Plain {
    using raw = T;
    static T get(raw x) { return x; }
    template <class S>
    static raw put(S x) {
        return static_cast<T>(x);
    }
};
struct Boolean {
    using raw = uint8_t;
    static int64_t get(raw x) { return x != 0; }
    template <class S>
    static raw put(S x) {
        return x != S(0);
    }
};

// A floating-point value outside an integer type's range has no defined conversion in C++; 64 bits first
// keeps what the CPU backend of torch does for the narrow types. NaN and what does not fit 64 bits become the
// least value, as on x86.
template <class Tag, class T>
inline typename Tag::raw put(T x) {
    using raw = typename Tag::raw;
    if constexpr (__is_same(Tag, Half) || __is_same(Tag, Brain)) {
        return Tag::put(static_cast<float>(x));
    } else if constexpr (!__is_same(Tag, Boolean) && raw(0.5f) == raw(0) && T(0.5f) != T(0)) {
        const bool fits = x >= T(-0x1p63) && x < T(0x1p63);
        return static_cast<raw>(fits ? static_cast<int64_t>(x) : INT64_MIN);
    } else {
        return Tag::put(x);
    }
}

template <class Tag, class T>
void load_row(T* __restrict out, const char* in, int64_t stride, int64_t n) {
    using raw = typename Tag::raw;
    if (stride == int64_t(sizeof(raw))) {
        const raw* p = reinterpret_cast<const raw*>(in);
        for (int64_t i = 0; i < n; i++) {
            out[i] = static_cast<T>(Tag::get(p[i]));
        }
    } else if (stride == 0) {
        raw x;
        memcpy(&x, in, sizeof x);
        const T v = static_cast<T>(Tag::get(x));
        for (int64_t i = 0; i < n; i++) {
            out[i] = v;
        }
    } else {
        for (int64_t i = 0; i < n; i++) {
            raw x;
            memcpy(&x, in + i * stride, sizeof x);
            out[i] = static_cast<T>(Tag::get(x));
        }
    }
}

template <class Tag, class T>
void store_row(const T* __restrict in, char* out, int64_t stride, int64_t n) {
    using raw = typename Tag::raw;
    if (stride == int64_t(sizeof(raw))) {
        raw* p = reinterpret_cast<raw*>(out);
        for (int64_t i = 0; i < n; i++) {
            p[i] = put<Tag>(in[i]);
        }
    } else {
        for (int64_t i = 0; i < n; i++) {
            const raw x = put<Tag>(in[i]);
            memcpy(out + i * stride, &x, sizeof x);
        }
    }
}

void load_half(float* out, const uint16_t* in, int64_t n) {
    int64_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= n; i += 8) {
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i))));
    }
#endif
    for (; i < n; i++) {
        out[i] = half_to_float(in[i]);
    }
}

void store_half(const float* in, uint16_t* out, int64_t n) {
    int64_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= n; i += 8) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT));
    }
#endif
    for (; i < n; i++) {
        out[i] = float_to_half(in[i]);
    }
}

template <class T>
void load_any(T* out, const void* in, int32_t dtype, int64_t stride, int64_t n) {
    const char* p = static_cast<const char*>(in);
    if constexpr (__is_same(T, float)) {
        if (dtype == acl::FLOAT16 && stride == 2) {
            return load_half(out, static_cast<const uint16_t*>(in), n);
        }
    }
    switch (dtype) {
        case acl::FLOAT: return load_row<Plain<float>>(out, p, stride, n);
        case acl::FLOAT16: return load_row<Half>(out, p, stride, n);
        case acl::BF16: return load_row<Brain>(out, p, stride, n);
        case acl::DOUBLE: return load_row<Plain<double>>(out, p, stride, n);
        case acl::INT8: return load_row<Plain<int8_t>>(out, p, stride, n);
        case acl::UINT8: return load_row<Plain<uint8_t>>(out, p, stride, n);
        case acl::INT16: return load_row<Plain<int16_t>>(out, p, stride, n);
        case acl::UINT16: return load_row<Plain<uint16_t>>(out, p, stride, n);
        case acl::INT32: return load_row<Plain<int32_t>>(out, p, stride, n);
        case acl::UINT32: return load_row<Plain<uint32_t>>(out, p, stride, n);
        case acl::INT64: return load_row<Plain<int64_t>>(out, p, stride, n);
        case acl::UINT64: return load_row<Plain<uint64_t>>(out, p, stride, n);
        case acl::BOOL: return load_row<Boolean>(out, p, stride, n);
        default: __builtin_trap();  // refused when the operator was validated
    }
}

template <class T>
void store_any(const T* in, void* out, int32_t dtype, int64_t stride, int64_t n) {
    char* p = static_cast<char*>(out);
    if constexpr (__is_same(T, float)) {
        if (dtype == acl::FLOAT16 && stride == 2) {
            return store_half(in, static_cast<uint16_t*>(out), n);
        }
    }
    switch (dtype) {
        case acl::FLOAT: return store_row<Plain<float>>(in, p, stride, n);
        case acl::FLOAT16: return store_row<Half>(in, p, stride, n);
        case acl::BF16: return store_row<Brain>(in, p, stride, n);
        case acl::DOUBLE: return store_row<Plain<double>>(in, p, stride, n);
        case acl::INT8: return store_row<Plain<int8_t>>(in, p, stride, n);
        case acl::UINT8: return store_row<Plain<uint8_t>>(in, p, stride, n);
        case acl::INT16: return store_row<Plain<int16_t>>(in, p, stride, n);
        case acl::UINT16: return store_row<Plain<uint16_t>>(in, p, stride, n);
        case acl::INT32: return store_row<Plain<int32_t>>(in, p, stride, n);
        case acl::UINT32: return store_row<Plain<uint32_t>>(in, p, stride, n);
        case acl::INT64: return store_row<Plain<int64_t>>(in, p, stride, n);
        case acl::UINT64: return store_row<Plain<uint64_t>>(in, p, stride, n);
        case acl::BOOL: return store_row<Boolean>(in, p, stride, n);
        default: __builtin_trap();
    }
}

}  // namespace

void load_narrow(float* out, const void* in, int32_t dtype, int64_t n) {
    load_any<float>(out, in, dtype, dtype == acl::FLOAT ? 4 : 2, n);
}

void fill_convert(Kernels& k) {
    k.f32.load = load_any<float>;
    k.f64.load = load_any<double>;
    k.i64.load = load_any<int64_t>;
    k.f32.store = store_any<float>;
    k.f64.store = store_any<double>;
    k.i64.store = store_any<int64_t>;
}

}  // namespace flexnpu::ops::FLEXNPU_ISA
