#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

#include "flexnpu/api/host_objects.hpp"
#include "fn_ids.gen.h"

using namespace flexnpu::api;
namespace acl = flexnpu::acl;

TEST_CASE("a tensor keeps what it was made of") {
    const int64_t dims[] = {2, 3}, strides[] = {3, 1}, storage[] = {6};
    auto* t = aclCreateTensor(dims, 2, acl::FLOAT, strides, 4, acl::ND, storage, 1,
                              reinterpret_cast<void*>(0x1000));
    REQUIRE(t);
    int64_t* out = nullptr;
    uint64_t n = 0;
    REQUIRE(aclGetViewShape(t, &out, &n) == 0);
    CHECK(n == 2);
    CHECK(out[1] == 3);
    delete[] out;
    int64_t offset = 0;
    CHECK(aclGetViewOffset(t, &offset) == 0);
    CHECK(offset == 4);
    CHECK(aclDestroyTensor(t) == 0);
}

TEST_CASE("more dimensions than are kept inline") {
    int64_t dims[11];
    for (int i = 0; i < 11; i++) dims[i] = i + 1;
    auto* t = aclCreateTensor(dims, 11, acl::INT8, nullptr, 0, acl::ND, dims, 11, nullptr);
    REQUIRE(t);
    CHECK(t->dims.size() == 11);
    CHECK(t->dims[10] == 11);
    CHECK(t->strides.empty());
    aclDestroyTensor(t);
}

TEST_CASE("bad arguments are refused, not followed") {
    CHECK(aclCreateTensor(nullptr, 3, acl::FLOAT, nullptr, 0, acl::ND, nullptr, 0, nullptr) == nullptr);
    CHECK(aclCreateScalar(nullptr, acl::FLOAT) == nullptr);
    int v = 1;
    CHECK(aclCreateScalar(&v, 999) == nullptr);
    CHECK(aclGetViewShape(nullptr, nullptr, nullptr) == acl::INVALID_PARAM);
    CHECK(aclGetTensorDescDim(nullptr, 0) == -1);
}

TEST_CASE("half precision round trip covers every value") {
    for (uint32_t h = 0; h < 65536; h++) {
        float f = aclFloat16ToFloat(aclFloat16(h));
        if (std::isnan(f)) {
            CHECK(std::isnan(aclFloat16ToFloat(aclFloatToFloat16(f))));
        } else {
            REQUIRE(aclFloatToFloat16(f) == h);
        }
    }
    CHECK(aclFloatToFloat16(65519.0f) == 0x7bff);
    CHECK(aclFloatToFloat16(65520.0f) == 0x7c00);
    CHECK(aclFloatToFloat16(1e30f) == 0x7c00);
    CHECK(aclFloatToFloat16(1.0f + 0x1p-11f) == 0x3c00);  // a tie goes to even
    CHECK(aclFloatToFloat16(1.0f + 0x1p-11f + 0x1p-20f) == 0x3c01);
    CHECK(aclFloatToFloat16(0x1p-25f) == 0);  // a tie at half the smallest subnormal
    CHECK(aclFloatToFloat16(0x1.8p-25f) == 1);
}

TEST_CASE("element counts do not overflow") {
    const int64_t dims[] = {int64_t(1) << 40, int64_t(1) << 40};
    auto* d = aclCreateTensorDesc(acl::FLOAT, 2, dims, acl::ND);
    CHECK(aclGetTensorDescElementCount(d) == 0);
    aclDestroyTensorDesc(d);
}

TEST_CASE("operators are found by name") {
    int add = find_op("aclnnAdd");
    REQUIRE(add >= 0);
    CHECK(std::string_view(kOps[add].kinds) == "TTSt");
    CHECK(find_op("aclnnNoSuchOperator") == -1);
    CHECK(std::string_view(kFnNames[FN_aclInit]) == "aclInit");
    for (uint32_t i = 0; i < kOpCount; i++) REQUIRE(find_op(kOps[i].name) == int(i));
}
