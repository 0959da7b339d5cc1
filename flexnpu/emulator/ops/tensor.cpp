#include "tensor.hpp"

#include <algorithm>

namespace flexnpu::ops {

const char* dtype_name(int32_t dtype) {
    switch (dtype) {
        case acl::FLOAT: return "float32";
        case acl::FLOAT16: return "float16";
        case acl::BF16: return "bfloat16";
        case acl::DOUBLE: return "float64";
        case acl::INT8: return "int8";
        case acl::UINT8: return "uint8";
        case acl::INT16: return "int16";
        case acl::UINT16: return "uint16";
        case acl::INT32: return "int32";
        case acl::UINT32: return "uint32";
        case acl::INT64: return "int64";
        case acl::UINT64: return "uint64";
        case acl::BOOL: return "bool";
        case acl::COMPLEX64: return "complex64";
        case acl::COMPLEX128: return "complex128";
        default: return "unknown";
    }
}

bool Tensor::contiguous() const {
    if (numel() == 0) {
        return true;
    }
    int64_t expected = 1;
    for (int i = rank - 1; i >= 0; i--) {
        if (dims[i] != 1 && strides[i] != expected) {
            return false;
        }
        expected *= dims[i];
    }
    return true;
}

bool Tensor::same_shape(const Tensor& other) const {
    return rank == other.rank && std::equal(dims.begin(), dims.begin() + rank, other.dims.begin());
}

int64_t Tensor::distinct() const {
    int64_t n = 1;
    for (int i = 0; i < rank; i++) {
        n *= strides[i] == 0 && dims[i] > 1 ? 1 : dims[i];
    }
    return n;
}

int64_t Tensor::extent() const {
    int64_t last = 0;
    for (int i = 0; i < rank; i++) {
        if (dims[i] == 0) {
            return 0;
        }
        last += (dims[i] - 1) * strides[i];
    }
    return (last + 1) * element();
}

std::string Tensor::shape() const {
    std::string text = "[";
    for (int i = 0; i < rank; i++) {
        text += (i ? "," : "") + std::to_string(dims[i]);
    }
    return text + "]";
}

Tensor Tensor::expanded(const Tensor& shape_of) const {
    Tensor t = *this;
    t.rank = shape_of.rank;
    t.dims = shape_of.dims;
    for (int i = shape_of.rank - 1, j = rank - 1; i >= 0; i--, j--) {
        t.strides[i] = j >= 0 && dims[j] == shape_of.dims[i] && dims[j] != 1 ? strides[j] : 0;
    }
    return t;
}

Tensor Tensor::permuted_last(const std::vector<int>& last) const {
    Tensor t = *this;
    int n = 0;
    for (int i = 0; i < rank; i++) {
        if (std::find(last.begin(), last.end(), i) == last.end()) {
            t.dims[n] = dims[i];
            t.strides[n++] = strides[i];
        }
    }
    for (int i : last) {
        t.dims[n] = dims[i];
        t.strides[n++] = strides[i];
    }
    return t;
}

Tensor Tensor::without(const std::vector<int>& dims_to_drop) const {
    Tensor t = permuted_last(dims_to_drop);
    t.rank -= static_cast<int>(dims_to_drop.size());
    return t;
}

Tensor Tensor::unsqueezed(int at) const {
    Tensor t = *this;
    at = at < 0 ? at + rank + 1 : at;
    for (int i = rank; i > at; i--) {
        t.dims[i] = dims[i - 1];
        t.strides[i] = strides[i - 1];
    }
    t.dims[at] = 1;
    t.strides[at] = 0;
    t.rank++;
    return t;
}

Tensor Tensor::narrowed(int dim, int64_t start, int64_t length, int64_t step) const {
    Tensor t = *this;
    dim = dim < 0 ? dim + rank : dim;
    t.data += start * strides[dim] * element();
    t.dims[dim] = length;
    t.strides[dim] *= step;
    return t;
}

Tensor Tensor::selected(int dim, int64_t index) const {
    dim = dim < 0 ? dim + rank : dim;
    return narrowed(dim, index, 1).without({dim});
}

Tensor dense_like(const Tensor& shape_of, void* data, int32_t dtype) {
    Tensor t = shape_of;
    t.data = static_cast<char*>(data);
    t.dtype = dtype;
    int64_t stride = 1;
    for (int i = t.rank - 1; i >= 0; i--) {
        t.strides[i] = stride;
        stride *= t.dims[i];
    }
    return t;
}

Tensor dense(void* data, int32_t dtype, std::initializer_list<int64_t> dims) {
    Tensor t;
    t.rank = static_cast<int>(dims.size());
    std::copy(dims.begin(), dims.end(), t.dims.begin());
    return dense_like(t, data, dtype);
}

Tensor Scalar::tensor() const {
    Tensor t;
    t.dtype = floating() ? acl::DOUBLE : acl::INT64;
    t.data = const_cast<char*>(floating() ? reinterpret_cast<const char*>(&real)
                                          : reinterpret_cast<const char*>(&whole));
    return t;
}

}  // namespace flexnpu::ops
