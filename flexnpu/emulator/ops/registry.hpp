// The table of operators: one OPERATOR row each, in the file of its family.
//
//     OPERATOR("aclnnExp", unary(Unary::Exp));
//     OPERATOR("aclnnAdd", [](Call& call) -> Job { ... });
//
// A row's function runs in the operator's first call. It reads the arguments through Call, which copies them
// and refuses what is malformed; checks shapes and types with call.require; may correct call.cost; and
// returns the Job that computes the result on the device's thread. A Job touches memory only when it runs,
// may run several times (graph replay), and returns an ACL error or 0.
//
// Cost. The roofline's inputs are what the operator asks of the chip, not what this implementation does.
// Unless a row says otherwise:
//     bytes         the bytes of every tensor argument, each counted once, broadcast dimensions once
//     vector_flops  elements of the largest tensor argument, one operation each
// Rows that differ: products of matrices (2*M*N*K on the cube unit), attention (4*B*N*Sq*Skv*D on the cube
// unit, the usual count for Q*K^T and P*V), table look-ups (only the rows that are read), softmax and norms
// (several passes over the data in registers).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "flexnpu/api/aclnn_arg.hpp"
#include "flexnpu/emulator/kernel.hpp"
#include "tensor.hpp"

namespace flexnpu::api {
struct LateDims;
}

namespace flexnpu::ops {

// Error codes of aclnn first calls.
inline constexpr int32_t kParamNull = 161001;
inline constexpr int32_t kParamInvalid = 161002;
// An operator that failed while it ran (an index out of range, an address that is not device memory).
inline constexpr int32_t kAicoreException = 507015;

using Job = std::function<int()>;

// Thrown by a row's function; becomes the first call's result and aclGetRecentErrMsg's text.
struct Invalid {
    int32_t error;
    std::string message;
};

class Call {
public:
    Call(const char* name, const char* kinds, const AclnnArg* args, uint32_t count);

    // Arguments by position. A missing or malformed one throws Invalid; so does a tensor of a type that the
    // row kernels do not load (complex, 4-bit ...), unless the row only moves bytes.
    Tensor tensor(uint32_t i);
    Tensor tensor_of_any_type(uint32_t i);
    bool has(uint32_t i) const;  // false for a null pointer
    // Where to write the shape of a tensor that only the data decide.
    std::shared_ptr<api::LateDims> late(uint32_t i);
    std::vector<Tensor> tensors(uint32_t i);
    std::vector<bool> defined(uint32_t i);  // which entries of a tensor list are non-null
    Scalar scalar(uint32_t i) const;
    std::vector<Scalar> scalars(uint32_t i) const;
    Scalar scalar_or(uint32_t i, double fallback) const;
    std::vector<int64_t> ints(uint32_t i) const;  // empty when null
    std::vector<bool> booleans(uint32_t i) const;
    int64_t integer(uint32_t i) const;
    bool boolean(uint32_t i) const { return integer(i) != 0; }
    double real(uint32_t i) const;
    std::string text(uint32_t i) const;  // empty when null
    uint32_t count() const { return count_; }

    // The cost of an operator of which nothing but the arguments is known.
    void guess_cost();

    // dim in [-rank, rank) (rank 0 counts as 1) to [0, rank).
    int dimension(int64_t dim, const Tensor& t) const;
    // Reduction dimensions: sorted, unique; all of them when `dims` is empty.
    std::vector<int> dimensions(const std::vector<int64_t>& dims, const Tensor& t) const;

    void require(bool condition, const char* format, ...) const __attribute__((format(printf, 3, 4)));
    [[noreturn]] void fail(const char* format, ...) const __attribute__((format(printf, 2, 3)));
    void require_numeric(const Tensor& t) const;
    void require_shape(const Tensor& t, const Tensor& like, const char* what) const;
    // Every input broadcasts to out's shape.
    void require_broadcast(const Tensor& out, std::initializer_list<const Tensor*> inputs) const;

    const char* name() const { return name_; }

    emulator::KernelCost cost;
    std::vector<std::pair<const char*, int64_t>> ranges;  // memory of every tensor argument

private:
    Tensor convert(const void* handle, uint32_t i);
    Scalar convert_scalar(const void* handle, uint32_t i) const;
    const AclnnArg& at(uint32_t i) const;

    const char* name_;
    const char* kinds_;
    const AclnnArg* args_;
    uint32_t count_;
};

using Prepare = std::function<Job(Call&)>;

struct Registration {
    Registration(const char* name, Prepare prepare);
};

// Null for an operator without a body.
const Prepare* find_prepare(uint32_t op);

#define FLEXNPU_CONCAT2(a, b) a##b
#define FLEXNPU_CONCAT(a, b) FLEXNPU_CONCAT2(a, b)
#define OPERATOR(name, ...) \
    static const ::flexnpu::ops::Registration FLEXNPU_CONCAT(registration_, __COUNTER__) { name, __VA_ARGS__ }

}  // namespace flexnpu::ops
