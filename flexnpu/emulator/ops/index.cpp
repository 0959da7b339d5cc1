// Look-ups and scatters: embedding, gather, index, scatter, masked selections.
//
// An index out of range makes the operator fail when it runs, as an AI core exception: the values are not
// known earlier. Cost: only what is read and written, not the table that is looked into.
#include <cstring>
#include <numeric>

#include "flexnpu/api/host_objects.hpp"
#include "iterate.hpp"
#include "registry.hpp"

namespace flexnpu::ops {
namespace {

int out_of_range(const char* name, int64_t index, int64_t size) {
    return flexnpu_emu_fail(kAicoreException, "%s: index %lld is out of range for a dimension of size %lld",
                            name, static_cast<long long>(index), static_cast<long long>(size));
}

void require_index(const Call& call, const Tensor& index) {
    call.require(is_integral(index.dtype) && index.dtype != acl::BOOL, "indices must be integers, not %s",
                 dtype_name(index.dtype));
}

// Every element of an integer tensor, in row-major order.
std::vector<int64_t> values_of(const Tensor& t) {
    std::vector<int64_t> result(static_cast<size_t>(t.numel()));
    copy_tensor(dense_like(t, result.data(), acl::INT64), t);
    return result;
}

// Negative indices count from the end. False when out of range.
bool wrap(int64_t& index, int64_t size) {
    if (index < 0) {
        index += size;
    }
    return index >= 0 && index < size;
}

// out[..., i, ...] = self[..., index[i], ...] along dim. Slices are moved as tensors, which is a memcpy when
// contiguous.
Job select_job(Call& call, const Tensor& self, int dim, const Tensor& index, const Tensor& out) {
    require_index(call, index);
    call.require(index.rank <= 1, "the index must have one dimension");
    call.require(self.dtype == out.dtype, "input and output types differ");
    call.require(self.rank == out.rank && (self.rank == 0 || out.dims[dim] == index.numel()),
                 "the output does not fit");
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
            if (!wrap(at, self.rank ? self.dims[dim] : 1)) {
                return out_of_range(name, at, self.rank ? self.dims[dim] : 1);
            }
            if (self.rank == 0) {
                copy_tensor(out, self);
            } else {
                copy_tensor(out.selected(dim, static_cast<int64_t>(i)), self.selected(dim, at));
            }
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
    // an index without elements, `wanted`, the shape that the caller expects, decides.
    static AdvancedIndex make(Call& call, const Tensor& self, const std::vector<Tensor>& list,
                              const Tensor& wanted) {
        AdvancedIndex a = make(call, self, list, true);
        if (!a.result_shape.same_shape(wanted) && is_integral(self.dtype)) {
            AdvancedIndex other = make(call, self, list, false);
            if (other.result_shape.same_shape(wanted)) {
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

// Adds in the tensor's own compute type.
void add_to(const Tensor& to, const Tensor& from) {
    const Loop loop = make_loop({&to, &from});
    with_compute(compute_of({to.dtype}), [&]<class T>() {
        T x[kChunk], y[kChunk];
        for_each_chunk(loop, [&](char* const p[], const int64_t stride[], int64_t n) {
            kernels().rows<T>().load(x, p[0], to.dtype, stride[0], n);
            kernels().rows<T>().load(y, p[1], from.dtype, stride[1], n);
            kernels().rows<T>().binary[static_cast<int>(Binary::Add)](x, x, y, n, 1);
            kernels().rows<T>().store(x, p[0], to.dtype, stride[0], n);
        });
    });
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

// For every position of `index`: f(element of along at index[position] of dim, element of same at the
// position).
template <class F>
int for_each_indexed(const char* name, const Tensor& along, int dim, const Tensor& index, const Tensor& same,
                     F&& f) {
    const int rank = index.rank;
    if (rank == 0) {
        int64_t at;
        kernels().i64.load(&at, index.data, index.dtype, 0, 1);
        const int64_t size = along.rank ? along.dims[dim] : 1;
        if (!wrap(at, size)) {
            return out_of_range(name, at, size);
        }
        f(along.data + (along.rank ? at * along.strides[dim] * along.element() : 0), same.data);
        return 0;
    }
    // Views of the index's shape; along the dimension the position is taken from the index.
    Tensor base = along, other = same;
    base.dims = index.dims;
    other.dims = index.dims;
    base.strides[dim] = 0;
    const int64_t stride = along.strides[dim] * along.element();
    int error = 0;
    const std::vector<int> line{dim};
    const auto positions = buffer<int64_t>(index.dims[dim]);
    for_each_line({Lined{index.permuted_last(line), 1}, Lined{base.permuted_last(line), 1},
                   Lined{other.permuted_last(line), 1}},
                  [&](const Line lines[]) {
                      if (error) {
                          return;
                      }
                      lines[0].load(positions.get());
                      const int64_t step = lines[2].strides[0] * other.element();
                      for (int64_t i = 0; i < lines[0].size; i++) {
                          int64_t at = positions[i];
                          if (!wrap(at, along.dims[dim])) {
                              error = out_of_range(name, at, along.dims[dim]);
                              return;
                          }
                          f(lines[1].base + at * stride, lines[2].base + i * step);
                      }
                  });
    return error;
}

void require_index_fits(Call& call, const Tensor& along, int dim, const Tensor& index) {
    require_index(call, index);
    call.require(index.rank == along.rank, "the index has %d dimensions, self %d", index.rank, along.rank);
    for (int d = 0; d < index.rank; d++) {
        call.require(d == dim || index.dims[d] <= along.dims[d],
                     "the index is larger than self in dimension %d", d);
    }
}

Job gather(Call& call) {  // self, dim, index, out
    const Tensor self = call.tensor(0), index = call.tensor(2), out = call.tensor(3);
    const int dim = call.dimension(call.integer(1), self);
    require_index_fits(call, self, dim, index);
    call.require_shape(out, index, "the output");
    call.require(self.dtype == out.dtype, "input and output types differ");
    call.cost.bytes = 2 * out.bytes() + index.bytes();
    call.cost.vector_flops = static_cast<double>(out.numel());
    const char* name = call.name();
    const auto element = static_cast<size_t>(out.element());
    return [=] {
        return for_each_indexed(name, self, dim, index, out,
                                [&](char* in, char* to) { std::memcpy(to, in, element); });
    };
}

// reduction: 0 replace, 1 add, 2 multiply (and so aclnnScatter counts them)
Job scatter_job(Call& call, const Tensor& self, int64_t dim_argument, const Tensor& index,
                const Tensor& source, int64_t reduction, const Tensor& out) {
    const int dim = call.dimension(dim_argument, self);
    require_index_fits(call, self, dim, index);
    call.require(source.rank == index.rank, "the source has %d dimensions, the index %d", source.rank,
                 index.rank);
    for (int d = 0; d < index.rank; d++) {
        call.require(index.dims[d] <= source.dims[d], "the index is larger than the source in dimension %d",
                     d);
    }
    call.require_shape(out, self, "the output");
    call.require_numeric(self);
    call.require_numeric(source);
    call.require(out.dtype == self.dtype, "input and output types differ");
    call.require(reduction >= 0 && reduction <= 2, "reduction %lld is not emulated",
                 static_cast<long long>(reduction));
    const char* name = call.name();
    return [=] {
        if (out.data != self.data) {
            copy_tensor(out, self);
        }
        return with_compute(compute_of({self.dtype, source.dtype}), [&]<class T>() {
            const auto& k = kernels().rows<T>();
            return for_each_indexed(name, out, dim, index, source, [&](char* to, char* from) {
                T x, y;
                k.load(&x, from, source.dtype, 0, 1);
                if (reduction != 0) {
                    k.load(&y, to, out.dtype, 0, 1);
                    x = reduction == 1 ? x + y : x * y;
                }
                k.store(&x, to, out.dtype, out.element(), 1);
            });
        });
    };
}

Job scatter_value(Call& call, const Tensor& self, int64_t dim, const Tensor& index, Scalar value,
                  int64_t reduction, const Tensor& out) {
    // The value is read through a 0-stride tensor that lives in the job.
    auto held = std::make_shared<Scalar>(value);
    Tensor source = index;
    const Tensor scalar = held->tensor();
    source.data = scalar.data;
    source.dtype = is_floating(self.dtype) ? scalar.dtype : acl::INT64;
    if (source.dtype == acl::INT64) {
        source.data = reinterpret_cast<char*>(&held->whole);
    }
    source.strides.fill(0);
    const Job job = scatter_job(call, self, dim, index, source, reduction, out);
    return [job, held] { return job(); };
}

// self[..., index[i], ...] op= source[..., i, ...] along dim.
Job index_update(Call& call, const Tensor& self, int64_t dim_argument, const Tensor& index,
                 const Tensor& source, const Tensor& out, bool add, Scalar alpha) {
    const int dim = call.dimension(dim_argument, self);
    require_index(call, index);
    call.require(index.rank <= 1 && self.rank >= 1 && source.rank == self.rank,
                 "the index must have one dimension");
    for (int d = 0; d < self.rank; d++) {
        call.require(source.dims[d] == (d == dim ? index.numel() : self.dims[d]), "the source does not fit");
    }
    call.require_shape(out, self, "the output");
    call.require_numeric(self);
    call.require(alpha.real == 1 || !add, "only alpha = 1 is emulated");
    const char* name = call.name();
    return [=] {
        if (out.data != self.data) {
            copy_tensor(out, self);
        }
        const std::vector<int64_t> indices = values_of(index);
        for (size_t i = 0; i < indices.size(); i++) {
            int64_t at = indices[i];
            if (!wrap(at, out.dims[dim])) {
                return out_of_range(name, at, out.dims[dim]);
            }
            const Tensor to = out.selected(dim, at), from = source.selected(dim, static_cast<int64_t>(i));
            add ? add_to(to, from) : copy_tensor(to, from);
        }
        return 0;
    };
}

Job index_fill(Call& call, const Tensor& self, int64_t dim_argument, const std::vector<int64_t>* fixed,
               const Tensor* index, Scalar value, const Tensor& out) {
    const int dim = call.dimension(dim_argument, self);
    call.require(self.rank >= 1, "needs at least one dimension");
    call.require_numeric(self);
    call.require_shape(out, self, "the output");
    const std::vector<int64_t> given = fixed ? *fixed : std::vector<int64_t>{};
    const bool dynamic = index != nullptr;
    const Tensor positions = dynamic ? *index : Tensor{};
    const char* name = call.name();
    return [=] {
        if (out.data != self.data) {
            copy_tensor(out, self);
        }
        for (int64_t at : dynamic ? values_of(positions) : given) {
            if (!wrap(at, out.dims[dim])) {
                return out_of_range(name, at, out.dims[dim]);
            }
            copy_tensor(out.selected(dim, at), value.tensor());
        }
        return 0;
    };
}

// Operators whose output's shape depends on the data: the caller synchronises and reads it with
// aclGetViewShape.
using Late = std::shared_ptr<api::LateDims>;

void set_view(const Late& late, std::initializer_list<int64_t> dims) {
    late->dims.assign(dims.begin(), dims.size());
    late->known = true;
}

// Row-major visit of every element's truth: f(linear index, multi-index).
template <class F>
void for_each_true(const Tensor& t, F&& f) {
    std::vector<uint8_t> truth(static_cast<size_t>(t.numel()));
    copy_tensor(dense_like(t, truth.data(), acl::BOOL), t);
    int64_t at[kMaxRank] = {};
    for (size_t i = 0; i < truth.size(); i++) {
        if (truth[i]) {
            f(static_cast<const int64_t*>(at));
        }
        for (int d = t.rank - 1; d >= 0 && ++at[d] == t.dims[d]; d--) {
            at[d] = 0;
        }
    }
}

Job nonzero(Call& call, bool by_dimension) {  // self, out [n, rank], or [rank, n]
    const Tensor self = call.tensor(0), out = call.tensor(1);
    const Late late = call.late(1);
    call.require_numeric(self);
    call.require(out.dtype == acl::INT64 && out.contiguous() && out.numel() >= self.numel() * self.rank,
                 "the output must be int64, contiguous and large enough for every element");
    return [=] {
        std::vector<int64_t> found;
        for_each_true(self, [&](const int64_t* at) { found.insert(found.end(), at, at + self.rank); });
        const int64_t n = self.rank ? static_cast<int64_t>(found.size()) / self.rank : 0;
        auto* to = reinterpret_cast<int64_t*>(out.data);
        for (int64_t i = 0; i < n; i++) {
            for (int d = 0; d < self.rank; d++) {
                to[by_dimension ? d * n + i : i * self.rank + d] =
                    found[static_cast<size_t>(i * self.rank + d)];
            }
        }
        by_dimension ? set_view(late, {self.rank, n}) : set_view(late, {n, self.rank});
        return 0;
    };
}

Job masked_select(Call& call) {  // self, mask, out
    Tensor self = call.tensor(0), mask = call.tensor(1);
    const Tensor out = call.tensor(2);
    const Late late = call.late(2);
    Tensor shape = self;
    while (shape.rank < mask.rank) {
        shape = shape.unsqueezed(0);
    }
    for (int i = mask.rank - 1, j = shape.rank - 1; i >= 0; i--, j--) {
        shape.dims[j] = shape.dims[j] == 1 ? mask.dims[i] : shape.dims[j];
    }
    call.require_broadcast(shape, {&self, &mask});
    self = self.expanded(shape);
    mask = mask.expanded(shape);
    call.require_numeric(mask);
    call.require(out.rank == 1 && out.dtype == self.dtype && out.numel() >= self.numel(),
                 "the output does not fit");
    return [=] {
        const int64_t element = self.element();
        int64_t n = 0;
        for_each_true(mask, [&](const int64_t* at) {
            int64_t offset = 0;
            for (int d = 0; d < self.rank; d++) {
                offset += at[d] * self.strides[d];
            }
            std::memcpy(out.data + n++ * out.strides[0] * element, self.data + offset * element,
                        size_t(element));
        });
        set_view(late, {n});
        return 0;
    };
}

Job masked_scatter(Call& call) {  // self, mask, source
    const Tensor self = call.tensor(0), source = call.tensor(2);
    Tensor mask = call.tensor(1);
    call.require_broadcast(self, {&mask});
    mask = mask.expanded(self);
    call.require_numeric(mask);
    call.require(self.dtype == source.dtype, "self and source types differ");
    const char* name = call.name();
    return [=] {
        const int64_t element = self.element();
        const auto values = buffer<char>(source.numel() * element);
        copy_tensor(dense_like(source, values.get(), source.dtype), source);
        int64_t n = 0;
        int error = 0;
        for_each_true(mask, [&](const int64_t* at) {
            if (n >= source.numel()) {
                error = error ? error : out_of_range(name, n, source.numel());
                return;
            }
            int64_t offset = 0;
            for (int d = 0; d < self.rank; d++) {
                offset += at[d] * self.strides[d];
            }
            std::memcpy(self.data + offset * element, values.get() + n++ * element, size_t(element));
        });
        return error;
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
OPERATOR("aclnnGather", gather);
OPERATOR("aclnnScatter", [](Call& call) {  // self, dim, index, source, reduction, out
    return scatter_job(call, call.tensor(0), call.integer(1), call.tensor(2), call.tensor(3), call.integer(4),
                       call.tensor(5));
});
OPERATOR("aclnnInplaceScatter", [](Call& call) {
    const Tensor self = call.tensor(0);
    return scatter_job(call, self, call.integer(1), call.tensor(2), call.tensor(3), call.integer(4), self);
});
OPERATOR("aclnnScatterAdd", [](Call& call) {  // self, dim, index, source, out
    return scatter_job(call, call.tensor(0), call.integer(1), call.tensor(2), call.tensor(3), 1,
                       call.tensor(4));
});
OPERATOR("aclnnScatterValue", [](Call& call) {  // self, dim, index, value, reduction, out
    return scatter_value(call, call.tensor(0), call.integer(1), call.tensor(2), call.scalar(3),
                         call.integer(4), call.tensor(5));
});
OPERATOR("aclnnInplaceScatterValue", [](Call& call) {
    const Tensor self = call.tensor(0);
    return scatter_value(call, self, call.integer(1), call.tensor(2), call.scalar(3), call.integer(4), self);
});
OPERATOR("aclnnIndexAdd", [](Call& call) {  // self, dim, index, source, alpha, out
    return index_update(call, call.tensor(0), call.integer(1), call.tensor(2), call.tensor(3), call.tensor(5),
                        true, call.scalar_or(4, 1));
});
OPERATOR("aclnnIndexAddV2", [](Call& call) {  // self, dim, index, source, alpha, mode, out
    return index_update(call, call.tensor(0), call.integer(1), call.tensor(2), call.tensor(3), call.tensor(6),
                        true, call.scalar_or(4, 1));
});
OPERATOR("aclnnIndexCopy", [](Call& call) {  // self, dim, index, source, out
    return index_update(call, call.tensor(0), call.integer(1), call.tensor(2), call.tensor(3), call.tensor(4),
                        false, Scalar{});
});
OPERATOR("aclnnInplaceIndexCopy", [](Call& call) {
    const Tensor self = call.tensor(0);
    return index_update(call, self, call.integer(1), call.tensor(2), call.tensor(3), self, false, Scalar{});
});
OPERATOR("aclnnIndexFill", [](Call& call) {  // self, dim, index, value, out
    const Tensor index = call.tensor(2);
    return index_fill(call, call.tensor(0), call.integer(1), nullptr, &index, call.scalar(3), call.tensor(4));
});
OPERATOR("aclnnInplaceIndexFill", [](Call& call) {
    const Tensor self = call.tensor(0), index = call.tensor(2);
    return index_fill(call, self, call.integer(1), nullptr, &index, call.scalar(3), self);
});
OPERATOR("aclnnIndexFillTensor", [](Call& call) {  // self, dim, int array, value, out
    const std::vector<int64_t> index = call.ints(2);
    return index_fill(call, call.tensor(0), call.integer(1), &index, nullptr, call.scalar(3), call.tensor(4));
});
OPERATOR("aclnnInplaceIndexFillTensor", [](Call& call) {
    const Tensor self = call.tensor(0);
    const std::vector<int64_t> index = call.ints(2);
    return index_fill(call, self, call.integer(1), &index, nullptr, call.scalar(3), self);
});
OPERATOR("aclnnNonzero", [](Call& call) { return nonzero(call, false); });
OPERATOR("aclnnNonzeroV2", [](Call& call) { return nonzero(call, true); });
OPERATOR("aclnnMaskedSelect", masked_select);
OPERATOR("aclnnInplaceMaskedScatter", masked_scatter);
OPERATOR("aclnnTake", take);
OPERATOR("aclnnOneHot", one_hot);
OPERATOR("aclnnRepeatInterleaveIntWithDim", [](Call& call) {  // self, repeats, dim, output size, out
    return repeat_interleave(call, call.tensor(0), call.integer(1), call.integer(2), call.tensor(4));
});
OPERATOR("aclnnRepeatInterleaveInt", [](Call& call) -> Job {  // self, repeats, output size, out
    Tensor self = call.tensor(0);
    call.require(self.contiguous(), "only a contiguous input is emulated");
    Tensor flat = dense(self.data, self.dtype, {self.numel()});
    return repeat_interleave(call, flat, call.integer(1), 0, call.tensor(3));
});

}  // namespace
}  // namespace flexnpu::ops
