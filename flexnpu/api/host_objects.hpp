// Host objects of AscendCL: descriptors of tensors, scalars, arrays and operator attributes.
//
// They live in the process that creates them and hold no device memory. FlexNPU's client and the emulated
// CANN share this definition; a vendor's objects are opaque and are never read through it.
//
// Handles are checked by a magic word, so that a null, freed or foreign pointer that still maps gives an
// error and not a crash further on.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "acl.gen.h"

namespace flexnpu::api {

// Records that `function` was given an argument that is null or no such object; returns INVALID_PARAM.
int32_t invalid_argument(const char* function);

enum class Magic : uint32_t {
    Tensor = 0x464e5431,
    TensorList,
    Scalar,
    ScalarList,
    IntArray,
    FloatArray,
    BoolArray,
    TensorDesc,
    DataBuffer,
    OpAttr,
    Dataset,
    ModelDesc,
    ProfConfig,
    ProfStep,
    Dead = 0xdead0bad,
};

// Dimensions of a tensor, kept inline up to 8 (CANN's own limit for most operators is 8): creating a tensor
// is on the path of every operator and must not allocate more than the object itself.
class Dims {
public:
    static constexpr uint64_t kInline = 8;
    Dims() = default;
    Dims(const int64_t* values, uint64_t n) { assign(values, n); }
    void assign(const int64_t* values, uint64_t n) {
        size_ = n;
        if (n <= kInline) {
            for (uint64_t i = 0; i < n; i++) inline_[i] = values[i];
        } else {
            heap_.assign(values, values + n);
        }
    }
    uint64_t size() const { return size_; }
    bool empty() const { return size_ == 0; }
    const int64_t* data() const { return size_ <= kInline ? inline_ : heap_.data(); }
    int64_t operator[](uint64_t i) const { return data()[i]; }
    const int64_t* begin() const { return data(); }
    const int64_t* end() const { return data() + size_; }

private:
    uint64_t size_ = 0;
    int64_t inline_[kInline] = {};
    std::vector<int64_t> heap_;
};

// The shape of an output that only the data decide (aclnnNonzero and its like). The operator writes it when
// it runs; the caller synchronises and reads it with aclGetViewShape. Shared, so that neither outlives the
// other's use.
struct LateDims {
    std::atomic<bool> known = false;
    Dims dims;
};

}  // namespace flexnpu::api

struct aclTensor {
    flexnpu::api::Magic magic = flexnpu::api::Magic::Tensor;
    aclDataType dtype = -1;
    aclFormat format = 2;
    flexnpu::api::Dims dims;                       // view, in elements
    flexnpu::api::Dims strides;                    // view, in elements; empty: contiguous
    flexnpu::api::Dims storage_dims;               // in elements
    int64_t offset = 0;                            // of the view in its storage, in elements
    void* data = nullptr;                          // device address of the storage
    std::shared_ptr<flexnpu::api::LateDims> late;  // null but for outputs of such operators
};

struct aclTensorList {
    flexnpu::api::Magic magic = flexnpu::api::Magic::TensorList;
    std::vector<const aclTensor*> tensors;  // owned: destroyed with the list, as in CANN
};

struct aclScalar {
    flexnpu::api::Magic magic = flexnpu::api::Magic::Scalar;
    aclDataType dtype = -1;
    alignas(8) unsigned char value[16] = {};  // element_size(dtype) bytes of it are valid
};

struct aclScalarList {
    flexnpu::api::Magic magic = flexnpu::api::Magic::ScalarList;
    std::vector<const aclScalar*> scalars;  // owned
};

struct aclIntArray {
    flexnpu::api::Magic magic = flexnpu::api::Magic::IntArray;
    std::vector<int64_t> values;
};
struct aclFloatArray {
    flexnpu::api::Magic magic = flexnpu::api::Magic::FloatArray;
    std::vector<float> values;
};
struct aclBoolArray {
    flexnpu::api::Magic magic = flexnpu::api::Magic::BoolArray;
    std::vector<unsigned char> values;
};

struct aclTensorDesc {
    flexnpu::api::Magic magic = flexnpu::api::Magic::TensorDesc;
    aclDataType dtype = -1;
    aclFormat format = -1, storage_format = -1, origin_format = -1;
    std::vector<int64_t> dims, storage_dims, origin_dims;
    std::vector<int64_t> dim_range;    // pairs (low, high)
    std::vector<int64_t> value_range;  // pairs (low, high)
    std::string name, dynamic_input;
    std::vector<unsigned char> constant;
    aclMemType placement = 0;
};

struct aclDataBuffer {
    flexnpu::api::Magic magic = flexnpu::api::Magic::DataBuffer;
    void* data = nullptr;
    size_t size = 0;
};

struct aclopAttr {
    flexnpu::api::Magic magic = flexnpu::api::Magic::OpAttr;
    std::map<std::string, std::string> values;  // name -> value as text, types kept apart by a leading letter
};

namespace flexnpu::api {

// An input or output of a compiled model.
struct ModelTensor {
    std::string name;
    std::vector<int64_t> dims;
    aclDataType dtype = -1;
    aclFormat format = -1;
    size_t bytes = 0;
};

}  // namespace flexnpu::api

struct aclmdlDataset {
    flexnpu::api::Magic magic = flexnpu::api::Magic::Dataset;
    struct Item {
        aclDataBuffer* buffer;
        aclTensorDesc* desc;
    };
    std::vector<Item> items;  // not owned
};

struct aclmdlDesc {
    flexnpu::api::Magic magic = flexnpu::api::Magic::ModelDesc;
    std::vector<flexnpu::api::ModelTensor> inputs, outputs;
};

// As the vendor lays it out: programs read the members.
struct aclmdlIODims {
    char name[128];
    size_t count;
    int64_t dims[128];
};

namespace flexnpu::api {

template <class T>
bool valid(const T* object, Magic magic) {
    return object != nullptr && object->magic == magic;
}
inline bool valid(const aclTensor* t) { return valid(t, Magic::Tensor); }
inline bool valid(const aclTensorList* t) { return valid(t, Magic::TensorList); }
inline bool valid(const aclScalar* s) { return valid(s, Magic::Scalar); }
inline bool valid(const aclScalarList* s) { return valid(s, Magic::ScalarList); }
inline bool valid(const aclIntArray* a) { return valid(a, Magic::IntArray); }
inline bool valid(const aclFloatArray* a) { return valid(a, Magic::FloatArray); }
inline bool valid(const aclBoolArray* a) { return valid(a, Magic::BoolArray); }
inline bool valid(const aclTensorDesc* d) { return valid(d, Magic::TensorDesc); }
inline bool valid(const aclDataBuffer* b) { return valid(b, Magic::DataBuffer); }
inline bool valid(const aclmdlDataset* s) { return valid(s, Magic::Dataset); }
inline bool valid(const aclmdlDesc* d) { return valid(d, Magic::ModelDesc); }
inline bool valid(const aclopAttr* a) { return valid(a, Magic::OpAttr); }

}  // namespace flexnpu::api
