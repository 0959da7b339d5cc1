// Every function that takes a handle refuses what is none.
#include <doctest/doctest.h>

#include <cstdint>
#include <functional>
#include <random>
#include <thread>
#include <vector>

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
    void* const bad[] = {stale,
                         event.handle,
                         &local,
                         reinterpret_cast<void*>(1),
                         reinterpret_cast<void*>(UINTPTR_MAX),
                         static_cast<char*>(live.handle) + 8,
                         static_cast<char*>(live.handle) + (1 << 24)};
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

TEST_CASE("random calls on live, stale and made-up handles and addresses never crash") {
    std::mt19937 random(5);
    std::vector<void*> streams{nullptr}, events{nullptr}, memory{nullptr};
    std::vector<uint8_t> host(1 << 16);
    auto any = [&](const std::vector<void*>& from) -> void* {
        switch (random() % 8) {
            case 0: return reinterpret_cast<void*>(uintptr_t(random()) << (random() % 32));
            case 1: return streams[random() % streams.size()];
            case 2: return events[random() % events.size()];
            default: return from[random() % from.size()];
        }
    };
    auto size = [&] {
        return random() % 4 == 0 ? size_t(random()) << (random() % 32) : random() % host.size();
    };
    // Not below: before the first allocation may lie the program's own memory, which a fill may well write
    // to.
    auto address = [&]() -> void* {
        auto p = reinterpret_cast<uintptr_t>(memory[random() % memory.size()]);
        return reinterpret_cast<void*>(random() % 4 == 0 ? p + random() % 8192 : p);
    };
    auto kind = [&] { return int32_t(random() % 12) - 2; };
    void* out = nullptr;
    size_t numbers[2];
    float ms = 0;
    int32_t status = 0;
    int copies = 0;
    const std::vector<std::function<aclError()>> calls = {
        [&] {
            aclError e = aclrtCreateStream(&out);
            if (!e) streams.push_back(out);
            return e;
        },
        [&] {
            aclError e = aclrtCreateEvent(&out);
            if (!e) events.push_back(out);
            return e;
        },
        [&] {
            aclError e = aclrtMalloc(&out, 1 + random() % 65536, 0);
            if (!e) memory.push_back(out);
            return e;
        },
        [&] { return aclrtDestroyStream(any(streams)); },
        [&] { return aclrtDestroyStreamForce(any(streams)); },
        [&] { return aclrtDestroyEvent(any(events)); },
        [&] { return random() % 2 ? aclrtFree(address()) : acl::SUCCESS; },
        [&] { return aclrtRecordEvent(any(events), any(streams)); },
        [&] { return aclrtResetEvent(any(events), any(streams)); },
        [&] { return aclrtStreamWaitEvent(any(streams), any(events)); },
        [&] { return aclrtQueryEventStatus(any(events), &status); },
        [&] { return aclrtEventElapsedTime(&ms, any(events), any(events)); },
        [&] { return aclrtSynchronizeEventWithTimeout(any(events), 1); },
        [&] { return aclrtSynchronizeStreamWithTimeout(any(streams), 1); },
        [&] { return aclrtStreamQuery(any(streams), &status); },
        [&] { return random() % 16 == 0 ? aclrtStreamAbort(any(streams)) : acl::SUCCESS; },
        [&] { return aclrtSetCurrentContext(any(streams)); },
        [&] { return aclrtDestroyContext(any(events)); },
        [&] { return aclrtGetMemInfo(kind(), &numbers[0], &numbers[1]); },
        [&] { return aclrtMemset(address(), size(), 1, random() % 4096); },
        [&] { return launch(any(streams), 0.1); },
        [&] {
            copies++;
            return aclrtMemcpy(address(), size(), host.data(), random() % 4096, acl::HOST_TO_DEVICE);
        },
        [&] { return aclrtMemcpy(host.data(), host.size(), address(), size(), acl::DEVICE_TO_HOST); },
        [&] { return aclrtMemcpy(address(), size(), address(), size(), acl::DEVICE_TO_DEVICE); },
        [&] {
            return aclrtMemcpy2d(address(), size(), address(), size(), size(), size(), acl::DEVICE_TO_DEVICE);
        },
        [&] { return aclrtFreeHost(address()); },
        [&] { return aclrtHostUnregister(address()); },
        [&] { return aclrtSynchronizeDeviceWithTimeout(5); },
#ifndef __SANITIZE_THREAD__  // a program that copies to one place from two streams at once is itself a race
        [&] { return aclrtMemsetAsync(address(), size(), 1, size(), any(streams)); },
        [&] {
            return aclrtMemcpyAsync(address(), size(), address(), size(), acl::DEVICE_TO_DEVICE,
                                    any(streams));
        },
        [&] {
            return aclrtMemcpyAsync(host.data(), host.size(), address(), size(), acl::DEVICE_TO_HOST,
                                    any(streams));
        },
#endif
    };
    for (int i = 0; i < 30000; ++i) {
        calls[random() % calls.size()]();
        if (streams.size() > 24) {
            aclrtDestroyStream(streams.back());
            streams.pop_back();
        }
        if (memory.size() > 64) {
            aclrtFree(memory.back());
            memory.pop_back();
        }
    }
    // What may be left of aborts and errors comes out, and the device works.
    aclrtSynchronizeDevice();
    for (void* p : memory) {
        aclrtFree(p);
    }
    for (void* stream : streams) {
        if (stream != nullptr) {
            aclrtDestroyStream(stream);
        }
    }
    CHECK(copies > 0);
    StreamOwner stream;
    CHECK(launch(stream, 1) == 0);
    CHECK(aclrtSynchronizeStream(stream) == 0);
}
