// An ATB operation that is one aclnn operator.
#pragma once

#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <vector>

#include "abi.hpp"

namespace flexnpu::host {

// Descriptors that live until the operator has been launched.
class Descriptors {
public:
    Descriptors() = default;
    Descriptors(Descriptors&&) = default;
    Descriptors& operator=(Descriptors&&) = default;
    ~Descriptors() = default;

    // A tensor over the memory of `t`, dense in `dims`, or with the strides given (in elements).
    aclTensor* tensor(const atb::Tensor& t, const std::vector<int64_t>& dims,
                      const std::vector<int64_t>& strides = {});
    aclTensor* tensor(const atb::Tensor& t);
    aclTensorList* list(aclTensor* one);  // which it owns from then on
    aclIntArray* integers(const std::vector<int64_t>& values);
    aclScalar* one();

private:
    template <class T>
    T* keep(T* object, aclnnStatus (*destroy)(const T*));
    std::vector<std::unique_ptr<void, std::function<void(void*)>>> kept_;
};

// An operator's first call: its answer, and what it was made from.
struct Prepared {
    aclOpExecutor* executor = nullptr;
    uint64_t workspace = 0;
    Descriptors descriptors;
};

using Second = aclnnStatus (*)(void*, uint64_t, aclOpExecutor*, aclrtStream);
// Makes the first call. Returns kOk, or what is wrong with the pack, having said it through `complain`.
using First = std::function<atb::Status(const atb::VariantPack&, Prepared&)>;

// Says on stderr what is wrong, once a text.
atb::Status complain(atb::Status status, const std::string& text);

struct Shape {
    const char* name;
    uint32_t inputs, outputs;
    std::vector<uint32_t> output_like;  // which input each output has the shape of
};

class Served final : public atb::Operation {
public:
    Served(Shape shape, First first, Second second);
    ~Served() override;

    std::string GetName() const override { return shape_.name; }
    atb::Status InferShape(const atb::SVector<atb::TensorDesc>& inputs,
                           atb::SVector<atb::TensorDesc>& outputs) const override;
    uint32_t GetInputNum() const override { return shape_.inputs; }
    uint32_t GetOutputNum() const override { return shape_.outputs; }
    atb::Status Setup(const atb::VariantPack& pack, uint64_t& workspace, atb::Context* context) override;
    atb::Status Execute(const atb::VariantPack& pack, uint8_t* workspace, uint64_t size,
                        atb::Context* context) override;

private:
    // Tensors tell one set-up from another: threads may share an operation, and a set-up may stay unused.
    using Key = std::vector<uint64_t>;
    struct Waiting {
        Key key;
        Prepared prepared;
    };
    atb::Status prepare(const atb::VariantPack& pack, Prepared& prepared) const;

    const Shape shape_;
    const First first_;
    const Second second_;
    std::mutex mutex_;
    std::list<Waiting> waiting_;
};

}  // namespace flexnpu::host
