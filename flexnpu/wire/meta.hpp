// The metadata of an operator's first call: everything in its arguments but device addresses.
//
// The client's cache compares these bytes, so equal calls must give equal bytes: no padding is left
// undefined. The daemon decodes them as untrusted input. Addresses travel beside them, one for each tensor in
// order of appearance (tensors of lists included).
//
// An argument is a Head, then by kind (letters as in flexnpu/api/aclnn_arg.hpp):
//   T t          offset, dims, strides, storage dims (int64 each; a, b, c give their numbers)
//   L l          n tensors, each with a Head of its own
//   S            16 bytes of value; C: n scalars, each with a Head
//   I F B s      n elements, padded to 8 bytes
//   i u v w h b D, d f   one word
// `present` is 0 for a null pointer, and nothing follows.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "flexnpu/wire/layout.hpp"

namespace flexnpu::wire {

inline constexpr uint8_t kMaxDims = 32;

struct MetaHead {
    char kind;
    uint8_t present;
    int8_t dtype;
    int8_t format;
    union {
        uint32_t n;
        uint8_t counts[4];  // view dims, strides, storage dims, 0
    };
};
static_assert(sizeof(MetaHead) == 8);

// Appends to a buffer that is reused from call to call.
class MetaWriter {
public:
    void clear() { size_ = 0; }
    std::span<const uint8_t> bytes() const { return {buffer_.data(), size_}; }

    void head(char kind, bool present, int dtype, int format, uint32_t n) {
        MetaHead h;
        h.kind = kind;
        h.present = present;
        h.dtype = int8_t(dtype);
        h.format = int8_t(format);
        h.n = n;
        raw(&h, sizeof(h));
    }
    void tensor(char kind, int dtype, int format, int64_t offset, std::span<const int64_t> dims,
                std::span<const int64_t> strides, std::span<const int64_t> storage) {
        MetaHead h;
        h.kind = kind;
        h.present = 1;
        h.dtype = int8_t(dtype);
        h.format = int8_t(format);
        h.n = 0;
        h.counts[0] = uint8_t(dims.size());
        h.counts[1] = uint8_t(strides.size());
        h.counts[2] = uint8_t(storage.size());
        uint8_t* p = grow(sizeof(h) + 8 * (1 + dims.size() + strides.size() + storage.size()));
        auto put = [&p](const void* from, size_t n) {
            if (n) std::memcpy(p, from, n);
            p += n;
        };
        put(&h, sizeof(h));
        put(&offset, 8);
        put(dims.data(), dims.size_bytes());
        put(strides.data(), strides.size_bytes());
        put(storage.data(), storage.size_bytes());
    }
    void word(char kind, const void* value) {
        head(kind, true, 0, 0, 0);
        raw(value, 8);
    }
    void array(char kind, const void* elements, uint32_t n, size_t element_size) {
        head(kind, true, 0, 0, n);
        const size_t bytes = n * element_size;
        uint8_t* p = grow(round8(bytes));
        if (bytes) std::memcpy(p, elements, bytes);
        std::memset(p + bytes, 0, round8(bytes) - bytes);
    }
    void raw(const void* from, size_t n) { std::memcpy(grow(n), from, n); }

private:
    uint8_t* grow(size_t n) {
        if (size_ + n > buffer_.size()) buffer_.resize((size_ + n) * 2 + 1024);
        uint8_t* p = buffer_.data() + size_;
        size_ += n;
        return p;
    }
    std::vector<uint8_t> buffer_;
    size_t size_ = 0;
};

// Goes through metadata of the client's own writing, argument by argument and without taking memory; what
// comes from elsewhere is for decode_meta.
class MetaReader {
public:
    explicit MetaReader(std::span<const uint8_t> bytes) : bytes_(bytes) {}

    // The next argument's head, and what follows it: of a tensor its offset, dims, ...; of a list its
    // elements with their heads. False: there is no other, or it is not whole.
    bool next(MetaHead* h, const uint8_t** body) {
        if (bytes_.size() - at_ < sizeof(*h)) return false;
        std::memcpy(h, bytes_.data() + at_, sizeof(*h));
        at_ += sizeof(*h);
        *body = bytes_.data() + at_;
        if (!h->present) return true;
        switch (h->kind) {
            case 'T':
            case 't': return pass(8 * (1 + size_t(h->counts[0]) + h->counts[1] + h->counts[2]));
            case 'S': return pass(16);
            case 'L':
            case 'l':
            case 'C':
                for (uint32_t i = 0; i < h->n; i++) {
                    MetaHead element;
                    const uint8_t* inside;
                    if (!next(&element, &inside)) return false;
                }
                return true;
            case 'I': return pass(8 * size_t(h->n));
            case 'F': return pass(round8(4 * size_t(h->n)));
            case 'B':
            case 's': return pass(round8(h->n));
            default: return pass(8);
        }
    }

private:
    bool pass(size_t n) {
        if (bytes_.size() - at_ < n) return false;
        at_ += n;
        return true;
    }
    std::span<const uint8_t> bytes_;
    size_t at_ = 0;
};

struct TensorMeta {
    bool present = false;
    int32_t dtype = -1;
    int32_t format = -1;
    int64_t offset = 0;
    std::vector<int64_t> dims, strides, storage;
};

struct ScalarMeta {
    bool present = false;
    int32_t dtype = -1;
    unsigned char value[16] = {};
};

struct ArgMeta {
    char kind = 0;
    bool present = false;
    std::vector<TensorMeta> tensors;  // one for T and t
    std::vector<ScalarMeta> scalars;  // one for S
    std::vector<int64_t> ints;
    std::vector<float> floats;
    std::vector<uint8_t> bools;
    std::string text;
    int64_t integer = 0;
    double real = 0;
};

// Decodes the arguments of an operator with the kinds `kinds`. False if the bytes are not exactly that.
inline bool decode_meta(std::span<const uint8_t> bytes, const char* kinds, std::vector<ArgMeta>* out) {
    size_t at = 0;
    auto take = [&](void* to, size_t n) {
        if (bytes.size() - at < n) return false;
        if (n) std::memcpy(to, bytes.data() + at, n);
        at += n;
        return true;
    };
    auto take_all = [&](auto& to, size_t n) {
        const size_t size = n * sizeof(to[0]);
        if (n > bytes.size() || bytes.size() - at < round8(size)) return false;
        to.resize(n);
        take(to.data(), size);
        at += round8(size) - size;
        return true;
    };
    auto tensor = [&](const MetaHead& h, TensorMeta* t) {
        t->present = h.present;
        if (!h.present) return true;
        t->dtype = h.dtype;
        t->format = h.format;
        for (int i = 0; i < 3; i++) {
            if (h.counts[i] > kMaxDims) return false;
        }
        return take(&t->offset, 8) && take_all(t->dims, h.counts[0]) && take_all(t->strides, h.counts[1]) &&
               take_all(t->storage, h.counts[2]);
    };
    auto scalar = [&](const MetaHead& h, ScalarMeta* s) {
        s->present = h.present;
        s->dtype = h.dtype;
        return !h.present || take(s->value, sizeof(s->value));
    };
    out->clear();
    for (const char* k = kinds; *k; k++) {
        MetaHead h;
        if (!take(&h, sizeof(h)) || h.kind != *k || h.present > 1) return false;
        ArgMeta& a = out->emplace_back();
        a.kind = *k;
        a.present = h.present;
        switch (*k) {
            case 'T':
            case 't':
                if (!tensor(h, &a.tensors.emplace_back())) return false;
                break;
            case 'S':
                if (!scalar(h, &a.scalars.emplace_back())) return false;
                break;
            case 'L':
            case 'l':
            case 'C':
                if (!a.present) break;
                if (h.n > bytes.size() / sizeof(MetaHead)) return false;
                for (uint32_t i = 0; i < h.n; i++) {
                    MetaHead e;
                    const char want = *k == 'C' ? 'S' : 'T';
                    if (!take(&e, sizeof(e)) || e.kind != want || e.present > 1) return false;
                    if (want == 'S' ? !scalar(e, &a.scalars.emplace_back())
                                    : !tensor(e, &a.tensors.emplace_back()))
                        return false;
                }
                break;
            case 'I':
                if (a.present && !take_all(a.ints, h.n)) return false;
                break;
            case 'F':
                if (a.present && !take_all(a.floats, h.n)) return false;
                break;
            case 'B':
                if (a.present && !take_all(a.bools, h.n)) return false;
                break;
            case 's':
                if (a.present && (!take_all(a.text, h.n) || a.text.find('\0') != std::string::npos))
                    return false;
                break;
            case 'd':
            case 'f':
                if (!a.present || !take(&a.real, 8)) return false;
                break;
            case 'i':
            case 'u':
            case 'v':
            case 'w':
            case 'h':
            case 'b':
            case 'D':
                if (!a.present || !take(&a.integer, 8)) return false;
                break;
            default: return false;
        }
    }
    return at == bytes.size();
}

// Bytes [low, high) that a tensor may touch, relative to its address. False if that overflows or reaches
// below the address. `element_bits` is the size of one element; `blocked`: the format's elements lie as
// storage dims say, not as strides do.
struct Extent {
    uint64_t bytes = 0;  // from the address on; 0: touches nothing
};

inline bool extent_of(const TensorMeta& t, uint32_t element_bits, bool blocked, Extent* out) {
    out->bytes = 0;
    using Wide = __int128;
    constexpr Wide limit = Wide(1) << 56;  // elements, of at most 128 bits: the bytes fit in 64 bits
    const std::vector<int64_t>& d = t.dims;
    if (t.offset < 0) return false;
    if (!t.strides.empty() && t.strides.size() != d.size()) return false;
    Wide count = 1;
    for (int64_t n : d) {
        if (n < 0) return false;
        count *= n;
        if (count > limit) return false;
    }
    if (count == 0) return true;
    Wide low = t.offset, high = t.offset;
    if (t.strides.empty()) {
        high += count - 1;
    } else {
        for (size_t i = 0; i < d.size(); i++) {
            const Wide reach = Wide(d[i] - 1) * t.strides[i];
            (reach < 0 ? low : high) += reach;
            if (low < 0 || high > limit) return false;
        }
    }
    if (blocked && !t.storage.empty()) {
        Wide stored = 1;
        for (int64_t n : t.storage) {
            if (n < 0) return false;
            stored *= n;
            if (stored > limit) return false;
        }
        high = stored > high + 1 ? stored - 1 : high;
    }
    if (low < 0 || high > limit) return false;
    out->bytes = uint64_t(((high + 1) * element_bits + 7) / 8);
    return true;
}

}  // namespace flexnpu::wire
