// Products of matrices on plain pointers, shared by the matmul family and attention.
#pragma once

#include "iterate.hpp"

namespace flexnpu::ops {

// A two-dimensional view.
struct Matrix {
    char* data;
    int32_t dtype;
    int64_t rows, columns;
    int64_t row_stride, column_stride;  // in elements
};

// The last two dimensions of a tensor at one index of the others, whose address is `data`.
Matrix matrix(const Tensor& t, char* data);

// c[rows, columns] = a * b in float32, row-major with leading dimension ldc. a and b are float32, float16 or
// bfloat16.
void product(const Matrix& a, const Matrix& b, float* c, int64_t ldc);

}  // namespace flexnpu::ops
