// What look-ups, scatters and masked selections share.
//
// An index out of range makes the operator fail when it runs, as an AI core exception: the values are not
// known earlier.
#pragma once

#include <vector>

#include "iterate.hpp"
#include "registry.hpp"

namespace flexnpu::ops {

// Sets the error of an index that is out of range; returns it.
int out_of_range(const char* name, int64_t index, int64_t size);
void require_index(const Call& call, const Tensor& index);
// Every element of an integer tensor, in row-major order.
std::vector<int64_t> values_of(const Tensor& t);
// Negative indices count from the end. False when out of range.
bool wrap(int64_t& index, int64_t size);
// to += alpha * from, in the tensor's own compute type.
void add_to(const Tensor& to, const Tensor& from, const Scalar& alpha = {acl::INT64, 1, 1});

}  // namespace flexnpu::ops
