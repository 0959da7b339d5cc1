// Connections that take too much, and too many of them.
#include <doctest/doctest.h>

#include <dirent.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstring>
#include <vector>

#include "fn_ids.gen.h"
#include "plane_fixture.hpp"

using namespace flexnpu;
using daemon::Fd;

namespace {

struct Limited {
    std::string directory = test::Running::make_directory();
    daemon::Plane plane;
    explicit Limited(daemon::Limits limits)
        : plane(FLEXNPU_MOCK_VENDOR, 0, directory + "/npu0.sock", {}, limits) {
        plane.start();
    }
    ~Limited() {
        plane.stop();
        std::filesystem::remove_all(directory);
    }
    uint64_t counter(const char* name) { return plane.counters().at(name); }

    Fd unconnected() {
        Fd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
        const timeval timeout{5, 0};
        setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
        return fd;
    }
    void connect(const Fd& fd) {
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        std::strcpy(address.sun_path, (directory + "/npu0.sock").c_str());
        REQUIRE(::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
    }
    Fd connected() {
        Fd fd = unconnected();
        connect(fd);
        return fd;
    }
};

// What is answered; its magic is 0 when the daemon has hung up without a word.
wire::Answer take(const Fd& fd) {
    wire::Answer answer{};
    // ECONNRESET: it hung up before it had heard us; what it said first is still there.
    for (int i = 0; i < 2 && recv(fd.get(), &answer, sizeof(answer), 0) < 0 && errno == ECONNRESET; i++)
        continue;
    return answer;
}

wire::Answer ask(const Fd& fd, wire::Ask what, uint64_t bytes = 0, uint32_t region = 0) {
    const wire::Request request{wire::kMagic, wire::kVersion, what, region, bytes, api::kTableHash, 1, 0};
    send(fd.get(), &request, sizeof(request), MSG_NOSIGNAL);
    return take(fd);
}

bool says(const wire::Answer& a, const char* text) {
    return std::string(a.message).find(text) != std::string::npos;
}

}  // namespace

TEST_CASE("a connection that says nothing is dropped, a session is not") {
    Limited d({.hello_ms = 300});
    const Fd silent = d.connected(), session = d.connected();
    REQUIRE(ask(session, wire::Ask::hello).status == 0);
    pollfd p{silent.get(), POLLIN, 0};
    CHECK(poll(&p, 1, 5000) == 1);
    CHECK(take(silent).magic == 0);
    CHECK(d.counter("silent_dropped") == 1);
    CHECK(ask(session, wire::Ask::new_ring).status == 0);
}

TEST_CASE("connections of a user are bounded, and one that goes makes room") {
    Limited d({.sessions_per_user = 2});
    std::vector<Fd> open;
    for (int i = 0; i < 34; i++) open.push_back(d.connected());
    const Fd last = d.connected();
    const wire::Answer a = ask(last, wire::Ask::hello);
    CHECK(a.status == acl::RT_INTERNAL);
    CHECK(says(a, "34 connections open"));
    CHECK(d.counter("limited_connections") == 1);
    open.clear();
    for (int i = 0; i < 100; i++) {
        const Fd next = d.connected();
        if (ask(next, wire::Ask::hello).status == 0) return;
        usleep(20'000);
    }
    FAIL("nobody is let in any more");
}

TEST_CASE("sessions, rings and memory are given back with what they were for") {
    Limited d({.sessions = 6,
               .sessions_per_user = 3,
               .rings_per_user = 5,
               .host_bytes_per_user = 3 * wire::kSessionBytes + (8 << 20)});
    {
        const Fd one = d.connected(), two = d.connected(), three = d.connected(), four = d.connected();
        for (const Fd* fd : {&one, &two, &three}) REQUIRE(ask(*fd, wire::Ask::hello).status == 0);
        CHECK(says(ask(four, wire::Ask::hello), "--max-sessions-per-user"));
        for (int i = 0; i < 3; i++) CHECK(ask(one, wire::Ask::new_ring).status == 0);
        for (int i = 0; i < 2; i++) CHECK(ask(two, wire::Ask::new_ring).status == 0);
        CHECK(says(ask(three, wire::Ask::new_ring), "--max-rings-per-user"));
        const wire::Answer memory = ask(one, wire::Ask::host_memory, 6 << 20);
        CHECK(memory.status == 0);
        const wire::Answer more = ask(two, wire::Ask::host_memory, 6 << 20);
        CHECK(more.status == acl::RT_MEMORY_ALLOCATION);
        CHECK(says(more, "--max-host-bytes-per-user"));
        CHECK(ask(two, wire::Ask::host_memory, UINT64_MAX).status == acl::RT_MEMORY_ALLOCATION);
        CHECK(ask(one, wire::Ask::free_host_memory, 0, memory.number).status == 0);
        CHECK(ask(two, wire::Ask::host_memory, 6 << 20).status == 0);
    }
    CHECK(d.counter("limited_sessions") == 1);
    CHECK(d.counter("limited_rings") == 1);
    CHECK(d.counter("limited_host_memory") == 2);
    for (int i = 0; i < 200 && !d.plane.sessions().empty(); i++) usleep(10'000);
    const Fd again = d.connected();
    REQUIRE(ask(again, wire::Ask::hello).status == 0);
    for (int i = 0; i < 5; i++) CHECK(ask(again, wire::Ask::new_ring).status == 0);
    CHECK(ask(again, wire::Ask::host_memory, (8 << 20)).status == 0);
}

TEST_CASE("shared memory is registered with the vendor within bounds, and until it goes") {
    test::Mock mock;
    constexpr uint64_t kStaging = wire::kBlocks * wire::kBlockBytes, kMiB = 1 << 20;
    REQUIRE(mock.mock_held().pinned == 0);
    {
        Limited d(
            {.pinned_bytes = 2 * kStaging + 8 * kMiB, .pinned_bytes_per_user = 2 * kStaging + 6 * kMiB});
        const Fd one = d.connected(), two = d.connected();
        REQUIRE(ask(one, wire::Ask::hello).status == 0);
        CHECK(mock.mock_held().pinned == kStaging);
        const wire::Answer memory = ask(one, wire::Ask::host_memory, 4 * kMiB);
        CHECK(memory.status == 0);
        CHECK(mock.mock_held().pinned == kStaging + 4 * kMiB);
        // Beyond the bound memory is given all the same.
        CHECK(ask(one, wire::Ask::host_memory, 40 * kMiB).status == 0);
        CHECK(mock.mock_held().pinned == kStaging + 4 * kMiB);
        REQUIRE(ask(two, wire::Ask::hello).status == 0);
        CHECK(mock.mock_held().pinned == 2 * kStaging + 4 * kMiB);
        CHECK(ask(two, wire::Ask::host_memory, 2 * kMiB + 1).status == 0);
        CHECK(mock.mock_held().pinned == 2 * kStaging + 4 * kMiB);
        CHECK(ask(one, wire::Ask::free_host_memory, 0, memory.number).status == 0);
        CHECK(mock.mock_held().pinned == 2 * kStaging);
        // What the vendor refuses is given, and not charged.
        mock.mock_refuse_pins(1);
        CHECK(ask(two, wire::Ask::host_memory, 6 * kMiB).status == 0);
        mock.mock_refuse_pins(0);
        CHECK(mock.mock_held().pinned == 2 * kStaging);
        CHECK(ask(two, wire::Ask::host_memory, 6 * kMiB).status == 0);
        CHECK(mock.mock_held().pinned == 2 * kStaging + 6 * kMiB);
        CHECK(d.counter("pinned") == 4);
        CHECK(d.counter("unpinned_over_limit") == 2);
        CHECK(d.counter("unpinned_by_vendor") == 1);
    }
    CHECK(mock.mock_held().pinned == 0);
    Limited d({});
    mock.mock_refuse_pins(1);
    const Fd one = d.connected();
    REQUIRE(ask(one, wire::Ask::hello).status == 0);
    mock.mock_refuse_pins(0);
    CHECK(d.counter("unpinned_by_vendor") == 1);
    {
        const Fd two = d.connected();
        REQUIRE(ask(two, wire::Ask::hello).status == 0);
        CHECK(ask(two, wire::Ask::host_memory, kMiB).status == 0);
        CHECK(mock.mock_held().pinned == kStaging + kMiB);
    }
    for (int i = 0; i < 500 && mock.mock_held().pinned; i++) usleep(10'000);
    CHECK(mock.mock_held().pinned == 0);
}

TEST_CASE(
    "without file descriptors a client is told so, and the daemon serves on when there are some again") {
    Limited d({});
    const Fd held = d.connected();
    REQUIRE(ask(held, wire::Ask::hello).status == 0);
    // Its next answer says that the daemon has closed what it had opened for the first.
    REQUIRE(ask(held, wire::Ask(99)).status != 0);
    std::vector<Fd> clients;
    for (int i = 0; i < 20; i++) clients.push_back(d.unconnected());
    rlimit before{};
    getrlimit(RLIMIT_NOFILE, &before);
    // No more than are open: the lowest free number is beyond it.
    const int lowest = dup(0);
    ::close(lowest);
    const rlimit none{rlim_t(lowest), before.rlim_max};
    REQUIRE(setrlimit(RLIMIT_NOFILE, &none) == 0);
    for (const Fd& fd : clients) {
        d.connect(fd);
        const wire::Answer a = ask(fd, wire::Ask::hello);
        CHECK(a.status == acl::RT_INTERNAL);
        CHECK(says(a, "no file descriptors left"));
    }
    CHECK(ask(held, wire::Ask::new_ring).status != 0);
    setrlimit(RLIMIT_NOFILE, &before);
    CHECK(d.counter("out_of_descriptors") == clients.size());
    CHECK(ask(held, wire::Ask::new_ring).status == 0);
    const Fd next = d.connected();
    CHECK(ask(next, wire::Ask::hello).status == 0);
}
