// Look-ups: embedding, select, index, take, one-hot, repeat.
//
// An index out of range makes the operator fail when it runs, as an AI core exception: the values are not
// known earlier. Cost: only what is read and written, not the table that is looked into.
#include <cstring>
#include <numeric>

#include "flexnpu/api/host_objects.hpp"
#include "index.hpp"
#include "iterate.hpp"
#include "registry.hpp"

namespace flexnpu::ops {

int out_of_range(const char* name, int64_t index, int64_t size) {
    return flexnpu_emu_fail(kAicoreException, "%s: index %lld is out of range for a dimension of size %lld",
                            name, static_cast<long long>(index), static_cast<long long>(size));
}

void require_index(const Call& call, const Tensor& index) {
    call.require(is_integral(index.dtype) && index.dtype != acl::BOOL, "indices must be integers, not %s",
                 dtype_name(index.dtype));
}

std::vector<int64_t> values_of(const Tensor& t) {
    std::vector<int64_t> result(static_cast<size_t>(t.numel()));
    copy_tensor(dense_like(t, result.data(), acl::INT64), t);
    return result;
}

bool wrap(int64_t& index, int64_t size) {
    if (index < 0) {
        index += size;
    }
    return index >= 0 && index < size;
}

void add_to(const Tensor& to, const Tensor& from, const Scalar& alpha) {
    const Loop loop = make_loop({&to, &from});
    with_compute(compute_of({to.dtype}), [&]<class T>() {
        T x[kChunk], y[kChunk];
        for_each_chunk(loop, [&](char* const p[], const int64_t stride[], int64_t n) {
            kernels().rows<T>().load(x, p[0], to.dtype, stride[0], n);
            kernels().rows<T>().load(y, p[1], from.dtype, stride[1], n);
            kernels().rows<T>().binary[static_cast<int>(Binary::Add)](x, x, y, n, alpha.as<T>());
            kernels().rows<T>().store(x, p[0], to.dtype, stride[0], n);
        });
    });
}

namespace {

// out[..., i, ...] = self[..., index[i], ...] along dim. Slices are moved as tensors, which is a memcpy when
// contiguous.
Job select_job(Call& call, const Tensor& given_self, int dim, const Tensor& index, const Tensor& given_out) {
    const Tensor self = given_self.at_least_1d(), out = given_out.at_least_1d();
    require_index(call, index);
    call.require(index.rank <= 1, "the index must have one dimension");
    call.require(self.dtype == out.dtype, "input and output types differ");
    call.require(self.rank == out.rank && out.dims[dim] == index.numel(), "the output does not fit");
    for (int d = 0; d < self.rank; d++) {
        call.require(d == dim || self.dims[d] == out.dims[d], "the output does not fit outside dimension %d",
                     dim);
    }
    call.cost.bytes = 2 * out.bytes() + index.bytes();
    call.cost.vector_flops = static_cast<double>(out.numel());
    const char* name = call.name();
    return [=] {
        const std::vector<int64_t> indices = values_of(index);
        for (size_t i = 0; i < indices.size(); i++) {
            int64_t at = indices[i];
            if (!wrap(at, self.dims[dim])) {
                return out_of_range(name, at, self.dims[dim]);
            }
            copy_tensor(out.selected(dim, static_cast<int64_t>(i)), self.selected(dim, at));
        }
        return 0;
    };
}

Job embedding(Call& call) {  // weight [rows, width...], indices, out [indices..., width...]
    const Tensor weight = call.tensor(0), indices = call.tensor(1), out = call.tensor(2);
    require_index(call, indices);
    call.require(weight.rank >= 1 && out.rank == indices.rank + weight.rank - 1,
                 "the output has %d dimensions", out.rank);
    for (int d = 0; d < out.rank; d++) {
        call.require(out.dims[d] == (d < indices.rank ? indices.dims[d] : weight.dims[d - indices.rank + 1]),
                     "the output does not fit");
    }
    call.require(weight.dtype == out.dtype, "weight and output types differ");
    call.cost.bytes = 2 * out.bytes() + indices.bytes();
    call.cost.vector_flops = static_cast<double>(out.numel());
    const char* name = call.name();
    return [=] {
        const std::vector<int64_t> rows = values_of(indices);
        std::vector<int> width;
        for (int d = indices.rank; d < out.rank; d++) {
            width.push_back(d);
        }
        size_t i = 0;
        int error = 0;
        Tensor to = out.without([&] {
            std::vector<int> lead(static_cast<size_t>(indices.rank));
            std::iota(lead.begin(), lead.end(), 0);
            return lead;
        }());
        for_each_line({Lined{out, static_cast<int>(width.size())}}, [&](const Line lines[]) {
            int64_t row = rows[i++];
            if (error == 0 && !wrap(row, weight.dims[0])) {
                error = out_of_range(name, row, weight.dims[0]);
            }
            if (error == 0) {
                to.data = lines[0].base;
                copy_tensor(to, weight.selected(0, row));
            }
        });
        return error;
    };
}

// Advanced indexing: self[i0, i1, ...] with some indices absent (a full slice). The indexed dimensions'
// result stands where they were when they are neighbours, else in front, as in numpy and torch.
struct AdvancedIndex {
    Tensor self;
    std::vector<Tensor> indices;  // of the indexed dimensions, broadcast to one shape
    std::vector<int> dims;        // the indexed dimensions
    Tensor broadcast;             // the indices' common shape
    Tensor result_shape;
    int result_at = 0;  // where the indices' dimensions stand in the result

    // torch_npu gives an empty 1-dim tensor of self's type for an absent index. Where that could as well be
    // an index without elements, `wanted`, the shape that the caller expects, decides; and one index at least
    // is there.
    static AdvancedIndex make(Call& call, const Tensor& self, const std::vector<Tensor>& list,
                              const Tensor& wanted) {
        AdvancedIndex a = make(call, self, list, true);
        if ((a.dims.empty() || !a.result_shape.same_shape(wanted)) && is_integral(self.dtype)) {
            AdvancedIndex other = make(call, self, list, false);
            if (a.dims.empty() || other.result_shape.same_shape(wanted)) {
                return other;
            }
        }
        return a;
    }

    static AdvancedIndex make(Call& call, const Tensor& self, const std::vector<Tensor>& list,
                              bool empty_is_absent) {
        AdvancedIndex a;
        a.self = self;
        call.require(list.size() <= static_cast<size_t>(self.rank) || list.size() == 1,
                     "%zu indices for %d dimensions", list.size(), self.rank);
        Tensor& shape = a.broadcast;
        shape.dtype = acl::INT64;
        for (size_t d = 0; d < list.size(); d++) {
            const Tensor& index = list[d];
            const bool empty = index.rank == 1 && index.dims[0] == 0;
            if (index.dtype == acl::DT_UNDEFINED || (empty && empty_is_absent && index.dtype == self.dtype)) {
                continue;
            }
            call.require(index.dtype == acl::INT64 || index.dtype == acl::INT32,
                         "an index of type %s is not emulated (torch_npu turns masks into integers)",
                         dtype_name(index.dtype));
            a.dims.push_back(static_cast<int>(d));
            a.indices.push_back(index);
            while (shape.rank < index.rank) {
                shape = shape.unsqueezed(0);
            }
            for (int i = index.rank - 1, j = shape.rank - 1; i >= 0; i--, j--) {
                call.require(index.dims[i] == shape.dims[j] || index.dims[i] == 1 || shape.dims[j] == 1,
                             "the indices do not broadcast together");
                shape.dims[j] = shape.dims[j] == 1 ? index.dims[i] : shape.dims[j];
            }
        }
        for (Tensor& index : a.indices) {
            index = index.expanded(shape);
        }
        const bool neighbours =
            a.dims.empty() || a.dims.back() - a.dims.front() + 1 == static_cast<int>(a.dims.size());
        Tensor& result = a.result_shape;
        result.dtype = self.dtype;
        auto append = [&](int64_t size) {
            call.require(result.rank < kMaxRank, "the result has too many dimensions");
            result.dims[result.rank++] = size;
        };
        auto append_indices = [&] {
            a.result_at = result.rank;
            for (int d = 0; d < shape.rank; d++) {
                append(shape.dims[d]);
            }
        };
        if (!neighbours) {
            append_indices();
        }
        for (int d = 0; d < self.rank; d++) {
            if (std::find(a.dims.begin(), a.dims.end(), d) == a.dims.end()) {
                append(self.dims[d]);
            } else if (neighbours && d == a.dims.front()) {
                append_indices();
            }
        }
        return a;
    }

    // f(slice of self, slice of `other`) for every index; `other` has the result's shape.
    template <class F>
    int for_each(const char* name, const Tensor& other, F&& f) const {
        std::vector<std::vector<int64_t>> values;
        for (const Tensor& index : indices) {
            values.push_back(values_of(index));
        }
        std::vector<int> index_dims;
        for (int d = 0; d < broadcast.rank; d++) {
            index_dims.push_back(result_at + d);
        }
        const Tensor rest_of_self = self.without(dims);
        Tensor rest_of_other = other.without(index_dims);
        const int64_t count = broadcast.numel();
        int64_t counter[kMaxRank] = {};
        for (int64_t i = 0; i < count; i++) {
            Tensor slice = rest_of_self;
            for (size_t k = 0; k < dims.size(); k++) {
                int64_t at = values[k][static_cast<size_t>(i)];
                if (!wrap(at, self.dims[dims[k]])) {
                    return out_of_range(name, at, self.dims[dims[k]]);
                }
                slice.data += at * self.strides[dims[k]] * self.element();
            }
            Tensor part = rest_of_other;
            for (int d = 0; d < broadcast.rank; d++) {
                part.data += counter[d] * other.strides[result_at + d] * other.element();
            }
            f(slice, part);
            for (int d = broadcast.rank - 1; d >= 0 && ++counter[d] == broadcast.dims[d]; d--) {
                counter[d] = 0;
            }
        }
        return 0;
    }
};

Job index(Call& call) {  // self, indices, out
    const Tensor self = call.tensor(0), out = call.tensor(2);
    const AdvancedIndex a = AdvancedIndex::make(call, self, call.tensors(1), out);
    call.require(self.dtype == out.dtype, "input and output types differ");
    call.require_shape(out, a.result_shape, "the output");
    call.cost.bytes = 2 * out.bytes();
    for (const Tensor& t : a.indices) {
        call.cost.bytes += t.bytes();
    }
    call.cost.vector_flops = static_cast<double>(out.numel());
    const char* name = call.name();
    return [=] {
        return a.for_each(name, out,
                          [](const Tensor& slice, const Tensor& part) { copy_tensor(part, slice); });
    };
}

Job index_put(Call& call) {  // self, indices, values, accumulate, unsafe
    const Tensor self = call.tensor(0);
    Tensor values = call.tensor(2);
    const bool accumulate = call.boolean(3);
    const AdvancedIndex a = AdvancedIndex::make(call, self, call.tensors(1), values);
    call.require_broadcast(a.result_shape, {&values});
    if (accumulate || values.dtype != self.dtype) {
        call.require_numeric(self);
        call.require_numeric(values);
    }
    call.cost.bytes = 2 * values.bytes();
    call.cost.vector_flops = static_cast<double>(a.result_shape.numel());
    values = values.expanded(a.result_shape);
    const char* name = call.name();
    return [=] {
        return a.for_each(name, values, [&](const Tensor& slice, const Tensor& part) {
            accumulate ? add_to(slice, part) : copy_tensor(slice, part);
        });
    };
}

Job take(Call& call) {  // self, index, out: self seen as one dimension
    const Tensor self = call.tensor(0), index = call.tensor(1), out = call.tensor(2);
    require_index(call, index);
    call.require_shape(out, index, "the output");
    call.require(self.contiguous() && self.dtype == out.dtype && out.contiguous(),
                 "needs contiguous tensors of one type");
    call.cost.bytes = 2 * out.bytes() + index.bytes();
    const char* name = call.name();
    return [=] {
        const int64_t element = self.element(), n = self.numel();
        char* to = out.data;
        for (int64_t at : values_of(index)) {
            if (!wrap(at, n)) {
                return out_of_range(name, at, n);
            }
            std::memcpy(to, self.data + at * element, static_cast<size_t>(element));
            to += element;
        }
        return 0;
    };
}

// Every slice along dim `repeats` times in a row. A negative dim: self is flattened.
Job repeat_interleave(Call& call, const Tensor& input, int64_t repeats, int64_t dim_argument,
                      const Tensor& out) {
    const int dim = call.dimension(dim_argument, input);
    call.require(input.rank == out.rank && out.dims[dim] == input.dims[dim] * repeats,
                 "the output does not fit");
    call.require(input.dtype == out.dtype, "input and output types differ");
    return [=] {
        for (int64_t r = 0; r < repeats; r++) {
            copy_tensor(out.narrowed(dim, r, input.dims[dim], repeats), input);
        }
        return 0;
    };
}

// Slice i along dim as often as repeats[i] says, or each as often as the only number says.
Job repeat_each(Call& call, const Tensor& input, const Tensor& repeats, int64_t dim_argument,
                const Tensor& out) {
    const int dim = call.dimension(dim_argument, input);
    require_index(call, repeats);
    const int64_t slices = input.dims[dim];
    call.require(repeats.rank <= 1 && (repeats.numel() == 1 || repeats.numel() == slices),
                 "there must be one number of repeats, or one for each slice");
    call.require(input.rank == out.rank, "the output does not fit");
    call.require(input.dtype == out.dtype, "input and output types differ");
    const char* name = call.name();
    return [=] {
        std::vector<int64_t> counts = values_of(repeats);
        const int64_t room = out.dims[dim];
        counts.resize(size_t(slices), counts.empty() ? 0 : counts[0]);
        int64_t at = 0;
        for (int64_t i = 0; i < slices; i++) {
            const int64_t count = counts[size_t(i)];
            if (count < 0 || count > room - at) {
                return out_of_range(name, count, room - at);
            }
            for (int64_t r = 0; r < count; r++) {
                copy_tensor(out.narrowed(dim, at++, 1), input.narrowed(dim, i, 1));
            }
        }
        return at == room ? 0 : out_of_range(name, at, room);
    };
}

Job one_hot(Call& call) {  // self, depth, on, off, axis, out
    const Tensor self = call.tensor(0), on = call.tensor(2), off = call.tensor(3), out = call.tensor(5);
    const int64_t depth = call.integer(1);
    require_index(call, self);
    call.require((call.integer(4) == -1 || call.integer(4) == self.rank) && out.rank == self.rank + 1 &&
                     out.dim(-1) == depth,
                 "only the last axis is emulated");
    call.require(on.numel() == 1 && off.numel() == 1, "on and off must have one element");
    return [=] {
        Tensor low = off, high = on;
        low.rank = high.rank = 0;
        copy_tensor(out, low);
        const std::vector<int64_t> values = values_of(self);
        size_t i = 0;
        for_each_line({Lined{out, 1}}, [&](const Line lines[]) {
            const int64_t at = values[i++];
            if (at >= 0 && at < depth) {
                Tensor cell = high;
                cell.dtype = out.dtype;
                cell.data = lines[0].base + at * lines[0].strides[0] * out.element();
                copy_tensor(cell, high);
            }
        });
        return 0;
    };
}

OPERATOR("aclnnEmbedding", embedding);
OPERATOR("aclnnIndexSelect", [](Call& call) {  // self, dim, index, out
    const Tensor self = call.tensor(0);
    return select_job(call, self, call.dimension(call.integer(1), self), call.tensor(2), call.tensor(3));
});
OPERATOR("aclnnGatherV2", [](Call& call) -> Job {  // self, dim, index, out
    const Tensor self = call.tensor(0);
    return select_job(call, self, call.dimension(call.integer(1), self), call.tensor(2), call.tensor(3));
});
OPERATOR("aclnnIndex", index);
OPERATOR("aclnnIndexPutImpl", index_put);
OPERATOR("aclnnTake", take);
OPERATOR("aclnnOneHot", one_hot);
OPERATOR("aclnnRepeatInterleaveIntWithDim", [](Call& call) {  // self, repeats, dim, output size, out
    return repeat_interleave(call, call.tensor(0), call.integer(1), call.integer(2), call.tensor(4));
});
OPERATOR("aclnnRepeatInterleaveWithDim", [](Call& call) {  // self, repeats, dim, output size, out
    return repeat_each(call, call.tensor(0), call.tensor(1), call.integer(2), call.tensor(4));
});
OPERATOR("aclnnRepeatInterleave", [](Call& call) -> Job {  // self, repeats, output size, out
    Tensor flat = call.tensor(0).at_least_1d();
    if (flat.rank > 1) {
        call.require(flat.contiguous(), "of several dimensions only a contiguous input is emulated");
        flat = dense(flat.data, flat.dtype, {flat.numel()});
    }
    return repeat_each(call, flat, call.tensor(1), 0, call.tensor(3));
});
OPERATOR("aclnnRepeatInterleaveInt", [](Call& call) -> Job {  // self, repeats, output size, out
    Tensor self = call.tensor(0);
    call.require(self.contiguous(), "only a contiguous input is emulated");
    Tensor flat = dense(self.data, self.dtype, {self.numel()});
    return repeat_interleave(call, flat, call.integer(1), 0, call.tensor(3));
});

}  // namespace
}  // namespace flexnpu::ops
