// Memory and copies of the emulated runtime in compute mode, through its exported functions.
#include <doctest/doctest.h>

#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <future>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "support.hpp"

using namespace flexnpu;
using namespace flexnpu::emulator::test;
using namespace std::chrono_literals;

TEST_CASE("copies in every direction, synchronous and asynchronous") {
    constexpr size_t n = 1 << 20;
    std::vector<uint8_t> from(n), to(n);
    std::iota(from.begin(), from.end(), 1);
    void *a = device_memory(n), *b = device_memory(n);
    StreamOwner stream;
    CHECK(aclrtMemcpy(a, n, from.data(), n, acl::HOST_TO_DEVICE) == 0);
    CHECK(aclrtMemcpy(b, n, a, n, acl::DEVICE_TO_DEVICE) == 0);
    CHECK(aclrtMemcpy(to.data(), n, b, n, acl::DEVICE_TO_HOST) == 0);
    CHECK(from == to);
    // The pageable source of an asynchronous copy may change after the call.
    std::vector<uint8_t> changing(n, 3);
    CHECK(aclrtMemcpyAsync(a, n, changing.data(), n, acl::HOST_TO_DEVICE, stream) == 0);
    std::fill(changing.begin(), changing.end(), 9);
    CHECK(aclrtMemcpyAsync(b, n, a, n, acl::MEMCPY_DEFAULT, stream) == 0);
    CHECK(aclrtMemcpyAsync(to.data(), n, b, n, acl::DEVICE_TO_HOST, stream) == 0);
    CHECK(aclrtSynchronizeStream(stream) == 0);
    CHECK(to == std::vector<uint8_t>(n, 3));
    CHECK(aclrtMemset(a, n, 5, n) == 0);
    CHECK(aclrtMemsetAsync(b, n, 6, n, stream) == 0);
    CHECK(aclrtSynchronizeStream(stream) == 0);
    CHECK(aclrtMemcpy(to.data(), n, a, n, acl::DEVICE_TO_HOST) == 0);
    CHECK(to == std::vector<uint8_t>(n, 5));
    CHECK(aclrtMemcpy(to.data(), n, b, n, acl::DEVICE_TO_HOST) == 0);
    CHECK(to == std::vector<uint8_t>(n, 6));
    // Rows of 3 bytes out of a pitch of 5 into a pitch of 4.
    std::vector<uint8_t> rows(15), back(12, 0);
    std::iota(rows.begin(), rows.end(), 0);
    CHECK(aclrtMemcpy2d(a, 5, rows.data(), 5, 5, 3, acl::HOST_TO_DEVICE) == 0);
    CHECK(aclrtMemcpy2d(back.data(), 4, a, 5, 3, 3, acl::DEVICE_TO_HOST) == 0);
    CHECK(back == std::vector<uint8_t>{0, 1, 2, 0, 5, 6, 7, 0, 10, 11, 12, 0});
    CHECK(aclrtFree(a) == 0);
    CHECK(aclrtFree(b) == 0);
}

TEST_CASE("addresses outside an allocation are refused, in whole and in part") {
    uint8_t host[64] = {};
    void* p = device_memory(4096);
    void* beside = device_memory(4096);
    auto* bytes = static_cast<uint8_t*>(p);
    CHECK(aclrtMemcpy(bytes + 4090, 64, host, 64, acl::HOST_TO_DEVICE) == acl::RT_PARAM_INVALID);
    CHECK(aclrtMemcpy(host, 64, bytes + 4090, 64, acl::DEVICE_TO_HOST) == acl::RT_PARAM_INVALID);
    CHECK(aclrtMemcpy(p, 32, host, 64, acl::HOST_TO_DEVICE) == acl::RT_PARAM_INVALID);
    CHECK(aclrtMemcpy(p, 64, p, 64, acl::HOST_TO_DEVICE) == acl::RT_PARAM_INVALID);
    CHECK(aclrtMemcpy(host, 64, host, 64, acl::DEVICE_TO_HOST) == acl::RT_PARAM_INVALID);
    CHECK(aclrtMemcpy(reinterpret_cast<void*>(0x1000), 64, host, 64, acl::HOST_TO_DEVICE) ==
          acl::RT_PARAM_INVALID);
    CHECK(aclrtMemcpy(p, 64, host, 64, 99) == acl::RT_PARAM_INVALID);
    CHECK(aclrtMemcpy(p, 64, nullptr, 64, acl::HOST_TO_DEVICE) == acl::INVALID_PARAM);
    CHECK(aclrtMemcpy(p, 64, reinterpret_cast<void*>(0x10), 64, acl::HOST_TO_DEVICE) ==
          acl::RT_PARAM_INVALID);
    CHECK(aclrtMemcpy(reinterpret_cast<void*>(UINTPTR_MAX - 80), 64, p, 64, acl::DEVICE_TO_HOST) ==
          acl::RT_PARAM_INVALID);
    CHECK(aclrtMemset(reinterpret_cast<void*>(0x10), 8, 0, 8) == acl::RT_PARAM_INVALID);
    CHECK(aclrtMemset(host, 64, 3, 64) == 0);
    CHECK(host[63] == 3);
    CHECK(aclrtMemset(bytes + 4095, 8, 0, 8) == acl::RT_PARAM_INVALID);
    CHECK(aclrtMemcpyAsync(bytes + 4090, 64, host, 64, acl::HOST_TO_DEVICE, nullptr) ==
          acl::RT_PARAM_INVALID);
    CHECK(std::string(aclGetRecentErrMsg()).find("not within device memory") != std::string::npos);
    CHECK(aclrtFree(bytes + 512) == acl::RT_PARAM_INVALID);
    CHECK(aclrtFree(beside) == 0);
    CHECK(aclrtFree(beside) == acl::RT_PARAM_INVALID);
    CHECK(aclrtMemcpy(beside, 64, host, 64, acl::HOST_TO_DEVICE) == acl::RT_PARAM_INVALID);
    CHECK(aclrtFree(nullptr) == acl::INVALID_PARAM);
    CHECK(aclrtFree(p) == 0);
}

TEST_CASE("memory ends at the modelled size and comes back") {
    size_t free_before = 0, total = 0, free_now = 0;
    REQUIRE(aclrtGetMemInfo(acl::MEM_HBM, &free_before, &total) == 0);
    CHECK(total == 1ull << 30);
    std::vector<void*> held;
    void* p = nullptr;
    while (aclrtMalloc(&p, 64 << 20, 0) == 0) {
        held.push_back(p);
        REQUIRE(held.size() <= 16);
    }
    CHECK(held.size() == 16);
    CHECK(p == nullptr);
    CHECK(aclrtMalloc(&p, 1, 0) == acl::RT_MEMORY_ALLOCATION);
    CHECK(std::string(aclGetRecentErrMsg()).find("out of memory") != std::string::npos);
    CHECK(aclrtGetMemInfo(acl::MEM_HBM, &free_now, &total) == 0);
    CHECK(free_now == 0);
    for (void* q : held) {
        CHECK(aclrtFree(q) == 0);
    }
    CHECK(aclrtGetMemInfo(acl::MEM_HBM, &free_now, &total) == 0);
    CHECK(free_now == free_before);
    CHECK(aclrtMalloc(&p, SIZE_MAX, 0) == acl::RT_MEMORY_ALLOCATION);
    CHECK(aclrtMalloc(&p, 0, 0) == acl::INVALID_PARAM);
}

TEST_CASE("host memory and pointer attributes") {
    struct {
        uint32_t id;
        int32_t type;
        uint32_t page;
        uint32_t rest[4];
    } attributes;
    auto type_of = [&](const void* p) {
        REQUIRE(aclrtPointerGetAttributes(p, reinterpret_cast<aclrtPtrAttributes*>(&attributes)) == 0);
        return attributes.type;
    };
    void* pinned = nullptr;
    REQUIRE(aclrtMallocHost(&pinned, 1000) == 0);
    void* p = device_memory(1000);
    int local = 0;
    CHECK(type_of(pinned) == 0);
    CHECK(type_of(p) == 1);
    CHECK(type_of(&local) == 2);
    CHECK(aclrtFreeHost(p) == acl::RT_PARAM_INVALID);
    CHECK(aclrtFree(pinned) == acl::RT_PARAM_INVALID);
    CHECK(aclrtFreeHost(pinned) == 0);
    CHECK(aclrtFreeHost(pinned) == acl::RT_PARAM_INVALID);
    std::vector<char> registered(8192);
    void* mapped = nullptr;
    CHECK(aclrtHostRegister(registered.data(), registered.size(), 0, &mapped) == 0);
    CHECK(mapped != nullptr);
    CHECK(aclrtHostRegister(registered.data(), registered.size(), 0, &mapped) == acl::RT_PARAM_INVALID);
    CHECK(type_of(registered.data() + 100) == 0);
    CHECK(aclrtHostUnregister(registered.data()) == 0);
    CHECK(aclrtHostUnregister(registered.data()) == acl::RT_PARAM_INVALID);
    CHECK(aclrtFree(p) == 0);
}

TEST_CASE("a stream waits for a value in device memory") {
    auto* word = static_cast<uint64_t*>(device_memory(8));
    StreamOwner waiter, writer;
    REQUIRE(aclrtMemset(word, 8, 0, 8) == 0);
    std::atomic<bool> passed{false};
    REQUIRE(aclrtValueWait(word, 5, 0, waiter) == 0);
    REQUIRE(launch(waiter, 1, [&] {
                passed = true;
                return 0;
            }) == 0);
    CHECK(aclrtSynchronizeStreamWithTimeout(waiter, 20) == acl::RT_WAIT_TIMEOUT);
    CHECK(!passed);
    REQUIRE(aclrtValueWrite(word, 5, 0, writer) == 0);
    CHECK(aclrtSynchronizeStreamWithTimeout(waiter, 5000) == 0);
    CHECK(passed);
    CHECK(aclrtFree(word) == 0);
}
