// Convolutions of one to three spatial dimensions, and their gradients.
//
// Each is a product of matrices for every image and group: the weights [Co/g, Ci/g * kernel] and the columns
// [Ci/g * kernel, positions], where the column of a position holds what the kernel sees there. Summed in
// float32 and rounded once, as products are; cubeMathType is not looked at. A transposed convolution is the
// gradient of a plain one from its output to its input, with the same weights. Cost: 2 * (elements of the
// plain convolution's output) * Ci/g * kernel on the cube unit, for each product.
#include "product.hpp"
#include "registry.hpp"

namespace flexnpu::ops {
namespace {

constexpr int kSpatial = 3;
using Spatial = std::array<int64_t, kSpatial>;

// A plain convolution from x [n, ci, in] to y [n, co, out]; fewer spatial dimensions than three are ones in
// front.
struct Plain {
    int64_t n, ci, co, groups;
    Spatial in, out, kernel, stride{1, 1, 1}, padding{}, dilation{1, 1, 1};

    static int64_t size(const Spatial& s) { return s[0] * s[1] * s[2]; }
    int64_t depth() const { return ci / groups * size(kernel); }  // rows of the columns
    int64_t positions() const { return size(out); }
    double flops() const {
        return 2.0 * static_cast<double>(n * co * positions()) * static_cast<double>(depth());
    }

    // f(row, position, where in the group's input) for all that the kernel sees within the image.
    template <class F>
    void each(F f) const {
        int64_t row = 0;
        for (int64_t c = 0; c < ci / groups; c++) {
            for (int64_t k = 0; k < size(kernel); k++, row++) {
                const Spatial at{k / (kernel[1] * kernel[2]), k / kernel[2] % kernel[1], k % kernel[2]};
                int64_t position = 0;
                for (int64_t a = 0; a < out[0]; a++) {
                    const int64_t i = a * stride[0] - padding[0] + at[0] * dilation[0];
                    for (int64_t b = 0; b < out[1]; b++) {
                        const int64_t j = b * stride[1] - padding[1] + at[1] * dilation[1];
                        const bool inside = i >= 0 && i < in[0] && j >= 0 && j < in[1];
                        for (int64_t d = 0; d < out[2]; d++, position++) {
                            const int64_t l = d * stride[2] - padding[2] + at[2] * dilation[2];
                            if (inside && l >= 0 && l < in[2]) {
                                f(row, position, ((c * in[0] + i) * in[1] + j) * in[2] + l);
                            }
                        }
                    }
                }
            }
        }
    }

    // f(x of the image and group, y of them, first output channel of the group)
    template <class F>
    void each_group(float* x, float* y, F f) const {
        for (int64_t i = 0; i < n; i++) {
            for (int64_t g = 0; g < groups; g++) {
                const int64_t first = g * (co / groups);
                f(x + (i * ci + g * (ci / groups)) * size(in), y + (i * co + first) * positions(), first);
            }
        }
    }
    void columns(const float* x, float* to) const {
        std::fill(to, to + depth() * positions(), 0.0F);
        each([&](int64_t row, int64_t position, int64_t where) {
            to[row * positions() + position] = x[where];
        });
    }
    static Matrix rows(const float* p, int64_t m, int64_t n) {
        return {reinterpret_cast<char*>(const_cast<float*>(p)), acl::FLOAT, m, n, n, 1};
    }
    static Matrix turned(const float* p, int64_t m, int64_t n) {
        return {reinterpret_cast<char*>(const_cast<float*>(p)), acl::FLOAT, n, m, 1, n};
    }

    void forward(float* x, const float* w, float* y) const {
        const auto seen = buffer<float>(depth() * positions());
        each_group(x, y, [&](const float* from, float* to, int64_t first) {
            columns(from, seen.get());
            product(rows(w + first * depth(), co / groups, depth()), rows(seen.get(), depth(), positions()),
                    to, positions());
        });
    }
    void input_gradient(float* dx, const float* w, float* dy) const {
        std::fill(dx, dx + n * ci * size(in), 0.0F);
        const auto seen = buffer<float>(depth() * positions());
        each_group(dx, dy, [&](float* to, const float* from, int64_t first) {
            product(turned(w + first * depth(), co / groups, depth()), rows(from, co / groups, positions()),
                    seen.get(), positions());
            each([&](int64_t row, int64_t position, int64_t where) {
                to[where] += seen[row * positions() + position];
            });
        });
    }
    void weight_gradient(float* x, float* dw, float* dy) const {
        std::fill(dw, dw + co * depth(), 0.0F);
        const auto seen = buffer<float>(depth() * positions());
        const auto one = buffer<float>(co / groups * depth());
        each_group(x, dy, [&](const float* from, const float* grad, int64_t first) {
            columns(from, seen.get());
            product(rows(grad, co / groups, positions()), turned(seen.get(), depth(), positions()), one.get(),
                    depth());
            for (int64_t i = 0; i < co / groups * depth(); i++) {
                dw[first * depth() + i] += one[i];
            }
        });
    }
};

std::unique_ptr<float[]> floats(const Tensor& t) {
    auto out = buffer<float>(t.numel());
    copy_tensor(dense_like(t, out.get(), acl::FLOAT), t);
    return out;
}
void put(const Tensor& out, float* from) { copy_tensor(out, dense_like(out, from, acl::FLOAT)); }

// Where the arguments that say how it is done begin.
struct At {
    uint32_t stride, padding, dilation, transposed, groups;
};

struct Convolution {
    Plain plain;
    bool transposed = false;

    // `x`: what goes in, `y`: what comes out, of the convolution as it is named.
    Convolution(Call& call, const Tensor& x, const Tensor& w, const Tensor& y, const At& at) {
        const int spatial = x.rank - 2;
        call.require(spatial >= 1 && spatial <= kSpatial, "an input of %d dimensions: it must be 3 to 5",
                     x.rank);
        call.require(w.rank == x.rank && y.rank == x.rank,
                     "input %s, weight %s and output %s must have as many dimensions", x.shape().c_str(),
                     w.shape().c_str(), y.shape().c_str());
        for (const Tensor* t : {&x, &w, &y}) {
            call.require(t->dtype == acl::FLOAT || t->dtype == acl::FLOAT16 || t->dtype == acl::BF16,
                         "cannot convolve %s", dtype_name(t->dtype));
        }
        transposed = call.boolean(at.transposed);
        plain.groups = call.integer(at.groups);
        const Tensor& from = transposed ? y : x;
        const Tensor& to = transposed ? x : y;
        plain.n = x.dims[0];
        plain.ci = from.dims[1];
        plain.co = to.dims[1];
        call.require(plain.groups >= 1 && plain.ci % plain.groups == 0 && plain.co % plain.groups == 0,
                     "%lld groups of %lld and %lld channels", static_cast<long long>(plain.groups),
                     static_cast<long long>(plain.ci), static_cast<long long>(plain.co));
        call.require(y.dims[0] == x.dims[0] && w.dims[0] == plain.co && w.dims[1] == plain.ci / plain.groups,
                     "a weight of %s does not lead from %s to %s in %lld groups", w.shape().c_str(),
                     x.shape().c_str(), y.shape().c_str(), static_cast<long long>(plain.groups));
        plain.in.fill(1);
        plain.out.fill(1);
        plain.kernel.fill(1);
        const auto of = [&](uint32_t i, int d, int64_t fallback) {
            const std::vector<int64_t> all = call.ints(i);
            if (all.empty()) {
                return fallback;
            }
            // Twice as many of a padding: before and behind, of which the output's size tells the second.
            const size_t step = all.size() == 2 * size_t(spatial) ? 2 : 1;
            call.require(all.size() == 1 || all.size() == size_t(spatial) * step,
                         "%zu numbers for %d spatial dimensions", all.size(), spatial);
            return all.size() == 1 ? all[0] : all[size_t(d) * step];
        };
        for (int d = 0; d < spatial; d++) {
            const size_t s = size_t(kSpatial) - size_t(spatial) + size_t(d);
            plain.in[s] = from.dims[size_t(d) + 2];
            plain.out[s] = to.dims[size_t(d) + 2];
            plain.kernel[s] = w.dims[size_t(d) + 2];
            plain.stride[s] = of(at.stride, d, 1);
            plain.padding[s] = of(at.padding, d, 0);
            plain.dilation[s] = of(at.dilation, d, 1);
            call.require(plain.stride[s] >= 1 && plain.dilation[s] >= 1 && plain.padding[s] >= 0 &&
                             plain.kernel[s] >= 1,
                         "stride, dilation and kernel must be positive, padding not negative");
            call.require(plain.out[s] <= plain.in[s] + 2 * plain.padding[s],
                         "the output %s is larger than the input %s allows", y.shape().c_str(),
                         x.shape().c_str());
        }
    }
};

Job convolution(Call& call) {  // input, weight, bias, stride, padding, dilation, transposed, output padding,
                               // groups, out, cubeMathType
    const Tensor x = call.tensor(0), w = call.tensor(1), y = call.tensor(9);
    const Convolution c(call, x, w, y, {3, 4, 5, 6, 8});
    const bool has_bias = call.has(2);
    const Tensor bias = has_bias ? call.tensor(2) : Tensor{};
    call.require(!has_bias || bias.numel() == y.dims[1], "a bias of %s for %lld channels",
                 bias.shape().c_str(), static_cast<long long>(y.dims[1]));
    call.cost.cube_flops = c.plain.flops();
    call.cost.cube_dtype = x.dtype;
    return [=] {
        const auto in = floats(x), weights = floats(w), out = buffer<float>(y.numel());
        if (c.transposed) {
            c.plain.input_gradient(out.get(), weights.get(), in.get());
        } else {
            c.plain.forward(in.get(), weights.get(), out.get());
        }
        if (has_bias && y.numel() > 0) {
            const auto b = floats(bias);
            const int64_t channels = y.dims[1], each = y.numel() / (y.dims[0] * channels);
            for (int64_t i = 0; i < y.numel(); i++) {
                out[i] += b[i / each % channels];
            }
        }
        put(y, out.get());
        return 0;
    };
}

// gradOutput, input, weight, sizes of the bias, stride, padding, dilation, transposed, output padding,
// groups, mask, cubeMathType, gradients of input, weight and bias
Job convolution_backward(Call& call) {
    const Tensor dy = call.tensor(0), x = call.tensor(1), w = call.tensor(2);
    const Convolution c(call, x, w, dy, {4, 5, 6, 7, 9});
    const std::vector<bool> mask = call.booleans(10);
    call.require(mask.size() == 3, "the mask has %zu entries: it must have 3", mask.size());
    const bool want_dx = mask[0] && call.has(12), want_dw = mask[1] && call.has(13),
               want_db = mask[2] && call.has(14);
    const Tensor dx = want_dx ? call.tensor(12) : Tensor{}, dw = want_dw ? call.tensor(13) : Tensor{},
                 db = want_db ? call.tensor(14) : Tensor{};
    call.require(!want_dx || dx.same_shape(x), "the input's gradient must be %s", x.shape().c_str());
    call.require(!want_dw || dw.same_shape(w), "the weight's gradient must be %s", w.shape().c_str());
    call.require(!want_db || db.numel() == dy.dims[1], "the bias's gradient must have %lld elements",
                 static_cast<long long>(dy.dims[1]));
    call.cost.cube_flops = c.plain.flops() * (want_dx + want_dw);
    call.cost.cube_dtype = x.dtype;
    return [=] {
        const auto grad = floats(dy);
        if (want_dx) {
            const auto weights = floats(w), out = buffer<float>(x.numel());
            if (c.transposed) {
                c.plain.forward(grad.get(), weights.get(), out.get());
            } else {
                c.plain.input_gradient(out.get(), weights.get(), grad.get());
            }
            put(dx, out.get());
        }
        if (want_dw) {
            const auto in = floats(x), out = buffer<float>(w.numel());
            c.plain.weight_gradient(c.transposed ? grad.get() : in.get(), out.get(),
                                    c.transposed ? in.get() : grad.get());
            put(dw, out.get());
        }
        if (want_db) {
            const int64_t channels = dy.dims[1];
            const auto out = buffer<float>(channels);
            std::fill(out.get(), out.get() + channels, 0.0F);
            const int64_t each = dy.numel() == 0 ? 1 : dy.numel() / (dy.dims[0] * channels);
            for (int64_t i = 0; i < dy.numel(); i++) {
                out[i / each % channels] += grad[i];
            }
            put(db, out.get());
        }
        return 0;
    };
}

OPERATOR("aclnnConvolution", convolution);
OPERATOR("aclnnConvolutionBackward", convolution_backward);

}  // namespace
}  // namespace flexnpu::ops
