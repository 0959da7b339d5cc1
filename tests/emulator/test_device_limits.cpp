// What a device has a fixed number of: streams and events, for all that use it.
#include <doctest/doctest.h>

#include <sys/wait.h>
#include <unistd.h>
#include <string>
#include <vector>

#include "flexnpu/api/resource_errors.h"
#include "flexnpu/emulator/runtime/shared_device.hpp"
#include "support.hpp"

namespace emu = flexnpu::emulator;
namespace acl = flexnpu::acl;

namespace {

uint32_t streams_left() {
    uint32_t n = 0;
    REQUIRE(aclrtGetStreamAvailableNum(&n) == 0);
    return n;
}
uint32_t events_left() {
    uint32_t n = 0;
    REQUIRE(aclrtGetEventAvailNum(&n) == 0);
    return n;
}

}  // namespace

TEST_CASE("a device has 1,984 streams, and the vendor's error for one more") {
    const uint32_t before = streams_left();
    REQUIRE(before <= 1983);  // the context has one of its own
    std::vector<aclrtStream> streams(before);
    for (aclrtStream& s : streams) REQUIRE(aclrtCreateStream(&s) == 0);
    CHECK(streams_left() == 0);
    aclrtStream more = nullptr;
    CHECK(aclrtCreateStream(&more) == acl::RT_NO_STREAM_RESOURCE);
    CHECK(std::string(aclGetRecentErrMsg()).find("1984") != std::string::npos);
    aclrtContext context = nullptr;
    CHECK(aclrtCreateContext(&context, 0) == acl::RT_NO_STREAM_RESOURCE);
    REQUIRE(aclrtDestroyStream(streams.back()) == 0);
    CHECK(streams_left() == 1);
    CHECK(aclrtCreateStream(&streams.back()) == 0);
    for (aclrtStream s : streams) CHECK(aclrtDestroyStream(s) == 0);
    CHECK(streams_left() == before);
}

TEST_CASE("a device has 65,536 events") {
    const uint32_t before = events_left();
    REQUIRE(before <= 65536);
    std::vector<aclrtEvent> events(before);
    for (aclrtEvent& e : events) REQUIRE(aclrtCreateEvent(&e) == 0);
    aclrtEvent more = nullptr;
    CHECK(aclrtCreateEvent(&more) == acl::RT_NO_EVENT_RESOURCE);
    CHECK(events_left() == 0);
    for (aclrtEvent e : events) CHECK(aclrtDestroyEvent(e) == 0);
    CHECK(events_left() == before);
}

TEST_CASE("all processes of a device share its streams, and one that dies leaves none behind") {
    const std::string machine = "limits-" + std::to_string(getpid());
    emu::SharedDevice mine(machine, 0, 1 << 20);
    REQUIRE(mine.objects_left(emu::DeviceObject::Stream) == 1984);
    const pid_t child = fork();
    if (child == 0) {
        emu::SharedDevice theirs(machine, 0, 1 << 20);
        int taken = 0;
        while (theirs.take_object(emu::DeviceObject::Stream)) taken++;
        _exit(taken == 1984 && theirs.objects_left(emu::DeviceObject::Event) == 65536 ? 0 : 1);
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 0);
    // It has ended with all of them in its name.
    CHECK(mine.take_object(emu::DeviceObject::Stream));
    CHECK(mine.objects_left(emu::DeviceObject::Stream) == 1983);
}
