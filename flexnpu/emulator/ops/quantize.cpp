// Quantisation to int8: with given scales, or with a scale computed for each line.
#include <cmath>

#include "iterate.hpp"
#include "registry.hpp"

namespace flexnpu::ops {
namespace {

constexpr int64_t kInt8 = acl::INT8;
constexpr float kHighest = 127, kLowest = -128;

float saturated(float x) { return std::isnan(x) ? 0 : std::clamp(x, kLowest, kHighest); }

using Round = float (*)(float);

Round rounding(Call& call, const std::string& mode) {
    if (mode.empty() || mode == "round") return [](float x) { return std::nearbyint(x); };  // halves to even
    if (mode == "floor") return [](float x) { return std::floor(x); };
    if (mode == "ceil") return [](float x) { return std::ceil(x); };
    if (mode == "trunc") return [](float x) { return std::trunc(x); };
    call.fail("rounding mode %s is not emulated", mode.c_str());
}

// A scale or offset, of one element or of the axis's size, in x's shape.
Tensor along_axis(Call& call, Tensor t, const Tensor& x, int axis, const char* what) {
    call.require(is_floating(t.dtype), "%s must be floating-point", what);
    if (t.numel() == x.dims[axis] && t.rank == 1) {
        for (int d = axis + 1; d < x.rank; d++) {
            t = t.unsqueezed(t.rank);
        }
    }
    call.require_broadcast(x, {&t});
    return t.expanded(x);
}

// y = round(x * scale + offset), x * scale^2 in square root mode.
Job quantize(Call& call, int64_t axis_argument, int64_t type, const Tensor& y) {
    const Tensor x = call.tensor(0);
    call.require(is_floating(x.dtype), "needs a floating-point tensor");
    call.require(type == kInt8 && y.dtype == acl::INT8, "only int8 is emulated");
    call.require_shape(y, x, "the output");
    call.require(x.rank >= 1, "needs a dimension");
    const int axis = call.dimension(axis_argument, x);
    const Tensor scale = along_axis(call, call.tensor(1), x, axis, "the scale");
    const bool has_offset = call.has(2), square = call.boolean(3);
    const Tensor offset = has_offset ? along_axis(call, call.tensor(2), x, axis, "the offset") : scale;
    const Round round = rounding(call, call.text(4));
    return [=] {
        const Loop loop = make_loop({&y, &x, &scale, &offset});
        float value[kChunk], factor[kChunk], shift[kChunk];
        for_each_chunk(loop, [&](char* const p[], const int64_t stride[], int64_t n) {
            kernels().f32.load(value, p[1], x.dtype, stride[1], n);
            kernels().f32.load(factor, p[2], scale.dtype, stride[2], n);
            kernels().f32.load(shift, p[3], offset.dtype, stride[3], n);
            for (int64_t i = 0; i < n; i++) {
                const float scaled = value[i] * factor[i] * (square ? factor[i] : 1);
                value[i] = saturated(round(scaled + (has_offset ? shift[i] : 0)));
            }
            kernels().f32.store(value, p[0], y.dtype, stride[0], n);
        });
        return 0;
    };
}

// x, smoothing factors or null, groups or null, type, y, scale (a line), offset (a line) or null. Without an
// offset y = round(x / scale) with scale = max |x| / 127; with one y = round(x / scale + offset) from -128 to
// 127.
Job dynamic_quantize(Call& call, uint32_t y_at, bool groups) {
    const Tensor x = call.tensor(0), y = call.tensor(y_at), scale = call.tensor(y_at + 1);
    call.require(is_floating(x.dtype), "needs a floating-point tensor");
    call.require(!groups || !call.has(2), "groups of smoothing factors are not emulated");
    call.require(y.dtype == acl::INT8, "only int8 is emulated");
    call.require(x.rank >= 2, "needs at least 2 dimensions");
    call.require_shape(y, x, "the output");
    const int64_t n = x.dim(-1);
    const Tensor per_line = x.without({x.rank - 1});
    call.require(scale.dtype == acl::FLOAT, "the scale must be float32");
    call.require_shape(scale, per_line, "the scale");
    const bool smooth = call.has(1), has_offset = groups && call.has(y_at + 2);
    Tensor factors, offset = scale;
    if (smooth) {
        factors = call.tensor(1);
        call.require(factors.rank == 1 && factors.numel() == n && is_floating(factors.dtype),
                     "the smoothing factors do not fit");
    }
    if (has_offset) {
        offset = call.tensor(y_at + 2);
        call.require(offset.dtype == acl::FLOAT, "the offset must be float32");
        call.require_shape(offset, per_line, "the offset");
    }
    call.cost.vector_flops = 3 * static_cast<double>(x.numel());
    return [=] {
        const auto row = buffer<float>(n), factor = buffer<float>(n);
        if (smooth) {
            Line{factors.data, factors.dtype, 1, factors.dims.data(), factors.strides.data(), n}.load(
                factor.get());
        }
        for_each_line({Lined{y, 1}, Lined{x, 1}, Lined{scale, 0}, Lined{offset, 0}}, [&](const Line lines[]) {
            lines[1].load(row.get());
            float low = 0, high = 0;
            for (int64_t i = 0; i < n; i++) {
                row[i] *= smooth ? factor[i] : 1;
                low = i ? std::min(low, row[i]) : row[i];
                high = i ? std::max(high, row[i]) : row[i];
            }
            float step, shift = 0;
            if (has_offset) {
                step = (high - low) / (kHighest - kLowest);
                shift = kHighest - (step == 0 ? 0 : high / step);
            } else {
                step = std::max(std::abs(low), std::abs(high)) / kHighest;
            }
            for (int64_t i = 0; i < n; i++) {
                row[i] = saturated(std::nearbyint((step == 0 ? 0 : row[i] / step) + shift));
            }
            lines[0].store(row.get());
            lines[2].store(&step);
            if (has_offset) {
                lines[3].store(&shift);
            }
        });
        return 0;
    };
}

OPERATOR("aclnnAscendQuant", [](Call& call) {  // x, scale, offset, sqrt mode, round mode, type, y
    return quantize(call, -1, call.integer(5), call.tensor(6));
});
OPERATOR("aclnnAscendQuantV3", [](Call& call) {  // x, scale, offset, sqrt mode, round mode, type, axis, y
    return quantize(call, call.integer(6), call.integer(5), call.tensor(7));
});
OPERATOR("aclnnDynamicQuant", [](Call& call) {  // x, smoothing factors, y, scale
    return dynamic_quantize(call, 2, false);
});
OPERATOR("aclnnDynamicQuantV2", [](Call& call) {  // x, smoothing factors, groups, type, y, scale, offset
    call.require(call.integer(3) == kInt8, "only int8 is emulated");
    return dynamic_quantize(call, 4, true);
});

}  // namespace
}  // namespace flexnpu::ops
