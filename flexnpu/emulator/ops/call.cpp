// Arguments of a first call, and the table of rows.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <string_view>
#include <unordered_map>

#include "flexnpu/api/host_objects.hpp"
#include "fn_ids.gen.h"
#include "kernels/kernels.hpp"
#include "registry.hpp"

namespace flexnpu::ops {
namespace {

std::string format_message(const char* format, va_list list) {
    char buffer[512];
    std::vsnprintf(buffer, sizeof buffer, format, list);
    return buffer;
}

__attribute__((format(printf, 2, 3))) std::string message(const char* name, const char* format, ...) {
    va_list list;
    va_start(list, format);
    std::string text = std::string(name) + ": " + format_message(format, list);
    va_end(list);
    return text;
}

std::unordered_map<std::string_view, Prepare>& registrations() {
    static std::unordered_map<std::string_view, Prepare> map;
    return map;
}

}  // namespace

Registration::Registration(const char* name, Prepare prepare) { registrations()[name] = std::move(prepare); }

const Prepare* find_prepare(uint32_t op) {
    static const std::vector<const Prepare*> table = [] {
        std::vector<const Prepare*> rows(api::kOpCount, nullptr);
        for (auto& [name, prepare] : registrations()) {
            const int op = api::find_op(name);
            if (op >= 0) {
                rows[static_cast<size_t>(op)] = &prepare;
            }
        }
        return rows;
    }();
    return op < table.size() ? table[op] : nullptr;
}

Call::Call(const char* name, const char* kinds, const AclnnArg* args, uint32_t count)
    : name_(name), kinds_(kinds), args_(args), count_(count) {
    // The default cost, and the memory that the operator may touch.
    int64_t largest = 0;
    auto account = [&](const aclTensor* handle, uint32_t i) {
        if (handle == nullptr) {
            return;
        }
        const Tensor t = convert(handle, i);
        const int64_t extent = t.extent();
        if (extent > 0) {
            cost.bytes += t.bytes();
            largest = std::max(largest, t.numel());
            ranges.emplace_back(t.data, extent);
        }
    };
    for (uint32_t i = 0; i < count_; i++) {
        const char kind = args_[i].kind;
        if (kind == 'T' || kind == 't') {
            account(static_cast<const aclTensor*>(args_[i].p), i);
        } else if ((kind == 'L' || kind == 'l') && args_[i].p != nullptr) {
            const auto* list = static_cast<const aclTensorList*>(args_[i].p);
            if (!api::valid(list)) {
                throw Invalid{kParamInvalid, message(name_, "argument %u is not a tensor list", i)};
            }
            for (const aclTensor* entry : list->tensors) {
                account(entry, i);
            }
        }
    }
    cost.vector_flops = static_cast<double>(largest);
}

const AclnnArg& Call::at(uint32_t i) const {
    if (i >= count_) {
        throw Invalid{kParamInvalid, message(name_, "has %u arguments, row asks for number %u", count_, i)};
    }
    return args_[i];
}

Tensor Call::convert(const void* handle, uint32_t i) {
    const auto* source = static_cast<const aclTensor*>(handle);
    if (source == nullptr) {
        throw Invalid{kParamNull, message(name_, "argument %u is a null tensor", i)};
    }
    if (!api::valid(source)) {
        throw Invalid{kParamInvalid, message(name_, "argument %u is not a tensor (freed?)", i)};
    }
    Tensor t;
    t.dtype = source->dtype;
    if (acl::element_size(t.dtype) == 0) {
        throw Invalid{kParamInvalid,
                      message(name_, "argument %u has data type %d, which is not emulated", i, t.dtype)};
    }
    if (source->format == acl::FRACTAL_NZ || source->format == acl::FRACTAL_Z ||
        source->format == acl::NC1HWC0) {
        throw Invalid{kParamInvalid,
                      message(name_, "argument %u has the private format %d, which is not emulated", i,
                              source->format)};
    }
    if (source->dims.size() > kMaxRank) {
        throw Invalid{kParamInvalid, message(name_, "argument %u has %d dimensions, more than %d", i,
                                             static_cast<int>(source->dims.size()), kMaxRank)};
    }
    t.rank = static_cast<int>(source->dims.size());
    const bool strided = source->strides.size() == source->dims.size();
    int64_t stride = 1;
    double elements = 1;
    for (int d = t.rank - 1; d >= 0; d--) {
        t.dims[d] = source->dims[static_cast<uint64_t>(d)];
        t.strides[d] = strided ? source->strides[static_cast<uint64_t>(d)] : stride;
        if (t.dims[d] < 0 || t.strides[d] < 0) {
            throw Invalid{kParamInvalid, message(name_, "argument %u has a negative dimension or stride", i)};
        }
        elements *= static_cast<double>(t.dims[d]);
        if (elements > 0x1p50) {
            throw Invalid{kParamInvalid, message(name_, "argument %u has too many elements", i)};
        }
        stride *= t.dims[d];
    }
    t.data = static_cast<char*>(source->data) + source->offset * t.element();
    if (source->data == nullptr && t.numel() > 0) {
        throw Invalid{kParamNull, message(name_, "argument %u has elements but no memory", i)};
    }
    return t;
}

void Call::guess_cost() {
    const std::string_view name = name_;
    if (name.find("MatMul") == name.npos && name.find("Matmul") == name.npos &&
        name.find("Gemm") == name.npos) {
        return;
    }
    const aclTensor* first = nullptr;
    const aclTensor* last = nullptr;
    auto see = [&](const aclTensor* t) {
        if (t != nullptr && t->dims.size() >= 2) {
            first = first ? first : t;
            last = t;
        }
    };
    for (uint32_t i = 0; i < count_; i++) {
        const char kind = args_[i].kind;
        if (kind == 'T' || kind == 't') {
            see(static_cast<const aclTensor*>(args_[i].p));
        } else if ((kind == 'L' || kind == 'l') && args_[i].p != nullptr) {
            for (const aclTensor* entry : static_cast<const aclTensorList*>(args_[i].p)->tensors) {
                see(entry);
            }
        }
    }
    if (first != nullptr && first != last) {
        const Tensor input = convert(first, 0), output = convert(last, 0);
        cost.cube_flops = 2.0 * static_cast<double>(input.numel()) * static_cast<double>(output.dim(-1));
        cost.cube_dtype = input.dtype;
    }
}

Tensor Call::tensor(uint32_t i) {
    const Tensor t = convert(at(i).p, i);
    require_numeric(t);
    return t;
}

Tensor Call::tensor_of_any_type(uint32_t i) { return convert(at(i).p, i); }

bool Call::has(uint32_t i) const { return at(i).p != nullptr; }

std::shared_ptr<api::LateDims> Call::late(uint32_t i) {
    tensor_of_any_type(i);  // refuses what is not a tensor
    auto* t = static_cast<aclTensor*>(at(i).p);
    t->late = std::make_shared<api::LateDims>();
    return t->late;
}

std::vector<Tensor> Call::tensors(uint32_t i) {
    const auto* list = static_cast<const aclTensorList*>(at(i).p);
    if (list == nullptr) {
        throw Invalid{kParamNull, message(name_, "argument %u is a null tensor list", i)};
    }
    std::vector<Tensor> result;
    for (const aclTensor* entry : list->tensors) {
        result.push_back(entry == nullptr ? Tensor{} : convert(entry, i));
        require(entry == nullptr || is_numeric(result.back().dtype), "data type %s is not emulated",
                dtype_name(result.back().dtype));
    }
    return result;
}

Scalar Call::scalar(uint32_t i) const { return convert_scalar(at(i).p, i); }

std::vector<Scalar> Call::scalars(uint32_t i) const {
    const auto* list = static_cast<const aclScalarList*>(at(i).p);
    if (!api::valid(list)) {
        throw Invalid{list == nullptr ? kParamNull : kParamInvalid,
                      message(name_, "argument %u is not a list of scalars", i)};
    }
    std::vector<Scalar> result;
    for (const aclScalar* entry : list->scalars) {
        result.push_back(convert_scalar(entry, i));
    }
    return result;
}

Scalar Call::convert_scalar(const void* handle, uint32_t i) const {
    const auto* source = static_cast<const aclScalar*>(handle);
    if (!api::valid(source)) {
        throw Invalid{source == nullptr ? kParamNull : kParamInvalid,
                      message(name_, "argument %u is not a scalar", i)};
    }
    Scalar s;
    s.dtype = source->dtype;
    auto read = [&]<class T>(T) {
        T x;
        std::memcpy(&x, source->value, sizeof x);
        s.real = static_cast<double>(x);
        if constexpr (std::is_floating_point_v<T>) {
            s.whole = x >= T(-0x1p63) && x < T(0x1p63) ? static_cast<int64_t>(x) : 0;
        } else {
            s.whole = static_cast<int64_t>(x);
        }
    };
    switch (source->dtype) {
        case acl::DOUBLE: read(double{}); break;
        case acl::FLOAT: read(float{}); break;
        case acl::INT64: read(int64_t{}); break;
        case acl::UINT64: read(uint64_t{}); break;
        case acl::INT32: read(int32_t{}); break;
        case acl::UINT32: read(uint32_t{}); break;
        case acl::INT16: read(int16_t{}); break;
        case acl::UINT16: read(uint16_t{}); break;
        case acl::INT8: read(int8_t{}); break;
        case acl::UINT8: read(uint8_t{}); break;
        case acl::BOOL: read(bool{}); break;
        case acl::BF16:
        case acl::FLOAT16: {
            float x;
            kernels().f32.load(&x, source->value, source->dtype, 2, 1);
            s.real = x;
            s.whole = x >= -0x1p63f && x < 0x1p63f ? static_cast<int64_t>(x) : 0;
            break;
        }
        default:
            throw Invalid{kParamInvalid,
                          message(name_, "scalar %u has data type %d, which is not emulated", i, s.dtype)};
    }
    return s;
}

Scalar Call::scalar_or(uint32_t i, double fallback) const {
    if (has(i)) {
        return scalar(i);
    }
    return Scalar{acl::DOUBLE, fallback, static_cast<int64_t>(fallback)};
}

std::vector<int64_t> Call::ints(uint32_t i) const {
    const auto* source = static_cast<const aclIntArray*>(at(i).p);
    if (source == nullptr) {
        return {};
    }
    if (!api::valid(source)) {
        throw Invalid{kParamInvalid, message(name_, "argument %u is not an integer array", i)};
    }
    return source->values;
}

std::vector<bool> Call::booleans(uint32_t i) const {
    const auto* source = static_cast<const aclBoolArray*>(at(i).p);
    if (source == nullptr) {
        return {};
    }
    if (!api::valid(source)) {
        throw Invalid{kParamInvalid, message(name_, "argument %u is not a boolean array", i)};
    }
    return {source->values.begin(), source->values.end()};
}

int64_t Call::integer(uint32_t i) const { return at(i).i; }
double Call::real(uint32_t i) const { return at(i).d; }
std::string Call::text(uint32_t i) const { return at(i).s == nullptr ? "" : at(i).s; }

int Call::dimension(int64_t dim, const Tensor& t) const {
    const int64_t rank = std::max(t.rank, 1);
    if (dim < -rank || dim >= rank) {
        fail("dimension %lld is out of range for a tensor of shape %s", static_cast<long long>(dim),
             t.shape().c_str());
    }
    return static_cast<int>(dim < 0 ? dim + rank : dim);
}

std::vector<int> Call::dimensions(const std::vector<int64_t>& dims, const Tensor& t) const {
    std::vector<int> result;
    for (int64_t dim : dims) {
        const int d = dimension(dim, t);
        if (d < t.rank) {  // a 0-dim tensor has none
            result.push_back(d);
        }
    }
    if (dims.empty()) {
        for (int d = 0; d < t.rank; d++) {
            result.push_back(d);
        }
    }
    std::sort(result.begin(), result.end());
    require(std::adjacent_find(result.begin(), result.end()) == result.end(), "a dimension appears twice");
    return result;
}

void Call::require(bool condition, const char* format, ...) const {
    if (condition) [[likely]] {
        return;
    }
    va_list list;
    va_start(list, format);
    std::string text = std::string(name_) + ": " + format_message(format, list);
    va_end(list);
    throw Invalid{kParamInvalid, std::move(text)};
}

void Call::fail(const char* format, ...) const {
    va_list list;
    va_start(list, format);
    std::string text = std::string(name_) + ": " + format_message(format, list);
    va_end(list);
    throw Invalid{kParamInvalid, std::move(text)};
}

void Call::require_numeric(const Tensor& t) const {
    require(is_numeric(t.dtype), "data type %s is not emulated", dtype_name(t.dtype));
}

void Call::require_shape(const Tensor& t, const Tensor& like, const char* what) const {
    if (!t.same_shape(like)) {
        fail("%s has shape %s, expected %s", what, t.shape().c_str(), like.shape().c_str());
    }
}

void Call::require_broadcast(const Tensor& out, std::initializer_list<const Tensor*> inputs) const {
    for (const Tensor* in : inputs) {
        bool fits = in->rank <= out.rank;
        for (int i = in->rank - 1, j = out.rank - 1; fits && i >= 0; i--, j--) {
            fits = in->dims[i] == 1 || in->dims[i] == out.dims[j];
        }
        if (!fits) {
            fail("shape %s does not broadcast to %s", in->shape().c_str(), out.shape().c_str());
        }
    }
}

}  // namespace flexnpu::ops
