// Operators named by type and described by tensor descriptors (aclopCompileAndExecute): those that have an
// aclnn operator of the same meaning run as it. There is no compiler: others fail by name.
#include <algorithm>
#include <cstring>
#include <map>
#include <string_view>
#include <vector>

#include "acl.gen.h"
#include "flexnpu/api/host_objects.hpp"
#include "flexnpu/emulator/kernel.hpp"

namespace acl = flexnpu::acl;

namespace {

constexpr aclFormat kFormatNd = 2;

struct Call {
    const char* type;
    std::vector<aclTensor*> in, out;
    std::vector<aclDataType> out_types;
    const aclopAttr* attr;
    aclrtStream stream;

    ~Call() {
        for (auto* side : {&in, &out}) {
            for (aclTensor* t : *side) aclDestroyTensor(t);
        }
    }
    bool flag(const char* name) const {
        if (attr == nullptr) return false;
        auto at = attr->values.find(name);
        return at != attr->values.end() && at->second.size() > 5 && at->second[0] == 'b' &&
               at->second[5] != 0;
    }
};

using Second = aclnnStatus (*)(void*, uint64_t, aclOpExecutor*, aclrtStream);

// What the first call has prepared runs now.
aclError launch(const Call& call, aclnnStatus first, uint64_t size, aclOpExecutor* executor, Second second) {
    if (first != 0) return first;
    void* workspace = nullptr;
    if (size > 0) {
        if (aclError e = aclrtMalloc(&workspace, size, 0)) return e;
    }
    const aclError e = second(workspace, size, executor, call.stream);
    if (workspace) {
        aclrtSynchronizeStream(call.stream);
        aclrtFree(workspace);
    }
    return e;
}

template <auto First, Second second>
aclError unary(const Call& c) {
    uint64_t size = 0;
    aclOpExecutor* executor = nullptr;
    const aclnnStatus first = First(c.in[0], c.out[0], &size, &executor);
    return launch(c, first, size, executor, second);
}
template <auto First, Second second>
aclError binary(const Call& c) {
    uint64_t size = 0;
    aclOpExecutor* executor = nullptr;
    const aclnnStatus first = First(c.in[0], c.in[1], c.out[0], &size, &executor);
    return launch(c, first, size, executor, second);
}
template <auto First, Second second>
aclError scaled(const Call& c) {
    uint64_t size = 0;
    aclOpExecutor* executor = nullptr;
    float one = 1;
    aclScalar* alpha = aclCreateScalar(&one, acl::FLOAT);
    const aclnnStatus first = First(c.in[0], c.in[1], alpha, c.out[0], &size, &executor);
    const aclError e = launch(c, first, size, executor, second);
    aclDestroyScalar(alpha);
    return e;
}
aclError cast(const Call& c) {
    uint64_t size = 0;
    aclOpExecutor* executor = nullptr;
    const aclnnStatus first = aclnnCastGetWorkspaceSize(c.in[0], c.out_types[0], c.out[0], &size, &executor);
    return launch(c, first, size, executor, aclnnCast);
}
// The last two dimensions exchanged, by strides.
void transpose(aclTensor* t) {
    const size_t n = t->dims.size();
    if (n < 2) return;
    std::vector<int64_t> dims(t->dims.begin(), t->dims.end()), strides(n, 1);
    for (size_t i = n - 1; i-- > 0;) strides[i] = strides[i + 1] * dims[i + 1];
    std::swap(dims[n - 1], dims[n - 2]);
    std::swap(strides[n - 1], strides[n - 2]);
    t->dims.assign(dims.data(), n);
    t->strides.assign(strides.data(), n);
}
aclError matmul(const Call& c) {
    if (c.flag("transpose_x1") || c.flag("adj_x1")) transpose(c.in[0]);
    if (c.flag("transpose_x2") || c.flag("adj_x2")) transpose(c.in[1]);
    uint64_t size = 0;
    aclOpExecutor* executor = nullptr;
    const aclnnStatus first = aclnnMatmulGetWorkspaceSize(c.in[0], c.in[1], c.out[0], 0, &size, &executor);
    return launch(c, first, size, executor, aclnnMatmul);
}

struct Type {
    size_t inputs;
    aclError (*run)(const Call&);
};
#define UNARY(name) {1, unary<name##GetWorkspaceSize, name>}
#define BINARY(name) {2, binary<name##GetWorkspaceSize, name>}
#define SCALED(name) {2, scaled<name##GetWorkspaceSize, name>}

const std::map<std::string_view, Type>& types() {
    static const std::map<std::string_view, Type> all = {
        {"Abs", UNARY(aclnnAbs)},
        {"Add", SCALED(aclnnAdd)},
        {"BatchMatMul", {2, matmul}},
        {"BatchMatMulV2", {2, matmul}},
        {"Cast", {1, cast}},
        {"Ceil", UNARY(aclnnCeil)},
        {"Cos", UNARY(aclnnCos)},
        {"Div", BINARY(aclnnDiv)},
        {"Erf", UNARY(aclnnErf)},
        {"Exp", UNARY(aclnnExp)},
        {"Floor", UNARY(aclnnFloor)},
        {"Gelu", UNARY(aclnnGelu)},
        {"Log", UNARY(aclnnLog)},
        {"MatMul", {2, matmul}},
        {"MatMulV2", {2, matmul}},
        {"Maximum", BINARY(aclnnMaximum)},
        {"Minimum", BINARY(aclnnMinimum)},
        {"Mul", BINARY(aclnnMul)},
        {"Neg", UNARY(aclnnNeg)},
        {"Pow", BINARY(aclnnPowTensorTensor)},
        {"RealDiv", BINARY(aclnnDiv)},
        {"Reciprocal", UNARY(aclnnReciprocal)},
        {"Relu", UNARY(aclnnRelu)},
        {"Round", UNARY(aclnnRound)},
        {"Rsqrt", UNARY(aclnnRsqrt)},
        {"Sigmoid", UNARY(aclnnSigmoid)},
        {"Sin", UNARY(aclnnSin)},
        {"Sqrt", UNARY(aclnnSqrt)},
        {"Sub", SCALED(aclnnSub)},
        {"Tanh", UNARY(aclnnTanh)},
    };
    return all;
}

aclError add_tensors(const char* type, int n, const aclTensorDesc* const* descs,
                     const aclDataBuffer* const* buffers, std::vector<aclTensor*>* out) {
    if (n > 0 && (descs == nullptr || buffers == nullptr)) {
        return flexnpu_emu_fail(acl::INVALID_PARAM, "aclopCompileAndExecute: %s: null descriptors or buffers",
                                type);
    }
    for (int i = 0; i < n; i++) {
        const aclTensorDesc* d = descs[i];
        const aclDataBuffer* b = buffers[i];
        if (!flexnpu::api::valid(d) || !flexnpu::api::valid(b)) {
            return flexnpu_emu_fail(acl::INVALID_PARAM,
                                    "aclopCompileAndExecute: %s: argument %d is no descriptor or no buffer",
                                    type, i);
        }
        uint64_t bytes = acl::element_size(d->dtype);
        for (int64_t size : d->dims) {
            if (size < 0)
                return flexnpu_emu_fail(acl::INVALID_PARAM,
                                        "aclopCompileAndExecute: %s: a dimension of unknown size", type);
            if (__builtin_mul_overflow(bytes, uint64_t(size), &bytes)) bytes = UINT64_MAX;
        }
        if (bytes > b->size) {
            return flexnpu_emu_fail(acl::INVALID_PARAM,
                                    "aclopCompileAndExecute: %s: a buffer of %zu bytes for a tensor of %llu",
                                    type, b->size, static_cast<unsigned long long>(bytes));
        }
        aclTensor* t = aclCreateTensor(d->dims.data(), d->dims.size(), d->dtype, nullptr, 0, kFormatNd,
                                       d->dims.data(), d->dims.size(), b->data);
        if (t == nullptr) return acl::INVALID_PARAM;
        out->push_back(t);
    }
    return acl::SUCCESS;
}

}  // namespace

extern "C" {

aclError aclopCompileAndExecute(const char* type, int inputs, const aclTensorDesc* const* in,
                                const aclDataBuffer* const* in_data, int outputs,
                                const aclTensorDesc* const* out, aclDataBuffer* const* out_data,
                                const aclopAttr* attr, aclopEngineType, aclopCompileType, const char*,
                                aclrtStream stream) {
    if (type == nullptr)
        return flexnpu_emu_fail(acl::INVALID_PARAM, "aclopCompileAndExecute: the operator's type is null");
    auto at = types().find(type);
    if (at == types().end()) {
        return flexnpu_emu_fail(
            acl::OP_NOT_FOUND,
            "aclopCompileAndExecute: %s cannot be compiled: the emulated CANN has no compiler", type);
    }
    Call call{type, {}, {}, {}, flexnpu::api::valid(attr) ? attr : nullptr, stream};
    if (aclError e = add_tensors(type, inputs, in, in_data, &call.in)) return e;
    if (aclError e = add_tensors(type, outputs, out, out_data, &call.out)) return e;
    if (call.in.size() != at->second.inputs || call.out.size() != 1) {
        return flexnpu_emu_fail(acl::INVALID_PARAM, "aclopCompileAndExecute: %s: %d inputs and %d outputs",
                                type, inputs, outputs);
    }
    call.out_types.push_back(out[0]->dtype);
    return at->second.run(call);
}

aclError aclopCompileAndExecuteV2(const char* type, int inputs, aclTensorDesc** in, aclDataBuffer** in_data,
                                  int outputs, aclTensorDesc** out, aclDataBuffer** out_data, aclopAttr* attr,
                                  aclopEngineType engine, aclopCompileType compile, const char* path,
                                  aclrtStream stream) {
    if (type == nullptr)
        return flexnpu_emu_fail(acl::INVALID_PARAM, "aclopCompileAndExecuteV2: the operator's type is null");
    return aclopCompileAndExecute(type, inputs, in, in_data, outputs, out, out_data, attr, engine, compile,
                                  path, stream);
}
}
