// Copies, casts, fills, ranges: operators that move or make elements without computing on them.
#include <sys/mman.h>
#include <unistd.h>

#include <array>

#include "iterate.hpp"
#include "registry.hpp"

namespace flexnpu::ops {
namespace {

bool is_complex(const Tensor& t) { return t.dtype == acl::COMPLEX64 || t.dtype == acl::COMPLEX128; }

// The real (0) or the imaginary (1) parts of complex numbers.
Tensor part_of(const Tensor& t, int which) {
    Tensor part = t;
    part.dtype = t.dtype == acl::COMPLEX64 ? acl::FLOAT : acl::DOUBLE;
    part.data += which * part.element();
    for (int d = 0; d < part.rank; d++) {
        part.strides[d] *= 2;
    }
    return part;
}

void zero(const Tensor& out);

// From or to complex numbers: a real number has no imaginary part, and of a complex one the real part stays.
Job complex_copy_job(Call& call, const Tensor& out, const Tensor& in) {
    const Tensor from = is_complex(in) ? part_of(in, 0) : in, to = is_complex(out) ? part_of(out, 0) : out;
    call.require_numeric(from);
    call.require_numeric(to);
    call.require_broadcast(out, {&in});
    return [=] {
        copy_tensor(to, from);
        if (is_complex(out)) {
            is_complex(in) ? copy_tensor(part_of(out, 1), part_of(in, 1)) : zero(part_of(out, 1));
        }
        return 0;
    };
}

Job copy_job(Call& call, const Tensor& out, const Tensor& in) {
    if (out.dtype != in.dtype && (is_complex(out) || is_complex(in))) {
        return complex_copy_job(call, out, in);
    }
    if (out.dtype != in.dtype) {
        call.require_numeric(out);
        call.require_numeric(in);
    }
    call.require_broadcast(out, {&in});
    return [=] {
        copy_tensor(out, in);
        return 0;
    };
}

// Zero bytes at p. Device memory is committed by its first touch, and untouched memory reads as zero: large
// ranges are given back instead of written, so that a cache of many gigabytes that a server clears costs the
// host nothing.
void zero_bytes(char* p, int64_t n) {
    constexpr int64_t kWorthwhile = int64_t(1) << 20;
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    if (n >= kWorthwhile) {
        auto* first = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(p) + page - 1) & ~(page - 1));
        auto* last = reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(p + n) & ~(page - 1));
        if (madvise(first, static_cast<size_t>(last - first), MADV_REMOVE) == 0) {
            std::memset(p, 0, static_cast<size_t>(first - p));
            std::memset(last, 0, static_cast<size_t>(p + n - last));
            return;
        }
    }
    std::memset(p, 0, static_cast<size_t>(n));
}

// Repeats one element, given by its bytes.
void fill_bytes(const Tensor& out, const char* element_bytes) {
    const Loop loop = make_loop({&out});
    const int64_t element = out.element();
    const bool zeros = std::all_of(element_bytes, element_bytes + element, [](char c) { return c == 0; });
    std::array<char, kChunk * 8> block;
    for (int64_t i = 0; i < kChunk && element <= 8; i++) {
        std::memcpy(block.data() + i * element, element_bytes, static_cast<size_t>(element));
    }
    for_each_row(loop, [&](char* const p[], const int64_t stride[], int64_t n) {
        if (stride[0] == element && zeros) {
            zero_bytes(p[0], n * element);
        } else if (stride[0] == element && element <= 8) {
            for (int64_t i = 0; i < n; i += kChunk) {
                std::memcpy(p[0] + i * element, block.data(),
                            static_cast<size_t>(std::min(kChunk, n - i) * element));
            }
        } else {
            for (int64_t i = 0; i < n; i++) {
                std::memcpy(p[0] + i * stride[0], element_bytes, static_cast<size_t>(element));
            }
        }
    });
}

void fill(const Tensor& out, const Scalar& value) {
    alignas(8) char bytes[8];
    Tensor one = dense(bytes, out.dtype, {});
    copy_tensor(one, value.tensor());
    fill_bytes(out, bytes);
}

// All bits zero, whatever the type.
void zero(const Tensor& out) {
    constexpr char kZero[16] = {};
    fill_bytes(out, kZero);
}

Job fill_job(Call& call, const Tensor& out, Scalar value) {
    call.require_numeric(out);
    return [=] {
        fill(out, value);
        return 0;
    };
}

// out[i] = start + i * step, each term computed on its own so that errors do not add up.
Job arithmetic_progression(Call& call, const Tensor& out, Scalar start, double step, int64_t whole_step,
                           bool whole) {
    call.require_numeric(out);
    return [=] {
        const Loop loop = make_loop({&out});
        int64_t i = 0;
        for_each_row(loop, [&](char* const p[], const int64_t stride[], int64_t n) {
            for (int64_t j = 0; j < n; j++, i++) {
                if (whole) {
                    const int64_t x = start.whole + i * whole_step;
                    kernels().i64.store(&x, p[0] + j * stride[0], out.dtype, out.element(), 1);
                } else {
                    const double x = start.real + static_cast<double>(i) * step;
                    kernels().f64.store(&x, p[0] + j * stride[0], out.dtype, out.element(), 1);
                }
            }
        });
        return 0;
    };
}

Job arange(Call& call) {  // start, end, step, out
    const Scalar start = call.scalar(0), end = call.scalar(1), step = call.scalar(2);
    const Tensor out = call.tensor(3);
    call.require(out.rank == 1, "the output must have one dimension");
    call.require(step.real != 0, "the step must not be zero");
    const bool whole = !start.floating() && !end.floating() && !step.floating();
    return arithmetic_progression(call, out, start, step.real, step.whole, whole);
}

Job linspace(Call& call) {  // start, end, steps, out
    const Scalar start = call.scalar(0), end = call.scalar(1);
    const int64_t steps = call.integer(2);
    const Tensor out = call.tensor(3);
    call.require(out.rank == 1 && out.dims[0] == steps, "the output must have one dimension of size steps");
    call.require_numeric(out);
    return [=] {
        const double step = steps > 1 ? (end.real - start.real) / static_cast<double>(steps - 1) : 0;
        for (int64_t i = 0; i < steps; i++) {
            // From the nearer end, as torch does, so that the last element is exact.
            const double x = i < steps / 2 ? start.real + static_cast<double>(i) * step
                                           : end.real - static_cast<double>(steps - 1 - i) * step;
            kernels().f64.store(steps == 1 ? &start.real : &x, out.data + i * out.strides[0] * out.element(),
                                out.dtype, out.element(), 1);
        }
        return 0;
    };
}

Job cat(Call& call) {  // tensors, dim, out
    std::vector<Tensor> inputs = call.tensors(0);
    const Tensor out = call.tensor(2);
    const int dim = call.dimension(call.integer(1), out);
    // torch lets an empty 1-dim tensor stand among tensors of any shape.
    std::erase_if(inputs, [](const Tensor& t) { return t.rank == 1 && t.dims[0] == 0; });
    std::vector<Tensor> parts;
    int64_t at = 0;
    for (const Tensor& in : inputs) {
        call.require(in.rank == out.rank, "an input has %d dimensions, the output has %d", in.rank, out.rank);
        for (int d = 0; d < out.rank; d++) {
            if (d != dim && in.dims[d] != out.dims[d]) {
                call.fail("shape %s does not fit the output %s outside dimension %d", in.shape().c_str(),
                          out.shape().c_str(), dim);
            }
        }
        if (in.dtype != out.dtype) {
            call.require_numeric(in);
            call.require_numeric(out);
        }
        parts.push_back(out.narrowed(dim, at, in.dims[dim]));
        at += in.dims[dim];
    }
    call.require(inputs.empty() || at == out.dims[dim],
                 "the inputs have %lld elements along dimension %d, the output %lld",
                 static_cast<long long>(at), dim, static_cast<long long>(out.dims[dim]));
    return [=] {
        for (size_t i = 0; i < inputs.size(); i++) {
            copy_tensor(parts[i], inputs[i]);
        }
        return 0;
    };
}

Job stack(Call& call) {  // tensors, dim, out
    const std::vector<Tensor> inputs = call.tensors(0);
    const Tensor out = call.tensor(2);
    const int dim = call.dimension(call.integer(1), out);
    call.require(static_cast<int64_t>(inputs.size()) == out.dims[dim],
                 "the output has %lld slices for %zu inputs", static_cast<long long>(out.dims[dim]),
                 inputs.size());
    for (const Tensor& in : inputs) {
        call.require_shape(in, out.selected(dim, 0), "an input");
    }
    return [=] {
        for (size_t i = 0; i < inputs.size(); i++) {
            copy_tensor(out.selected(dim, static_cast<int64_t>(i)), inputs[i]);
        }
        return 0;
    };
}

Job repeat(Call& call) {  // self, repeats, out
    Tensor self = call.tensor(0);
    const std::vector<int64_t> repeats = call.ints(1);
    const Tensor out = call.tensor(2);
    call.require(static_cast<int>(repeats.size()) == out.rank && out.rank >= self.rank,
                 "%zu repeats for %d dimensions", repeats.size(), out.rank);
    while (self.rank < out.rank) {
        self = self.unsqueezed(0);
    }
    for (int d = 0; d < out.rank; d++) {
        call.require(repeats[d] >= 0 && out.dims[d] == repeats[d] * self.dims[d],
                     "the output's shape does not fit");
    }
    return [=] {
        if (out.numel() == 0) {
            return 0;
        }
        // One copy for every block of the output.
        std::vector<int64_t> index(repeats.size(), 0);
        for (;;) {
            Tensor block = out;
            for (int d = 0; d < out.rank; d++) {
                block = block.narrowed(d, index[d] * self.dims[d], self.dims[d]);
            }
            copy_tensor(block, self);
            int d = out.rank - 1;
            for (; d >= 0 && ++index[d] == repeats[d]; d--) {
                index[d] = 0;
            }
            if (d < 0) {
                return 0;
            }
        }
    };
}

// Keeps the elements on and below (tril) or above (triu) a diagonal of the last two dimensions, zeroes the
// others.
Job triangle(Call& call, const Tensor& in, const Tensor& out, int64_t diagonal, bool upper) {
    call.require(in.rank >= 2, "needs two dimensions");
    call.require_shape(out, in, "the output");
    call.require(in.dtype == out.dtype, "input and output types differ");
    return [=] {
        const Tensor keep = out.without({out.rank - 1}), source = in.without({in.rank - 1});
        const int64_t columns = out.dim(-1), rows = out.dim(-2);
        int64_t i = 0;
        for_each_line({Lined{keep, 0}, Lined{source, 0}}, [&](const Line lines[]) {
            // The columns [first, last) of row i stay.
            const int64_t edge = std::clamp<int64_t>(upper ? i + diagonal : i + diagonal + 1, 0, columns);
            const int64_t first = upper ? edge : 0, last = upper ? columns : edge;
            i = i + 1 == rows ? 0 : i + 1;
            auto part = [&](char* base, const Tensor& t, int64_t from, int64_t to) {
                Tensor row = dense(base + from * t.stride(-1) * t.element(), t.dtype, {to - from});
                row.strides[0] = t.stride(-1);
                return row;
            };
            if (lines[0].base != lines[1].base) {
                copy_tensor(part(lines[0].base, out, first, last), part(lines[1].base, in, first, last));
            }
            zero(part(lines[0].base, out, 0, first));
            zero(part(lines[0].base, out, last, columns));
        });
        return 0;
    };
}

Prepare triangle_row(bool upper, bool inplace) {
    return [=](Call& call) {
        const Tensor self = call.tensor(0);
        return triangle(call, self, inplace ? self : call.tensor(2), call.integer(1), upper);
    };
}

Job flip(Call& call) {  // self, dims, out
    const Tensor self = call.tensor(0), out = call.tensor(2);
    call.require_shape(out, self, "the output");
    Tensor reversed = self;
    const std::vector<int64_t> dims = call.ints(1);
    for (int d : dims.empty() ? std::vector<int>{} : call.dimensions(dims, self)) {
        reversed.data += (self.dims[d] - 1) * self.strides[d] * self.element();
        reversed.strides[d] = -self.strides[d];
    }
    return copy_job(call, out, reversed);
}

Job pad(Call& call) {  // self, pads (last dimension first), value, out
    const Tensor self = call.tensor_of_any_type(0), out = call.tensor_of_any_type(3);
    const std::vector<int64_t> pads = call.ints(1);
    const Scalar value = call.scalar(2);
    call.require(
        out.rank == self.rank && pads.size() % 2 == 0 && static_cast<int>(pads.size() / 2) <= self.rank,
        "%zu pads for %d dimensions", pads.size(), self.rank);
    Tensor from = self, to = out;
    for (size_t i = 0; i < pads.size() / 2; i++) {
        const int d = self.rank - 1 - static_cast<int>(i);
        const int64_t before = pads[2 * i], after = pads[2 * i + 1];
        const int64_t start = before < 0 ? -before : 0;
        const int64_t length = self.dims[d] - start + std::min<int64_t>(after, 0);
        call.require(length >= 0 && out.dims[d] == self.dims[d] + before + after,
                     "the output's shape does not fit");
        from = from.narrowed(d, start, length);
        to = to.narrowed(d, std::max<int64_t>(before, 0), length);
    }
    if (is_complex(out)) {
        call.require(self.dtype == out.dtype, "input and output types differ");
        return [=] {
            fill(part_of(out, 0), value);
            zero(part_of(out, 1));
            copy_tensor(to, from);
            return 0;
        };
    }
    call.require_numeric(self);
    call.require_numeric(out);
    return [=] {
        fill(out, value);
        copy_tensor(to, from);
        return 0;
    };
}

Job eye(Call& call) {  // n, m, out
    const Tensor out = call.tensor(2);
    call.require(out.rank == 2, "the output must have two dimensions");
    call.require_numeric(out);
    return [=] {
        const Scalar one{acl::INT64, 1, 1};
        zero(out);
        Tensor diagonal = out.without({1});
        diagonal.dims[0] = std::min(out.dims[0], out.dims[1]);
        diagonal.strides[0] = out.strides[0] + out.strides[1];
        fill(diagonal, one);
        return 0;
    };
}

// Sections along a dimension: of one size (the last may be smaller), or of given sizes.
Job split(Call& call, bool sizes) {  // self, sections or sizes, dim, outputs
    const Tensor self = call.tensor(0);
    const int dim = call.dimension(call.integer(2), self);
    const std::vector<Tensor> outputs = call.tensors(3);
    const std::vector<int64_t> given = sizes ? call.ints(1) : std::vector<int64_t>{};
    call.require(!sizes || given.size() == outputs.size(), "%zu sizes for %zu outputs", given.size(),
                 outputs.size());
    std::vector<Tensor> parts;
    int64_t at = 0;
    for (size_t i = 0; i < outputs.size(); i++) {
        const int64_t length = sizes ? given[i] : std::min(call.integer(1), self.dims[dim] - at);
        call.require(length >= 0 && at + length <= self.dims[dim], "the sections exceed dimension %d", dim);
        parts.push_back(self.narrowed(dim, at, length));
        call.require_shape(outputs[i], parts[i], "an output");
        call.require(outputs[i].dtype == self.dtype, "an output's type differs from the input's");
        at += length;
    }
    return [=] {
        for (size_t i = 0; i < outputs.size(); i++) {
            copy_tensor(outputs[i], parts[i]);
        }
        return 0;
    };
}

Job fill_diagonal(Call& call) {  // self, value, wrap
    const Tensor self = call.tensor(0);
    const Scalar value = call.scalar(1);
    call.require(self.rank == 2 && !call.boolean(2), "only a matrix without wrapping is emulated");
    call.require_numeric(self);
    Tensor diagonal = self.without({1});
    diagonal.dims[0] = std::min(self.dims[0], self.dims[1]);
    diagonal.strides[0] = self.strides[0] + self.strides[1];
    return [=] {
        fill(diagonal, value);
        return 0;
    };
}

Job permute(Call& call) {  // self, dims, out
    const Tensor self = call.tensor(0), out = call.tensor(2);
    std::vector<int> order;
    for (int64_t d : call.ints(1)) {
        order.push_back(call.dimension(d, self));
    }
    std::vector<int> sorted = order;
    std::sort(sorted.begin(), sorted.end());
    call.require(static_cast<int>(order.size()) == self.rank &&
                     std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end(),
                 "not a permutation of the dimensions");
    const Tensor moved = self.permuted_last(order);
    call.require_shape(out, moved, "the output");
    return copy_job(call, out, moved);
}

Job slice(Call& call) {  // self, dim, start, end, step, out
    const Tensor self = call.tensor(0), out = call.tensor(5);
    const int dim = call.dimension(call.integer(1), self);
    const int64_t n = self.dims[dim], step = call.integer(4);
    auto wrap = [n](int64_t x) { return std::clamp<int64_t>(x < 0 ? x + n : x, 0, n); };
    const int64_t start = wrap(call.integer(2)), end = wrap(call.integer(3));
    call.require(step > 0, "the step must be positive");
    const Tensor part =
        self.narrowed(dim, start, std::max<int64_t>(0, (end - start + step - 1) / step), step);
    call.require_shape(out, part, "the output");
    return copy_job(call, out, part);
}

OPERATOR("aclnnInplaceCopy",
         [](Call& call) { return copy_job(call, call.tensor_of_any_type(0), call.tensor_of_any_type(1)); });
OPERATOR("aclnnCast", [](Call& call) -> Job {  // self, dtype, out
    const Tensor self = call.tensor(0), out = call.tensor(2);
    call.require_shape(out, self, "the output");
    call.require(call.integer(1) == out.dtype, "the output's type is not the one asked for");
    return copy_job(call, out, self);
});
OPERATOR("aclnnExpand", [](Call& call) { return copy_job(call, call.tensor(2), call.tensor(0)); });
OPERATOR("aclnnNpuFormatCast", [](Call& call) { return copy_job(call, call.tensor(1), call.tensor(0)); });
OPERATOR("aclnnInplaceFillScalar", [](Call& call) { return fill_job(call, call.tensor(0), call.scalar(1)); });
OPERATOR("aclnnInplaceFillTensor", [](Call& call) -> Job {
    const Tensor value = call.tensor(1);
    call.require(value.numel() == 1, "the value must have one element");
    Tensor scalar = value;
    scalar.rank = 0;
    return copy_job(call, call.tensor(0), scalar);
});
OPERATOR("aclnnInplaceZero", [](Call& call) -> Job {
    const Tensor self = call.tensor_of_any_type(0);
    return [=] {
        zero(self);
        return 0;
    };
});
OPERATOR("aclnnInplaceOne", [](Call& call) { return fill_job(call, call.tensor(0), {acl::INT64, 1, 1}); });
OPERATOR("aclnnArange", arange);
OPERATOR("aclnnRange", arange);
OPERATOR("aclnnLinspace", linspace);
OPERATOR("aclnnCat", cat);
OPERATOR("aclnnStack", stack);
OPERATOR("aclnnRepeat", repeat);
OPERATOR("aclnnTril", triangle_row(false, false));
OPERATOR("aclnnTriu", triangle_row(true, false));
OPERATOR("aclnnInplaceTril", triangle_row(false, true));
OPERATOR("aclnnInplaceTriu", triangle_row(true, true));
OPERATOR("aclnnFlip", flip);
OPERATOR("aclnnConstantPadNd", pad);
OPERATOR("aclnnEye", eye);
OPERATOR("aclnnPermute", permute);
OPERATOR("aclnnSlice", slice);
OPERATOR("aclnnSplitTensor", [](Call& call) { return split(call, false); });
OPERATOR("aclnnSplitWithSize", [](Call& call) { return split(call, true); });
OPERATOR("aclnnInplaceFillDiagonal", fill_diagonal);

}  // namespace
}  // namespace flexnpu::ops
