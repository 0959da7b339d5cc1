#include "flexnpu/api/host_objects.hpp"

#include <bit>
#include <cstdlib>
#include <cstring>
#include <limits>

using namespace flexnpu::api;
namespace acl = flexnpu::acl;

// The library around these objects replaces this by what records an error of the calling thread.
__attribute__((weak)) int32_t flexnpu::api::invalid_argument(const char*) { return acl::INVALID_PARAM; }

namespace {

// Fails on behalf of `function`: by default, whoever calls.
int32_t invalid(const char* function = __builtin_FUNCTION()) { return invalid_argument(function); }

template <class T>
aclError destroy(const T* object, const char* function = __builtin_FUNCTION()) {
    if (object == nullptr) return acl::SUCCESS;
    if (!valid(object)) return invalid(function);
    auto* o = const_cast<T*>(object);
    o->magic = Magic::Dead;
    delete o;
    return acl::SUCCESS;
}

// CANN's getters hand out an array that the caller frees with delete[].
aclnnStatus copy_out(const Dims& dims, int64_t** out, uint64_t* n,
                     const char* function = __builtin_FUNCTION()) {
    if (out == nullptr || n == nullptr) return invalid(function);
    *out = new int64_t[dims.size() ? dims.size() : 1];
    std::copy(dims.begin(), dims.end(), *out);
    *n = dims.size();
    return acl::SUCCESS;
}

template <class A, class V>
A* create_array(const V* values, uint64_t n, const char* function = __builtin_FUNCTION()) {
    if (values == nullptr && n != 0) return invalid(function), nullptr;
    auto* a = new A;
    a->values.assign(values, values + n);
    return a;
}

template <class A>
aclnnStatus array_size(const A* a, uint64_t* n, const char* function = __builtin_FUNCTION()) {
    if (!valid(a) || n == nullptr) return invalid(function);
    *n = a->values.size();
    return acl::SUCCESS;
}

aclError set_shape(std::vector<int64_t>& to, int n, const int64_t* dims,
                   const char* function = __builtin_FUNCTION()) {
    if (n < 0 || (n > 0 && dims == nullptr)) return invalid(function);
    to.assign(dims, dims + n);
    return acl::SUCCESS;
}

template <class V>
void append(std::string& text, const V& v) {
    text.append(reinterpret_cast<const char*>(&v), sizeof v);
}

// Attributes are kept as a type letter and raw bytes: two attribute sets are equal if their maps are.
template <class V>
aclError set_attr(aclopAttr* attr, const char* name, char type, int n, const V* values,
                  const char* function = __builtin_FUNCTION()) {
    if (!valid(attr) || name == nullptr || n < 0 || (n > 0 && values == nullptr)) return invalid(function);
    std::string text(1, type);
    append(text, n);
    for (int i = 0; i < n; i++) append(text, values[i]);
    attr->values[name] = std::move(text);
    return acl::SUCCESS;
}

}  // namespace

extern "C" {

aclTensor* aclCreateTensor(const int64_t* view_dims, uint64_t n, aclDataType dtype, const int64_t* stride,
                           int64_t offset, aclFormat format, const int64_t* storage_dims, uint64_t storage_n,
                           void* data) {
    if ((view_dims == nullptr && n) || (storage_dims == nullptr && storage_n)) return invalid(), nullptr;
    auto* t = new aclTensor;
    if (aclInitTensor(t, view_dims, n, dtype, stride, offset, format, storage_dims, storage_n, data) !=
        acl::SUCCESS) {
        delete t;
        return nullptr;
    }
    return t;
}

aclnnStatus aclInitTensor(aclTensor* t, const int64_t* view_dims, uint64_t n, aclDataType dtype,
                          const int64_t* stride, int64_t offset, aclFormat format,
                          const int64_t* storage_dims, uint64_t storage_n, void* data) {
    if (!valid(t) || (view_dims == nullptr && n) || (storage_dims == nullptr && storage_n)) return invalid();
    t->dtype = dtype;
    t->format = format;
    t->dims.assign(view_dims, n);
    t->strides.assign(stride, stride ? n : 0);
    t->storage_dims.assign(storage_dims, storage_n);
    t->offset = offset;
    t->data = data;
    return acl::SUCCESS;
}

aclnnStatus aclDestroyTensor(const aclTensor* t) { return destroy(t); }

aclTensorList* aclCreateTensorList(const aclTensor* const* tensors, uint64_t n) {
    if (tensors == nullptr && n) return invalid(), nullptr;
    auto* list = new aclTensorList;
    list->tensors.assign(tensors, tensors + n);
    return list;
}

aclnnStatus aclDestroyTensorList(const aclTensorList* list) {
    if (list == nullptr) return acl::SUCCESS;
    if (!valid(list)) return invalid();
    for (auto* t : list->tensors) destroy(t);
    return destroy(list);
}

aclScalar* aclCreateScalar(void* value, aclDataType dtype) {
    size_t size = acl::element_size(dtype);
    if (value == nullptr || size == 0) return invalid(), nullptr;
    auto* s = new aclScalar;
    s->dtype = dtype;
    std::memcpy(s->value, value, size);
    return s;
}

aclnnStatus aclDestroyScalar(const aclScalar* s) { return destroy(s); }

aclScalarList* aclCreateScalarList(const aclScalar* const* scalars, uint64_t n) {
    if (scalars == nullptr && n) return invalid(), nullptr;
    auto* list = new aclScalarList;
    list->scalars.assign(scalars, scalars + n);
    return list;
}

aclnnStatus aclDestroyScalarList(const aclScalarList* list) {
    if (list == nullptr) return acl::SUCCESS;
    if (!valid(list)) return invalid();
    for (auto* s : list->scalars) destroy(s);
    return destroy(list);
}

aclIntArray* aclCreateIntArray(const int64_t* v, uint64_t n) { return create_array<aclIntArray>(v, n); }
aclFloatArray* aclCreateFloatArray(const float* v, uint64_t n) { return create_array<aclFloatArray>(v, n); }
aclBoolArray* aclCreateBoolArray(const bool* v, uint64_t n) { return create_array<aclBoolArray>(v, n); }
aclnnStatus aclDestroyIntArray(const aclIntArray* a) { return destroy(a); }
aclnnStatus aclDestroyFloatArray(const aclFloatArray* a) { return destroy(a); }
aclnnStatus aclDestroyBoolArray(const aclBoolArray* a) { return destroy(a); }
aclnnStatus aclGetIntArraySize(const aclIntArray* a, uint64_t* n) { return array_size(a, n); }
aclnnStatus aclGetFloatArraySize(const aclFloatArray* a, uint64_t* n) { return array_size(a, n); }
aclnnStatus aclGetBoolArraySize(const aclBoolArray* a, uint64_t* n) { return array_size(a, n); }

aclnnStatus aclGetTensorListSize(const aclTensorList* l, uint64_t* n) {
    if (!valid(l) || n == nullptr) return invalid();
    *n = l->tensors.size();
    return acl::SUCCESS;
}
aclnnStatus aclGetScalarListSize(const aclScalarList* l, uint64_t* n) {
    if (!valid(l) || n == nullptr) return invalid();
    *n = l->scalars.size();
    return acl::SUCCESS;
}

aclnnStatus aclGetViewShape(const aclTensor* t, int64_t** dims, uint64_t* n) {
    if (!valid(t)) return invalid();
    return copy_out(t->late && t->late->known ? t->late->dims : t->dims, dims, n);
}
aclnnStatus aclGetStorageShape(const aclTensor* t, int64_t** dims, uint64_t* n) {
    return valid(t) ? copy_out(t->storage_dims, dims, n) : aclnnStatus(invalid());
}
aclnnStatus aclGetViewStrides(const aclTensor* t, int64_t** strides, uint64_t* n) {
    return valid(t) ? copy_out(t->strides, strides, n) : aclnnStatus(invalid());
}
aclnnStatus aclGetViewOffset(const aclTensor* t, int64_t* offset) {
    if (!valid(t) || offset == nullptr) return invalid();
    *offset = t->offset;
    return acl::SUCCESS;
}
aclnnStatus aclGetFormat(const aclTensor* t, aclFormat* format) {
    if (!valid(t) || format == nullptr) return invalid();
    *format = t->format;
    return acl::SUCCESS;
}
aclnnStatus aclGetDataType(const aclTensor* t, aclDataType* dtype) {
    if (!valid(t) || dtype == nullptr) return invalid();
    *dtype = t->dtype;
    return acl::SUCCESS;
}
aclnnStatus aclGetRawTensorAddr(const aclTensor* t, void** address) {
    if (!valid(t) || address == nullptr) return invalid();
    *address = t->data;
    return acl::SUCCESS;
}
aclnnStatus aclSetRawTensorAddr(aclTensor* t, void* address) {
    if (!valid(t)) return invalid();
    t->data = address;
    return acl::SUCCESS;
}

size_t aclDataTypeSize(aclDataType dtype) { return acl::element_size(dtype); }

float aclFloat16ToFloat(aclFloat16 h) {
    uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3ff, bits;
    if (exponent == 31) {
        bits = sign | 0x7f800000 | mantissa << 13;
    } else if (exponent != 0) {
        bits = sign | (exponent + 112) << 23 | mantissa << 13;
    } else {
        float value = float(mantissa) * 0x1p-24f;  // subnormal: exact in single precision
        return sign ? -value : value;
    }
    return std::bit_cast<float>(bits);
}

// Round to nearest, ties to even.
aclFloat16 aclFloatToFloat16(float f) {
    uint32_t bits = std::bit_cast<uint32_t>(f), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return aclFloat16(sign | 0x7e00);
    if (magnitude >= 0x477ff000) return aclFloat16(sign | 0x7c00);  // 65520 and up rounds to infinity
    if (magnitude < 0x38800000) {  // below 2^-14: a subnormal half counts units of 2^-24
        float scaled =
            std::bit_cast<float>(magnitude) + 0.5f;  // 0.5 = 2^23 units of 2^-24: the adder does the rounding
        return aclFloat16(sign | (std::bit_cast<uint32_t>(scaled) - 0x3f000000));
    }
    uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
    return aclFloat16(sign | ((rounded - 0x38000000) >> 13));
}

aclDataBuffer* aclCreateDataBuffer(void* data, size_t size) {
    auto* b = new aclDataBuffer;
    b->data = data;
    b->size = size;
    return b;
}
aclError aclDestroyDataBuffer(const aclDataBuffer* b) {
    return b == nullptr ? aclError(invalid()) : destroy(b);
}
aclError aclUpdateDataBuffer(aclDataBuffer* b, void* data, size_t size) {
    if (!valid(b)) return invalid();
    b->data = data;
    b->size = size;
    return acl::SUCCESS;
}
void* aclGetDataBufferAddr(const aclDataBuffer* b) { return valid(b) ? b->data : nullptr; }
uint32_t aclGetDataBufferSize(const aclDataBuffer* b) { return valid(b) ? uint32_t(b->size) : 0; }
size_t aclGetDataBufferSizeV2(const aclDataBuffer* b) { return valid(b) ? b->size : 0; }

aclTensorDesc* aclCreateTensorDesc(aclDataType dtype, int n, const int64_t* dims, aclFormat format) {
    if (n < 0 || (n > 0 && dims == nullptr)) return invalid(), nullptr;
    auto* d = new aclTensorDesc;
    d->dtype = dtype;
    d->format = format;
    d->dims.assign(dims, dims + n);
    return d;
}
void aclDestroyTensorDesc(const aclTensorDesc* d) { destroy(d); }
aclTensorDesc* aclGetTensorDescByIndex(aclTensorDesc* d, size_t index) {
    return valid(d) && index == 0 ? d : nullptr;  // a descriptor is an array of one
}
aclDataType aclGetTensorDescType(const aclTensorDesc* d) {
    return valid(d) ? d->dtype : aclDataType(acl::DT_UNDEFINED);
}
aclFormat aclGetTensorDescFormat(const aclTensorDesc* d) {
    return valid(d) ? d->format : aclFormat(acl::FORMAT_UNDEFINED);
}
size_t aclGetTensorDescNumDims(const aclTensorDesc* d) { return valid(d) ? d->dims.size() : 0; }
int64_t aclGetTensorDescDim(const aclTensorDesc* d, size_t i) {
    return valid(d) && i < d->dims.size() ? d->dims[i] : -1;
}
aclError aclGetTensorDescDimV2(const aclTensorDesc* d, size_t i, int64_t* size) {
    if (!valid(d) || size == nullptr || i >= d->dims.size()) return invalid();
    *size = d->dims[i];
    return acl::SUCCESS;
}
aclError aclGetTensorDescDimRange(const aclTensorDesc* d, size_t i, size_t n, int64_t* range) {
    if (!valid(d) || range == nullptr || n < 2 || 2 * i + 1 >= d->dim_range.size()) return invalid();
    range[0] = d->dim_range[2 * i];
    range[1] = d->dim_range[2 * i + 1];
    return acl::SUCCESS;
}
size_t aclGetTensorDescElementCount(const aclTensorDesc* d) {
    if (!valid(d)) return 0;
    size_t count = 1;
    for (int64_t dim : d->dims) {
        if (dim < 0 || (dim && count > std::numeric_limits<size_t>::max() / size_t(dim)))
            return 0;  // dynamic, or overflow
        count *= size_t(dim);
    }
    return count;
}
size_t aclGetTensorDescSize(const aclTensorDesc* d) {
    return valid(d) ? aclGetTensorDescElementCount(d) * acl::element_size(d->dtype) : 0;
}
const char* aclGetTensorDescName(aclTensorDesc* d) { return valid(d) ? d->name.c_str() : ""; }
void* aclGetTensorDescAddress(const aclTensorDesc*) {
    return nullptr;
}  // only model descriptors carry addresses
void aclSetTensorDescName(aclTensorDesc* d, const char* name) {
    if (valid(d)) d->name = name ? name : "";
}
aclError aclSetTensorFormat(aclTensorDesc* d, aclFormat format) {
    if (!valid(d)) return invalid();
    d->storage_format = format;
    return acl::SUCCESS;
}
aclError aclSetTensorStorageFormat(aclTensorDesc* d, aclFormat format) {
    return valid(d) ? aclSetTensorFormat(d, format) : invalid();
}
aclError aclSetTensorOriginFormat(aclTensorDesc* d, aclFormat format) {
    if (!valid(d)) return invalid();
    d->origin_format = format;
    return acl::SUCCESS;
}
aclError aclSetTensorShape(aclTensorDesc* d, int n, const int64_t* dims) {
    return valid(d) ? set_shape(d->storage_dims, n, dims) : aclError(invalid());
}
aclError aclSetTensorStorageShape(aclTensorDesc* d, int n, const int64_t* dims) {
    return valid(d) ? aclSetTensorShape(d, n, dims) : invalid();
}
aclError aclSetTensorOriginShape(aclTensorDesc* d, int n, const int64_t* dims) {
    return valid(d) ? set_shape(d->origin_dims, n, dims) : aclError(invalid());
}
aclError aclSetTensorShapeRange(aclTensorDesc* d, size_t n, int64_t* ranges) {
    if (!valid(d) || (n && ranges == nullptr)) return invalid();
    d->dim_range.assign(ranges, ranges + 2 * n);
    return acl::SUCCESS;
}
aclError aclSetTensorValueRange(aclTensorDesc* d, size_t n, int64_t* ranges) {
    if (!valid(d) || (n && ranges == nullptr)) return invalid();
    d->value_range.assign(ranges, ranges + 2 * n);
    return acl::SUCCESS;
}
aclError aclSetTensorPlaceMent(aclTensorDesc* d, aclMemType type) {
    if (!valid(d)) return invalid();
    d->placement = type;
    return acl::SUCCESS;
}
aclError aclSetTensorDynamicInput(aclTensorDesc* d, const char* name) {
    if (!valid(d) || name == nullptr) return invalid();
    d->dynamic_input = name;
    return acl::SUCCESS;
}
aclError aclSetTensorConst(aclTensorDesc* d, void* data, size_t size) {
    if (!valid(d) || data == nullptr || size == 0) return invalid();
    auto* bytes = static_cast<unsigned char*>(data);
    d->constant.assign(bytes, bytes + size);
    return acl::SUCCESS;
}
// Between formats of the same layout the description alone changes; other pairs need the vendor's tables.
aclError aclTransTensorDescFormat(const aclTensorDesc* from, aclFormat format, aclTensorDesc** to) {
    if (!valid(from) || to == nullptr) return invalid();
    if (from->format != format && from->format != acl::ND && format != acl::ND) return acl::API_NOT_SUPPORTED;
    *to = new aclTensorDesc(*from);
    (*to)->format = format;
    return acl::SUCCESS;
}

aclopAttr* aclopCreateAttr() { return new aclopAttr; }
void aclopDestroyAttr(const aclopAttr* attr) { destroy(attr); }
aclError aclopSetAttrBool(aclopAttr* a, const char* name, uint8_t v) { return set_attr(a, name, 'b', 1, &v); }
aclError aclopSetAttrInt(aclopAttr* a, const char* name, int64_t v) { return set_attr(a, name, 'i', 1, &v); }
aclError aclopSetAttrFloat(aclopAttr* a, const char* name, float v) { return set_attr(a, name, 'f', 1, &v); }
aclError aclopSetAttrDataType(aclopAttr* a, const char* name, aclDataType v) {
    return set_attr(a, name, 'D', 1, &v);
}
aclError aclopSetAttrString(aclopAttr* a, const char* name, const char* v) {
    return v ? set_attr(a, name, 's', int(std::strlen(v)), v) : aclError(invalid());
}
aclError aclopSetAttrListBool(aclopAttr* a, const char* name, int n, const uint8_t* v) {
    return set_attr(a, name, 'B', n, v);
}
aclError aclopSetAttrListInt(aclopAttr* a, const char* name, int n, const int64_t* v) {
    return set_attr(a, name, 'I', n, v);
}
aclError aclopSetAttrListFloat(aclopAttr* a, const char* name, int n, const float* v) {
    return set_attr(a, name, 'F', n, v);
}
aclError aclopSetAttrListDataType(aclopAttr* a, const char* name, int n, const aclDataType* v) {
    return set_attr(a, name, 'T', n, v);
}
aclError aclopSetAttrListString(aclopAttr* a, const char* name, int n, const char** v) {
    if (!valid(a) || name == nullptr || n < 0 || (n > 0 && v == nullptr)) return invalid();
    std::string text = "S";
    for (int i = 0; i < n; i++) text.append(v[i] ? v[i] : "").push_back('\0');
    a->values[name] = std::move(text);
    return acl::SUCCESS;
}
aclError aclopSetAttrListListInt(aclopAttr* a, const char* name, int n, const int* counts,
                                 const int64_t* const* v) {
    if (!valid(a) || name == nullptr || n < 0 || (n > 0 && (v == nullptr || counts == nullptr)))
        return invalid();
    std::string text = "L";
    for (int i = 0; i < n; i++) {
        append(text, counts[i]);
        for (int j = 0; j < counts[i]; j++) append(text, v[i][j]);
    }
    a->values[name] = std::move(text);
    return acl::SUCCESS;
}

}  // extern "C"
