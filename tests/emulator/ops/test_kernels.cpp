// The inner loops, on every instruction set of this machine.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "flexnpu/api/acl_consts.h"
#include "kernels.hpp"

using namespace flexnpu;
using ops::Binary;
using ops::Kernels;
using ops::Unary;

namespace flexnpu::ops {
namespace baseline {
const Kernels& table();
}
#if defined(__x86_64__)
namespace avx2 {
const Kernels& table();
}
#endif
}  // namespace flexnpu::ops

namespace {

std::vector<const Kernels*> sets() {
    std::vector<const Kernels*> result{&ops::baseline::table()};
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
        result.push_back(&ops::avx2::table());
    }
#endif
    return result;
}

float bits(uint32_t u) {
    float x;
    std::memcpy(&x, &u, sizeof x);
    return x;
}

// float16 by its definition.
double half_value(uint16_t h) {
    const int exponent = (h >> 10) & 31;
    const int fraction = h & 1023;
    const double sign = h & 0x8000 ? -1 : 1;
    if (exponent == 31) {
        return fraction ? std::numeric_limits<double>::quiet_NaN()
                        : sign * std::numeric_limits<double>::infinity();
    }
    return sign * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
}

}  // namespace

TEST_CASE("float16 and bfloat16 load exactly and survive a round trip, every value") {
    for (const Kernels* k : sets()) {
        CAPTURE(k->isa);
        std::vector<uint16_t> all(65536), back(65536);
        std::vector<float> values(65536);
        for (int i = 0; i < 65536; i++) {
            all[i] = uint16_t(i);
        }
        for (int32_t dtype : {acl::FLOAT16, acl::BF16}) {
            k->f32.load(values.data(), all.data(), dtype, 2, 65536);
            k->f32.store(values.data(), back.data(), dtype, 2, 65536);
            int wrong = 0;
            for (int i = 0; i < 65536; i++) {
                const double expected =
                    dtype == acl::FLOAT16 ? half_value(all[i]) : double(bits(uint32_t(i) << 16));
                if (std::isnan(expected)) {
                    wrong += !std::isnan(values[i]);
                } else {
                    wrong += values[i] != expected || back[i] != all[i];
                }
            }
            CHECK(wrong == 0);
        }
    }
}

TEST_CASE("rounding to float16 and bfloat16 is to nearest, ties to even") {
    struct Row {
        int32_t dtype;
        uint32_t in;
        uint16_t out;
    };
    const Row rows[] = {
        {acl::FLOAT16, 0x3F801000, 0x3C00},  // 1 + 2^-11: a tie, to even
        {acl::FLOAT16, 0x3F803000, 0x3C02},  // 1 + 3*2^-11: a tie, to even
        {acl::FLOAT16, 0x3F801001, 0x3C01},  // just above the tie
        {acl::FLOAT16, 0x477FEFFF, 0x7BFF},  // just below the overflow threshold 65520
        {acl::FLOAT16, 0x477FF000, 0x7C00},  // 65520 overflows
        {acl::FLOAT16, 0x33000000, 0x0000},  // 2^-25: a tie with zero
        {acl::FLOAT16, 0x33000001, 0x0001},
        {acl::FLOAT16, 0x387FE000, 0x0400},  // the largest subnormal rounds up to the smallest normal
        {acl::FLOAT16, 0xFF800000, 0xFC00},
        {acl::BF16, 0x3F808000, 0x3F80},
        {acl::BF16, 0x3F818000, 0x3F82},
        {acl::BF16, 0x3F808001, 0x3F81},
        {acl::BF16, 0x7F7FFFFF, 0x7F80},
        {acl::BF16, 0xFF800000, 0xFF80},
    };
    for (const Kernels* k : sets()) {
        CAPTURE(k->isa);
        for (const Row& row : rows) {
            CAPTURE(row.in);
            // Alone, and in a run long enough for the vector code.
            std::vector<float> in(19, bits(row.in));
            std::vector<uint16_t> out(19);
            k->f32.store(in.data(), out.data(), row.dtype, 2, 19);
            CHECK(out[0] == row.out);
            CHECK(out[18] == row.out);
        }
    }
}

TEST_CASE("rows of every type load and store at any stride") {
    for (const Kernels* k : sets()) {
        CAPTURE(k->isa);
        for (int32_t dtype :
             {acl::FLOAT, acl::FLOAT16, acl::BF16, acl::DOUBLE, acl::INT8, acl::UINT8, acl::INT16,
              acl::UINT16, acl::INT32, acl::UINT32, acl::INT64, acl::UINT64, acl::BOOL}) {
            CAPTURE(dtype);
            const auto size = int64_t(acl::element_size(dtype));
            for (int64_t gap : {1, 3}) {
                std::vector<unsigned char> memory(size_t(100 * size * gap), 0xEE);
                std::vector<int64_t> in(100), out(100);
                for (int i = 0; i < 100; i++) {
                    in[i] = dtype == acl::BOOL ? i % 2 : i;
                }
                k->i64.store(in.data(), memory.data(), dtype, size * gap, 100);
                k->i64.load(out.data(), memory.data(), dtype, size * gap, 100);
                CHECK(in == out);
                std::vector<double> real(100);
                k->f64.load(real.data(), memory.data(), dtype, size * gap, 100);
                CHECK(real[99] == double(in[99]));
                if (gap > 1) {
                    CHECK(memory[size_t(size)] == 0xEE);  // what lies between is left alone
                }
            }
        }
        // Stride 0 repeats one element.
        const int32_t seven = 7;
        std::vector<float> same(20);
        k->f32.load(same.data(), &seven, acl::INT32, 0, 20);
        CHECK(same == std::vector<float>(20, 7.0f));
        // Out of an integer's range.
        const float wild[] = {std::numeric_limits<float>::quiet_NaN(), 1e30f, -1e30f};
        int64_t whole[3];
        k->f32.store(wild, whole, acl::INT64, 8, 3);
        CHECK(whole[0] == INT64_MIN);
        CHECK(whole[1] == INT64_MIN);
        CHECK(whole[2] == INT64_MIN);
    }
}

TEST_CASE("the exponential is within 2 ulp and right at the ends") {
    for (const Kernels* k : sets()) {
        CAPTURE(k->isa);
        std::vector<float> x, y;
        for (int i = 0; i < 12774; i++) {
            x.push_back(-87 + float(i) * 0.0137f);
        }
        y.resize(x.size());
        k->f32.unary[int(Unary::Exp)](y.data(), x.data(), int64_t(x.size()), 0, 0);
        double worst = 0;
        for (size_t i = 0; i < x.size(); i++) {
            worst = std::max(worst, std::fabs(double(y[i]) / std::exp(double(x[i])) - 1));
        }
        CHECK(worst < 2.4e-7);
        const float inf = std::numeric_limits<float>::infinity();
        const float ends[] = {-inf, -200, -104, -103, 0, 88.8f, inf, std::numeric_limits<float>::quiet_NaN()};
        float out[8];
        k->f32.unary[int(Unary::Exp)](out, ends, 8, 0, 0);
        CHECK(out[0] == 0);
        CHECK(out[1] == 0);
        CHECK(out[2] == 0);
        CHECK(out[3] == std::exp(-103.0f));
        CHECK(out[4] == 1);
        CHECK(out[5] == inf);
        CHECK(out[6] == inf);
        CHECK(std::isnan(out[7]));
    }
}

TEST_CASE("extremes let NaN through, wherever it stands") {
    for (const Kernels* k : sets()) {
        CAPTURE(k->isa);
        for (size_t n : {1u, 5u, 64u, 200u}) {
            for (size_t at = 0; at < n; at++) {
                std::vector<float> row(n);
                for (size_t i = 0; i < n; i++) {
                    row[i] = float(i) - 3;
                }
                CHECK(k->f32.max(row.data(), int64_t(n)) == float(n) - 4);
                CHECK(k->f32.min(row.data(), int64_t(n)) == -3);
                row[at] = std::numeric_limits<float>::quiet_NaN();
                CHECK(std::isnan(k->f32.max(row.data(), int64_t(n))));
                CHECK(std::isnan(k->f32.min(row.data(), int64_t(n))));
            }
        }
    }
}

TEST_CASE("integer division has no trap and follows Python's signs") {
    const int64_t least = std::numeric_limits<int64_t>::min();
    const int64_t a[] = {7, -7, 7, -7, 5, least}, b[] = {2, 2, -2, -2, 0, -1};
    for (const Kernels* k : sets()) {
        int64_t out[6];
        k->i64.binary[int(Binary::FloorDiv)](out, a, b, 6, 1);
        CHECK(std::vector<int64_t>(out, out + 4) == std::vector<int64_t>{3, -4, -4, 3});
        k->i64.binary[int(Binary::Remainder)](out, a, b, 6, 1);
        CHECK(std::vector<int64_t>(out, out + 4) == std::vector<int64_t>{1, 1, -1, -1});
        k->i64.binary[int(Binary::TruncDiv)](out, a, b, 6, 1);
        CHECK(std::vector<int64_t>(out, out + 4) == std::vector<int64_t>{3, -3, -3, 3});
    }
}

TEST_CASE("products agree with float64 in every layout, and a row does not depend on its batch") {
    std::mt19937 random(1);
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (const Kernels* k : sets()) {
        CAPTURE(k->isa);
        for (int64_t m : {1, 2, 3, 5, 7, 13, 100}) {
            for (int64_t n : {1, 3, 4, 15, 16, 17, 33, 70}) {
                for (int64_t depth : {0, 1, 7, 8, 64, 513, 1030}) {
                    for (int layout = 0; layout < 3; layout++) {  // rows, columns, neither contiguous
                        for (int32_t dtype : {acl::FLOAT, acl::FLOAT16, acl::BF16}) {
                            if (m * n * depth > 1000000 && dtype != acl::FLOAT) {
                                continue;
                            }
                            std::vector<float> a(size_t(m * depth + 1)), c(size_t(m * n + 1), 99.0f),
                                alone(size_t(n + 1));
                            for (float& x : a) {
                                x = uniform(random);
                            }
                            const int64_t row = layout == 0   ? n
                                                : layout == 1 ? 1
                                                              : 2 * n,
                                          column = layout == 0   ? 1
                                                   : layout == 1 ? depth
                                                                 : 2;
                            std::vector<float> values(size_t(2 * n * depth + 2 * n + 2));
                            for (float& x : values) {
                                x = uniform(random);
                            }
                            const int64_t size = int64_t(acl::element_size(dtype));
                            std::vector<unsigned char> b(values.size() * 4);
                            k->f32.store(values.data(), b.data(), dtype, size, int64_t(values.size()));
                            k->f32.load(values.data(), b.data(), dtype, size, int64_t(values.size()));
                            std::vector<float> scratch(size_t(k->gemm_scratch(n)));
                            ops::Gemm g{m,     n,   depth,  a.data(), depth, b.data(),
                                        dtype, row, column, c.data(), n,     scratch.data()};
                            k->gemm(g);
                            double worst = 0;
                            for (int64_t i = 0; i < m; i++) {
                                for (int64_t j = 0; j < n; j++) {
                                    double sum = 0;
                                    for (int64_t t = 0; t < depth; t++) {
                                        sum += double(a[size_t(i * depth + t)]) *
                                               double(values[size_t(t * row + j * column)]);
                                    }
                                    worst = std::max(worst, std::fabs(sum - double(c[size_t(i * n + j)])));
                                }
                            }
                            CHECK(worst < 1e-6 * (1 + std::sqrt(double(depth)) * 2));
                            CHECK(c.back() == 99.0f);
                            g.m = 1;
                            g.a = a.data() + (m - 1) * depth;
                            g.c = alone.data();
                            k->gemm(g);
                            CHECK(std::memcmp(alone.data(), c.data() + (m - 1) * n, size_t(n) * 4) == 0);
                        }
                    }
                }
            }
        }
    }
}
