// The operations of ATB that programs create. Those that are one aclnn operator are served; the others fail
// by name.
#include "flexnpu/api/acl_consts.h"
#include "operation.hpp"

namespace flexnpu::host {
namespace {

constexpr int8_t kKeepPrecision = 0;  // of the matrix unit: what the operands' types say

int64_t rows(const atb::Tensor& t) { return t.desc.shape.sizes[0]; }
int64_t last(const atb::Tensor& t) { return t.desc.shape.sizes[t.desc.shape.count - 1]; }
bool rank(const atb::Tensor& t, uint64_t count) { return t.desc.shape.count == count; }
int64_t elements(const atb::Tensor& t) {
    int64_t n = 1;
    for (uint64_t d = 0; d < t.desc.shape.count; d++) {
        n *= t.desc.shape.sizes[d];
    }
    return n;
}

atb::Status status_of(const char* name, aclnnStatus status) {
    if (status == 0) {
        return atb::kOk;
    }
    const char* why = aclGetRecentErrMsg();
    return complain(atb::kCannError, std::string(name) + ": error " + std::to_string(status) + ": " +
                                         (why ? why : "no message"));
}

atb::Status refuse(const char* name, const char* what) {
    return complain(atb::kInvalidParameter, std::string(name) + ": " + what + " is not served");
}

atb::Status create(atb::Operation** to, Shape shape, First first, Second second) {
    *to = new Served(std::move(shape), std::move(first), second);
    return atb::kOk;
}

// A 2-dim operand, as it lies or transposed.
aclTensor* matrix(Descriptors& keep, const atb::Tensor& t, bool transposed) {
    const int64_t m = t.desc.shape.sizes[0], n = t.desc.shape.sizes[1];
    return transposed ? keep.tensor(t, {n, m}, {1, n}) : keep.tensor(t, {m, n});
}

atb::Status linear(const atb::infer::LinearParam& p, atb::Operation** to) {
    if (!p.accumulate || p.has_bias) {
        return refuse("Linear", "a product that is not added to its output");
    }
    // a, b, c; c, which may be where it was
    return create(
        to, {"LinearOperation", 3, 1, {2}},
        [p](const atb::VariantPack& pack, Prepared& made) {
            const atb::Tensor &a = pack.inputs[0], &b = pack.inputs[1], &c = pack.inputs[2];
            if (!rank(a, 2) || !rank(b, 2) || !rank(c, 2)) {
                return complain(atb::kWrongShape, "Linear: the operands must have 2 dimensions");
            }
            if (pack.outputs[0].device != c.device) {
                return refuse("Linear", "an output that is not the operand it is added to");
            }
            Descriptors& keep = made.descriptors;
            return status_of(
                "Linear", aclnnInplaceAddmmGetWorkspaceSize(
                              keep.tensor(c), matrix(keep, a, p.transpose_a), matrix(keep, b, p.transpose_b),
                              keep.one(), keep.one(), kKeepPrecision, &made.workspace, &made.executor));
        },
        aclnnInplaceAddmm);
}

atb::Status reshape_and_cache(const atb::infer::ReshapeAndCacheParam& p, atb::Operation** to) {
    if (p.compress != 0) {
        return refuse("ReshapeAndCache", "a compressed cache");
    }
    if (p.caches != 0) {
        return refuse("ReshapeAndCache", "a cache of keys alone, or in the format NZ,");
    }
    // key, value, key cache, value cache, slots; the caches
    return create(
        to, {"ReshapeAndCacheOperation", 5, 2, {2, 3}},
        [](const atb::VariantPack& pack, Prepared& made) {
            const auto& in = pack.inputs;
            if (pack.outputs[0].device != in[2].device || pack.outputs[1].device != in[3].device) {
                return refuse("ReshapeAndCache", "a cache that is not written in place");
            }
            Descriptors& keep = made.descriptors;
            char layout[] = "Norm", how[] = "None";
            return status_of("ReshapeAndCache",
                             aclnnScatterPaKvCacheGetWorkspaceSize(
                                 keep.tensor(in[0]), keep.tensor(in[2]), keep.tensor(in[4]),
                                 keep.tensor(in[1]), keep.tensor(in[3]), nullptr, nullptr, nullptr, layout,
                                 how, nullptr, nullptr, &made.workspace, &made.executor));
        },
        aclnnScatterPaKvCache);
}

atb::Status rope(const atb::infer::RopeParam& p, atb::Operation** to) {
    if (p.rotary_coefficient != 2) {
        return refuse("Rope", "a rotation of other than two halves");
    }
    // query, key, cosine, sine, sequence lengths; query, key
    return create(
        to, {"RopeOperation", 5, 2, {0, 1}},
        [](const atb::VariantPack& pack, Prepared& made) {
            const auto& in = pack.inputs;
            for (int i : {0, 1, 2, 3}) {
                if (in[i].desc.shape.count == 0 || elements(in[i]) == 0)
                    return complain(atb::kWrongShape, "Rope: an input without elements");
            }
            const int64_t tokens = rows(in[2]), width = last(in[2]);
            for (int i : {0, 1}) {
                if (pack.outputs[i].device != in[i].device) {
                    return refuse("Rope", "an output that is not its input");
                }
                if (rows(in[i]) != tokens || width <= 0 || elements(in[i]) % (tokens * width) != 0) {
                    return complain(atb::kWrongShape, "Rope: query or key do not fit the cosines");
                }
            }
            if (elements(in[2]) != tokens * width || elements(in[3]) != tokens * width) {
                return complain(atb::kWrongShape, "Rope: cosines and sines must be [tokens, width]");
            }
            Descriptors& keep = made.descriptors;
            auto heads = [&](const atb::Tensor& t) {
                return keep.tensor(t, {1, tokens, elements(t) / (tokens * width), width});
            };
            auto table = [&](const atb::Tensor& t) { return keep.tensor(t, {1, tokens, 1, width}); };
            constexpr int64_t kBsnd = 1;
            return status_of("Rope", aclnnApplyRotaryPosEmbGetWorkspaceSize(heads(in[0]), heads(in[1]),
                                                                            table(in[2]), table(in[3]), kBsnd,
                                                                            &made.workspace, &made.executor));
        },
        aclnnApplyRotaryPosEmb);
}

atb::Status paged_attention(const atb::infer::PagedAttentionParam& p, atb::Operation** to) {
    constexpr const char* kName = "PagedAttention";
    if (p.mask != 0 || p.calculation != 0) return refuse(kName, "a mask, or more than one token a sequence,");
    if (p.quantised != 0 || p.quantised_offset) return refuse(kName, "a quantised cache");
    if (p.compress != 0) return refuse(kName, "a compressed cache");
    if (p.scaling != 0 || p.batch_status)
        return refuse(kName, "scaling by length, or a status of the batch,");
    if (p.layout != 0 || p.latent_width != 0)
        return refuse(kName, "latent attention, or heads before tokens,");
    // query [sequences, heads, width], caches [blocks, block, heads, width], blocks of each sequence, lengths
    // (of the host); attention
    return create(
        to, {"PagedAttentionOperation", 5, 1, {0}},
        [p](const atb::VariantPack& pack, Prepared& made) {
            const auto& in = pack.inputs;
            const atb::Tensor &query = in[0], &key = in[1], &value = in[2], &lengths = in[4];
            if (!rank(query, 3) || !rank(key, 4) || !rank(value, 4)) {
                return complain(atb::kWrongShape,
                                "PagedAttention: needs a query of 3 and caches of 4 dimensions");
            }
            const int64_t sequences = rows(query);
            if (lengths.host == nullptr || lengths.desc.dtype != acl::INT32 ||
                elements(lengths) != sequences) {
                return complain(atb::kWrongAddress,
                                "PagedAttention: the lengths must be int32 of the host, one a sequence");
            }
            const auto* first = static_cast<const int32_t*>(lengths.host);
            Descriptors& keep = made.descriptors;
            auto flat = [&](const atb::Tensor& t) {
                return keep.tensor(t, {rows(t), t.desc.shape.sizes[1], t.desc.shape.sizes[2] * last(t)});
            };
            char layout[] = "BSH";
            return status_of(
                kName,
                aclnnIncreFlashAttentionV4GetWorkspaceSize(
                    keep.tensor(query, {sequences, 1, query.desc.shape.sizes[1] * last(query)}),
                    keep.list(flat(key)), keep.list(flat(value)), nullptr, nullptr,
                    keep.integers({first, first + sequences}), nullptr, nullptr, nullptr, nullptr, nullptr,
                    nullptr, nullptr, keep.tensor(in[3]), nullptr, p.heads, p.scale, layout, p.kv_heads,
                    key.desc.shape.sizes[1], 0,
                    keep.tensor(pack.outputs[0], {sequences, 1, query.desc.shape.sizes[1] * last(value)}),
                    &made.workspace, &made.executor));
        },
        aclnnIncreFlashAttentionV4);
}

}  // namespace
}  // namespace flexnpu::host

namespace atb {

using namespace flexnpu::host;

// Weak: `flexnpu coverage` tells by it that nobody serves the function.
#define REFUSED __attribute__((weak))

#pragma GCC visibility push(default)
template <>
Status CreateOperation(const infer::LinearParam& p, Operation** to) {
    return linear(p, to);
}
template <>
Status CreateOperation(const infer::ReshapeAndCacheParam& p, Operation** to) {
    return reshape_and_cache(p, to);
}
template <>
Status CreateOperation(const infer::RopeParam& p, Operation** to) {
    return rope(p, to);
}
template <>
Status CreateOperation(const infer::PagedAttentionParam& p, Operation** to) {
    return paged_attention(p, to);
}
template <>
REFUSED Status CreateOperation(const infer::ElewiseParam&, Operation**) {
    return refuse("Elewise", "every kind of it");
}
template <>
REFUSED Status CreateOperation(const infer::RmsNormParam&, Operation**) {
    return refuse("RmsNorm", "every kind of it");
}
template <>
REFUSED Status CreateOperation(const infer::GroupTopkParam&, Operation**) {
    return refuse("GroupTopk", "every kind of it");
}
template <>
REFUSED Status CreateOperation(const infer::SelfAttentionParam&, Operation**) {
    return refuse("SelfAttention", "every kind of it");
}

Status DestroyOperation(Operation* operation) {
    delete operation;
    return kOk;
}

uint64_t Utils::GetTensorSize(const Tensor& tensor) {
    uint64_t size = flexnpu::acl::element_size(tensor.desc.dtype);
    for (uint64_t d = 0; d < tensor.desc.shape.count; d++) {
        size *= static_cast<uint64_t>(tensor.desc.shape.sizes[d]);
    }
    return tensor.desc.shape.count ? size : 0;
}
#pragma GCC visibility pop

}  // namespace atb
