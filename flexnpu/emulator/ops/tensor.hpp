// Tensors as the operators see them: a value copied out of an aclTensor, which its owner may destroy before
// the operator runs.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "flexnpu/api/acl_consts.h"

namespace flexnpu::ops {

inline constexpr int kMaxRank = 8;

constexpr bool is_floating(int32_t dtype) {
    return dtype == acl::FLOAT || dtype == acl::FLOAT16 || dtype == acl::BF16 || dtype == acl::DOUBLE;
}
constexpr bool is_integral(int32_t dtype) {
    switch (dtype) {
        case acl::INT8:
        case acl::UINT8:
        case acl::INT16:
        case acl::UINT16:
        case acl::INT32:
        case acl::UINT32:
        case acl::INT64:
        case acl::UINT64:
        case acl::BOOL: return true;
        default: return false;
    }
}
// The types that the row kernels can load and store.
constexpr bool is_numeric(int32_t dtype) { return is_floating(dtype) || is_integral(dtype); }
const char* dtype_name(int32_t dtype);

struct Tensor {
    char* data = nullptr;  // of the first element
    int32_t dtype = acl::DT_UNDEFINED;
    int32_t rank = 0;
    std::array<int64_t, kMaxRank> dims{};
    std::array<int64_t, kMaxRank> strides{};  // in elements

    int64_t element() const { return static_cast<int64_t>(acl::element_size(dtype)); }
    int64_t numel() const {
        int64_t n = 1;
        for (int i = 0; i < rank; i++) {
            n *= dims[i];
        }
        return n;
    }
    bool contiguous() const;
    bool same_shape(const Tensor& other) const;
    int64_t dim(int i) const { return dims[i < 0 ? i + rank : i]; }
    int64_t stride(int i) const { return strides[i < 0 ? i + rank : i]; }
    // Elements in memory that the view can reach: broadcast dimensions count once.
    int64_t distinct() const;
    // Bytes from `data` to the end of the last element.
    int64_t extent() const;
    double bytes() const { return static_cast<double>(distinct() * element()); }
    std::string shape() const;  // "[1,37,256]"

    // Views. Dimensions may be negative, counted from the end.
    Tensor expanded(const Tensor& shape_of) const;             // broadcast to another tensor's shape
    Tensor permuted_last(const std::vector<int>& last) const;  // these dimensions moved to the end, in order
    Tensor without(const std::vector<int>& dims_to_drop) const;  // at index 0 of each
    Tensor unsqueezed(int at) const;                             // a dimension of size 1 put in before `at`
    // A 0-dim tensor as one of 1 dimension: what operators along a dimension make of it.
    Tensor at_least_1d() const { return rank == 0 ? unsqueezed(0) : *this; }
    Tensor narrowed(int dim, int64_t start, int64_t length, int64_t step = 1) const;
    Tensor selected(int dim, int64_t index) const;  // narrowed and dropped
};

// A dense row-major tensor over memory of one's own.
Tensor dense(void* data, int32_t dtype, std::initializer_list<int64_t> dims);

// The same, of another tensor's shape.
Tensor dense_like(const Tensor& shape_of, void* data, int32_t dtype);

// An aclScalar, with the value in the two forms that an operator may want.
struct Scalar {
    int32_t dtype = acl::DOUBLE;
    double real = 0;
    int64_t whole = 0;

    bool floating() const { return is_floating(dtype); }
    template <class T>
    T as() const {
        if constexpr (std::is_integral_v<T>) {
            return static_cast<T>(whole);
        } else {
            return static_cast<T>(real);
        }
    }
    // A 0-dim tensor over this scalar, which must outlive it.
    Tensor tensor() const;
};

}  // namespace flexnpu::ops
