// The interface of libatb.so, as far as programs use it: classes whose virtual functions they call, and
// structures that they fill by code of their own. Order and sizes are the vendor's; the declarations are
// ours.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "acl.gen.h"

#pragma GCC visibility push(default)
namespace atb {

using Status = int32_t;
enum : Status {
    kOk = 0,
    kInvalidParameter = 1,
    kRuntimeFailed = 4,
    kWrongInputs = 5,
    kWrongType = 6,
    kWrongShape = 8,
    kCannError = 12,
    kWrongAddress = 14,
};

// Up to 64 elements in place; programs that want more take memory by malloc.
template <class T>
struct SVector {
    size_t capacity = 0;
    size_t count = 0;
    T places[65];
    T* heap = nullptr;

    size_t size() const { return count; }
    const T* begin() const { return heap ? heap : places; }
    const T* end() const { return begin() + count; }
    const T& operator[](size_t i) const { return begin()[i]; }
};

struct Dims {
    int64_t sizes[8];
    uint64_t count;
};
struct TensorDesc {
    int32_t dtype;
    int32_t format;
    Dims shape;
};
struct Tensor {
    TensorDesc desc;
    void* device;
    void* host;
    uint64_t bytes;
};
static_assert(sizeof(Tensor) == 104);

struct VariantPack {
    SVector<Tensor> inputs;
    SVector<Tensor> outputs;
};

class Context {
public:
    virtual ~Context();
    virtual Status SetExecuteStream(aclrtStream stream) = 0;
    virtual aclrtStream GetExecuteStream() const = 0;
    virtual Status SetAsyncTilingCopyStatus(bool enable) = 0;
    virtual bool GetAsyncTilingCopyStatus() const = 0;
};
Status CreateContext(Context** context);
Status DestroyContext(Context* context);

class Operation {
public:
    virtual ~Operation();
    virtual std::string GetName() const = 0;
    virtual Status InferShape(const SVector<TensorDesc>& inputs, SVector<TensorDesc>& outputs) const = 0;
    virtual uint32_t GetInputNum() const = 0;
    virtual uint32_t GetOutputNum() const = 0;
    virtual Status Setup(const VariantPack& pack, uint64_t& workspace, Context* context) = 0;
    virtual Status Execute(const VariantPack& pack, uint8_t* workspace, uint64_t size, Context* context) = 0;
};
template <class Parameters>
Status CreateOperation(const Parameters& parameters, Operation** operation);
Status DestroyOperation(Operation* operation);

class Utils {
public:
    static uint64_t GetTensorSize(const Tensor& tensor);
};

namespace infer {

// What an operation does not look at is left out at a structure's end: it is only read, never copied.
struct LinearParam {
    bool transpose_a, transpose_b, has_bias;
    int32_t out_dtype;
    bool accumulate;
};
struct ReshapeAndCacheParam {
    int32_t compress, caches;
};
struct RopeParam {
    int32_t rotary_coefficient, cosine_format;
};
struct PagedAttentionParam {
    int32_t heads;
    float scale;
    int32_t kv_heads;
    int32_t mask;
    bool batch_status;
    int32_t quantised;
    int32_t out_dtype;
    bool quantised_offset;
    int32_t compress, calculation, scaling, layout;
    uint32_t latent_width;
};
struct ElewiseParam;
struct RmsNormParam;
struct GroupTopkParam;
struct SelfAttentionParam;

}  // namespace infer
}  // namespace atb
#pragma GCC visibility pop
