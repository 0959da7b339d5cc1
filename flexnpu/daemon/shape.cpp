#include "flexnpu/daemon/shape.hpp"

#include "flexnpu/api/aclnn_invoke.hpp"

namespace flexnpu::daemon {

namespace {

// Bits of one element; 0: not a type that we know the size of.
uint32_t element_bits(int32_t dtype) {
    if (dtype == acl::INT4) return 4;
    if (dtype == acl::UINT1) return 1;
    return uint32_t(acl::element_size(dtype)) * 8;
}

// Formats whose memory is laid out as the storage dims say.
bool blocked(int32_t format) {
    switch (format) {
        case acl::NC1HWC0:
        case acl::FRACTAL_Z:
        case acl::FRACTAL_NZ:
        case acl::NDC1HWC0: return true;
        default: return false;
    }
}

}  // namespace

std::shared_ptr<Shape> Shape::make(Vendor& vendor, uint32_t op, std::span<const uint8_t> meta,
                                   size_t addresses, int32_t* error, std::string* message) {
    *error = acl::INVALID_PARAM;
    if (op >= api::kOpCount) {
        *message = "FlexNPU: no operator has the number " + std::to_string(op);
        return nullptr;
    }
    if (!vendor.first(op)) {
        *error = acl::OP_NOT_FOUND;
        *message = std::string(api::kOps[op].name) + " does not exist in the vendor's libraries";
        return nullptr;
    }
    std::vector<wire::ArgMeta> args;
    if (!wire::decode_meta(meta, api::kOps[op].kinds, &args)) {
        *message = std::string(api::kOps[op].name) + ": malformed metadata";
        return nullptr;
    }
    std::shared_ptr<Shape> shape(new Shape(vendor, op));
    if (!shape->build(args, message)) return nullptr;
    if (shape->extents_.size() != addresses) {
        *message = std::string(api::kOps[op].name) + ": " + std::to_string(addresses) + " addresses for " +
                   std::to_string(shape->extents_.size()) + " tensors";
        return nullptr;
    }
    shape->meta_.assign(meta.begin(), meta.end());
    *error = 0;
    return shape;
}

std::shared_ptr<Shape> Shape::clone(int32_t* error, std::string* message) const {
    return make(vendor_, op_, meta_, extents_.size(), error, message);
}

std::vector<uint64_t> Shape::output_dims(size_t most) const {
    std::vector<uint64_t> out;
    for (const AclnnArg& a : args_) {
        if (a.kind != 't' || !a.p) continue;
        int64_t* dims = nullptr;
        uint64_t n = 0;
        if (vendor_.aclGetViewShape(static_cast<const aclTensor*>(a.p), &dims, &n) != 0) n = 0;
        if (out.size() + 1 + n <= most) {
            out.push_back(n);
            out.insert(out.end(), dims, dims + n);
        }
        delete[] dims;  // CANN's are made by new[]
    }
    return out;
}

aclTensor* Shape::tensor(const wire::TensorMeta& t, gate::ShapeBucket* bucket, std::string* message) {
    const uint32_t bits = element_bits(t.dtype);
    wire::Extent extent;
    if (bits == 0 || !wire::extent_of(t, bits, blocked(t.format), &extent)) {
        *message = std::string(name()) + ": tensor " + std::to_string(extents_.size()) + " has " +
                   (bits == 0 ? "data type " + std::to_string(t.dtype) + ", which FlexNPU does not know"
                              : "impossible dimensions");
        return nullptr;
    }
    // The address is set by each launch; a tensor without elements never gets one.
    aclTensor* made = vendor_.aclCreateTensor(t.dims.data(), t.dims.size(), t.dtype,
                                              t.strides.empty() ? nullptr : t.strides.data(), t.offset,
                                              t.format, t.storage.data(), t.storage.size(), nullptr);
    if (!made) {
        *message = vendor_.message("aclCreateTensor", acl::INVALID_PARAM);
        return nullptr;
    }
    extents_.push_back(extent);
    tensors_.push_back(made);
    in_list_.push_back(false);
    bucket->tensor(t.dims, std::max<size_t>(1, bits / 8));
    return made;
}

bool Shape::build(const std::vector<wire::ArgMeta>& args, std::string* message) {
    gate::ShapeBucket bucket;
    texts_.reserve(args.size());
    auto scalar = [&](const wire::ScalarMeta& s) -> aclScalar* {
        if (acl::element_size(s.dtype) == 0) {
            *message = std::string(name()) + ": a scalar has data type " + std::to_string(s.dtype) +
                       ", which FlexNPU does not know";
            return nullptr;
        }
        aclScalar* made = vendor_.aclCreateScalar(const_cast<unsigned char*>(s.value), s.dtype);
        if (!made) *message = vendor_.message("aclCreateScalar", acl::INVALID_PARAM);
        return made;
    };
    for (const wire::ArgMeta& a : args) {
        AclnnArg& out = args_.emplace_back();
        out.kind = a.kind;
        out.p = nullptr;
        if (api::is_object(a.kind) && !a.present) continue;
        switch (a.kind) {
            case 'T':
            case 't':
                if (!(out.p = tensor(a.tensors[0], &bucket, message))) return false;
                break;
            case 'L':
            case 'l': {
                std::vector<const aclTensor*> list;
                const size_t before = tensors_.size();
                for (const wire::TensorMeta& t : a.tensors) {
                    aclTensor* made = t.present ? tensor(t, &bucket, message) : nullptr;
                    if (t.present && !made) return false;
                    list.push_back(made);
                }
                out.p = vendor_.aclCreateTensorList(list.data(), list.size());
                if (!out.p) {
                    *message = vendor_.message("aclCreateTensorList", acl::INVALID_PARAM);
                    return false;
                }
                for (size_t i = before; i < tensors_.size(); i++) in_list_[i] = true;
                break;
            }
            case 'S':
                if (!(out.p = scalar(a.scalars[0]))) return false;
                break;
            case 'C': {
                std::vector<const aclScalar*> list;
                bool ok = true;
                for (const wire::ScalarMeta& s : a.scalars) {
                    aclScalar* made = s.present ? scalar(s) : nullptr;
                    ok &= !s.present || made;
                    list.push_back(made);
                }
                if (ok) out.p = vendor_.aclCreateScalarList(list.data(), list.size());
                if (!out.p) {
                    for (const aclScalar* s : list) vendor_.aclDestroyScalar(s);
                    if (message->empty()) *message = std::string(name()) + ": cannot make a scalar list";
                    return false;
                }
                break;
            }
            case 'I': out.p = vendor_.aclCreateIntArray(a.ints.data(), a.ints.size()); break;
            case 'F': out.p = vendor_.aclCreateFloatArray(a.floats.data(), a.floats.size()); break;
            case 'B': {
                static_assert(sizeof(bool) == 1);
                std::vector<uint8_t> values = a.bools;
                for (uint8_t& b : values) b = b != 0;
                out.p =
                    vendor_.aclCreateBoolArray(reinterpret_cast<const bool*>(values.data()), values.size());
                break;
            }
            case 's':
                if (a.present) {
                    texts_.push_back(a.text);
                    out.s = texts_.back().c_str();
                }
                break;
            case 'd':
            case 'f': out.d = a.real; break;
            default: out.i = a.integer; break;
        }
        if (api::is_object(a.kind) && !out.p) {
            *message =
                std::string(name()) + ": the vendor's library cannot make an argument of kind " + a.kind;
            return false;
        }
    }
    key_ = {op_, bucket.value()};
    return true;
}

Shape::~Shape() {
    for (size_t i = 0; i < tensors_.size(); i++) {
        if (!in_list_[i]) vendor_.aclDestroyTensor(tensors_[i]);
    }
    for (const AclnnArg& a : args_) {
        if (!api::is_object(a.kind) || !a.p) continue;
        switch (a.kind) {
            case 'L':
            case 'l': vendor_.aclDestroyTensorList(static_cast<aclTensorList*>(a.p)); break;
            case 'S': vendor_.aclDestroyScalar(static_cast<aclScalar*>(a.p)); break;
            case 'C': vendor_.aclDestroyScalarList(static_cast<aclScalarList*>(a.p)); break;
            case 'I': vendor_.aclDestroyIntArray(static_cast<aclIntArray*>(a.p)); break;
            case 'F': vendor_.aclDestroyFloatArray(static_cast<aclFloatArray*>(a.p)); break;
            case 'B': vendor_.aclDestroyBoolArray(static_cast<aclBoolArray*>(a.p)); break;
            default: break;
        }
    }
}

int32_t Shape::first(std::span<const uint64_t> addresses, uint64_t* workspace, aclOpExecutor** executor) {
    for (size_t i = 0; i < tensors_.size(); i++)
        vendor_.aclSetRawTensorAddr(tensors_[i], reinterpret_cast<void*>(addresses[i]));
    *workspace = 0;
    *executor = nullptr;
    return api::invoke_first(op_, vendor_.first(op_), args_.data(), workspace, executor);
}

}  // namespace flexnpu::daemon
