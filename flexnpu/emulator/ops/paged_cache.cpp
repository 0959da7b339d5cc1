// The key/value cache in pages: where new tokens are written.
#include <cstring>

#include "index.hpp"

namespace flexnpu::ops {
namespace {

// Tokens [tokens, heads, width] to a cache [blocks, block, heads, width]: token t to place slots[t] of all
// blocks' one after the other. A negative slot is skipped.
int scatter(const char* name, const Tensor& tokens, const Tensor& cache, const std::vector<int64_t>& slots) {
    const int64_t block = cache.dims[1], places = cache.dims[0] * block;
    for (size_t t = 0; t < slots.size(); t++) {
        const int64_t slot = slots[t];
        if (slot < 0) {
            continue;
        }
        if (slot >= places) {
            return out_of_range(name, slot, places);
        }
        copy_tensor(cache.selected(0, slot / block).selected(0, slot % block),
                    tokens.selected(0, static_cast<int64_t>(t)));
    }
    return 0;
}

void require_cache(Call& call, const Tensor& tokens, const Tensor& cache, int64_t slots, const char* what) {
    call.require(tokens.rank == 3 && cache.rank == 4, "%s: tokens have %d dimensions, the cache %d", what,
                 tokens.rank, cache.rank);
    call.require(
        tokens.dims[0] == slots && cache.dims[2] == tokens.dims[1] && cache.dims[3] == tokens.dims[2],
        "%s: tokens %s and %lld slots do not fit the cache %s", what, tokens.shape().c_str(),
        static_cast<long long>(slots), cache.shape().c_str());
    call.require(tokens.dtype == cache.dtype, "%s: tokens and cache differ in type", what);
    call.require(cache.dims[1] > 0, "%s: blocks of no place", what);
}

// key, its cache (written), slots, value, its cache (written), lengths to compress, offsets, sequence
// lengths, cache mode, scatter mode, strides, offsets
Job scatter_paged(Call& call) {
    const Tensor key = call.tensor(0), keys = call.tensor(1), slots = call.tensor(2), value = call.tensor(3),
                 values = call.tensor(4);
    call.require(!call.has(5) && !call.has(6) && !call.has(7), "compressed caches are not emulated");
    const std::string layout = call.text(8), how = call.text(9);
    call.require(layout.empty() || layout == "Norm", "cache mode %s is not emulated", layout.c_str());
    call.require(how.empty() || how == "None", "scatter mode %s is not emulated", how.c_str());
    call.require(slots.rank == 1 && is_integral(slots.dtype), "the slots must be integers in 1 dimension");
    require_cache(call, key, keys, slots.dims[0], "key");
    require_cache(call, value, values, slots.dims[0], "value");
    call.require(keys.dims[0] * keys.dims[1] == values.dims[0] * values.dims[1],
                 "the caches of key and value differ in size");
    call.cost.bytes = 2 * (key.bytes() + value.bytes()) + slots.bytes();
    call.cost.vector_flops = static_cast<double>(key.numel() + value.numel());
    const char* name = call.name();
    return [=] {
        const std::vector<int64_t> at = values_of(slots);
        const int error = scatter(name, key, keys, at);
        return error ? error : scatter(name, value, values, at);
    };
}

OPERATOR("aclnnScatterPaKvCache", scatter_paged);

}  // namespace
}  // namespace flexnpu::ops
