#include "flexnpu/emulator/hccl/reduce.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "flexnpu/api/hccl_types.hpp"
#include "flexnpu/emulator/ops/kernels/isa.hpp"

namespace flexnpu::emulator::hccl {

namespace {

namespace types = flexnpu::hccl;
namespace convert = flexnpu::ops::FLEXNPU_ISA;

// How an element is read into what it is accumulated in, and back.
template <class T>
struct Plain {
    using Stored = T;
    using Wide = T;
    static Wide load(Stored x) { return x; }
    static Stored store(Wide x) { return x; }
};
struct Half {
    using Stored = uint16_t;
    using Wide = float;
    static Wide load(Stored x) { return convert::half_to_float(x); }
    static Stored store(Wide x) { return convert::float_to_half(x); }
};
struct Brain {
    using Stored = uint16_t;
    using Wide = float;
    static Wide load(Stored x) { return convert::bf16_to_float(x); }
    static Stored store(Wide x) { return convert::float_to_bf16(x); }
};

template <class W>
W combine(int32_t op, W a, W b) {
    if constexpr (std::is_integral_v<W>) {
        // Unsigned, so that sums and products wrap instead of overflowing.
        using U = std::conditional_t<(sizeof(W) < sizeof(unsigned)), unsigned, std::make_unsigned_t<W>>;
        switch (op) {
            case types::SUM: return W(U(a) + U(b));
            case types::PROD: return W(U(a) * U(b));
            case types::MAX: return std::max(a, b);
            default: return std::min(a, b);
        }
    } else {
        switch (op) {
            case types::SUM: return a + b;
            case types::PROD: return a * b;
            // A NaN of any rank is seen by all.
            case types::MAX: return std::isnan(a) || a > b ? a : b;
            default: return std::isnan(a) || a < b ? a : b;
        }
    }
}

template <class Format>
void rows(int32_t op, const std::vector<const void*>& inputs, void* out, uint64_t count) {
    using Stored = typename Format::Stored;
    using Wide = typename Format::Wide;
    constexpr uint64_t kBlock = 1024;
    Wide sum[kBlock];
    Stored row[kBlock];
    for (uint64_t at = 0; at < count; at += kBlock) {
        const uint64_t n = std::min(kBlock, count - at);
        auto take = [&](const void* from) {
            std::memcpy(row, static_cast<const char*>(from) + at * sizeof(Stored), n * sizeof(Stored));
        };
        take(inputs[0]);
        for (uint64_t i = 0; i < n; ++i) {
            sum[i] = Format::load(row[i]);
        }
        for (size_t r = 1; r < inputs.size(); ++r) {
            take(inputs[r]);
            for (uint64_t i = 0; i < n; ++i) {
                sum[i] = combine<Wide>(op, sum[i], Format::load(row[i]));
            }
        }
        for (uint64_t i = 0; i < n; ++i) {
            row[i] = Format::store(sum[i]);
        }
        std::memcpy(static_cast<char*>(out) + at * sizeof(Stored), row, n * sizeof(Stored));
    }
}

using Rows = void (*)(int32_t, const std::vector<const void*>&, void*, uint64_t);

Rows rows_of(int32_t dtype) {
    switch (dtype) {
        case types::INT8: return rows<Plain<int8_t>>;
        case types::INT16: return rows<Plain<int16_t>>;
        case types::INT32: return rows<Plain<int32_t>>;
        case types::INT64: return rows<Plain<int64_t>>;
        case types::UINT8: return rows<Plain<uint8_t>>;
        case types::UINT16: return rows<Plain<uint16_t>>;
        case types::UINT32: return rows<Plain<uint32_t>>;
        case types::UINT64: return rows<Plain<uint64_t>>;
        case types::FP16: return rows<Half>;
        case types::BFP16: return rows<Brain>;
        case types::FP32: return rows<Plain<float>>;
        case types::FP64: return rows<Plain<double>>;
        default: return nullptr;
    }
}

}  // namespace

bool can_reduce(int32_t dtype) { return rows_of(dtype) != nullptr; }

void reduce_rows(int32_t dtype, int32_t op, const std::vector<const void*>& inputs, void* out,
                 uint64_t count) {
    rows_of(dtype)(op, inputs, out, count);
}

}  // namespace flexnpu::emulator::hccl
