// Gathers and scatters along a dimension: gather, scatter, index add, copy and fill.
#include <cstring>
#include <numeric>

#include "index.hpp"

namespace flexnpu::ops {
namespace {

// For every position of `index`: f(element of along at index[position] of dim, element of same at the
// position). None of them is 0-dim.
template <class F>
int for_each_indexed(const char* name, const Tensor& along, int dim, const Tensor& index, const Tensor& same,
                     F&& f) {
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

// An index without elements fits anything.
void require_index_fits(Call& call, const Tensor& along, int dim, const Tensor& index) {
    require_index(call, index);
    if (index.numel() == 0) {
        return;
    }
    call.require(index.rank == along.rank, "the index has %d dimensions, self %d", index.rank, along.rank);
    for (int d = 0; d < index.rank; d++) {
        call.require(d == dim || index.dims[d] <= along.dims[d],
                     "the index is larger than self in dimension %d", d);
    }
}

Job gather(Call& call) {  // self, dim, index, out
    const Tensor self = call.tensor(0).at_least_1d(), index = call.tensor(2).at_least_1d(),
                 out = call.tensor(3).at_least_1d();
    const int dim = call.dimension(call.integer(1), self);
    require_index_fits(call, self, dim, index);
    call.require_shape(out, index, "the output");
    call.require(self.dtype == out.dtype, "input and output types differ");
    call.cost.bytes = 2 * out.bytes() + index.bytes();
    call.cost.vector_flops = static_cast<double>(out.numel());
    const char* name = call.name();
    const auto element = static_cast<size_t>(out.element());
    return [=] {
        return index.numel() == 0 ? 0
                                  : for_each_indexed(name, self, dim, index, out, [&](char* in, char* to) {
                                        std::memcpy(to, in, element);
                                    });
    };
}

// reduction: 0 replace, 1 add, 2 multiply (and so aclnnScatter counts them)
Job scatter_job(Call& call, const Tensor& given_self, int64_t dim_argument, const Tensor& given_index,
                const Tensor& given_source, int64_t reduction, const Tensor& given_out) {
    const Tensor self = given_self.at_least_1d(), index = given_index.at_least_1d(),
                 source = given_source.at_least_1d(), out = given_out.at_least_1d();
    const int dim = call.dimension(dim_argument, self);
    require_index_fits(call, self, dim, index);
    call.require(source.rank == index.rank || index.numel() == 0,
                 "the source has %d dimensions, the index %d", source.rank, index.rank);
    for (int d = 0; d < index.rank && index.numel() != 0; d++) {
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
        if (index.numel() == 0) {
            return 0;
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
Job index_update(Call& call, const Tensor& given_self, int64_t dim_argument, const Tensor& index,
                 const Tensor& given_source, const Tensor& given_out, bool add, Scalar alpha) {
    const Tensor self = given_self.at_least_1d(), source = given_source.at_least_1d(),
                 out = given_out.at_least_1d();
    const int dim = call.dimension(dim_argument, self);
    require_index(call, index);
    call.require(index.rank <= 1, "the index must have one dimension");
    call.require(source.rank == self.rank, "the source does not fit");
    for (int d = 0; d < self.rank; d++) {
        call.require(source.dims[d] == (d == dim ? index.numel() : self.dims[d]), "the source does not fit");
    }
    call.require_shape(out, self, "the output");
    call.require_numeric(self);
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
            add ? add_to(to, from, alpha) : copy_tensor(to, from);
        }
        return 0;
    };
}

Job index_fill(Call& call, const Tensor& given_self, int64_t dim_argument, const std::vector<int64_t>* fixed,
               const Tensor* index, Scalar value, const Tensor& given_out) {
    const Tensor self = given_self.at_least_1d(), out = given_out.at_least_1d();
    const int dim = call.dimension(dim_argument, self);
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

}  // namespace
}  // namespace flexnpu::ops
