// Selections by truth: nonzero, masked select, masked scatter.
#include <cstring>

#include "flexnpu/api/host_objects.hpp"
#include "index.hpp"

namespace flexnpu::ops {
namespace {

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
        int64_t n = 0;  // of a 0-dim tensor too, whose positions have no numbers
        for_each_true(self, [&](const int64_t* at) {
            found.insert(found.end(), at, at + self.rank);
            n++;
        });
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

// Runs of equal elements: each one's value, its length, and of every element which run it is in. Of all
// elements in their order, or of a vector; slices of a tensor are not emulated.
Job unique_consecutive(Call& call) {  // self, inverse?, counts?, dim, values out, inverse out, counts out
    constexpr int64_t kNoDimension = 1000;  // as torch_npu says it
    const Tensor self = call.tensor(0), values = call.tensor(4), inverse = call.tensor(5),
                 counts = call.tensor(6);
    const bool asks_inverse = call.boolean(1), asks_counts = call.boolean(2);
    const Late late_values = call.late(4), late_counts = call.late(6);
    const int64_t dim = call.integer(3), n = self.numel();
    call.require(dim == kNoDimension || (self.rank == 1 && (dim == 0 || dim == -1)),
                 "along a dimension only a vector is emulated");
    call.require(is_integral(self.dtype), "of floating-point numbers it is not emulated");
    call.require(values.contiguous() && inverse.contiguous() && counts.contiguous(),
                 "only contiguous outputs are emulated");
    call.require(values.dtype == self.dtype && values.numel() >= n, "the output does not fit");
    call.require(!asks_inverse || (inverse.dtype == acl::INT64 && inverse.numel() >= n),
                 "the inverse does not fit");
    call.require(!asks_counts || (counts.dtype == acl::INT64 && counts.numel() >= n),
                 "the counts do not fit");
    return [=] {
        const size_t element = size_t(self.element());
        const auto given = buffer<char>(n * self.element());
        copy_tensor(dense_like(self, given.get(), self.dtype), self);
        auto* of = reinterpret_cast<int64_t*>(inverse.data);
        auto* length = reinterpret_cast<int64_t*>(counts.data);
        int64_t runs = 0;
        for (int64_t i = 0; i < n; i++) {
            const char* at = given.get() + size_t(i) * element;
            if (i == 0 || std::memcmp(at, at - element, element) != 0) {
                std::memcpy(values.data + size_t(runs++) * element, at, element);
                if (asks_counts) {
                    length[runs - 1] = 0;
                }
            }
            if (asks_counts) {
                length[runs - 1]++;
            }
            if (asks_inverse) {
                of[i] = runs - 1;
            }
        }
        set_view(late_values, {runs});
        if (asks_counts) {
            set_view(late_counts, {runs});
        }
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

OPERATOR("aclnnNonzero", [](Call& call) { return nonzero(call, false); });
OPERATOR("aclnnNonzeroV2", [](Call& call) { return nonzero(call, true); });
OPERATOR("aclnnMaskedSelect", masked_select);
OPERATOR("aclnnUniqueConsecutive", unique_consecutive);
OPERATOR("aclnnInplaceMaskedScatter", masked_scatter);

}  // namespace
}  // namespace flexnpu::ops
