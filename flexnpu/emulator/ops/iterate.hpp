// Loops over tensors of any strides, brought down to rows that the kernels of kernels/ take.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <vector>

#include "kernels/kernels.hpp"
#include "tensor.hpp"

namespace flexnpu::ops {

// Elements of a row that are in compute type at a time: a few of these stay in L1.
inline constexpr int64_t kChunk = 1024;

// The type that an operator computes in.
enum class Compute { kFloat, kDouble, kWhole };

inline Compute compute_of(std::initializer_list<int32_t> dtypes) {
    Compute result = Compute::kWhole;
    for (int32_t dtype : dtypes) {
        if (dtype == acl::DOUBLE) {
            return Compute::kDouble;
        }
        if (is_floating(dtype)) {
            result = Compute::kFloat;
        }
    }
    return result;
}

// Calls f.operator()<T>() with the compute type.
template <class F>
auto with_compute(Compute compute, F&& f) {
    switch (compute) {
        case Compute::kDouble: return f.template operator()<double>();
        case Compute::kWhole: return f.template operator()<int64_t>();
        default: return f.template operator()<float>();
    }
}

template <class T>
constexpr int32_t native_dtype() {
    return std::is_same_v<T, float> ? acl::FLOAT : std::is_same_v<T, double> ? acl::DOUBLE : acl::INT64;
}

// A row in compute type: the memory itself where it already is one, else converted into `buffer`.
template <class T>
const T* fetch(const char* p, int32_t dtype, int64_t stride, int64_t n, T* buffer) {
    if (dtype == native_dtype<T>() && stride == int64_t(sizeof(T))) {
        return reinterpret_cast<const T*>(p);
    }
    kernels().rows<T>().load(buffer, p, dtype, stride, n);
    return buffer;
}

// Where to compute a row that will be stored at p: p itself where it can be, else `buffer`.
template <class T>
T* target(char* p, int32_t dtype, int64_t stride, T* buffer) {
    return dtype == native_dtype<T>() && stride == int64_t(sizeof(T)) ? reinterpret_cast<T*>(p) : buffer;
}
template <class T>
void commit(const T* row, char* p, int32_t dtype, int64_t stride, int64_t n) {
    if (static_cast<const void*>(row) != p) {
        kernels().rows<T>().store(row, p, dtype, stride, n);
    }
}

// A loop nest over operands of one shape. The first operand is the one that is written: its smallest stride
// is innermost.
struct Loop {
    static constexpr int kMaxOperands = 4;
    int operands = 0;
    int rank = 0;
    std::array<int64_t, kMaxRank> dims{};
    std::array<std::array<int64_t, kMaxRank>, kMaxOperands> strides{};  // in bytes
    std::array<char*, kMaxOperands> base{};
    bool empty = false;
};

// Operands after the first broadcast to its shape.
Loop make_loop(std::initializer_list<const Tensor*> operands);

// f(char* const p[], const int64_t stride[], int64_t n) for every row; strides in bytes.
template <class F>
void for_each_row(const Loop& loop, F&& f) {
    if (loop.empty) {
        return;
    }
    const int inner = loop.rank - 1;
    int64_t stride[Loop::kMaxOperands] = {};
    char* p[Loop::kMaxOperands] = {};
    for (int o = 0; o < loop.operands; o++) {
        stride[o] = inner >= 0 ? loop.strides[o][inner] : 0;
        p[o] = loop.base[o];
    }
    const int64_t n = inner >= 0 ? loop.dims[inner] : 1;
    int64_t index[kMaxRank] = {};
    for (;;) {
        f(static_cast<char* const*>(p), static_cast<const int64_t*>(stride), n);
        int d = inner - 1;
        for (; d >= 0; d--) {
            for (int o = 0; o < loop.operands; o++) {
                p[o] += loop.strides[o][d];
            }
            if (++index[d] < loop.dims[d]) {
                break;
            }
            for (int o = 0; o < loop.operands; o++) {
                p[o] -= loop.strides[o][d] * loop.dims[d];
            }
            index[d] = 0;
        }
        if (d < 0) {
            return;
        }
    }
}

// The same, in pieces of at most kChunk elements.
template <class F>
void for_each_chunk(const Loop& loop, F&& f) {
    for_each_row(loop, [&](char* const row[], const int64_t stride[], int64_t n) {
        char* p[Loop::kMaxOperands];
        std::copy(row, row + Loop::kMaxOperands, p);
        for (int64_t i = 0; i < n; i += kChunk) {
            const int64_t length = std::min(kChunk, n - i);
            f(static_cast<char* const*>(p), stride, length);
            for (int o = 0; o < loop.operands; o++) {
                p[o] += stride[o] * kChunk;
            }
        }
    });
}

// The elements of a tensor that share all indices but those of the last `line_rank` dimensions: what a
// reduction, a softmax or a sort works on.
struct Line {
    char* base;
    int32_t dtype;
    int rank;
    const int64_t* dims;
    const int64_t* strides;  // in elements
    int64_t size;

    template <class T>
    void load(T* out) const {
        walk([&](char* p, int64_t stride, int64_t n) {
            kernels().rows<T>().load(out, p, dtype, stride, n);
            out += n;
        });
    }
    template <class T>
    void store(const T* in) const {
        walk([&](char* p, int64_t stride, int64_t n) {
            kernels().rows<T>().store(in, p, dtype, stride, n);
            in += n;
        });
    }
    // The line in compute type; `buffer` has room for it and is used when it must be converted or gathered.
    template <class T>
    const T* view(T* buffer) const {
        if (dtype == native_dtype<T>() && (rank == 0 || (rank == 1 && strides[0] == 1))) {
            return reinterpret_cast<const T*>(base);
        }
        load(buffer);
        return buffer;
    }

private:
    template <class F>
    void walk(F&& f) const {
        const int64_t element = static_cast<int64_t>(acl::element_size(dtype));
        if (size == 0) {
            return;
        }
        if (rank == 0) {
            f(base, element, int64_t(1));
            return;
        }
        int64_t index[kMaxRank] = {};
        char* p = base;
        for (;;) {
            f(p, strides[rank - 1] * element, dims[rank - 1]);
            int d = rank - 2;
            for (; d >= 0; d--) {
                p += strides[d] * element;
                if (++index[d] < dims[d]) {
                    break;
                }
                p -= strides[d] * element * dims[d];
                index[d] = 0;
            }
            if (d < 0) {
                return;
            }
        }
    }
};

// A tensor whose last `line_rank` dimensions are a line; the leading ones are looped over.
struct Lined {
    Tensor tensor;
    int line_rank;
};

// Lines over `dims` of a tensor, and a tensor with no dimension left of those (an element a line).
Lined lined(const Tensor& t, const std::vector<int>& dims);

// f(const Line lines[]) for every combination of the leading dimensions, which all operands share.
template <class F>
void for_each_line(const std::vector<Lined>& operands, F&& f) {
    const Tensor& first = operands[0].tensor;
    const int lead = first.rank - operands[0].line_rank;
    int64_t count = 1;
    for (int d = 0; d < lead; d++) {
        count *= first.dims[d];
    }
    if (count == 0) {
        return;
    }
    std::vector<Line> lines;
    for (const Lined& o : operands) {
        Line line{o.tensor.data,
                  o.tensor.dtype,
                  o.line_rank,
                  o.tensor.dims.data() + (o.tensor.rank - o.line_rank),
                  o.tensor.strides.data() + (o.tensor.rank - o.line_rank),
                  1};
        for (int d = 0; d < line.rank; d++) {
            line.size *= line.dims[d];
        }
        lines.push_back(line);
    }
    int64_t index[kMaxRank] = {};
    for (;;) {
        f(static_cast<const Line*>(lines.data()));
        int d = lead - 1;
        for (; d >= 0; d--) {
            const bool wrap = ++index[d] == first.dims[d];
            for (size_t o = 0; o < operands.size(); o++) {
                const Tensor& t = operands[o].tensor;
                lines[o].base += (wrap ? 1 - first.dims[d] : 1) * t.strides[d] * t.element();
            }
            if (!wrap) {
                break;
            }
            index[d] = 0;
        }
        if (d < 0) {
            return;
        }
    }
}

// Uninitialised memory for one run.
template <class T>
std::unique_ptr<T[]> buffer(int64_t n) {
    return std::make_unique_for_overwrite<T[]>(static_cast<size_t>(std::max<int64_t>(n, 1)));
}

// out = in, converted and broadcast.
void copy_tensor(const Tensor& out, const Tensor& in);

}  // namespace flexnpu::ops
