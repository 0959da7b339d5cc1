// Products of matrices and batches of them.
//
// The narrow types are multiplied and summed in float32 and rounded once, as the cube unit does; cubeMathType
// is not looked at: float32 is never lowered to a shorter format.
#include "product.hpp"
#include "registry.hpp"

namespace flexnpu::ops {

Matrix matrix(const Tensor& t, char* data) {
    return {data, t.dtype, t.dim(-2), t.dim(-1), t.stride(-2), t.stride(-1)};
}

void product(const Matrix& a, const Matrix& b, float* c, int64_t ldc) {
    const int64_t m = a.rows, n = b.columns, k = a.columns;
    if (m == 0 || n == 0) {
        return;
    }
    // A as dense float32 rows.
    std::unique_ptr<float[]> converted;
    const float* rows = reinterpret_cast<const float*>(a.data);
    int64_t lda = a.row_stride;
    if (a.dtype != acl::FLOAT || a.column_stride != 1) {
        converted = buffer<float>(m * k);
        Tensor source = dense(a.data, a.dtype, {m, k});
        source.strides = {a.row_stride, a.column_stride};
        copy_tensor(dense(converted.get(), acl::FLOAT, {m, k}), source);
        rows = converted.get();
        lda = k;
    }
    const auto scratch = buffer<float>(kernels().gemm_scratch(n));
    kernels().gemm({.m = m,
                    .n = n,
                    .k = k,
                    .a = rows,
                    .lda = lda,
                    .b = b.data,
                    .b_dtype = b.dtype,
                    .b_row = b.row_stride,
                    .b_col = b.column_stride,
                    .c = c,
                    .ldc = ldc,
                    .scratch = scratch.get()});
}

namespace {

bool is_narrow(int32_t dtype) { return dtype == acl::FLOAT || dtype == acl::FLOAT16 || dtype == acl::BF16; }

// float64 and integers: no model's hot path.
template <class T>
void plain_product(const Matrix& a, const Matrix& b, T* c, int64_t ldc) {
    const auto a_row = buffer<T>(a.columns);
    const auto b_row = buffer<T>(b.columns);
    const auto& k = kernels().rows<T>();
    for (int64_t i = 0; i < a.rows; i++) {
        k.load(a_row.get(), a.data + i * a.row_stride * int64_t(acl::element_size(a.dtype)), a.dtype,
               a.column_stride * int64_t(acl::element_size(a.dtype)), a.columns);
        std::fill(c + i * ldc, c + i * ldc + b.columns, T(0));
        for (int64_t t = 0; t < a.columns; t++) {
            k.load(b_row.get(), b.data + t * b.row_stride * int64_t(acl::element_size(b.dtype)), b.dtype,
                   b.column_stride * int64_t(acl::element_size(b.dtype)), b.columns);
            for (int64_t j = 0; j < b.columns; j++) {
                c[i * ldc + j] += a_row[t] * b_row[j];
            }
        }
    }
}

// out = alpha * (a @ b) + beta * bias, over every batch index. `bias` broadcasts to out; it may be out
// itself.
struct Products {
    Tensor a, b, out;  // at least two dimensions each, the same leading ones (broadcast: stride 0)
    bool has_bias = false;
    Tensor bias;  // expanded to out
    Scalar alpha{acl::INT64, 1, 1}, beta{acl::INT64, 1, 1};

    template <class T>
    void run_as() const {
        const int64_t m = out.dim(-2), n = out.dim(-1);
        const auto& k = kernels().rows<T>();
        const bool plain = !has_bias && alpha.real == 1;
        const bool direct =
            plain && out.dtype == native_dtype<T>() && (out.stride(-1) == 1 || n == 1) && m * n > 0;
        const auto c = direct ? nullptr : buffer<T>(m * n);
        const auto bias_row = has_bias ? buffer<T>(n) : nullptr;
        auto batch = [](const Tensor& t) { return Lined{t, 2}; };
        std::vector<Lined> operands{batch(out), batch(a), batch(b)};
        if (has_bias) {
            operands.push_back(batch(bias));
        }
        for_each_line(operands, [&](const Line lines[]) {
            T* result = direct ? reinterpret_cast<T*>(lines[0].base) : c.get();
            const int64_t ld = direct ? out.stride(-2) : n;
            const Matrix ma = matrix(a, lines[1].base), mb = matrix(b, lines[2].base);
            if constexpr (std::is_same_v<T, float>) {
                product(ma, mb, result, ld);
            } else {
                plain_product<T>(ma, mb, result, ld);
            }
            if (direct) {
                return;
            }
            for (int64_t i = 0; i < m; i++) {
                T* row = c.get() + i * n;
                if (has_bias) {
                    const T scale = alpha.as<T>(), weight = beta.as<T>();
                    k.load(bias_row.get(), lines[3].base + i * bias.stride(-2) * bias.element(), bias.dtype,
                           bias.stride(-1) * bias.element(), n);
                    for (int64_t j = 0; j < n; j++) {
                        // beta = 0 ignores the bias, NaN included.
                        row[j] = scale * row[j] + (weight == T(0) ? T(0) : weight * bias_row[j]);
                    }
                } else if (!plain) {
                    for (int64_t j = 0; j < n; j++) {
                        row[j] *= alpha.as<T>();
                    }
                }
                k.store(row, lines[0].base + i * out.stride(-2) * out.element(), out.dtype,
                        out.stride(-1) * out.element(), n);
            }
        });
    }

    int run() const {
        if (is_narrow(a.dtype) && is_narrow(b.dtype)) {
            run_as<float>();
        } else {
            with_compute(compute_of({a.dtype, b.dtype}), [&]<class T>() {
                if constexpr (!std::is_same_v<T, float>) {
                    run_as<T>();
                }
            });
        }
        return 0;
    }
};

// Checks shapes, broadcasts batches, and folds the batch of a product with one matrix into its rows.
Job products_job(Call& call, Products p) {
    call.require(p.a.dim(-1) == p.b.dim(-2), "inner dimensions differ: %lld and %lld",
                 static_cast<long long>(p.a.dim(-1)), static_cast<long long>(p.b.dim(-2)));
    call.require(p.out.dim(-2) == p.a.dim(-2) && p.out.dim(-1) == p.b.dim(-1),
                 "the output is %lldx%lld for a product of %lld rows and %lld columns",
                 static_cast<long long>(p.out.dim(-2)), static_cast<long long>(p.out.dim(-1)),
                 static_cast<long long>(p.a.dim(-2)), static_cast<long long>(p.b.dim(-1)));
    for (const Tensor* t : {&p.a, &p.b, &p.out}) {
        call.require_numeric(*t);
    }
    const Compute compute = compute_of({p.a.dtype, p.b.dtype});
    call.require(compute != Compute::kFloat || (is_narrow(p.a.dtype) && is_narrow(p.b.dtype)),
                 "cannot multiply %s and %s", dtype_name(p.a.dtype), dtype_name(p.b.dtype));
    // The leading dimensions of a and b, broadcast to those of out.
    auto expand = [&](Tensor t) {
        Tensor shape = p.out;
        shape.dims[shape.rank - 2] = t.dim(-2);
        shape.dims[shape.rank - 1] = t.dim(-1);
        call.require_broadcast(shape, {&t});
        return t.expanded(shape);
    };
    const double flops = 2.0 * static_cast<double>(p.out.numel()) * static_cast<double>(p.a.dim(-1));
    p.a = expand(p.a);
    p.b = expand(p.b);
    call.cost.cube_flops = flops;
    call.cost.cube_dtype = p.a.dtype;
    call.cost.vector_flops = p.has_bias ? static_cast<double>(p.out.numel()) : 0;
    // [batch, m, k] @ [k, n] is one product of batch*m rows.
    auto folds = [](const Tensor& t, int d) {
        return t.dims[d] == 1 || t.dims[d + 1] == 1 || t.strides[d] == t.strides[d + 1] * t.dims[d + 1];
    };
    auto fold = [](Tensor& t, int d) {
        if (t.dims[d + 1] == 1) {
            t.strides[d + 1] = t.strides[d];
        }
        t.dims[d + 1] *= t.dims[d];
        t = t.without({d});
    };
    while (p.out.rank > 2 && !p.has_bias) {
        const int d = p.out.rank - 3;
        if ((p.b.strides[d] != 0 && p.b.dims[d] != 1) || !folds(p.a, d) || !folds(p.out, d)) {
            break;
        }
        fold(p.a, d);
        fold(p.out, d);
        p.b = p.b.without({d});
    }
    return [p] { return p.run(); };
}

// torch.matmul's rules: a vector on the left is a row, on the right a column.
Job matmul(Call& call, const Tensor& a, const Tensor& b, const Tensor& out) {
    call.require(a.rank >= 1 && b.rank >= 1, "needs at least one dimension");
    Products p;
    p.a = a;
    p.b = b;
    p.out = out;
    if (b.rank == 1) {
        p.b = p.b.unsqueezed(-1);
        p.out = p.out.unsqueezed(-1);
    }
    if (a.rank == 1) {
        p.a = p.a.unsqueezed(0);
        call.require(p.out.rank >= 1, "the output has too few dimensions");
        p.out = b.rank == 1 ? p.out.unsqueezed(0) : p.out.unsqueezed(p.out.rank - 1);
    }
    call.require(p.out.rank == std::max(p.a.rank, p.b.rank), "the output has %d dimensions", out.rank);
    return products_job(call, p);
}

// out = beta * self + alpha * (a @ b)
Job add_product(Call& call, const Tensor& self, const Tensor& a, const Tensor& b, const Tensor& out,
                Scalar beta, Scalar alpha, int rank) {
    call.require(a.rank == rank && b.rank == rank && out.rank == rank, "needs tensors of %d dimensions",
                 rank);
    call.require_numeric(self);
    call.require_broadcast(out, {&self});
    Products p;
    p.a = a;
    p.b = b;
    p.out = out;
    p.has_bias = true;
    p.bias = self.expanded(out);
    p.alpha = alpha;
    p.beta = beta;
    return products_job(call, p);
}

Job linear_bias(Call& call, int rank, bool inplace) {  // self, a, b, beta, alpha, out, cubeMathType
    const Tensor self = call.tensor(0);
    return add_product(call, self, call.tensor(1), call.tensor(2), inplace ? self : call.tensor(5),
                       call.scalar_or(3, 1), call.scalar_or(4, 1), rank);
}

Job matrix_vector(Call& call) {  // self, matrix, vector, alpha, beta, out, cubeMathType
    const Tensor self = call.tensor(0), a = call.tensor(1), x = call.tensor(2), out = call.tensor(5);
    call.require(x.rank == 1 && out.rank == 1, "needs vectors");
    call.require(self.rank <= 1, "self must be a vector");
    Tensor column = self;
    if (self.rank == 1) {
        column = column.unsqueezed(-1);
    }
    return add_product(call, column, a, x.unsqueezed(-1), out.unsqueezed(-1), call.scalar_or(4, 1),
                       call.scalar_or(3, 1), 2);
}

OPERATOR("aclnnMatmul",
         [](Call& call) { return matmul(call, call.tensor(0), call.tensor(1), call.tensor(2)); });
OPERATOR("aclnnMm", [](Call& call) { return matmul(call, call.tensor(0), call.tensor(1), call.tensor(2)); });
OPERATOR("aclnnBatchMatMul",
         [](Call& call) { return matmul(call, call.tensor(0), call.tensor(1), call.tensor(2)); });
OPERATOR("aclnnMv", [](Call& call) { return matmul(call, call.tensor(0), call.tensor(1), call.tensor(2)); });
OPERATOR("aclnnDot", [](Call& call) { return matmul(call, call.tensor(0), call.tensor(1), call.tensor(2)); });
OPERATOR("aclnnAddmm", [](Call& call) { return linear_bias(call, 2, false); });
OPERATOR("aclnnInplaceAddmm", [](Call& call) { return linear_bias(call, 2, true); });
OPERATOR("aclnnBaddbmm", [](Call& call) { return linear_bias(call, 3, false); });
OPERATOR("aclnnInplaceBaddbmm", [](Call& call) { return linear_bias(call, 3, true); });
OPERATOR("aclnnAddmv", matrix_vector);
OPERATOR("aclnnGer", [](Call& call) -> Job {  // outer product
    const Tensor a = call.tensor(0), b = call.tensor(1);
    call.require(a.rank == 1 && b.rank == 1, "needs vectors");
    return matmul(call, a.unsqueezed(-1), b.unsqueezed(0), call.tensor(2));
});

}  // namespace
}  // namespace flexnpu::ops
