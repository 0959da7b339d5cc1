#include "iterate.hpp"

#include <cstdlib>

namespace flexnpu::ops {

Loop make_loop(std::initializer_list<const Tensor*> operands) {
    Loop loop;
    const Tensor& out = **operands.begin();
    struct Dim {
        int64_t size;
        std::array<int64_t, Loop::kMaxOperands> stride;
    };
    std::array<Dim, kMaxRank> dims{};
    int rank = 0;
    for (int d = 0; d < out.rank; d++) {
        loop.empty |= out.dims[d] == 0;
        if (out.dims[d] != 1) {
            dims[rank++].size = out.dims[d];
        }
    }
    for (const Tensor* t : operands) {
        const int o = loop.operands++;
        loop.base[o] = t->data;
        int n = 0;
        for (int d = 0; d < out.rank; d++) {
            if (out.dims[d] == 1) {
                continue;
            }
            const int own = d - out.rank + t->rank;
            dims[n++].stride[o] = own >= 0 && t->dims[own] != 1 ? t->strides[own] * t->element() : 0;
        }
    }
    // Outermost first: by the stride of what is written, then by those of what is read. Insertion sort: at
    // most 8.
    const int operand_count = loop.operands;
    auto outside = [operand_count](const Dim& a, const Dim& b) {
        for (int o = 0; o < operand_count; o++) {
            if (a.stride[o] != b.stride[o]) {
                return a.stride[o] > b.stride[o];
            }
        }
        return false;
    };
    for (int i = 1; i < rank; i++) {
        for (int j = i; j > 0 && outside(dims[j], dims[j - 1]); j--) {
            std::swap(dims[j], dims[j - 1]);
        }
    }
    // Neighbours that are one run of memory in every operand become one dimension.
    for (int i = 0; i < rank; i++) {
        bool merged = loop.rank > 0;
        for (int o = 0; merged && o < operand_count; o++) {
            merged = loop.strides[o][loop.rank - 1] == dims[i].stride[o] * dims[i].size;
        }
        const int at = merged ? loop.rank - 1 : loop.rank++;
        loop.dims[at] = merged ? loop.dims[at] * dims[i].size : dims[i].size;
        for (int o = 0; o < operand_count; o++) {
            loop.strides[o][at] = dims[i].stride[o];
        }
    }
    return loop;
}

Lined lined(const Tensor& t, const std::vector<int>& dims) {
    Lined result{t.permuted_last(dims), static_cast<int>(dims.size())};
    // Merge the line's dimensions that are one run of memory, and drop those of size 1.
    Tensor& p = result.tensor;
    const int lead = p.rank - result.line_rank;
    int n = lead;
    for (int d = lead; d < p.rank; d++) {
        if (p.dims[d] == 1) {
            continue;
        }
        if (n > lead && p.strides[n - 1] == p.strides[d] * p.dims[d]) {
            p.dims[n - 1] *= p.dims[d];
            p.strides[n - 1] = p.strides[d];
        } else {
            p.dims[n] = p.dims[d];
            p.strides[n++] = p.strides[d];
        }
    }
    p.rank = n;
    result.line_rank = n - lead;
    return result;
}

namespace {

// Same type: bytes are moved as they are.
void copy_bytes(const Loop& loop, int64_t element) {
    for_each_row(loop, [&](char* const p[], const int64_t stride[], int64_t n) {
        if (stride[0] == element && stride[1] == element) {
            std::memmove(p[0], p[1], static_cast<size_t>(n * element));
            return;
        }
        auto move = [&]<class T>(T) {
            char* out = p[0];
            const char* in = p[1];
            for (int64_t i = 0; i < n; i++, out += stride[0], in += stride[1]) {
                std::memcpy(out, in, sizeof(T));
            }
        };
        switch (element) {
            case 1: move(uint8_t{}); break;
            case 2: move(uint16_t{}); break;
            case 4: move(uint32_t{}); break;
            case 8: move(uint64_t{}); break;
            default: move(std::array<uint64_t, 2>{}); break;
        }
    });
}

}  // namespace

void copy_tensor(const Tensor& out, const Tensor& in) {
    const Loop loop = make_loop({&out, &in});
    if (out.dtype == in.dtype) {
        copy_bytes(loop, out.element());
        return;
    }
    // Through float64 where float32 would lose bits of the source that the result could show.
    Compute compute = compute_of({out.dtype, in.dtype});
    if (compute == Compute::kFloat && is_integral(in.dtype) && acl::element_size(in.dtype) >= 4) {
        compute = Compute::kDouble;
    }
    with_compute(compute, [&]<class T>() {
        alignas(64) T row[kChunk];
        for_each_chunk(loop, [&](char* const p[], const int64_t stride[], int64_t n) {
            const T* in_row = fetch<T>(p[1], in.dtype, stride[1], n, row);
            kernels().rows<T>().store(in_row, p[0], out.dtype, stride[0], n);
        });
    });
}

}  // namespace flexnpu::ops
