// Elementwise operators of three inputs, and those that choose or compare: addcmul, lerp, where, masked fill,
// clamp by tensors, is-close, NaN to number, equal.
#include <cmath>

#include "elementwise.hpp"

namespace flexnpu::ops {
namespace {

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

// NaN in the value or in a bound gives NaN, as in torch.
Job clamp_tensor(Call& call) {  // self, lower bound, upper bound, out
    const Tensor self = call.tensor(0), out = call.tensor(3);
    call.require(call.has(1) || call.has(2), "needs a lower or an upper bound");
    if (!call.has(1)) {
        return binary_job(call, Binary::Minimum, self, call.tensor(2), out, {acl::INT64, 1, 1}, false);
    }
    if (!call.has(2)) {
        return binary_job(call, Binary::Maximum, self, call.tensor(1), out, {acl::INT64, 1, 1}, false);
    }
    return ternary_job(call, out, self, call.tensor(1), call.tensor(2),
                       [](auto* to, const auto* x, const auto* low, const auto* high, int64_t n) {
                           for (int64_t i = 0; i < n; i++) {
                               const auto v = x[i] < low[i] || low[i] != low[i] ? low[i] : x[i];
                               to[i] = v > high[i] || (high[i] != high[i] && x[i] == x[i]) ? high[i] : v;
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

OPERATOR("aclnnClampTensor", clamp_tensor);
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
