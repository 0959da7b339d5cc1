// What fused attention and its gradient have in common: arguments, layouts, and which keys a row sees.
#pragma once

#include <string>
#include <vector>

#include "registry.hpp"

namespace flexnpu::ops::attention {

inline constexpr int64_t kUnlimited = 2147483647;  // the API's "no bound" for tokens before and after

enum Sparse : int64_t { kDefaultMask = 0, kAllMask = 1, kLeftUpCausal = 2, kRightDownCausal = 3, kBand = 4 };

struct Options {
    double scale = 1;
    int64_t before = kUnlimited, after = kUnlimited;
    int64_t sparse = kDefaultMask;
    bool has_mask = false, has_bias = false, has_sink = false, has_dropout = false;
    Tensor mask;  // true: hidden. Compressed to a triangle, which is not read, in the causal and band modes
    Tensor bias;  // added to the scaled scores
    Tensor sink;  // one logit a head that takes part in the softmax's sum
    double keep = 1;  // the probability that dropout keeps a weight
    Tensor kept;      // a bit for each of [batch, head, row, key], least significant first: 1 keeps

    bool dense_mask() const { return has_mask && sparse <= kAllMask; }
    // What dropout multiplies the weight with this number by.
    double dropout(int64_t number) const {
        return kept.data[number / 8] >> (number % 8) & 1 ? 1 / keep : 0.0;
    }
};

// The keys that row i of a sequence may see: [first, last).
struct Window {
    int64_t first, last;
};
Window window(const Options& o, int64_t i, int64_t rows, int64_t keys);

// The slice [rows, keys] of a mask or bias of 2 to 4 dimensions for one batch and head. Size-1 dimensions
// broadcast.
Tensor slice_for(const Tensor& t, int64_t batch, int64_t head);

// A tensor in a named layout as [batch, heads, rows, width].
Tensor as_bnsd(Call& call, const Tensor& t, const std::string& layout, int64_t heads);

void require_type(Call& call, const Tensor& t);
void take_mask(Call& call, uint32_t i, Options& o);
void take_bias(Call& call, uint32_t i, Options& o);
// For tensors of fixed length. `weights`: how many there are.
void take_dropout(Call& call, uint32_t i, double keep, int64_t weights, Options& o);

// Masks and biases are read at [i, j] for every query row and key.
void require_covers(Call& call, const Tensor& t, int64_t batch, int64_t heads, int64_t rows, int64_t keys,
                    const char* what);

// Cost of the products Q K^T and P V: 2 * rows * keys * width each, a head.
void attention_cost(Call& call, int32_t dtype, double pairs, int64_t heads, int64_t width_qk,
                    int64_t width_v);

// One sequence of one batch: [heads, rows, width] views.
struct Sequence {
    Tensor q, k, v, out;
    int64_t batch = 0;
    bool has_max = false, has_sum = false, has_lse = false;
    Tensor maximum, sum;  // [heads, rows, 8]
    Tensor lse;           // [heads, rows]
};

// softmax(scale * Q K^T + bias, masked) V of one sequence. An ACL error.
int attend(const Options& o, const Sequence& s);

// [first, last], to be put together with +.
std::vector<uint32_t> range(uint32_t first, uint32_t last);
std::vector<uint32_t> operator+(std::vector<uint32_t> a, const std::vector<uint32_t>& b);

}  // namespace flexnpu::ops::attention
