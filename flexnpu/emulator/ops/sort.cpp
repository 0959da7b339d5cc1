// Order and accumulation along a dimension: sort, top-k, cumulative sums, membership, search.
#include <cmath>
#include <numeric>

#include "index.hpp"
#include "iterate.hpp"
#include "registry.hpp"

namespace flexnpu::ops {
namespace {

// NaN is greater than every number, as in torch.
template <class T>
bool less(T a, T b) {
    return a < b || (b != b && a == a);
}

// The k first positions of a line in order; ties keep their order.
template <class T>
void order(const T* row, int64_t n, int64_t k, bool descending, std::vector<int64_t>& positions) {
    positions.resize(static_cast<size_t>(n));
    std::iota(positions.begin(), positions.end(), 0);
    auto before = [&](int64_t a, int64_t b) {
        if (descending ? less(row[b], row[a]) : less(row[a], row[b])) {
            return true;
        }
        if (descending ? less(row[a], row[b]) : less(row[b], row[a])) {
            return false;
        }
        return a < b;
    };
    if (k < n) {
        std::partial_sort(positions.begin(), positions.begin() + k, positions.end(), before);
    } else {
        std::sort(positions.begin(), positions.end(), before);
    }
}

// Values and positions of the k first elements along dim. Cost: n log2 n comparisons a line.
Job ordered_job(Call& call, const Tensor& self, int64_t dim_argument, int64_t k, bool descending,
                const Tensor* values, const Tensor* indices) {
    call.require_numeric(self);
    const int dim = call.dimension(dim_argument, self);
    const std::vector<int> dims = self.rank == 0 ? std::vector<int>{} : std::vector<int>{dim};
    const int64_t n = self.rank == 0 ? 1 : self.dims[dim];
    call.require(k >= 0 && k <= n, "k = %lld for %lld elements", static_cast<long long>(k),
                 static_cast<long long>(n));
    Tensor shape = self;
    if (self.rank) {
        shape.dims[dim] = k;
    }
    const bool has_values = values != nullptr, has_indices = indices != nullptr;
    const Tensor out = has_values ? *values : Tensor{}, at = has_indices ? *indices : Tensor{};
    if (has_values) {
        call.require_shape(out, shape, "the values");
        call.require(out.dtype == self.dtype, "the values' type differs from the input's");
    }
    if (has_indices) {
        call.require_shape(at, shape, "the indices");
        call.require(is_integral(at.dtype), "indices must be integers");
    }
    call.cost.vector_flops = static_cast<double>(self.numel()) *
                             std::max(1.0, std::log2(static_cast<double>(std::max<int64_t>(n, 2))));
    return [=] {
        if (k == 0) {
            return 0;
        }
        with_compute(compute_of({self.dtype}), [&]<class T>() {
            const auto row = buffer<T>(n), sorted = buffer<T>(k);
            std::vector<int64_t> positions;
            std::vector<Lined> operands{lined(self, dims)};
            if (has_values) {
                operands.push_back(lined(out, dims));
            }
            if (has_indices) {
                operands.push_back(lined(at, dims));
            }
            for_each_line(operands, [&](const Line lines[]) {
                const T* x = lines[0].view(row.get());
                order(x, n, k, descending, positions);
                if (has_values) {
                    for (int64_t i = 0; i < k; i++) {
                        sorted[i] = x[positions[static_cast<size_t>(i)]];
                    }
                    lines[1].store(sorted.get());
                }
                if (has_indices) {
                    lines[has_values ? 2 : 1].store(positions.data());
                }
            });
        });
        return 0;
    };
}

Job kth(Call& call, const Tensor& self, int64_t dim_argument, int64_t k, const Tensor& values,
        const Tensor& indices) {
    call.require_numeric(self);
    const int dim = call.dimension(dim_argument, self);
    const std::vector<int> dims = self.rank == 0 ? std::vector<int>{} : std::vector<int>{dim};
    const int64_t n = self.rank == 0 ? 1 : self.dims[dim];
    call.require(k >= 1 && k <= n, "k = %lld for %lld elements", static_cast<long long>(k),
                 static_cast<long long>(n));
    auto output = [&](const Tensor& t) {
        const Lined o{t.rank == self.rank && self.rank ? t.without(dims) : t, 0};
        call.require_shape(o.tensor, self.without(dims), "an output");
        return o;
    };
    const Lined to = output(values), to_index = output(indices), from = lined(self, dims);
    return [=] {
        with_compute(compute_of({self.dtype}), [&]<class T>() {
            const auto row = buffer<T>(n);
            std::vector<int64_t> positions;
            for_each_line({to, to_index, from}, [&](const Line lines[]) {
                const T* x = lines[2].view(row.get());
                order(x, n, k, false, positions);
                const int64_t at = positions[static_cast<size_t>(k - 1)];
                kernels().rows<T>().store(x + at, lines[0].base, values.dtype, values.element(), 1);
                kernels().i64.store(&at, lines[1].base, indices.dtype, indices.element(), 1);
            });
        });
        return 0;
    };
}

// out[i] = op(out[i-1], x[i]) along dim, in float64 for floating types.
template <class F>
Job scan_job(Call& call, const Tensor& self, int64_t dim_argument, const Tensor& out, F f) {
    call.require_numeric(self);
    call.require_numeric(out);
    call.require_shape(out, self, "the output");
    const int dim = call.dimension(dim_argument, self);
    const std::vector<int> dims = self.rank == 0 ? std::vector<int>{} : std::vector<int>{dim};
    const int64_t n = self.rank == 0 ? 1 : self.dims[dim];
    const Compute compute =
        is_integral(self.dtype) && is_integral(out.dtype) ? Compute::kWhole : Compute::kDouble;
    return [=] {
        if (self.numel() == 0) {
            return 0;
        }
        with_compute(compute, [&]<class T>() {
            const auto row = buffer<T>(n);
            for_each_line({lined(out, dims), lined(self, dims)}, [&](const Line lines[]) {
                lines[1].load(row.get());
                for (int64_t i = 1; i < n; i++) {
                    row[i] = f(row[i - 1], row[i]);
                }
                lines[0].store(row.get());
            });
        });
        return 0;
    };
}

Job cumsum(Call& call) {  // self, dim, dtype, out
    return scan_job(call, call.tensor(0), call.integer(1), call.tensor(3),
                    [](auto a, auto b) { return a + b; });
}

// Whether each element of `elements` stands among `set`.
Job is_in_job(Call& call, const Tensor& elements, const Tensor& set, bool invert, const Tensor& out) {
    call.require_numeric(elements);
    call.require_numeric(set);
    call.require_broadcast(out, {&elements});
    return [=] {
        with_compute(compute_of({elements.dtype, set.dtype}), [&]<class T>() {
            std::vector<T> members(static_cast<size_t>(set.numel()));
            int64_t filled = 0;
            const Loop over = make_loop({&set});
            for_each_chunk(over, [&](char* const p[], const int64_t stride[], int64_t n) {
                kernels().rows<T>().load(members.data() + filled, p[0], set.dtype, stride[0], n);
                filled += n;
            });
            std::sort(members.begin(), members.end());
            const Loop loop = make_loop({&out, &elements});
            T row[kChunk];
            int64_t found[kChunk];
            for_each_chunk(loop, [&](char* const p[], const int64_t stride[], int64_t n) {
                kernels().rows<T>().load(row, p[1], elements.dtype, stride[1], n);
                for (int64_t i = 0; i < n; i++) {
                    found[i] = std::binary_search(members.begin(), members.end(), row[i]) != invert;
                }
                kernels().i64.store(found, p[0], out.dtype, stride[0], n);
            });
        });
        return 0;
    };
}

Job is_in_scalar_tensor(Call& call) {  // element, test elements, assume unique, invert, out
    auto held = std::make_shared<Scalar>(call.scalar(0));
    const Job job = is_in_job(call, held->tensor(), call.tensor(1), call.boolean(3), call.tensor(4));
    return [job, held] { return job(); };
}

Job is_in_tensor_scalar(Call& call) {  // elements, test element, assume unique, invert, out
    auto held = std::make_shared<Scalar>(call.scalar(1));
    const Job job = is_in_job(call, call.tensor(0), held->tensor(), call.boolean(3), call.tensor(4));
    return [job, held] { return job(); };
}

Job search_sorted(Call& call) {  // sorted sequence, self, int32 output, right, sorter, out
    const Tensor sequence = call.tensor(0), self = call.tensor(1), out = call.tensor(5);
    const bool right = call.boolean(3);
    const bool sorted = !call.has(4);
    const Tensor sorter = sorted ? Tensor{} : call.tensor(4);
    call.require_numeric(sequence);
    call.require_numeric(self);
    call.require(sequence.rank == 1 || (sequence.rank == self.rank && self.rank >= 1),
                 "the sequence does not fit");
    call.require_shape(out, self, "the output");
    if (!sorted) {
        call.require_shape(sorter, sequence, "the sorter");
        call.require(sorter.dtype == acl::INT64, "the sorter must hold int64");
    }
    const char* name = call.name();
    return [=] {
        const Compute compute = compute_of({sequence.dtype, self.dtype});
        int error = 0;
        with_compute(compute, [&]<class T>() {
            const int64_t n = sequence.dim(-1);
            const auto bounds = buffer<T>(n);
            auto position = [&](T x) {
                const T* first = bounds.get();
                const T* at = right ? std::upper_bound(first, first + n, x, less<T>)
                                    : std::lower_bound(first, first + n, x, less<T>);
                return static_cast<int64_t>(at - first);
            };
            const bool shared = sequence.rank == 1;
            Tensor lines_of = sequence, order_of = sorted ? sequence : sorter;
            if (shared && self.rank) {
                Tensor shape = self;
                shape.dims[self.rank - 1] = n;
                lines_of = lines_of.expanded(shape);
                order_of = order_of.expanded(shape);
            }
            const auto unordered = buffer<T>(sorted ? 0 : n);
            const auto order = buffer<int64_t>(sorted ? 0 : n);
            const int rank = self.rank ? 1 : 0;
            const std::vector<Lined> operands{{out, rank}, {self, rank}, {lines_of, 1}, {order_of, 1}};
            for_each_line(operands, [&](const Line lines[]) {
                if (sorted) {
                    lines[2].load(bounds.get());
                } else {
                    lines[2].load(unordered.get());
                    lines[3].load(order.get());
                    for (int64_t i = 0; i < n; i++) {
                        if (order[i] < 0 || order[i] >= n) {
                            error = error != 0 ? error : out_of_range(name, order[i], n);
                            order[i] = 0;
                        }
                        bounds[i] = unordered[order[i]];
                    }
                }
                const auto row = buffer<T>(lines[1].size);
                const auto found = buffer<int64_t>(lines[1].size);
                lines[1].load(row.get());
                for (int64_t i = 0; i < lines[1].size; i++) {
                    found[i] = position(row[i]);
                }
                lines[0].store(found.get());
            });
        });
        return error;
    };
}

OPERATOR("aclnnSort", [](Call& call) {  // self, stable, dim, descending, values, indices
    const Tensor self = call.tensor(0), values = call.tensor(4), indices = call.tensor(5);
    const int dim = call.dimension(call.integer(2), self);
    return ordered_job(call, self, dim, self.rank ? self.dims[dim] : 1, call.boolean(3), &values, &indices);
});
OPERATOR("aclnnArgsort", [](Call& call) {  // self, dim, descending, out
    const Tensor self = call.tensor(0), out = call.tensor(3);
    const int dim = call.dimension(call.integer(1), self);
    return ordered_job(call, self, dim, self.rank ? self.dims[dim] : 1, call.boolean(2), nullptr, &out);
});
OPERATOR("aclnnTopk", [](Call& call) {  // self, k, dim, largest, sorted, values, indices
    const Tensor self = call.tensor(0), values = call.tensor(5), indices = call.tensor(6);
    return ordered_job(call, self, call.integer(2), call.integer(1), call.boolean(3), &values, &indices);
});
OPERATOR("aclnnKthvalue", [](Call& call) {  // self, k, dim, keepdim, values, indices
    return kth(call, call.tensor(0), call.integer(2), call.integer(1), call.tensor(4), call.tensor(5));
});
OPERATOR("aclnnMedianDim", [](Call& call) {  // self, dim, keepdim, values, indices: the lower of two middles
    const Tensor self = call.tensor(0);
    const int dim = call.dimension(call.integer(1), self);
    return kth(call, self, dim, self.rank ? (self.dims[dim] + 1) / 2 : 1, call.tensor(3), call.tensor(4));
});
OPERATOR("aclnnCumsum", cumsum);
OPERATOR("aclnnCumprod", [](Call& call) {  // self, dim, dtype, out
    return scan_job(call, call.tensor(0), call.scalar(1).whole, call.tensor(3),
                    [](auto a, auto b) { return a * b; });
});
OPERATOR("aclnnIsInScalarTensor", is_in_scalar_tensor);
OPERATOR("aclnnIsInTensorScalar", is_in_tensor_scalar);
OPERATOR("aclnnSearchSorted", search_sorted);

}  // namespace
}  // namespace flexnpu::ops
