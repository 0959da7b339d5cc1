// Operators that compute each element from the same element of their inputs: unary, binary, comparisons,
// logic, select.
#include "elementwise.hpp"

#include <cmath>

namespace flexnpu::ops {
namespace {

template <class T>
UnaryFn<T> find(Unary op) {
    return kernels().rows<T>().unary[static_cast<int>(op)];
}
template <class T>
BinaryFn<T> find(Binary op) {
    return kernels().rows<T>().binary[static_cast<int>(op)];
}

template <class Op>
bool knows(Compute compute, Op op) {
    return with_compute(compute, [&]<class T>() { return find<T>(op) != nullptr; });
}

// The compute type that the operator has; integers go to float32 where it is only defined on real numbers, as
// in torch.
template <class Op>
Compute resolve(const Call& call, Compute compute, Op op, int32_t dtype) {
    if (!knows(compute, op) && compute == Compute::kWhole) {
        compute = Compute::kFloat;
    }
    call.require(knows(compute, op), "not defined for %s", dtype_name(dtype));
    return compute;
}

}  // namespace

Job unary_job(Call& call, Unary op, const Tensor& in, const Tensor& out, Scalar p, Scalar q) {
    call.require_numeric(in);
    call.require_numeric(out);
    call.require_broadcast(out, {&in});
    Compute compute = compute_of({in.dtype});
    if (compute == Compute::kWhole &&
        (op == Unary::PowScalar || op == Unary::ScalarPow || op == Unary::Clamp || op == Unary::ClampMin ||
         op == Unary::ClampMax || op == Unary::Threshold) &&
        (p.floating() || q.floating()) && is_floating(out.dtype)) {
        compute = Compute::kFloat;
    }
    if (op == Unary::BitNot && in.dtype == acl::BOOL) {
        op = Unary::LogicalNot;
    }
    compute = resolve(call, compute, op, in.dtype);
    return [=] {
        const Loop loop = make_loop({&out, &in});
        with_compute(compute, [&]<class T>() {
            const UnaryFn<T> f = find<T>(op);
            alignas(64) T in_row[kChunk];
            alignas(64) T out_row[kChunk];
            for_each_chunk(loop, [&](char* const ptr[], const int64_t stride[], int64_t n) {
                const T* a = fetch<T>(ptr[1], in.dtype, stride[1], n, in_row);
                T* result = target<T>(ptr[0], out.dtype, stride[0], out_row);
                f(result, a, n, p.as<T>(), q.as<T>());
                commit(result, ptr[0], out.dtype, stride[0], n);
            });
        });
        return 0;
    };
}

Job binary_job(Call& call, Binary op, const Tensor& a, const Tensor& b, const Tensor& out, Scalar alpha,
               bool truth) {
    call.require_numeric(a);
    call.require_numeric(b);
    call.require_numeric(out);
    call.require_broadcast(out, {&a, &b});
    Compute compute = compute_of({a.dtype, b.dtype});
    if (!truth && compute == Compute::kWhole && is_floating(out.dtype)) {
        compute = Compute::kFloat;
    }
    compute = resolve(call, compute, op, a.dtype);
    return [=] {
        const Loop loop = make_loop({&out, &a, &b});
        with_compute(compute, [&]<class T>() {
            const BinaryFn<T> f = find<T>(op);
            const T p = alpha.as<T>();
            alignas(64) T a_row[kChunk];
            alignas(64) T b_row[kChunk];
            alignas(64) T out_row[kChunk];
            for_each_chunk(loop, [&](char* const ptr[], const int64_t stride[], int64_t n) {
                const T* x = fetch<T>(ptr[1], a.dtype, stride[1], n, a_row);
                const T* y = fetch<T>(ptr[2], b.dtype, stride[2], n, b_row);
                T* result = target<T>(ptr[0], out.dtype, stride[0], out_row);
                f(result, x, y, n, p);
                commit(result, ptr[0], out.dtype, stride[0], n);
            });
        });
        return 0;
    };
}

namespace {

const Scalar kOne{acl::INT64, 1, 1};

// Float scalars do not widen a tensor's type: they are rounded to float32 with a float16, bfloat16 or float32
// tensor, and turn an integer tensor's computation into float32.
int32_t scalar_compute_dtype(const Scalar& s, const Tensor& t) {
    return !s.floating() ? acl::INT64 : t.dtype == acl::DOUBLE ? acl::DOUBLE : acl::FLOAT;
}

// One operand is a scalar: it is kept in the job and read as a 0-dim tensor.
Job binary_scalar_job(Call& call, Binary op, const Tensor& t, Scalar s, bool scalar_first, const Tensor& out,
                      Scalar alpha, bool truth) {
    call.require_numeric(t);
    call.require_numeric(out);
    call.require_broadcast(out, {&t});
    Compute compute = compute_of({t.dtype, scalar_compute_dtype(s, t)});
    if (!truth && compute == Compute::kWhole && is_floating(out.dtype)) {
        compute = Compute::kFloat;
    }
    compute = resolve(call, compute, op, t.dtype);
    return [=] {
        const Loop loop = make_loop({&out, &t});
        with_compute(compute, [&]<class T>() {
            const BinaryFn<T> f = find<T>(op);
            const T p = alpha.as<T>();
            alignas(64) T t_row[kChunk];
            alignas(64) T s_row[kChunk];
            alignas(64) T out_row[kChunk];
            std::fill(s_row, s_row + kChunk, s.as<T>());
            for_each_chunk(loop, [&](char* const ptr[], const int64_t stride[], int64_t n) {
                const T* x = fetch<T>(ptr[1], t.dtype, stride[1], n, t_row);
                T* result = target<T>(ptr[0], out.dtype, stride[0], out_row);
                f(result, scalar_first ? s_row : x, scalar_first ? x : s_row, n, p);
                commit(result, ptr[0], out.dtype, stride[0], n);
            });
        });
        return 0;
    };
}

// Rows. T: tensor, S: scalar, in the order of the arguments; o is the last argument.

Prepare unary(Unary op, double p = 0, double q = 0) {
    return [=](Call& call) {
        return unary_job(call, op, call.tensor(0), call.tensor(call.count() - 1),
                         {acl::DOUBLE, p, int64_t(p)}, {acl::DOUBLE, q, int64_t(q)});
    };
}
Prepare inplace_unary(Unary op, double p = 0, double q = 0) {
    return [=](Call& call) {
        const Tensor t = call.tensor(0);
        return unary_job(call, op, t, t, {acl::DOUBLE, p, int64_t(p)}, {acl::DOUBLE, q, int64_t(q)});
    };
}
// Parameters p and q are the scalar arguments 1 and 2, where there are.
Prepare unary_scalars(Unary op, int scalars, bool inplace = false) {
    return [=](Call& call) {
        const Tensor in = call.tensor(0);
        const Tensor out = inplace ? in : call.tensor(call.count() - 1);
        return unary_job(call, op, in, out, scalars > 0 ? call.scalar(1) : kOne,
                         scalars > 1 ? call.scalar(2) : kOne);
    };
}
Prepare binary_tensors(Binary op, bool truth = false) {  // T T o
    return [=](Call& call) {
        return binary_job(call, op, call.tensor(0), call.tensor(1), call.tensor(2), kOne, truth);
    };
}
Prepare inplace_tensors(Binary op, bool truth = false) {  // o T
    return [=](Call& call) {
        const Tensor self = call.tensor(0);
        return binary_job(call, op, self, call.tensor(1), self, kOne, truth);
    };
}
Prepare binary_scalar(Binary op, bool truth = false) {  // T S o
    return [=](Call& call) {
        return binary_scalar_job(call, op, call.tensor(0), call.scalar(1), false, call.tensor(2), kOne,
                                 truth);
    };
}
Prepare scalar_binary(Binary op) {  // S T o
    return [=](Call& call) {
        return binary_scalar_job(call, op, call.tensor(1), call.scalar(0), true, call.tensor(2), kOne, false);
    };
}
Prepare inplace_scalar(Binary op, bool truth = false) {  // o S
    return [=](Call& call) {
        const Tensor self = call.tensor(0);
        return binary_scalar_job(call, op, self, call.scalar(1), false, self, kOne, truth);
    };
}
Prepare alpha_tensors(Binary op) {  // T T S(alpha) o
    return [=](Call& call) {
        return binary_job(call, op, call.tensor(0), call.tensor(1), call.tensor(3), call.scalar_or(2, 1),
                          false);
    };
}
Prepare inplace_alpha_tensors(Binary op) {  // o T S(alpha)
    return [=](Call& call) {
        const Tensor self = call.tensor(0);
        return binary_job(call, op, self, call.tensor(1), self, call.scalar_or(2, 1), false);
    };
}
Prepare alpha_scalar(Binary op) {  // T S S(alpha) o
    return [=](Call& call) {
        return binary_scalar_job(call, op, call.tensor(0), call.scalar(1), false, call.tensor(3),
                                 call.scalar_or(2, 1), false);
    };
}
Prepare inplace_alpha_scalar(Binary op) {  // o S S(alpha)
    return [=](Call& call) {
        const Tensor self = call.tensor(0);
        return binary_scalar_job(call, op, self, call.scalar(1), false, self, call.scalar_or(2, 1), false);
    };
}

// out = other - alpha * self.
Job rsub(Call& call, bool scalar) {
    if (scalar) {
        const Scalar alpha = call.scalar_or(2, 1);
        const Tensor self = call.tensor(0), out = call.tensor(3);
        return binary_scalar_job(call, Binary::Sub, self, call.scalar(1), true, out, alpha, false);
    }
    return binary_job(call, Binary::Sub, call.tensor(1), call.tensor(0), call.tensor(3), call.scalar_or(2, 1),
                      false);
}

// Rounded quotients: mode 0 none, 1 towards zero, 2 down.
Binary division(Call& call, int64_t mode) {
    call.require(mode >= 0 && mode <= 2, "rounding mode %lld is not one of 0, 1, 2",
                 static_cast<long long>(mode));
    return mode == 0 ? Binary::Div : mode == 1 ? Binary::TruncDiv : Binary::FloorDiv;
}

Job clamp(Call& call, bool inplace) {
    const Tensor in = call.tensor(0);
    const Tensor out = inplace ? in : call.tensor(3);
    if (call.has(1) && call.has(2)) {
        return unary_job(call, Unary::Clamp, in, out, call.scalar(1), call.scalar(2));
    }
    call.require(call.has(1) || call.has(2), "needs a lower or an upper bound");
    return call.has(1) ? unary_job(call, Unary::ClampMin, in, out, call.scalar(1), kOne)
                       : unary_job(call, Unary::ClampMax, in, out, call.scalar(2), kOne);
}

// In T...o and in place.
#define UNARY_PAIR(name, op)                  \
    OPERATOR("aclnn" name, unary(Unary::op)); \
    OPERATOR("aclnnInplace" name, inplace_unary(Unary::op))

UNARY_PAIR("Acos", Acos);
UNARY_PAIR("Acosh", Acosh);
UNARY_PAIR("Asin", Asin);
UNARY_PAIR("Asinh", Asinh);
UNARY_PAIR("Atan", Atan);
UNARY_PAIR("Atanh", Atanh);
UNARY_PAIR("Ceil", Ceil);
UNARY_PAIR("Cos", Cos);
UNARY_PAIR("Cosh", Cosh);
UNARY_PAIR("Erf", Erf);
UNARY_PAIR("Erfc", Erfc);
UNARY_PAIR("Erfinv", Erfinv);
UNARY_PAIR("Exp", Exp);
UNARY_PAIR("Exp2", Exp2);
UNARY_PAIR("Expm1", Expm1);
UNARY_PAIR("Floor", Floor);
UNARY_PAIR("Frac", Frac);
UNARY_PAIR("Hardsigmoid", HardSigmoid);
UNARY_PAIR("Hardswish", HardSwish);
UNARY_PAIR("Log", Log);
UNARY_PAIR("Log10", Log10);
UNARY_PAIR("Log1p", Log1p);
UNARY_PAIR("Log2", Log2);
UNARY_PAIR("LogicalNot", LogicalNot);
UNARY_PAIR("Mish", Mish);
UNARY_PAIR("Neg", Neg);
UNARY_PAIR("Reciprocal", Reciprocal);
UNARY_PAIR("Relu", Relu);
UNARY_PAIR("Round", Round);
UNARY_PAIR("Rsqrt", Rsqrt);
UNARY_PAIR("Sigmoid", Sigmoid);
UNARY_PAIR("Sin", Sin);
UNARY_PAIR("Sinh", Sinh);
UNARY_PAIR("Sqrt", Sqrt);
UNARY_PAIR("Tan", Tan);
UNARY_PAIR("Tanh", Tanh);
UNARY_PAIR("Trunc", Trunc);
#undef UNARY_PAIR

OPERATOR("aclnnAbs", unary(Unary::Abs));
OPERATOR("aclnnBitwiseNot", unary(Unary::BitNot));
OPERATOR("aclnnIsFinite", unary(Unary::IsFinite));
OPERATOR("aclnnIsInf", unary(Unary::IsInf));
OPERATOR("aclnnIsNegInf", unary(Unary::IsNegInf));
OPERATOR("aclnnIsPosInf", unary(Unary::IsPosInf));
OPERATOR("aclnnLogSigmoid", unary(Unary::LogSigmoid));
OPERATOR("aclnnSign", unary(Unary::Sign));
OPERATOR("aclnnSignbit", unary(Unary::SignBit));
OPERATOR("aclnnSilu", unary(Unary::Silu));
OPERATOR("aclnnSquare", unary(Unary::Square));
OPERATOR("aclnnGelu", unary(Unary::GeluTanh));  // the tanh form, as on the chip
OPERATOR("aclnnGeluV2", [](Call& call) {        // approximate: 0 erf, 1 tanh
    return unary_job(call, call.integer(1) == 0 ? Unary::Gelu : Unary::GeluTanh, call.tensor(0),
                     call.tensor(2), kOne, kOne);
});
OPERATOR("aclnnSwish", [](Call& call) -> Job {  // x * sigmoid(beta x), only for the beta that makes it SiLU
    call.require(call.scalar_or(1, 1).real == 1, "only beta = 1 is emulated");
    return unary_job(call, Unary::Silu, call.tensor(0), call.tensor(2), kOne, kOne);
});
OPERATOR("aclnnSoftplus", unary_scalars(Unary::Softplus, 2));
OPERATOR("aclnnLeakyRelu", unary_scalars(Unary::LeakyRelu, 1));
OPERATOR("aclnnInplaceLeakyRelu", unary_scalars(Unary::LeakyRelu, 1, true));
OPERATOR("aclnnThreshold", unary_scalars(Unary::Threshold, 2));
OPERATOR("aclnnInplaceThreshold", unary_scalars(Unary::Threshold, 2, true));
OPERATOR("aclnnCelu", unary_scalars(Unary::Celu, 1));
OPERATOR("aclnnHardtanh", unary_scalars(Unary::Clamp, 2));
OPERATOR("aclnnInplaceHardtanh", unary_scalars(Unary::Clamp, 2, true));
OPERATOR("aclnnClampMin", unary_scalars(Unary::ClampMin, 1));
OPERATOR("aclnnClampMax", unary_scalars(Unary::ClampMax, 1));
OPERATOR("aclnnInplaceClampMax", unary_scalars(Unary::ClampMax, 1, true));
OPERATOR("aclnnClamp", [](Call& call) { return clamp(call, false); });
OPERATOR("aclnnClampMinTensor", binary_tensors(Binary::Maximum));
OPERATOR("aclnnClampMaxTensor", binary_tensors(Binary::Minimum));
OPERATOR("aclnnInplaceClampMinTensor", inplace_tensors(Binary::Maximum));
OPERATOR("aclnnInplaceClampMaxTensor", inplace_tensors(Binary::Minimum));
OPERATOR("aclnnPowTensorScalar", unary_scalars(Unary::PowScalar, 1));
OPERATOR("aclnnInplacePowTensorScalar", unary_scalars(Unary::PowScalar, 1, true));
OPERATOR("aclnnPowScalarTensor", [](Call& call) {
    return unary_job(call, Unary::ScalarPow, call.tensor(1), call.tensor(2), call.scalar(0), kOne);
});
OPERATOR("aclnnPowTensorTensor", binary_tensors(Binary::Pow));
OPERATOR("aclnnInplacePowTensorTensor", inplace_tensors(Binary::Pow));

OPERATOR("aclnnAdd", alpha_tensors(Binary::Add));
OPERATOR("aclnnInplaceAdd", inplace_alpha_tensors(Binary::Add));
OPERATOR("aclnnAdds", alpha_scalar(Binary::Add));
OPERATOR("aclnnInplaceAdds", inplace_alpha_scalar(Binary::Add));
OPERATOR("aclnnAddV3", [](Call& call) {  // S T S(alpha) o
    return binary_scalar_job(call, Binary::Add, call.tensor(1), call.scalar(0), true, call.tensor(3),
                             call.scalar_or(2, 1), false);
});
OPERATOR("aclnnSub", alpha_tensors(Binary::Sub));
OPERATOR("aclnnInplaceSub", inplace_alpha_tensors(Binary::Sub));
OPERATOR("aclnnSubs", alpha_scalar(Binary::Sub));
OPERATOR("aclnnInplaceSubs", inplace_alpha_scalar(Binary::Sub));
OPERATOR("aclnnRsub", [](Call& call) { return rsub(call, false); });
OPERATOR("aclnnRsubs", [](Call& call) { return rsub(call, true); });
OPERATOR("aclnnMul", binary_tensors(Binary::Mul));
OPERATOR("aclnnInplaceMul", inplace_tensors(Binary::Mul));
OPERATOR("aclnnMuls", binary_scalar(Binary::Mul));
OPERATOR("aclnnInplaceMuls", inplace_scalar(Binary::Mul));
OPERATOR("aclnnDiv", binary_tensors(Binary::Div));
OPERATOR("aclnnInplaceDiv", inplace_tensors(Binary::Div));
OPERATOR("aclnnDivs", binary_scalar(Binary::Div));
OPERATOR("aclnnInplaceDivs", inplace_scalar(Binary::Div));
OPERATOR("aclnnDivMod", [](Call& call) {
    return binary_job(call, division(call, call.integer(2)), call.tensor(0), call.tensor(1), call.tensor(3),
                      kOne, false);
});
OPERATOR("aclnnInplaceDivMod", [](Call& call) {
    const Tensor self = call.tensor(0);
    return binary_job(call, division(call, call.integer(2)), self, call.tensor(1), self, kOne, false);
});
OPERATOR("aclnnDivMods", [](Call& call) {
    return binary_scalar_job(call, division(call, call.integer(2)), call.tensor(0), call.scalar(1), false,
                             call.tensor(3), kOne, false);
});
OPERATOR("aclnnInplaceDivMods", [](Call& call) {
    const Tensor self = call.tensor(0);
    return binary_scalar_job(call, division(call, call.integer(2)), self, call.scalar(1), false, self, kOne,
                             false);
});
OPERATOR("aclnnFloorDivide", binary_tensors(Binary::FloorDiv));
OPERATOR("aclnnInplaceFloorDivide", inplace_tensors(Binary::FloorDiv));
OPERATOR("aclnnFloorDivides", binary_scalar(Binary::FloorDiv));
OPERATOR("aclnnInplaceFloorDivides", inplace_scalar(Binary::FloorDiv));
OPERATOR("aclnnRemainderTensorTensor", binary_tensors(Binary::Remainder));
OPERATOR("aclnnInplaceRemainderTensorTensor", inplace_tensors(Binary::Remainder));
OPERATOR("aclnnRemainderTensorScalar", binary_scalar(Binary::Remainder));
OPERATOR("aclnnInplaceRemainderTensorScalar", inplace_scalar(Binary::Remainder));
OPERATOR("aclnnRemainderScalarTensor", scalar_binary(Binary::Remainder));
OPERATOR("aclnnFmodTensor", binary_tensors(Binary::Fmod));
OPERATOR("aclnnInplaceFmodTensor", inplace_tensors(Binary::Fmod));
OPERATOR("aclnnFmodScalar", binary_scalar(Binary::Fmod));
OPERATOR("aclnnInplaceFmodScalar", inplace_scalar(Binary::Fmod));
OPERATOR("aclnnMaximum", binary_tensors(Binary::Maximum));
OPERATOR("aclnnMinimum", binary_tensors(Binary::Minimum));
OPERATOR("aclnnAtan2", binary_tensors(Binary::Atan2));
OPERATOR("aclnnLogAddExp", binary_tensors(Binary::LogAddExp));
OPERATOR("aclnnLogAddExp2", binary_tensors(Binary::LogAddExp2));
OPERATOR("aclnnXLogYTensor", binary_tensors(Binary::XLogY));
OPERATOR("aclnnXLogYScalarOther", binary_scalar(Binary::XLogY));
OPERATOR("aclnnXLogYScalarSelf", scalar_binary(Binary::XLogY));

#define COMPARISON(name, op)                                                   \
    OPERATOR("aclnn" name "Tensor", binary_tensors(Binary::op, true));         \
    OPERATOR("aclnn" name "Scalar", binary_scalar(Binary::op, true));          \
    OPERATOR("aclnnInplace" name "Tensor", inplace_tensors(Binary::op, true)); \
    OPERATOR("aclnnInplace" name "Scalar", inplace_scalar(Binary::op, true))
COMPARISON("Eq", Eq);
COMPARISON("Ne", Ne);
COMPARISON("Lt", Lt);
COMPARISON("Le", Le);
COMPARISON("Gt", Gt);
COMPARISON("Ge", Ge);
#undef COMPARISON

OPERATOR("aclnnLogicalAnd", binary_tensors(Binary::LogicalAnd, true));
OPERATOR("aclnnInplaceLogicalAnd", inplace_tensors(Binary::LogicalAnd, true));
OPERATOR("aclnnLogicalOr", binary_tensors(Binary::LogicalOr, true));
OPERATOR("aclnnInplaceLogicalOr", inplace_tensors(Binary::LogicalOr, true));
OPERATOR("aclnnLogicalXor", binary_tensors(Binary::LogicalXor, true));

#define BITWISE(name, op)                                                             \
    OPERATOR("aclnnBitwise" name "Tensor", binary_tensors(Binary::op, true));         \
    OPERATOR("aclnnBitwise" name "Scalar", binary_scalar(Binary::op, true));          \
    OPERATOR("aclnnInplaceBitwise" name "Tensor", inplace_tensors(Binary::op, true)); \
    OPERATOR("aclnnInplaceBitwise" name "Scalar", inplace_scalar(Binary::op, true))
BITWISE("And", BitAnd);
BITWISE("Or", BitOr);
BITWISE("Xor", BitXor);
#undef BITWISE
OPERATOR("aclnnBitwiseAndTensorOut", binary_tensors(Binary::BitAnd, true));
OPERATOR("aclnnRightShift", binary_tensors(Binary::RightShift, true));

}  // namespace
}  // namespace flexnpu::ops
