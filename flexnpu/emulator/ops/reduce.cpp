// Reductions over some dimensions: sums, means, extremes, truth, norms, variances.
//
// float16 and bfloat16 are summed in float32. A line that is contiguous in memory is summed where it lies;
// any other is gathered first.
#include <cmath>
#include <limits>
#include <utility>

#include "iterate.hpp"
#include "registry.hpp"

namespace flexnpu::ops {
namespace {

// Checks that out is self reduced over dims, and gives it one element a line.
Lined reduced_output(const Call& call, const Tensor& self, const std::vector<int>& dims, const Tensor& out) {
    Tensor shape = self.without(dims);
    Tensor result = out;
    if (out.rank == self.rank && self.rank != shape.rank) {  // keepdim
        for (int d : dims) {
            call.require(out.dims[d] == 1, "the output's dimension %d should be 1", d);
        }
        result = out.without(dims);
    }
    if (!result.same_shape(shape)) {
        call.fail("the output has shape %s for an input of shape %s", out.shape().c_str(),
                  self.shape().c_str());
    }
    return {result, 0};
}

// f(const T* line, int64_t n) -> R for every line, in the given compute type.
template <class F>
Job reduce_job(Call& call, const Tensor& self, const std::vector<int>& dims, const Tensor& out,
               Compute compute, F f) {
    call.require_numeric(self);
    call.require_numeric(out);
    const Lined to = reduced_output(call, self, dims, out);
    const Lined from = lined(self, dims);
    return [=] {
        with_compute(compute, [&]<class T>() {
            int64_t n = 1;
            for (int d : dims) {
                n *= self.dims[d];
            }
            const auto gathered = buffer<T>(n);
            for_each_line({to, from}, [&](const Line lines[]) {
                const T* row = lines[1].view<T>(gathered.get());
                auto result = f(row, n);
                using R = decltype(result);
                kernels().rows<R>().store(&result, lines[0].base, out.dtype, out.element(), 1);
            });
        });
        return 0;
    };
}

// Sums where the line's neighbour in memory is another line (a column sum) would gather with a stride; adding
// whole rows is kinder to the cache. One float64 accumulator for each output element.
bool is_column_sum(const Tensor& self, const std::vector<int>& dims) {
    return self.rank >= 2 && !dims.empty() && self.stride(-1) == 1 && self.dim(-1) >= 8 &&
           std::find(dims.begin(), dims.end(), self.rank - 1) == dims.end();
}

Job sum_job(Call& call, const Tensor& self, const std::vector<int>& dims, const Tensor& out, bool mean) {
    call.require(!mean || is_floating(out.dtype), "a mean needs a floating-point output");
    int64_t count = 1;
    for (int d : dims) {
        count *= self.dims[d];
    }
    Compute compute = compute_of({self.dtype});
    if (compute == Compute::kWhole && is_floating(out.dtype)) {
        compute = Compute::kFloat;
    }
    if (compute != Compute::kWhole && is_column_sum(self, dims)) {
        call.require_numeric(self);
        call.require_numeric(out);
        const Lined to = reduced_output(call, self, dims, out);
        // Lines of the output's last dimension; within each, rows of the input to add.
        std::vector<int> reduced = dims;
        reduced.push_back(self.rank - 1);
        const Tensor rows = self.permuted_last(reduced);
        const int lead = self.rank - static_cast<int>(reduced.size());
        const Lined from{rows, static_cast<int>(reduced.size())};
        const Lined target{to.tensor, 1};
        return [=] {
            const int64_t n = self.dim(-1);
            const auto total = buffer<double>(n);
            const auto row = buffer<double>(n);
            for_each_line({target, from}, [&](const Line lines[]) {
                std::fill(total.get(), total.get() + n, 0.0);
                Tensor block = rows;  // the reduced dimensions and the last, at this line
                block.data = lines[1].base;
                std::vector<int> gone;
                for (int d = 0; d < lead; d++) {
                    gone.push_back(d);
                }
                block = block.without(gone);
                for_each_line({Lined{block, 1}}, [&](const Line part[]) {
                    part[0].load(row.get());
                    for (int64_t i = 0; i < n; i++) {
                        total[i] += row[i];
                    }
                });
                if (mean) {
                    for (int64_t i = 0; i < n; i++) {
                        total[i] /= static_cast<double>(count);
                    }
                }
                lines[0].store(total.get());
            });
            return 0;
        };
    }
    return reduce_job(call, self, dims, out, compute, [=]<class T>(const T* row, int64_t n) {
        if constexpr (std::is_same_v<T, float>) {
            // Partial sums of long lines meet in float64.
            double total = 0;
            for (int64_t i = 0; i < n; i += 4096) {
                total += static_cast<double>(kernels().f32.sum(row + i, std::min<int64_t>(4096, n - i)));
            }
            return static_cast<float>(mean ? total / static_cast<double>(n) : total);
        } else {
            const T total = kernels().rows<T>().sum(row, n);
            return mean ? total / static_cast<T>(n) : total;
        }
    });
}

// NaN counts as zero.
Job nan_sum(Call& call) {  // self, dims, keepdim, dtype, out
    const Tensor self = call.tensor(0), out = call.tensor(4);
    Compute compute = compute_of({self.dtype});
    if (compute == Compute::kWhole && is_floating(out.dtype)) {
        compute = Compute::kFloat;
    }
    return reduce_job(call, self, call.dimensions(call.ints(1), self), out, compute,
                      []<class T>(const T* row, int64_t n) {
                          std::conditional_t<std::is_integral_v<T>, int64_t, double> total = 0;
                          for (int64_t i = 0; i < n; i++) {
                              total += row[i] == row[i] ? row[i] : T(0);
                          }
                          return static_cast<T>(total);
                      });
}

// self, dims, keepdim, dtype, out
Job sum(Call& call, bool mean) {
    const Tensor self = call.tensor(0);
    return sum_job(call, self, call.dimensions(call.ints(1), self), call.tensor(4), mean);
}

Job product_job(Call& call, const Tensor& self, const std::vector<int>& dims, const Tensor& out) {
    Compute compute = compute_of({self.dtype});
    if (compute == Compute::kWhole && is_floating(out.dtype)) {
        compute = Compute::kFloat;
    }
    return reduce_job(call, self, dims, out, compute, []<class T>(const T* row, int64_t n) {
        T total = 1;
        for (int64_t i = 0; i < n; i++) {
            total *= row[i];
        }
        return total;
    });
}

Job extreme_job(Call& call, const Tensor& self, const std::vector<int>& dims, const Tensor& out,
                bool maximum) {
    for (int d : dims) {
        call.require(self.dims[d] > 0, "the reduced dimension %d is empty", d);
    }
    return reduce_job(call, self, dims, out, compute_of({self.dtype}), [=]<class T>(const T* row, int64_t n) {
        return maximum ? kernels().rows<T>().max(row, n) : kernels().rows<T>().min(row, n);
    });
}

Job truth_job(Call& call, bool all) {  // self, dims, keepdim, out
    const Tensor self = call.tensor(0);
    return reduce_job(call, self, call.dimensions(call.ints(1), self), call.tensor(3),
                      compute_of({self.dtype}), [=]<class T>(const T* row, int64_t n) -> int64_t {
                          for (int64_t i = 0; i < n; i++) {
                              if ((row[i] != T(0)) != all) {
                                  return !all;
                              }
                          }
                          return all;
                      });
}

// Index of the extreme element; the first of equals; NaN wins.
template <class T>
int64_t find_extreme(const T* row, int64_t n, bool maximum) {
    const T best = maximum ? kernels().rows<T>().max(row, n) : kernels().rows<T>().min(row, n);
    for (int64_t i = 0; i < n; i++) {
        if (row[i] == best || (row[i] != row[i] && best != best)) {
            return i;
        }
    }
    return 0;
}

Job arg_extreme(Call& call, bool maximum) {  // self, dim, keepdim, out
    const Tensor self = call.tensor(0);
    const int dim = call.dimension(call.integer(1), self);
    call.require(self.rank == 0 || self.dims[dim] > 0, "the reduced dimension is empty");
    const std::vector<int> dims = self.rank == 0 ? std::vector<int>{} : std::vector<int>{dim};
    return reduce_job(call, self, dims, call.tensor(3), compute_of({self.dtype}),
                      [=]<class T>(const T* row, int64_t n) { return find_extreme(row, n, maximum); });
}

Job extreme_and_index(Call& call, bool maximum) {  // self, dim, keepdim, values, indices
    const Tensor self = call.tensor(0), values = call.tensor(3), indices = call.tensor(4);
    const int dim = call.dimension(call.integer(1), self);
    call.require(self.rank == 0 || self.dims[dim] > 0, "the reduced dimension is empty");
    call.require_numeric(self);
    call.require_numeric(values);
    call.require(is_integral(indices.dtype), "indices must be integers");
    const std::vector<int> dims = self.rank == 0 ? std::vector<int>{} : std::vector<int>{dim};
    const Lined value_out = reduced_output(call, self, dims, values),
                index_out = reduced_output(call, self, dims, indices);
    const Lined from = lined(self, dims);
    return [=] {
        with_compute(compute_of({self.dtype}), [&]<class T>() {
            const int64_t n = self.rank == 0 ? 1 : self.dims[dim];
            const auto gathered = buffer<T>(n);
            for_each_line({value_out, index_out, from}, [&](const Line lines[]) {
                const T* row = lines[2].view<T>(gathered.get());
                const int64_t at = find_extreme(row, n, maximum);
                kernels().rows<T>().store(row + at, lines[0].base, values.dtype, values.element(), 1);
                kernels().i64.store(&at, lines[1].base, indices.dtype, indices.element(), 1);
            });
        });
        return 0;
    };
}

Job norm(Call& call, const Tensor& self, Scalar p, const std::vector<int>& dims, const Tensor& out) {
    call.require(is_floating(self.dtype), "needs a floating-point tensor");
    const double power = p.real;
    return reduce_job(call, self, dims, out, compute_of({self.dtype}), [=]<class T>(const T* row, int64_t n) {
        double total = 0;
        if (std::isinf(power)) {
            total = power > 0 ? 0 : n ? std::numeric_limits<double>::infinity() : 0;
            for (int64_t i = 0; i < n; i++) {
                const double x = std::fabs(static_cast<double>(row[i]));
                total = std::isnan(x) || (power > 0 ? x > total : x < total) ? x : total;
            }
            return static_cast<T>(total);
        }
        for (int64_t i = 0; i < n; i++) {
            const double x = std::fabs(static_cast<double>(row[i]));
            total += power == 2 ? x * x : power == 1 ? x : power == 0 ? x != 0 : std::pow(x, power);
        }
        return static_cast<T>(power == 2 ? std::sqrt(total)
                              : power <= 1 && power >= 0 && (power == 0 || power == 1)
                                  ? total
                                  : std::pow(total, 1 / power));
    });
}

// The variance or its root: two passes, dividing by n - correction.
Job spread(Call& call, const Tensor& self, const std::vector<int>& dims, double correction, bool root,
           const Tensor& out) {
    call.require(is_floating(self.dtype), "needs a floating-point tensor");
    return reduce_job(call, self, dims, out, compute_of({self.dtype}), [=]<class T>(const T* row, int64_t n) {
        double mean = 0, total = 0;
        for (int64_t i = 0; i < n; i++) {
            mean += static_cast<double>(row[i]);
        }
        mean /= static_cast<double>(n);
        for (int64_t i = 0; i < n; i++) {
            const double d = static_cast<double>(row[i]) - mean;
            total += d * d;
        }
        const double variance = total / std::max(0.0, static_cast<double>(n) - correction);
        return static_cast<T>(root ? std::sqrt(variance) : variance);
    });
}

Job log_sum_exp(Call& call) {  // self, dims, keepdim, out
    const Tensor self = call.tensor(0);
    return reduce_job(call, self, call.dimensions(call.ints(1), self), call.tensor(3),
                      self.dtype == acl::DOUBLE ? Compute::kDouble : Compute::kFloat,
                      [=]<class T>(const T* row, int64_t n) {
                          if (n == 0) {
                              return -std::numeric_limits<T>::infinity();
                          }
                          const T high = kernels().rows<T>().max(row, n);
                          const T shift = std::isinf(high) ? T(0) : high;
                          double total = 0;
                          for (int64_t i = 0; i < n; i++) {
                              total += std::exp(static_cast<double>(row[i] - shift));
                          }
                          return static_cast<T>(std::log(total)) + shift;
                      });
}

// Two reductions of the same input, one job.
Job both(Job first, Job second) {
    return [first = std::move(first), second = std::move(second)] {
        const int error = first();
        return error ? error : second();
    };
}

OPERATOR("aclnnReduceSum", [](Call& call) { return sum(call, false); });
OPERATOR("aclnnReduceNansum", nan_sum);
OPERATOR("aclnnMean", [](Call& call) { return sum(call, true); });
OPERATOR("aclnnMeanV2", [](Call& call) {  // self, dims, keepdim, no-op for empty dims, out
    const Tensor self = call.tensor(0);
    return sum_job(call, self, call.dimensions(call.ints(1), self), call.tensor(4), true);
});
OPERATOR("aclnnProd", [](Call& call) {  // self, dtype, out
    const Tensor self = call.tensor(0);
    return product_job(call, self, call.dimensions({}, self), call.tensor(2));
});
OPERATOR("aclnnProdDim", [](Call& call) {  // self, dim, keepdim, dtype, out
    const Tensor self = call.tensor(0);
    return product_job(call, self, call.dimensions({call.integer(1)}, self), call.tensor(4));
});
OPERATOR("aclnnAmax", [](Call& call) {  // self, dims, keepdim, out
    const Tensor self = call.tensor(0);
    return extreme_job(call, self, call.dimensions(call.ints(1), self), call.tensor(3), true);
});
OPERATOR("aclnnAmin", [](Call& call) {
    const Tensor self = call.tensor(0);
    return extreme_job(call, self, call.dimensions(call.ints(1), self), call.tensor(3), false);
});
OPERATOR("aclnnMax", [](Call& call) {  // self, out
    const Tensor self = call.tensor(0);
    return extreme_job(call, self, call.dimensions({}, self), call.tensor(1), true);
});
OPERATOR("aclnnMin", [](Call& call) {
    const Tensor self = call.tensor(0);
    return extreme_job(call, self, call.dimensions({}, self), call.tensor(1), false);
});
OPERATOR("aclnnMaxV2", [](Call& call) {  // self, dims, keepdim, no-op for empty dims, out
    const Tensor self = call.tensor(0);
    return extreme_job(call, self, call.dimensions(call.ints(1), self), call.tensor(4), true);
});
OPERATOR("aclnnAminmaxAll", [](Call& call) {  // self, min, max
    const Tensor self = call.tensor(0);
    const std::vector<int> dims = call.dimensions({}, self);
    return both(extreme_job(call, self, dims, call.tensor(1), false),
                extreme_job(call, self, dims, call.tensor(2), true));
});
OPERATOR("aclnnAminmaxDim", [](Call& call) {  // self, dim, keepdim, min, max
    const Tensor self = call.tensor(0);
    const std::vector<int> dims = call.dimensions({call.integer(1)}, self);
    return both(extreme_job(call, self, dims, call.tensor(3), false),
                extreme_job(call, self, dims, call.tensor(4), true));
});
OPERATOR("aclnnAminmax", [](Call& call) {  // self, dims, keepdim, min, max
    const Tensor self = call.tensor(0);
    const std::vector<int> dims = call.dimensions(call.ints(1), self);
    return both(extreme_job(call, self, dims, call.tensor(3), false),
                extreme_job(call, self, dims, call.tensor(4), true));
});
OPERATOR("aclnnAll", [](Call& call) { return truth_job(call, true); });
OPERATOR("aclnnAny", [](Call& call) { return truth_job(call, false); });
OPERATOR("aclnnArgMax", [](Call& call) { return arg_extreme(call, true); });
OPERATOR("aclnnArgMin", [](Call& call) { return arg_extreme(call, false); });
OPERATOR("aclnnMaxDim", [](Call& call) { return extreme_and_index(call, true); });
OPERATOR("aclnnMinDim", [](Call& call) { return extreme_and_index(call, false); });
OPERATOR("aclnnNorm", [](Call& call) {  // self, p, dims, keepdim, out
    const Tensor self = call.tensor(0);
    return norm(call, self, call.scalar_or(1, 2), call.dimensions(call.ints(2), self), call.tensor(4));
});
OPERATOR("aclnnLinalgVectorNorm", [](Call& call) {  // self, p, dims, keepdim, dtype, out
    const Tensor self = call.tensor(0);
    return norm(call, self, call.scalar_or(1, 2), call.dimensions(call.ints(2), self), call.tensor(5));
});
OPERATOR("aclnnVar", [](Call& call) {  // self, dims, unbiased, keepdim, out
    const Tensor self = call.tensor(0);
    return spread(call, self, call.dimensions(call.ints(1), self), call.boolean(2), false, call.tensor(4));
});
OPERATOR("aclnnVarCorrection", [](Call& call) {  // self, dims, correction, keepdim, out
    const Tensor self = call.tensor(0);
    return spread(call, self, call.dimensions(call.ints(1), self), double(call.integer(2)), false,
                  call.tensor(4));
});
OPERATOR("aclnnStd", [](Call& call) {  // self, dims, correction, keepdim, out
    const Tensor self = call.tensor(0);
    return spread(call, self, call.dimensions(call.ints(1), self), double(call.integer(2)), true,
                  call.tensor(4));
});
OPERATOR("aclnnVarMean", [](Call& call) {  // self, dims, correction, keepdim, variance, mean
    const Tensor self = call.tensor(0);
    const std::vector<int> dims = call.dimensions(call.ints(1), self);
    return both(spread(call, self, dims, double(call.integer(2)), false, call.tensor(4)),
                sum_job(call, self, dims, call.tensor(5), true));
});
OPERATOR("aclnnStdMeanCorrection", [](Call& call) {  // self, dims, correction, keepdim, deviation, mean
    const Tensor self = call.tensor(0);
    const std::vector<int> dims = call.dimensions(call.ints(1), self);
    return both(spread(call, self, dims, double(call.integer(2)), true, call.tensor(4)),
                sum_job(call, self, dims, call.tensor(5), true));
});
OPERATOR("aclnnLogSumExp", log_sum_exp);

}  // namespace
}  // namespace flexnpu::ops
