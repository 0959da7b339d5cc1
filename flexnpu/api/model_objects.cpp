// Data sets and descriptions of compiled models: host objects, which hold no device memory.
#include <algorithm>
#include <cstring>
#include <iterator>
#include <string>
#include <vector>

#include "flexnpu/api/host_objects.hpp"

using namespace flexnpu::api;
namespace acl = flexnpu::acl;

namespace {

aclError invalid(const char* function = __builtin_FUNCTION()) { return invalid_argument(function); }

const ModelTensor* tensor(const std::vector<ModelTensor> aclmdlDesc::* side, const aclmdlDesc* d, size_t i) {
    return valid(d) && i < (d->*side).size() ? &(d->*side)[i] : nullptr;
}

aclError dims_of(const ModelTensor* t, aclmdlIODims* out, const char* function = __builtin_FUNCTION()) {
    if (t == nullptr || out == nullptr) return invalid(function);
    *out = {};
    std::strncpy(out->name, t->name.c_str(), sizeof(out->name) - 1);
    out->count = std::min(t->dims.size(), std::size(out->dims));
    std::copy_n(t->dims.begin(), out->count, out->dims);
    return acl::SUCCESS;
}

}  // namespace

extern "C" {

aclmdlDataset* aclmdlCreateDataset() { return new aclmdlDataset; }
aclError aclmdlDestroyDataset(const aclmdlDataset* s) {
    if (!valid(s)) return invalid();
    auto* o = const_cast<aclmdlDataset*>(s);
    o->magic = Magic::Dead;
    delete o;  // its buffers and descriptors are the caller's
    return acl::SUCCESS;
}
aclError aclmdlAddDatasetBuffer(aclmdlDataset* s, aclDataBuffer* b) {
    if (!valid(s) || !valid(b)) return invalid();
    s->items.push_back({b, nullptr});
    return acl::SUCCESS;
}
size_t aclmdlGetDatasetNumBuffers(const aclmdlDataset* s) { return valid(s) ? s->items.size() : 0; }
aclDataBuffer* aclmdlGetDatasetBuffer(const aclmdlDataset* s, size_t i) {
    if (!valid(s) || i >= s->items.size()) return invalid(), nullptr;
    return s->items[i].buffer;
}
aclError aclmdlSetDatasetTensorDesc(aclmdlDataset* s, aclTensorDesc* d, size_t i) {
    if (!valid(s) || i >= s->items.size() || (d && !valid(d))) return invalid();
    s->items[i].desc = d;
    return acl::SUCCESS;
}
aclTensorDesc* aclmdlGetDatasetTensorDesc(const aclmdlDataset* s, size_t i) {
    if (!valid(s) || i >= s->items.size()) return invalid(), nullptr;
    return s->items[i].desc;
}

aclmdlDesc* aclmdlCreateDesc() { return new aclmdlDesc; }
aclError aclmdlDestroyDesc(aclmdlDesc* d) {
    if (!valid(d)) return invalid();
    d->magic = Magic::Dead;
    delete d;
    return acl::SUCCESS;
}
size_t aclmdlGetNumInputs(aclmdlDesc* d) { return valid(d) ? d->inputs.size() : (invalid(), 0); }
size_t aclmdlGetNumOutputs(aclmdlDesc* d) { return valid(d) ? d->outputs.size() : (invalid(), 0); }
size_t aclmdlGetInputSizeByIndex(aclmdlDesc* d, size_t i) {
    const ModelTensor* t = tensor(&aclmdlDesc::inputs, d, i);
    return t ? t->bytes : (invalid(), 0);
}
size_t aclmdlGetOutputSizeByIndex(aclmdlDesc* d, size_t i) {
    const ModelTensor* t = tensor(&aclmdlDesc::outputs, d, i);
    return t ? t->bytes : (invalid(), 0);
}
aclError aclmdlGetInputDims(const aclmdlDesc* d, size_t i, aclmdlIODims* out) {
    return dims_of(tensor(&aclmdlDesc::inputs, d, i), out);
}
aclError aclmdlGetOutputDims(const aclmdlDesc* d, size_t i, aclmdlIODims* out) {
    return dims_of(tensor(&aclmdlDesc::outputs, d, i), out);
}
const char* aclmdlGetInputNameByIndex(const aclmdlDesc* d, size_t i) {
    const ModelTensor* t = tensor(&aclmdlDesc::inputs, d, i);
    return t ? t->name.c_str() : (invalid(), "");
}
const char* aclmdlGetOutputNameByIndex(const aclmdlDesc* d, size_t i) {
    const ModelTensor* t = tensor(&aclmdlDesc::outputs, d, i);
    return t ? t->name.c_str() : (invalid(), "");
}
aclDataType aclmdlGetInputDataType(const aclmdlDesc* d, size_t i) {
    const ModelTensor* t = tensor(&aclmdlDesc::inputs, d, i);
    return t ? t->dtype : (invalid(), acl::DT_UNDEFINED);
}
aclDataType aclmdlGetOutputDataType(const aclmdlDesc* d, size_t i) {
    const ModelTensor* t = tensor(&aclmdlDesc::outputs, d, i);
    return t ? t->dtype : (invalid(), acl::DT_UNDEFINED);
}
aclFormat aclmdlGetInputFormat(const aclmdlDesc* d, size_t i) {
    const ModelTensor* t = tensor(&aclmdlDesc::inputs, d, i);
    return t ? t->format : (invalid(), acl::FORMAT_UNDEFINED);
}
aclFormat aclmdlGetOutputFormat(const aclmdlDesc* d, size_t i) {
    const ModelTensor* t = tensor(&aclmdlDesc::outputs, d, i);
    return t ? t->format : (invalid(), acl::FORMAT_UNDEFINED);
}
}
