// Every function that takes a handle refuses what is none.
#include <doctest/doctest.h>

#include <cstdint>
#include <thread>

#include "support.hpp"

using namespace flexnpu;
using namespace flexnpu::emulator::test;

TEST_CASE("stale, foreign and made-up handles are refused") {
    EventOwner event;
    StreamOwner live;
    aclrtStream stale = nullptr;
    REQUIRE(aclrtCreateStream(&stale) == 0);
    REQUIRE(aclrtDestroyStream(stale) == 0);
    int local = 0;
    void* const bad[] = {stale, event.handle, &local, reinterpret_cast<void*>(1), reinterpret_cast<void*>(UINTPTR_MAX),
                         static_cast<char*>(live.handle) + 8, static_cast<char*>(live.handle) + (1 << 24)};
    int32_t id = 0;
    uint32_t word = 0;
    for (void* stream : bad) {
        CAPTURE(stream);
        CHECK(aclrtSynchronizeStream(stream) == acl::RT_INVALID_HANDLE);
        CHECK(aclrtSynchronizeStreamWithTimeout(stream, 1) == acl::RT_INVALID_HANDLE);
        CHECK(aclrtStreamQuery(stream, &id) == acl::RT_INVALID_HANDLE);
        CHECK(aclrtStreamGetId(stream, &id) == acl::RT_INVALID_HANDLE);
        CHECK(aclrtStreamGetPriority(stream, &word) == acl::RT_INVALID_HANDLE);
        CHECK(aclrtStreamAbort(stream) == acl::RT_INVALID_HANDLE);
        CHECK(aclrtDestroyStream(stream) == acl::RT_INVALID_HANDLE);
        CHECK(aclrtDestroyStreamForce(stream) == acl::RT_INVALID_HANDLE);
        CHECK(aclrtRecordEvent(event, stream) == acl::RT_INVALID_HANDLE);
        CHECK(aclrtStreamWaitEvent(stream, event) == acl::RT_INVALID_HANDLE);
        CHECK(aclrtResetEvent(event, stream) == acl::RT_INVALID_HANDLE);
        CHECK(aclrtSubscribeReport(1, stream) == acl::RT_INVALID_HANDLE);
        CHECK(aclrtLaunchHostFunc(stream, &local, nullptr) == acl::RT_INVALID_HANDLE);
        CHECK(aclrtLaunchCallback(&local, nullptr, 0, stream) == acl::RT_INVALID_HANDLE);
        CHECK(aclrtMemsetAsync(&local, 4, 0, 4, stream) == acl::RT_INVALID_HANDLE);
        CHECK(aclrtMemcpyAsync(&local, 4, &word, 4, 0, stream) == acl::RT_INVALID_HANDLE);
        CHECK(aclrtSetStreamFailureMode(stream, 1) == acl::RT_INVALID_HANDLE);
        CHECK(launch(stream, 1) == acl::RT_INVALID_HANDLE);
    }
    void* const bad_events[] = {live.handle, &local, nullptr, reinterpret_cast<void*>(1)};
    float ms = 0;
    uint64_t us = 0;
    for (void* bad_event : bad_events) {
        CAPTURE(bad_event);
        CHECK(aclrtRecordEvent(bad_event, live) == acl::RT_INVALID_HANDLE);
        CHECK(aclrtStreamWaitEvent(live, bad_event) == acl::RT_INVALID_HANDLE);
        CHECK(aclrtSynchronizeEvent(bad_event) == acl::RT_INVALID_HANDLE);
        CHECK(aclrtQueryEventStatus(bad_event, &id) == acl::RT_INVALID_HANDLE);
        CHECK(aclrtQueryEventWaitStatus(bad_event, &id) == acl::RT_INVALID_HANDLE);
        CHECK(aclrtEventElapsedTime(&ms, event, bad_event) == acl::RT_INVALID_HANDLE);
        CHECK(aclrtEventGetTimestamp(bad_event, &us) == acl::RT_INVALID_HANDLE);
        CHECK(aclrtDestroyEvent(bad_event) == acl::RT_INVALID_HANDLE);
    }
    CHECK(aclrtSetCurrentContext(live) == acl::RT_INVALID_HANDLE);
    CHECK(aclrtDestroyContext(live) == acl::RT_INVALID_HANDLE);
    CHECK(aclrtSynchronizeStream(live) == 0);
}

TEST_CASE("outputs that are null are refused") {
    CHECK(aclrtMalloc(nullptr, 1, 0) == acl::INVALID_PARAM);
    CHECK(aclrtCreateStream(nullptr) == acl::INVALID_PARAM);
    CHECK(aclrtCreateEvent(nullptr) == acl::INVALID_PARAM);
    CHECK(aclrtGetDevice(nullptr) == acl::INVALID_PARAM);
    CHECK(aclrtGetDeviceCount(nullptr) == acl::INVALID_PARAM);
    CHECK(aclrtGetMemInfo(acl::MEM_HBM, nullptr, nullptr) == acl::INVALID_PARAM);
    CHECK(aclrtStreamQuery(nullptr, nullptr) == acl::INVALID_PARAM);
    CHECK(aclmdlRICaptureGetInfo(nullptr, nullptr, nullptr) == acl::INVALID_PARAM);
}

TEST_CASE("threads that use a stream while another destroys it get an error, not a crash") {
    for (int round = 0; round < 20; ++round) {
        aclrtStream stream = nullptr;
        REQUIRE(aclrtCreateStream(&stream) == 0);
        std::thread user([&] {
            while (launch(stream, 0.1) == 0 && aclrtSynchronizeStream(stream) == 0) {
            }
        });
        std::this_thread::sleep_for(std::chrono::microseconds(200 * round));
        CHECK(aclrtDestroyStream(stream) == 0);
        user.join();
    }
}
