#include "flexnpu/client/steps/step_evidence.hpp"

#include <algorithm>
#include <cstring>

#include "flexnpu/wire/meta.hpp"

namespace flexnpu::client {

namespace {

constexpr uint32_t kArrays = std::size(flexnpu_step_evidence{}.array);
constexpr size_t kDims = std::size(flexnpu_step_evidence{}.dims);
constexpr int32_t kInt32 = 3, kInt64 = 9;  // aclDataType

struct Tensor {
    bool present = false;
    int32_t dtype = -1;
    uint32_t ndim = 0;
    int64_t dims[kDims] = {};
    int64_t last = 0;
};
bool read_tensor(wire::MetaReader& reader, Tensor* t) {
    wire::MetaHead head;
    const uint8_t* body;
    if (!reader.next(&head, &body) || (head.kind != 'T' && head.kind != 't')) return false;
    t->present = head.present;
    if (!head.present) return true;
    t->dtype = head.dtype;
    t->ndim = head.counts[0];
    const uint8_t* dims = body + 8;
    std::memcpy(t->dims, dims, 8 * std::min<size_t>(t->ndim, kDims));
    if (t->ndim) std::memcpy(&t->last, dims + 8 * (t->ndim - 1), 8);
    return true;
}

bool is_index(const Tensor& t) { return t.dtype == kInt64 || t.dtype == kInt32; }

void add_lengths(flexnpu_step_evidence* e, const uint8_t* values, uint32_t n, uint32_t role) {
    if (n == 0) return;
    flexnpu_step_array a{};
    bool rising = true;
    int64_t before = 0;
    uint32_t zeros = 0;
    for (uint32_t i = 0; i < n; i++) {
        int64_t v;
        std::memcpy(&v, values + 8 * size_t(i), 8);
        if (v == 0 && i > 0 && role == FLEXNPU_STEP_KV) {
            zeros++;
            continue;
        }
        if (v <= 0 || zeros) return;  // not lengths
        if (a.seen++ == 0) a.first = v;
        a.ones += v - before == 1;
        rising = rising && v > before;
        a.max = std::max(a.max, v);
        a.sum += v;
        a.last = before = v;
    }
    a.n = n - zeros;
    a.rising = uint32_t(rising) | role << 8 | std::min(zeros, 0xffffu) << 16;
    // Every layer is given the same arrays.
    for (uint32_t i = 0; i < e->arrays; i++) {
        const flexnpu_step_array& old = e->array[i];
        if (old.n == a.n && old.first == a.first && old.last == a.last && old.sum == a.sum &&
            old.rising == a.rising)
            return;
    }
    if (e->arrays < kArrays) e->array[e->arrays++] = a;
}

// Which of an operator's integer arrays, in order, is what.
uint32_t role_of_array(StepRole role, uint32_t number) {
    switch (role) {
        case StepRole::attention_kv: return number == 0 ? FLEXNPU_STEP_KV : FLEXNPU_STEP_NO_ROLE;
        case StepRole::attention_query_kv:
            return number == 0 ? FLEXNPU_STEP_QUERY : number == 1 ? FLEXNPU_STEP_KV : FLEXNPU_STEP_NO_ROLE;
        case StepRole::attention_prefix:
            return number == 1 ? FLEXNPU_STEP_QUERY : number == 2 ? FLEXNPU_STEP_KV : FLEXNPU_STEP_NO_ROLE;
        default: return FLEXNPU_STEP_NO_ROLE;
    }
}

}  // namespace

StepRole step_role(const char* op) {
    if (std::strcmp(op, "aclnnEmbedding") == 0) return StepRole::embedding;
    if (std::strstr(op, "Grad")) return StepRole::none;
    struct Family {
        const char* prefix;
        StepRole role;
    };
    for (const Family& f : {Family{"aclnnFusedInferAttentionScore", StepRole::attention_query_kv},
                            Family{"aclnnPromptFlashAttention", StepRole::attention_query_kv},
                            Family{"aclnnIncreFlashAttention", StepRole::attention_kv},
                            Family{"aclnnFlashAttentionVarLenScore", StepRole::attention_prefix},
                            Family{"aclnnFlashAttentionScore", StepRole::attention}}) {
        if (std::strncmp(op, f.prefix, std::strlen(f.prefix)) == 0) return f.role;
    }
    return StepRole::none;
}

flexnpu_step_evidence of_embedding(std::span<const uint8_t> key) {
    flexnpu_step_evidence e{};
    Tensor weight, indices, out;
    wire::MetaReader reader(key);
    if (!read_tensor(reader, &weight) || !read_tensor(reader, &indices) || !read_tensor(reader, &out))
        return e;
    if (indices.present && is_index(indices) && indices.ndim <= kDims) {
        e.flags |= FLEXNPU_STEP_HAS_INDICES;
        e.ndim = indices.ndim;
        std::memcpy(e.dims, indices.dims, sizeof(e.dims));
    }
    if (weight.present && weight.ndim == 2) {
        e.flags |= FLEXNPU_STEP_HAS_TABLE;
        e.rows = weight.dims[0];
        e.columns = weight.dims[1];
    }
    if (out.present && out.ndim == e.ndim + 1 && out.last == e.columns) e.flags |= FLEXNPU_STEP_AGREED;
    return e;
}

void add_attention(flexnpu_step_evidence* e, std::span<const uint8_t> key, StepRole role) {
    const bool first = !(e->flags & FLEXNPU_STEP_HAS_QUERY);
    bool named = !first;
    uint32_t arrays = 0;
    wire::MetaReader reader(key);
    wire::MetaHead h;
    const uint8_t* body;
    for (bool query = first; reader.next(&h, &body); query = false) {
        if (query && h.kind == 'T' && h.present && h.counts[0] <= kDims) {
            e->flags |= FLEXNPU_STEP_HAS_QUERY;
            e->query_ndim = h.counts[0];
            std::memcpy(e->query, body + 8, 8 * size_t(h.counts[0]));
        } else if (h.kind == 'I') {
            const uint32_t is = role_of_array(role, arrays++);
            if (h.present && is != FLEXNPU_STEP_NO_ROLE) add_lengths(e, body, h.n, is);
        } else if (h.kind == 's' && !named) {
            named = true;
            if (h.present) std::memcpy(e->layout, body, std::min<size_t>(h.n, sizeof(e->layout)));
        }
    }
}

namespace {

const flexnpu_step_array* array_of(const flexnpu_step_evidence& e, uint32_t role) {
    for (uint32_t i = 0; i < e.arrays; i++) {
        if ((e.array[i].rising >> 8 & 0xff) == role) return &e.array[i];
    }
    return nullptr;
}

StepPhase as(int64_t sequences, int64_t tokens) {
    return {tokens != sequences, tokens == sequences, uint32_t(std::min<int64_t>(tokens, UINT32_MAX))};
}

// Where the layout of a query has sequences and the tokens of each.
bool sequences_of(const flexnpu_step_evidence& e, int64_t* sequences, int64_t* length) {
    struct Layout {
        const char* name;
        uint32_t batch, length;
    };
    const char* const end = e.layout + sizeof(e.layout);
    const size_t named =
        size_t(std::find_if(e.layout, end, [](char c) { return c == 0 || c == '_'; }) - e.layout);
    for (const Layout& l : {Layout{"BSH", 0, 1}, {"BSND", 0, 1}, {"BNSD", 0, 2}, {"SBH", 1, 0}}) {
        if (named != std::strlen(l.name) || std::memcmp(e.layout, l.name, named) != 0) continue;
        if (e.query_ndim <= std::max(l.batch, l.length)) return false;
        *sequences = e.query[l.batch];
        *length = e.query[l.length];
        return *sequences > 0 && *length > 0;
    }
    return false;
}

}  // namespace

StepPhase phase_of(const flexnpu_step_evidence& e) {
    const bool indices = (e.flags & FLEXNPU_STEP_HAS_INDICES) != 0;
    int64_t tokens = indices || !(e.flags & FLEXNPU_STEP_HAS_QUERY) ? 0 : e.query[0];
    if (indices) {
        tokens = 1;
        for (uint32_t i = 0; i < e.ndim; i++) {
            // Nothing, or too much to be true.
            if (e.dims[i] <= 0 || e.dims[i] > INT32_MAX || tokens > INT32_MAX) return {};
            tokens *= e.dims[i];
        }
        if (e.ndim >= 2) return as(e.dims[0], tokens);
    }
    // In a layout with a dimension of sequences, lengths are of each and do not sum up.
    if (int64_t sequences, length; sequences_of(e, &sequences, &length)) {
        const double real = double(sequences) * double(length);
        if (!indices || real == double(tokens))
            return {length > 1, length == 1, uint32_t(std::min(real, double(UINT32_MAX)))};
    }
    const flexnpu_step_array* query = array_of(e, FLEXNPU_STEP_QUERY);
    const flexnpu_step_array* kv = array_of(e, FLEXNPU_STEP_KV);
    if (query && (query->rising & 1) && (tokens == 0 || query->last <= tokens)) {
        return {query->ones < query->seen, query->ones > 0,
                uint32_t(std::min<int64_t>(query->last, UINT32_MAX))};
    }
    if (indices && tokens == 1) return {false, true, 1};
    if (!kv || tokens == 0) return {};
    if (!indices) return kv->n == tokens ? as(tokens, tokens) : StepPhase{};
    if (e.arrays != 1 || kv->n > tokens) return {};
    if (kv->n + (kv->rising >> 16) == tokens) return as(kv->n, kv->n);
    return {true, kv->n > 1, uint32_t(std::min<int64_t>(tokens, UINT32_MAX))};
}

void take_lengths(flexnpu_step_evidence* to, const flexnpu_step_evidence& from) {
    to->flags = (to->flags & ~uint32_t(FLEXNPU_STEP_HAS_QUERY)) | (from.flags & FLEXNPU_STEP_HAS_QUERY);
    to->query_ndim = from.query_ndim;
    std::memcpy(to->query, from.query, sizeof(to->query));
    to->arrays = from.arrays;
    std::memcpy(to->array, from.array, sizeof(to->array));
    std::memcpy(to->layout, from.layout, sizeof(to->layout));
}

}  // namespace flexnpu::client
