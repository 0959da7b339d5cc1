// First and second calls: what is refused, with which error and words, and the life of an executor.
#include <doctest/doctest.h>

#include <unistd.h>
#include <cstdlib>
#include <string>
#include <vector>

#include "acl.gen.h"
#include "flexnpu/emulator/kernel.hpp"

namespace {

struct Device {
    aclrtStream stream = nullptr;
    Device() {
        REQUIRE(aclInit(nullptr) == 0);
        REQUIRE(aclrtSetDevice(0) == 0);
        REQUIRE(aclrtCreateStream(&stream) == 0);
    }
};
Device& device() {
    static Device d;
    return d;
}

struct Memory {
    void* p = nullptr;
    explicit Memory(size_t size) { REQUIRE(aclrtMalloc(&p, size, 0) == 0); }
    ~Memory() { aclrtFree(p); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
};

aclTensor* tensor(void* p, std::vector<int64_t> dims, int32_t dtype = 0) {
    std::vector<int64_t> strides(dims.size());
    int64_t stride = 1;
    for (size_t i = dims.size(); i-- > 0; stride *= dims[i]) {
        strides[i] = stride;
    }
    return aclCreateTensor(dims.data(), dims.size(), dtype, strides.data(), 0, 2, dims.data(), dims.size(),
                           p);
}

std::string message() {
    const char* text = aclGetRecentErrMsg();
    return text == nullptr ? "" : text;
}

bool says(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("an operator computes, its tensors may be destroyed between the calls, its executor serves once") {
    Device& d = device();
    Memory a(16), b(16), c(16);
    const float x[] = {1, 2, 3, 4}, y[] = {10, 20, 30, 40};
    REQUIRE(aclrtMemcpy(a.p, 16, x, 16, 1) == 0);
    REQUIRE(aclrtMemcpy(b.p, 16, y, 16, 1) == 0);
    aclTensor *ta = tensor(a.p, {4}), *tb = tensor(b.p, {4}), *tc = tensor(c.p, {4});
    float alpha = 2;
    aclScalar* s = aclCreateScalar(&alpha, 0);
    uint64_t size = 99;
    aclOpExecutor* executor = nullptr;
    REQUIRE(aclnnAddGetWorkspaceSize(ta, tb, s, tc, &size, &executor) == 0);
    CHECK(executor != nullptr);
    CHECK(size == 0);
    aclDestroyTensor(ta);
    aclDestroyTensor(tb);
    aclDestroyTensor(tc);
    aclDestroyScalar(s);
    REQUIRE(aclnnAdd(nullptr, 0, executor, d.stream) == 0);
    REQUIRE(aclrtSynchronizeStream(d.stream) == 0);
    float out[4];
    REQUIRE(aclrtMemcpy(out, 16, c.p, 16, 2) == 0);
    CHECK(out[0] == 21);
    CHECK(out[3] == 84);
    CHECK(aclnnAdd(nullptr, 0, executor, d.stream) == 161001);
    CHECK(says(message(), "aclnnAdd: not a live executor"));
}

TEST_CASE("a repeatable executor serves until it is destroyed") {
    Device& d = device();
    Memory a(16);
    REQUIRE(aclrtMemset(a.p, 16, 0, 16) == 0);
    aclTensor* t = tensor(a.p, {4});
    float one = 1;
    aclScalar* s = aclCreateScalar(&one, 0);
    uint64_t size;
    aclOpExecutor* executor;
    REQUIRE(aclnnInplaceAddsGetWorkspaceSize(t, s, s, &size, &executor) == 0);
    REQUIRE(aclSetAclOpExecutorRepeatable(executor) == 0);
    for (int i = 0; i < 5; i++) {
        REQUIRE(aclnnInplaceAdds(nullptr, 0, executor, d.stream) == 0);
    }
    REQUIRE(aclrtSynchronizeStream(d.stream) == 0);
    REQUIRE(aclDestroyAclOpExecutor(executor) == 0);
    CHECK(aclDestroyAclOpExecutor(executor) == 161001);
    CHECK(aclnnInplaceAdds(nullptr, 0, executor, d.stream) == 161001);
    float out[4];
    REQUIRE(aclrtMemcpy(out, 16, a.p, 16, 2) == 0);
    CHECK(out[0] == 5);
    aclDestroyTensor(t);
    aclDestroyScalar(s);
}

TEST_CASE("malformed first calls get an error that names the operator and the fault") {
    device();
    Memory a(1024);
    aclTensor *four = tensor(a.p, {4}), *five = tensor(a.p, {5}), *matrix = tensor(a.p, {3, 4});
    aclTensor* complex = tensor(a.p, {4}, 16);
    aclTensor* nowhere = tensor(nullptr, {4});
    uint64_t size;
    aclOpExecutor* executor;

    CHECK(aclnnMulGetWorkspaceSize(four, five, four, &size, &executor) == 161002);
    CHECK(says(message(), "aclnnMul: shape [5] does not broadcast to [4]"));
    CHECK(executor == nullptr);
    CHECK(aclnnMulGetWorkspaceSize(nullptr, five, five, &size, &executor) == 161001);
    CHECK(says(message(), "aclnnMul: argument 0 is a null tensor"));
    CHECK(aclnnMulGetWorkspaceSize(four, four, four, nullptr, &executor) == 161001);
    CHECK(aclnnMulGetWorkspaceSize(four, four, four, &size, nullptr) == 161001);
    CHECK(aclnnMulGetWorkspaceSize(nowhere, four, four, &size, &executor) == 161001);
    CHECK(says(message(), "no memory"));
    CHECK(aclnnMulGetWorkspaceSize(complex, four, four, &size, &executor) == 161002);
    CHECK(says(message(), "complex64 is not emulated"));
    CHECK(aclnnMatmulGetWorkspaceSize(matrix, matrix, matrix, 0, &size, &executor) == 161002);
    CHECK(says(message(), "inner dimensions differ: 4 and 3"));
    CHECK(aclnnSoftmaxGetWorkspaceSize(matrix, 2, matrix, &size, &executor) == 161002);
    CHECK(says(message(), "dimension 2 is out of range"));
    for (aclTensor* t : {four, five, matrix, complex, nowhere}) {
        aclDestroyTensor(t);
    }
}

TEST_CASE("an operator without a body is refused by name") {
    device();
    Memory a(64);
    aclTensor* t = tensor(a.p, {4});
    uint64_t size;
    aclOpExecutor* executor;
    CHECK(aclnnLgammaGetWorkspaceSize(t, t, &size, &executor) == 100024);
    const std::string text = message();  // reading it clears it, as in CANN
    CHECK(says(text, "aclnnLgamma has no body in the emulated CANN"));
    CHECK(says(text, "FLEXNPU_EMU_MISSING=time"));
    aclDestroyTensor(t);
}

TEST_CASE("what only shows when the operator runs becomes the stream's error") {
    // An index out of range, and memory that is not the device's. A stream keeps its error, so each has its
    // own.
    device();
    Memory table(64), index(8), out(16);
    const int64_t seven = 7;
    REQUIRE(aclrtMemcpy(index.p, 8, &seven, 8, 1) == 0);
    aclTensor *weight = tensor(table.p, {4, 4}), *indices = tensor(index.p, {1}, 9),
              *result = tensor(out.p, {1, 4});
    uint64_t size;
    aclOpExecutor* executor;
    aclrtStream stream;
    REQUIRE(aclrtCreateStream(&stream) == 0);
    REQUIRE(aclnnEmbeddingGetWorkspaceSize(weight, indices, result, &size, &executor) == 0);
    REQUIRE(aclnnEmbedding(nullptr, 0, executor, stream) == 0);
    CHECK(aclrtSynchronizeStream(stream) == 507015);
    aclrtDestroyStream(stream);

    float host[4] = {1, 2, 3, 4};
    aclTensor* foreign = tensor(host, {4});
    REQUIRE(aclrtCreateStream(&stream) == 0);
    REQUIRE(aclnnInplaceZeroGetWorkspaceSize(foreign, &size, &executor) == 0);
    REQUIRE(aclnnInplaceZero(nullptr, 0, executor, stream) == 0);
    CHECK(aclrtSynchronizeStream(stream) == 507015);
    CHECK(host[0] == 1);
    aclrtDestroyStream(stream);
    for (aclTensor* t : {weight, indices, result, foreign}) {
        aclDestroyTensor(t);
    }
}

int main(int argc, char** argv) {
    setenv("FLEXNPU_EMU_PROFILE", FLEXNPU_TEST_PROFILE, 1);
    setenv("FLEXNPU_EMU_MACHINE", ("ops-" + std::to_string(getpid())).c_str(), 0);
    doctest::Context context(argc, argv);
    return context.run();
}
