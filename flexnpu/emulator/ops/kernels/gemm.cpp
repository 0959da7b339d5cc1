// float32 matrix products.
//
// Two layouts of B matter. Contiguous along k (a linear layer's weight seen transposed, or K in Q*K^T): every
// element is a dot product of two contiguous rows, and a block of rows of A meets a block of rows of B in
// registers. Contiguous along n (V in P*V, or a plain a @ b): panels of B are packed and rows of A are
// broadcast against them. Any other layout is brought into panels.
//
// This source is compiled with -ffp-contract=fast: a*b+c on vectors becomes one fused operation.
#include "isa.hpp"

namespace flexnpu::ops::FLEXNPU_ISA {
namespace {

constexpr int kDotRows = kLanes == 8 ? 3 : 2;  // rows of A in a register block
constexpr int kDotColumns = 4;                 // rows of B^T in a register block
constexpr int64_t kDotDepth = 1024;            // k in one block: 4 rows of B^T stay in L1
constexpr int64_t kDotBatch = 96;              // rows of A in one block: with kDotDepth, in L2

constexpr int kPanel = 2 * kLanes;               // columns in a panel
constexpr int kPanelRows = kLanes == 8 ? 6 : 4;  // rows of A in a register block
constexpr int64_t kPanelDepth = 512;
constexpr int64_t kPanelGroup = 32;  // panels packed at a time

// The sum of a vector's lanes, neighbours first.
inline float fold(vec v) {
    float part[kLanes];
    memcpy(part, &v, sizeof part);
    for (int width = kLanes / 2; width > 0; width /= 2) {
        for (int j = 0; j < width; j++) {
            part[j] = part[2 * j] + part[2 * j + 1];
        }
    }
    return part[0];
}

// The same, of S vectors. Short rows spend much of their time here.
template <int S>
inline void fold_each(const vec* v, float* sums) {
#if defined(__AVX2__)
    if constexpr (S == 4) {
        const __m256 pairs01 = _mm256_hadd_ps((__m256)v[0], (__m256)v[1]);
        const __m256 pairs23 = _mm256_hadd_ps((__m256)v[2], (__m256)v[3]);
        const __m256 quads = _mm256_hadd_ps(pairs01, pairs23);
        _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(quads), _mm256_extractf128_ps(quads, 1)));
        return;
    }
#endif
    for (int s = 0; s < S; s++) {
        sums[s] = fold(v[s]);
    }
}

// C[R][S] (+)= dot products of R rows of A and S rows of B over n elements. The order of an element's sum
// depends on n alone.
template <int R, int S>
void dot_block(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t n, float* c, int64_t ldc,
               bool add) {
    vec acc[R][S];
    for (int r = 0; r < R; r++) {
        for (int s = 0; s < S; s++) {
            acc[r][s] = vec{};
        }
    }
    int64_t k = 0;
    for (; k + kLanes <= n; k += kLanes) {
        vec bv[S];
        for (int s = 0; s < S; s++) {
            bv[s] = load(b + s * ldb + k);
        }
        for (int r = 0; r < R; r++) {
            const vec av = load(a + r * lda + k);
            for (int s = 0; s < S; s++) {
                acc[r][s] += av * bv[s];
            }
        }
    }
    for (int r = 0; r < R; r++) {
        float sums[S];
        fold_each<S>(acc[r], sums);
        for (int s = 0; s < S; s++) {
            float sum = sums[s];
            for (int64_t t = k; t < n; t++) {
                sum = fma_f(a[r * lda + t], b[s * ldb + t], sum);
            }
            float* out = c + r * ldc + s;
            *out = add ? *out + sum : sum;
        }
    }
}

template <int S>
void dot_rows(int64_t rows, const float* a, int64_t lda, const float* b, int64_t ldb, int64_t n, float* c,
              int64_t ldc, bool add) {
    int64_t i = 0;
    for (; i + kDotRows <= rows; i += kDotRows) {
        dot_block<kDotRows, S>(a + i * lda, lda, b, ldb, n, c + i * ldc, ldc, add);
    }
    for (; i < rows; i++) {
        dot_block<1, S>(a + i * lda, lda, b, ldb, n, c + i * ldc, ldc, add);
    }
}

// B contiguous along k.
void gemm_dot(const Gemm& g) {
    const int64_t element = g.b_dtype == acl::FLOAT ? 4 : 2;
    const char* b = static_cast<const char*>(g.b);
    for (int64_t m0 = 0; m0 < g.m; m0 += kDotBatch) {
        const int64_t rows = g.m - m0 < kDotBatch ? g.m - m0 : kDotBatch;
        for (int64_t k0 = 0; k0 < g.k; k0 += kDotDepth) {
            const int64_t depth = g.k - k0 < kDotDepth ? g.k - k0 : kDotDepth;
            const float* a = g.a + m0 * g.lda + k0;
            for (int64_t n0 = 0; n0 < g.n; n0 += kDotColumns) {
                const int columns = int(g.n - n0 < kDotColumns ? g.n - n0 : kDotColumns);
                const float* rows_of_b;
                int64_t ldb;
                if (g.b_dtype == acl::FLOAT) {
                    rows_of_b = reinterpret_cast<const float*>(b) + n0 * g.b_col + k0;
                    ldb = g.b_col;
                } else {
                    for (int s = 0; s < columns; s++) {
                        load_narrow(g.scratch + s * kDotDepth, b + ((n0 + s) * g.b_col + k0) * element,
                                    g.b_dtype, depth);
                    }
                    rows_of_b = g.scratch;
                    ldb = kDotDepth;
                }
                float* c = g.c + m0 * g.ldc + n0;
                const bool add = k0 > 0;
                switch (columns) {
                    case 4: dot_rows<4>(rows, a, g.lda, rows_of_b, ldb, depth, c, g.ldc, add); break;
                    case 3: dot_rows<3>(rows, a, g.lda, rows_of_b, ldb, depth, c, g.ldc, add); break;
                    case 2: dot_rows<2>(rows, a, g.lda, rows_of_b, ldb, depth, c, g.ldc, add); break;
                    default: dot_rows<1>(rows, a, g.lda, rows_of_b, ldb, depth, c, g.ldc, add); break;
                }
            }
        }
    }
}

// C[R][kPanel] (+)= R rows of A times a panel of B whose rows are ldb apart; only `columns` of it are stored.
template <int R>
void panel_block(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t n, float* c, int64_t ldc,
                 int columns, bool add) {
    vec acc[R][2];
    for (int r = 0; r < R; r++) {
        acc[r][0] = vec{};
        acc[r][1] = vec{};
    }
    for (int64_t k = 0; k < n; k++) {
        const vec b0 = load(b + k * ldb);
        const vec b1 = load(b + k * ldb + kLanes);
        for (int r = 0; r < R; r++) {
            const float x = a[r * lda + k];
            acc[r][0] += x * b0;
            acc[r][1] += x * b1;
        }
    }
    for (int r = 0; r < R; r++) {
        float* out = c + r * ldc;
        if (columns == kPanel) {
            store(out, add ? load(out) + acc[r][0] : acc[r][0]);
            store(out + kLanes, add ? load(out + kLanes) + acc[r][1] : acc[r][1]);
        } else {
            float part[kPanel];
            memcpy(part, acc[r], sizeof part);
            for (int j = 0; j < columns; j++) {
                out[j] = add ? out[j] + part[j] : part[j];
            }
        }
    }
}

void panel_rows(int64_t rows, const float* a, int64_t lda, const float* b, int64_t ldb, int64_t n, float* c,
                int64_t ldc, int columns, bool add) {
    int64_t i = 0;
    for (; i + kPanelRows <= rows; i += kPanelRows) {
        panel_block<kPanelRows>(a + i * lda, lda, b, ldb, n, c + i * ldc, ldc, columns, add);
    }
    for (; i + 2 <= rows; i += 2) {
        panel_block<2>(a + i * lda, lda, b, ldb, n, c + i * ldc, ldc, columns, add);
    }
    for (; i < rows; i++) {
        panel_block<1>(a + i * lda, lda, b, ldb, n, c + i * ldc, ldc, columns, add);
    }
}

void load_strided(float* out, const char* in, int32_t dtype, int64_t stride, int64_t n) {
    if (dtype == acl::FLOAT) {
        for (int64_t i = 0; i < n; i++) {
            memcpy(out + i, in + i * stride * 4, 4);
        }
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        uint16_t x;
        memcpy(&x, in + i * stride * 2, 2);
        out[i] = dtype == acl::FLOAT16 ? half_to_float(x) : bf16_to_float(x);
    }
}

void gemm_panels(const Gemm& g) {
    const int64_t element = g.b_dtype == acl::FLOAT ? 4 : 2;
    const char* b = static_cast<const char*>(g.b);
    // Few rows do not repay the packing.
    const bool direct = g.b_dtype == acl::FLOAT && g.b_col == 1 && g.m <= 2 * kPanelRows;
    for (int64_t k0 = 0; k0 < g.k; k0 += kPanelDepth) {
        const int64_t depth = g.k - k0 < kPanelDepth ? g.k - k0 : kPanelDepth;
        for (int64_t group = 0; group < g.n; group += kPanelGroup * kPanel) {
            const int64_t group_end = g.n - group < kPanelGroup * kPanel ? g.n : group + kPanelGroup * kPanel;
            for (int64_t n0 = group; n0 < group_end; n0 += kPanel) {
                const int columns = int(group_end - n0 < kPanel ? group_end - n0 : kPanel);
                if (direct && columns == kPanel) {
                    continue;
                }
                float* panel = g.scratch + (n0 - group) * kPanelDepth;
                for (int64_t k = 0; k < depth; k++) {
                    const char* row = b + ((k0 + k) * g.b_row + n0 * g.b_col) * element;
                    float* out = panel + k * kPanel;
                    if (g.b_col == 1) {
                        load_narrow(out, row, g.b_dtype, columns);
                    } else {
                        load_strided(out, row, g.b_dtype, g.b_col, columns);
                    }
                    for (int j = columns; j < kPanel; j++) {
                        out[j] = 0;
                    }
                }
            }
            for (int64_t m0 = 0; m0 < g.m; m0 += kDotBatch) {
                const int64_t rows = g.m - m0 < kDotBatch ? g.m - m0 : kDotBatch;
                for (int64_t n0 = group; n0 < group_end; n0 += kPanel) {
                    const int columns = int(group_end - n0 < kPanel ? group_end - n0 : kPanel);
                    const bool in_place = direct && columns == kPanel;
                    const float* panel = in_place ? reinterpret_cast<const float*>(b) + k0 * g.b_row + n0
                                                  : g.scratch + (n0 - group) * kPanelDepth;
                    panel_rows(rows, g.a + m0 * g.lda + k0, g.lda, panel, in_place ? g.b_row : kPanel, depth,
                               g.c + m0 * g.ldc + n0, g.ldc, columns, k0 > 0);
                }
            }
        }
    }
}

void gemm(const Gemm& g) {
    if (g.k == 0) {
        for (int64_t i = 0; i < g.m; i++) {
            memset(g.c + i * g.ldc, 0, size_t(g.n) * sizeof(float));
        }
    } else if (g.b_row == 1 && (g.b_col != 1 || g.n == 1)) {
        gemm_dot(g);
    } else {
        gemm_panels(g);
    }
}

int64_t gemm_scratch(int64_t n) {
    const int64_t panels = (n + kPanel - 1) / kPanel;
    const int64_t columns = (panels < kPanelGroup ? panels : kPanelGroup) * kPanel;
    const int64_t for_panels = columns * kPanelDepth;
    const int64_t for_dots = kDotColumns * kDotDepth;
    return for_panels > for_dots ? for_panels : for_dots;
}

float dot(const float* a, const float* b, int64_t n) {
    float c;
    dot_block<1, 1>(a, 0, b, 0, n, &c, 0, false);
    return c;
}

}  // namespace

void fill_gemm(Kernels& k) {
    k.gemm = gemm;
    k.gemm_scratch = gemm_scratch;
    k.dot = dot;
}

}  // namespace flexnpu::ops::FLEXNPU_ISA
