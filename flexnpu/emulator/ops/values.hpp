// Whole tensors as doubles, for operators where being short counts more than being fast.
#pragma once

#include <numeric>
#include <vector>

#include "iterate.hpp"

namespace flexnpu::ops {

using Values = std::vector<double>;

inline std::vector<int> every_dimension(const Tensor& t) {
    std::vector<int> dims(static_cast<size_t>(t.rank));
    std::iota(dims.begin(), dims.end(), 0);
    return dims;
}

// The elements in row-major order.
inline Values values(const Tensor& t) {
    Values out(static_cast<size_t>(t.numel()));
    if (!out.empty()) {
        for_each_line({lined(t, every_dimension(t))}, [&](const Line lines[]) { lines[0].load(out.data()); });
    }
    return out;
}

inline void store(const Tensor& t, const Values& from) {
    if (!from.empty()) {
        for_each_line({lined(t, every_dimension(t))},
                      [&](const Line lines[]) { lines[0].store(from.data()); });
    }
}

}  // namespace flexnpu::ops
