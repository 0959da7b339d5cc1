#include "operation.hpp"

#include "flexnpu/api/acl_consts.h"
#include "flexnpu/host/complaint.hpp"

namespace flexnpu::host {
namespace {

// Set-ups that nobody has executed: more than threads would have at once are left over from questions for the
// size.
constexpr size_t kMostWaiting = 8;

std::vector<int64_t> dims_of(const atb::Tensor& t) {
    return {t.desc.shape.sizes, t.desc.shape.sizes + t.desc.shape.count};
}

void discard(Prepared& prepared) {
    if (prepared.executor) {
        aclSetAclOpExecutorRepeatable(prepared.executor);  // only such a one can be destroyed
        aclDestroyAclOpExecutor(prepared.executor);
        prepared.executor = nullptr;
    }
}

std::vector<uint64_t> key_of(const atb::VariantPack& pack) {
    std::vector<uint64_t> key;
    for (const auto* tensors : {&pack.inputs, &pack.outputs}) {
        for (const atb::Tensor& t : *tensors) {
            key.insert(key.end(), {reinterpret_cast<uint64_t>(t.device), reinterpret_cast<uint64_t>(t.host),
                                   uint64_t(uint32_t(t.desc.dtype)), t.desc.shape.count});
            for (int64_t size : dims_of(t)) {
                key.push_back(static_cast<uint64_t>(size));
            }
            if (t.host) {  // its content is an argument
                const auto* bytes = static_cast<const uint8_t*>(t.host);
                for (uint64_t i = 0; i < t.bytes; i++) {
                    key.push_back(bytes[i]);
                }
            }
        }
    }
    return key;
}

}  // namespace

atb::Status complain(atb::Status status, const std::string& text) {
    flexnpu_host_complain(("libatb: " + text).c_str());
    return status;
}

template <class T>
T* Descriptors::keep(T* object, aclnnStatus (*destroy)(const T*)) {
    kept_.emplace_back(object, [destroy](void* p) { destroy(static_cast<const T*>(p)); });
    return object;
}

aclTensor* Descriptors::tensor(const atb::Tensor& t, const std::vector<int64_t>& dims,
                               const std::vector<int64_t>& strides) {
    std::vector<int64_t> steps = strides;
    if (steps.empty()) {
        steps.assign(dims.size(), 1);
        for (size_t d = dims.size(); d-- > 1;) {
            steps[d - 1] = steps[d] * dims[d];
        }
    }
    int64_t whole = 1;
    for (int64_t size : dims) {
        whole *= size;
    }
    return keep<aclTensor>(aclCreateTensor(dims.data(), dims.size(), t.desc.dtype, steps.data(), 0, acl::ND,
                                           &whole, 1, t.device),
                           aclDestroyTensor);
}

aclTensor* Descriptors::tensor(const atb::Tensor& t) { return tensor(t, dims_of(t)); }

aclTensorList* Descriptors::list(aclTensor* one) {
    // The list owns its tensors: what kept the tensor lets go of it.
    for (auto& kept : kept_) {
        if (kept.get() == one) {
            kept.release();
        }
    }
    const aclTensor* const tensors[] = {one};
    return keep<aclTensorList>(aclCreateTensorList(tensors, 1), aclDestroyTensorList);
}

aclIntArray* Descriptors::integers(const std::vector<int64_t>& values) {
    return keep<aclIntArray>(aclCreateIntArray(values.data(), values.size()), aclDestroyIntArray);
}

aclScalar* Descriptors::one() {
    float value = 1;
    return keep<aclScalar>(aclCreateScalar(&value, acl::FLOAT), aclDestroyScalar);
}

Served::Served(Shape shape, First first, Second second)
    : shape_(std::move(shape)), first_(std::move(first)), second_(second) {}

Served::~Served() {
    for (Waiting& one : waiting_) {
        discard(one.prepared);
    }
}

atb::Status Served::InferShape(const atb::SVector<atb::TensorDesc>& inputs,
                               atb::SVector<atb::TensorDesc>& outputs) const {
    if (inputs.size() != shape_.inputs) {
        return complain(atb::kWrongInputs, GetName() + ": wrong number of inputs");
    }
    auto* out = outputs.heap ? outputs.heap : outputs.places;
    outputs.count = shape_.output_like.size();
    for (size_t i = 0; i < shape_.output_like.size(); i++) {
        out[i] = inputs[shape_.output_like[i]];
    }
    return atb::kOk;
}

atb::Status Served::prepare(const atb::VariantPack& pack, Prepared& prepared) const {
    if (pack.inputs.size() != shape_.inputs || pack.outputs.size() != shape_.outputs) {
        return complain(atb::kWrongInputs, GetName() + ": " + std::to_string(pack.inputs.size()) +
                                               " inputs and " + std::to_string(pack.outputs.size()) +
                                               " outputs instead of " + std::to_string(shape_.inputs) +
                                               " and " + std::to_string(shape_.outputs));
    }
    return first_(pack, prepared);
}

atb::Status Served::Setup(const atb::VariantPack& pack, uint64_t& workspace, atb::Context*) {
    Key key = key_of(pack);
    {
        const std::lock_guard lock(mutex_);
        for (const Waiting& one : waiting_) {
            if (one.key == key) {
                workspace = one.prepared.workspace;
                return atb::kOk;
            }
        }
    }
    Prepared prepared;
    if (const atb::Status status = prepare(pack, prepared)) {
        return status;
    }
    workspace = prepared.workspace;
    const std::lock_guard lock(mutex_);
    waiting_.push_back({std::move(key), std::move(prepared)});
    if (waiting_.size() > kMostWaiting) {
        discard(waiting_.front().prepared);
        waiting_.pop_front();
    }
    return atb::kOk;
}

atb::Status Served::Execute(const atb::VariantPack& pack, uint8_t* workspace, uint64_t size,
                            atb::Context* context) {
    if (context == nullptr) {
        return complain(atb::kInvalidParameter, GetName() + ": no context");
    }
    Prepared prepared;
    {
        const Key key = key_of(pack);
        const std::lock_guard lock(mutex_);
        for (auto one = waiting_.begin(); one != waiting_.end(); ++one) {
            if (one->key == key) {
                prepared = std::move(one->prepared);
                waiting_.erase(one);
                break;
            }
        }
    }
    if (prepared.executor == nullptr) {
        if (const atb::Status status = prepare(pack, prepared)) {
            return status;
        }
    }
    if (size < prepared.workspace) {
        const uint64_t needed = prepared.workspace;
        discard(prepared);
        return complain(atb::kInvalidParameter, GetName() + ": " + std::to_string(size) +
                                                    " bytes of workspace, " + std::to_string(needed) +
                                                    " are needed");
    }
    const aclnnStatus status = second_(workspace, size, prepared.executor, context->GetExecuteStream());
    return status == 0 ? atb::kOk
                       : complain(atb::kCannError, GetName() + ": error " + std::to_string(status));
}

}  // namespace flexnpu::host
