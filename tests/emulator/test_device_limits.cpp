// What a device has a fixed number of: streams and events, for all that use it.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "flexnpu/api/resource_errors.h"
#include "support.hpp"

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
