// How ranks find each other: one thread for all that wait, a limit, and nobody who holds up the others.
#include <doctest/doctest.h>

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "acl.gen.h"
#include "flexnpu/api/hccl_types.hpp"

namespace hccl = flexnpu::hccl;

namespace {

size_t threads() {
    namespace fs = std::filesystem;
    return size_t(std::distance(fs::directory_iterator("/proc/self/task"), fs::directory_iterator()));
}

// The names in the abstract namespace at which communicators of this machine wait for their ranks.
std::set<std::string> meeting_places() {
    std::set<std::string> found;
    std::ifstream table("/proc/net/unix");
    for (std::string line; std::getline(table, line);) {
        const size_t at = line.find("@flexnpu-hccl-");
        if (at != std::string::npos) {
            found.insert(line.substr(at + 1));
        }
    }
    return found;
}

int connect_to(const std::string& name) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path + 1, name.data(), name.size());
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    REQUIRE(fd >= 0);
    const auto size = socklen_t(offsetof(sockaddr_un, sun_path) + 1 + name.size());
    REQUIRE(connect(fd, reinterpret_cast<sockaddr*>(&address), size) == 0);
    return fd;
}

// Makes a communicator of two ranks and ends it.
void meet(const HcclRootInfo& root) {
    std::vector<std::jthread> ranks;
    for (uint32_t rank = 0; rank < 2; ++rank) {
        ranks.emplace_back([&root, rank] {
            REQUIRE(aclrtSetDevice(int32_t(rank)) == 0);
            HcclComm comm = nullptr;
            REQUIRE_MESSAGE(HcclCommInitRootInfo(2, &root, rank, &comm) == 0, aclGetRecentErrMsg());
            CHECK(HcclCommDestroy(comm) == 0);
        });
    }
}

}  // namespace

TEST_CASE("root infos that wait for their ranks share one thread, and there is a limit to them") {
    REQUIRE(aclrtSetDevice(0) == 0);
    const size_t before = threads();
    std::vector<HcclRootInfo> roots;
    int32_t result = 0;
    while (roots.size() < 10'000) {
        HcclRootInfo root;
        result = HcclGetRootInfo(&root);
        if (result != 0) {
            break;
        }
        roots.push_back(root);
    }
    CHECK(roots.size() >= 64);
    CHECK(result == hccl::E_MEMORY);
    CHECK(std::string(aclGetRecentErrMsg()).find("HCCL_CONNECT_TIMEOUT") != std::string::npos);
    CHECK(threads() <= before + 1);
    // All of them are served. Then the thread ends, and there is room again.
    for (const HcclRootInfo& root : roots) {
        HcclComm comm = nullptr;
        REQUIRE_MESSAGE(HcclCommInitRootInfo(1, &root, 0, &comm) == 0, aclGetRecentErrMsg());
        CHECK(HcclCommDestroy(comm) == 0);
    }
    for (int i = 0; i < 30'000 && threads() > before; ++i) {
        usleep(2000);
    }
    CHECK(threads() <= before);
    HcclRootInfo root;
    REQUIRE(HcclGetRootInfo(&root) == 0);
    meet(root);
}

TEST_CASE("peers that say nothing, or the wrong thing, keep nobody waiting") {
    const auto before = meeting_places();
    HcclRootInfo root;
    REQUIRE(HcclGetRootInfo(&root) == 0);
    std::string name;
    for (const std::string& place : meeting_places()) {
        if (!before.contains(place)) {
            name = place;
        }
    }
    REQUIRE(!name.empty());
    // One after the other they would take longer than the ranks wait (HCCL_CONNECT_TIMEOUT).
    std::vector<int> silent;
    for (int i = 0; i < 120; ++i) {
        silent.push_back(connect_to(name));
        if (i % 3 == 1) {
            CHECK(send(silent.back(), "half", 4, MSG_NOSIGNAL) == 4);
        } else if (i % 3 == 2) {
            const std::string wrong(32, 'x');
            CHECK(send(silent.back(), wrong.data(), wrong.size(), MSG_NOSIGNAL) == 32);
        }
    }
    meet(root);
    for (const int fd : silent) {
        close(fd);
    }
}
