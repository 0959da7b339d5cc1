// An operator named by type (aclopCompileAndExecute), as it travels: descriptors, buffers' addresses,
// attributes.
//
// Strings and arrays are a 32-bit count and their bytes, each padded to nothing: the reader copies every
// field and checks every count against what is left.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace flexnpu::wire {

struct OperationTensor {
    int32_t dtype = -1, format = -1, storage_format = -1, origin_format = -1, placement = 0;
    std::vector<int64_t> dims, storage_dims, origin_dims;
    std::string name, constant;
    uint64_t address = 0, bytes = 0;
};

struct Operation {
    std::string type;
    int32_t engine = 0, compile = 0;
    std::vector<OperationTensor> inputs, outputs;
    std::vector<std::pair<std::string, std::string>>
        attributes;  // name, and a type letter with raw bytes, see host_objects.cpp
};

inline constexpr uint32_t kMaxOperationTensors = 256;

namespace operation_detail {

struct Out {
    std::vector<uint8_t>& bytes;
    template <class T>
        requires std::is_arithmetic_v<T>
    void operator()(const T& v) {
        const auto* p = reinterpret_cast<const uint8_t*>(&v);
        bytes.insert(bytes.end(), p, p + sizeof(T));
    }
    void operator()(const std::string& s) { array(s.data(), s.size(), 1); }
    void operator()(const std::vector<int64_t>& v) { array(v.data(), v.size(), sizeof(int64_t)); }
    void array(const void* from, size_t n, size_t size) {
        (*this)(uint32_t(n));
        const auto* p = static_cast<const uint8_t*>(from);
        bytes.insert(bytes.end(), p, p + n * size);
    }
    template <class T, class F>
    void list(const std::vector<T>& v, F each) {
        (*this)(uint32_t(v.size()));
        for (const T& item : v) each(const_cast<T&>(item));
    }
};

struct In {
    std::span<const uint8_t> left;
    bool good = true;
    template <class T>
        requires std::is_arithmetic_v<T>
    void operator()(T& v) {
        if (!enough(sizeof(T))) return;
        std::memcpy(&v, left.data(), sizeof(T));
        left = left.subspan(sizeof(T));
    }
    void operator()(std::string& s) {
        uint32_t n = 0;
        (*this)(n);
        if (!enough(n)) return;
        s.assign(reinterpret_cast<const char*>(left.data()), n);
        left = left.subspan(n);
    }
    void operator()(std::vector<int64_t>& v) {
        uint32_t n = 0;
        (*this)(n);
        if (!enough(uint64_t(n) * sizeof(int64_t))) return;
        v.resize(n);
        if (n) std::memcpy(v.data(), left.data(), n * sizeof(int64_t));
        left = left.subspan(n * sizeof(int64_t));
    }
    template <class T, class F>
    void list(std::vector<T>& v, F each) {
        uint32_t n = 0;
        (*this)(n);
        if (n > kMaxOperationTensors) good = false;
        if (!good) return;
        v.resize(n);
        for (T& item : v) each(item);
    }
    bool enough(uint64_t n) {
        good = good && n <= left.size();
        return good;
    }
};

template <class Codec>
void code(Codec& c, Operation& o) {
    const auto tensor = [&](OperationTensor& t) {
        c(t.dtype), c(t.format), c(t.storage_format), c(t.origin_format), c(t.placement);
        c(t.dims), c(t.storage_dims), c(t.origin_dims), c(t.name), c(t.constant), c(t.address), c(t.bytes);
    };
    c(o.type), c(o.engine), c(o.compile);
    c.list(o.inputs, tensor);
    c.list(o.outputs, tensor);
    c.list(o.attributes, [&](std::pair<std::string, std::string>& a) { c(a.first), c(a.second); });
}

}  // namespace operation_detail

inline std::vector<uint8_t> encode_operation(const Operation& o) {
    std::vector<uint8_t> bytes;
    operation_detail::Out out{bytes};
    operation_detail::code(out, const_cast<Operation&>(o));
    return bytes;
}

// False for bytes that are not exactly one operation and up to 7 bytes of padding.
inline bool decode_operation(std::span<const uint8_t> bytes, Operation* out) {
    operation_detail::In in{bytes};
    operation_detail::code(in, *out);
    return in.good && in.left.size() < 8;
}

}  // namespace flexnpu::wire
