// Elementwise jobs that other families reuse.
#pragma once

#include "iterate.hpp"
#include "registry.hpp"

namespace flexnpu::ops {

// out = op(in); p and q are the function's constants.
Job unary_job(Call& call, Unary op, const Tensor& in, const Tensor& out, Scalar p, Scalar q);

// out = op(a, b). `truth`: the output is a truth value or bits, so its type does not choose the compute type.
Job binary_job(Call& call, Binary op, const Tensor& a, const Tensor& b, const Tensor& out, Scalar alpha,
               bool truth);

}  // namespace flexnpu::ops
