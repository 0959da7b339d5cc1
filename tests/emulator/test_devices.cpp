// Devices, contexts, threads and forks of the emulated runtime in compute mode, through its exported
// functions.
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

TEST_CASE("devices, contexts and reference counts") {
    std::thread([] {
        int32_t device = -1;
        aclrtStream stream = nullptr;
        void* p = nullptr;
        CHECK(aclrtGetDevice(&device) == acl::RT_CONTEXT_NULL);
        CHECK(aclrtCreateStream(&stream) == acl::RT_CONTEXT_NULL);
        CHECK(aclrtMalloc(&p, 512, 0) == acl::RT_CONTEXT_NULL);
        CHECK(aclrtSynchronizeStream(nullptr) == acl::RT_CONTEXT_NULL);
        CHECK(aclrtSetDevice(2) == acl::RT_INVALID_DEVICE);
        CHECK(aclrtSetDevice(-1) == acl::RT_INVALID_DEVICE);
        CHECK(aclrtResetDevice(1) == acl::RT_INVALID_DEVICE);
        REQUIRE(aclrtSetDevice(1) == 0);
        REQUIRE(aclrtSetDevice(1) == 0);
        CHECK(aclrtGetDevice(&device) == 0);
        CHECK(device == 1);
        REQUIRE(aclrtMalloc(&p, 512, 0) == 0);
        REQUIRE(aclrtCreateStream(&stream) == 0);
        aclrtContext own = nullptr, primary = nullptr;
        REQUIRE(aclrtGetCurrentContext(&primary) == 0);
        REQUIRE(aclrtCreateContext(&own, 1) == 0);
        CHECK(own != primary);
        aclrtContext current = nullptr;
        CHECK(aclrtGetCurrentContext(&current) == 0);
        CHECK(current == own);
        CHECK(aclrtDestroyContext(primary) == acl::RT_PARAM_INVALID);
        CHECK(aclrtSetCurrentContext(primary) == 0);
        CHECK(aclrtDestroyContext(own) == 0);
        CHECK(aclrtSetCurrentContext(own) == acl::RT_INVALID_HANDLE);
        CHECK(aclrtResetDevice(1) == 0);
        CHECK(launch(stream, 1) == 0);  // one reference is left
        CHECK(aclrtResetDevice(1) == 0);
        CHECK(launch(stream, 1) == acl::RT_CONTEXT_NULL);
        CHECK(aclrtFree(p) == acl::RT_PARAM_INVALID);
        CHECK(aclrtGetDevice(&device) == acl::RT_CONTEXT_NULL);
    }).join();
    int32_t active = -1;
    CHECK(aclrtGetPrimaryCtxState(0, nullptr, &active) == 0);
    CHECK(active == 1);
    CHECK(aclrtGetPrimaryCtxState(1, nullptr, &active) == 0);
    CHECK(active == 0);
}

TEST_CASE("a stream is used by threads of its device") {
    StreamOwner stream;
    aclrtEvent event = nullptr;
    REQUIRE(aclrtCreateEventWithFlag(&event, acl::EVENT_SYNC) == 0);
    REQUIRE(aclrtRecordEvent(event, stream) == 0);
    void* word = device_memory(8);
    std::thread([&] {
        for (const int32_t expected : {acl::RT_CONTEXT_NULL, acl::RT_STREAM_CONTEXT}) {
            CHECK(launch(stream, 1) == expected);
            CHECK(aclrtMemsetAsync(word, 8, 0, 8, stream) == expected);
            CHECK(aclrtRecordEvent(event, stream) == expected);
            CHECK(aclrtStreamWaitEvent(stream, event) == expected);
            CHECK(aclrtSynchronizeStream(stream) == expected);
            CHECK(aclrtDestroyStream(stream) == expected);
            CHECK(aclrtMemset(word, 8, 0, 8) == (expected == acl::RT_CONTEXT_NULL ? expected : 0));
            REQUIRE(aclrtSetDevice(1) == 0);
        }
        StreamOwner mine;
        CHECK(aclrtRecordEvent(event, mine) == acl::RT_STREAM_CONTEXT);
        CHECK(aclrtResetEvent(event, mine) == acl::RT_STREAM_CONTEXT);
        CHECK(aclrtStreamWaitEvent(mine, event) == 0);
        CHECK(aclrtSynchronizeStream(mine) == 0);
        CHECK(aclrtResetDevice(1) == 0);
        REQUIRE(aclrtResetDevice(1) == 0);
    }).join();
    CHECK(launch(stream, 1) == 0);
    CHECK(aclrtSynchronizeStream(stream) == 0);
    CHECK(aclrtDestroyEvent(event) == 0);
    CHECK(aclrtFree(word) == 0);
}

TEST_CASE("what is not a kernel of the emulated device is refused") {
    StreamOwner stream;
    char junk[sizeof(emulator::Kernel)] = {};
    CHECK(aclrtLaunchKernelWithHostArgs(nullptr, 1, stream, nullptr, junk, sizeof(junk), nullptr, 0) ==
          acl::KERNEL_NOT_FOUND);
    CHECK(aclrtLaunchKernelWithHostArgs(nullptr, 1, stream, nullptr, junk, 8, nullptr, 0) ==
          acl::KERNEL_NOT_FOUND);
    CHECK(aclrtLaunchKernelWithHostArgs(nullptr, 1, stream, nullptr, nullptr, 0, nullptr, 0) ==
          acl::INVALID_PARAM);
}

TEST_CASE("a function without a body says its name") {
    CHECK(aclmdlRIAddCondTask(nullptr, nullptr, 0) == acl::API_NOT_SUPPORTED);
    CHECK(std::string(aclGetRecentErrMsg()).find("aclmdlRIAddCondTask") != std::string::npos);
}

#ifndef __SANITIZE_THREAD__  // ThreadSanitizer does not support threads in a forked child
TEST_CASE("a forked child starts anew and leaves the parent's device alone") {
    size_t free_before = 0, total = 0, free_after = 0;
    void* p = device_memory(1 << 20);
    StreamOwner stream;
    REQUIRE(launch(stream, 1) == 0);
    REQUIRE(aclrtGetMemInfo(acl::MEM_HBM, &free_before, &total) == 0);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        bool good = aclrtSynchronizeStream(stream) != 0;  // the parent's handle
        good = good && aclrtFree(p) != 0;
        good = good && aclInit(nullptr) == 0 && aclrtSetDevice(0) == 0;
        aclrtStream own = nullptr;
        good =
            good && aclrtCreateStream(&own) == 0 && launch(own, 1) == 0 && aclrtSynchronizeStream(own) == 0;
        size_t free_there = 0;
        good = good && aclrtGetMemInfo(acl::MEM_HBM, &free_there, &total) == 0 && free_there == free_before;
        good = good && aclFinalize() == 0;
        _exit(good ? 0 : 1);
    }
    int status = -1;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(status == 0);
    CHECK(aclrtSynchronizeStream(stream) == 0);
    CHECK(aclrtGetMemInfo(acl::MEM_HBM, &free_after, &total) == 0);
    CHECK(free_after == free_before);
    CHECK(aclrtFree(p) == 0);
}
#endif

TEST_CASE("many threads on one stream and on their own") {
    StreamOwner shared;
    std::atomic<int> ran{0};
    std::vector<std::thread> threads;
    std::atomic<int> failures{0};
    for (int t = 0; t < 4; ++t) {
        threads.emplace_back([&] {
            if (aclrtSetDevice(0) != 0) {
                failures++;
            }
            StreamOwner own;
            for (int i = 0; i < 200; ++i) {
                failures += launch(shared, 0.1, [&] {
                                ran++;
                                return 0;
                            }) != 0;
                failures += launch(own, 0.1, [&] {
                                ran++;
                                return 0;
                            }) != 0;
                if (i % 20 == 0) {
                    failures += aclrtSynchronizeStream(own) != 0;
                    failures += aclrtSynchronizeStream(shared) != 0;
                }
            }
            failures += aclrtSynchronizeStream(own) != 0;
            failures += aclrtResetDevice(0) != 0;
        });
    }
    for (auto& thread : threads) {
        thread.join();
    }
    CHECK(aclrtSynchronizeStream(shared) == 0);
    CHECK(failures == 0);
    CHECK(ran == 4 * 200 * 2);
}
