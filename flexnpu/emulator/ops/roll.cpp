// Roll: every element moves along some dimensions, around the end.
#include <array>
#include <memory>

#include "iterate.hpp"
#include "registry.hpp"

namespace flexnpu::ops {
namespace {

// Each dimension from `dim` on falls into what stays in order and what wraps around.
void roll_from(const Tensor& self, const Tensor& out, const std::array<int64_t, kMaxRank>& by, int dim) {
    while (dim < self.rank && by[dim] % self.dims[dim] == 0) {
        dim++;
    }
    if (dim == self.rank) {
        copy_tensor(out, self);
        return;
    }
    const int64_t n = self.dims[dim], shift = (by[dim] % n + n) % n;
    roll_from(self.narrowed(dim, 0, n - shift), out.narrowed(dim, shift, n - shift), by, dim + 1);
    roll_from(self.narrowed(dim, n - shift, shift), out.narrowed(dim, 0, shift), by, dim + 1);
}

int roll_flat(const Tensor& self, const Tensor& out, int64_t shift) {
    const int64_t n = self.numel();
    const auto lines = std::make_unique<char[]>(static_cast<size_t>(2 * n * self.element()));
    char* const rolled = lines.get() + n * self.element();
    copy_tensor(dense_like(self, lines.get(), self.dtype), self);
    if (n != 0) {
        roll_from(dense(lines.get(), self.dtype, {n}), dense(rolled, self.dtype, {n}), {shift}, 0);
    }
    copy_tensor(out, dense_like(self, rolled, self.dtype));
    return 0;
}

Job roll(Call& call) {  // self, shifts, dims, out
    Tensor self = call.tensor(0), out = call.tensor(3);
    const std::vector<int64_t> shifts = call.ints(1), dims = call.ints(2);
    call.require_shape(out, self, "the output");
    if (dims.empty()) {
        call.require(shifts.size() == 1, "%zu shifts for the flat tensor, which takes one", shifts.size());
        return [=] { return roll_flat(self, out, shifts[0]); };
    }
    call.require(dims.size() == shifts.size(), "%zu shifts for %zu dimensions", shifts.size(), dims.size());
    std::array<int64_t, kMaxRank> by{};
    for (size_t i = 0; i < dims.size(); i++) {
        const int dim = call.dimension(dims[i], self);
        by[dim] += shifts[i];  // a dimension may be named twice
    }
    return [=] {
        if (self.numel() != 0) {
            roll_from(self, out, by, 0);
        }
        return 0;
    };
}

OPERATOR("aclnnRoll", roll);

}  // namespace
}  // namespace flexnpu::ops
