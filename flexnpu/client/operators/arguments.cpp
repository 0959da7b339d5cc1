#include "flexnpu/client/operators/arguments.hpp"

#include <cstring>

#include "flexnpu/api/host_objects.hpp"
#include "flexnpu/wire/handle.hpp"

namespace flexnpu::client {

namespace {

template <class Dims>
std::span<const int64_t> span_of(const Dims& d) {
    return {d.data(), size_t(d.size())};
}

void put_tensor(CallArguments& s, char kind, const aclTensor* t) {
    s.meta.tensor(kind, t->dtype, t->format, t->offset, span_of(t->dims), span_of(t->strides),
                  span_of(t->storage_dims));
    const uint64_t address = reinterpret_cast<uint64_t>(t->data);
    s.addresses.push_back(wire::untagged(address));
    if (__builtin_expect(wire::tagged_device(address ^ s.tag) != 0, 0) && address) {
        s.foreign |= address ^ s.tag;
        s.last = address;
    }
}

void put_scalar(CallArguments& s, const aclScalar* v) {
    s.meta.head('S', true, v->dtype, 0, 0);
    s.meta.raw(v->value, sizeof(v->value));
}

// False if an argument is not the object that its kind says.
bool put(CallArguments& s, const AclnnArg& a) {
    if (api::is_object(a.kind) && !a.p) {
        s.meta.head(a.kind, false, 0, 0, 0);
        return true;
    }
    switch (a.kind) {
        case 'T':
        case 't': {
            auto* t = static_cast<const aclTensor*>(a.p);
            if (!api::valid(t) || t->dims.size() > wire::kMaxDims || t->strides.size() > wire::kMaxDims ||
                t->storage_dims.size() > wire::kMaxDims)
                return false;
            put_tensor(s, a.kind, t);
            return true;
        }
        case 'L':
        case 'l': {
            auto* l = static_cast<const aclTensorList*>(a.p);
            if (!api::valid(l)) return false;
            s.meta.head(a.kind, true, 0, 0, uint32_t(l->tensors.size()));
            for (const aclTensor* t : l->tensors) {
                if (!t)
                    s.meta.head('T', false, 0, 0, 0);
                else if (api::valid(t) && t->dims.size() <= wire::kMaxDims)
                    put_tensor(s, 'T', t);
                else
                    return false;
            }
            return true;
        }
        case 'S': {
            auto* v = static_cast<const aclScalar*>(a.p);
            if (!api::valid(v)) return false;
            put_scalar(s, v);
            return true;
        }
        case 'C': {
            auto* l = static_cast<const aclScalarList*>(a.p);
            if (!api::valid(l)) return false;
            s.meta.head('C', true, 0, 0, uint32_t(l->scalars.size()));
            for (const aclScalar* v : l->scalars) {
                if (!v)
                    s.meta.head('S', false, 0, 0, 0);
                else if (api::valid(v))
                    put_scalar(s, v);
                else
                    return false;
            }
            return true;
        }
        case 'I': {
            auto* v = static_cast<const aclIntArray*>(a.p);
            if (!api::valid(v)) return false;
            s.meta.array('I', v->values.data(), uint32_t(v->values.size()), 8);
            return true;
        }
        case 'F': {
            auto* v = static_cast<const aclFloatArray*>(a.p);
            if (!api::valid(v)) return false;
            s.meta.array('F', v->values.data(), uint32_t(v->values.size()), 4);
            return true;
        }
        case 'B': {
            auto* v = static_cast<const aclBoolArray*>(a.p);
            if (!api::valid(v)) return false;
            s.meta.array('B', v->values.data(), uint32_t(v->values.size()), 1);
            return true;
        }
        case 's':
            if (a.s)
                s.meta.array('s', a.s, uint32_t(strlen(a.s)), 1);
            else
                s.meta.head('s', false, 0, 0, 0);
            return true;
        case 'd':
        case 'f': s.meta.word(a.kind, &a.d); return true;
        default: s.meta.word(a.kind, &a.i); return true;
    }
}

}  // namespace

uint32_t CallArguments::read(uint32_t op, uint64_t tag_of_device, const AclnnArg* args, uint32_t n) {
    meta.clear();
    addresses.clear();
    tag = tag_of_device;
    foreign = 0;
    const uint64_t first_word = op;
    meta.raw(&first_word, 8);
    for (uint32_t i = 0; i < n; i++) {
        if (!put(*this, args[i])) return i;
    }
    return n;
}

}  // namespace flexnpu::client
