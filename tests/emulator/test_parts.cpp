// The parts of the emulated runtime by themselves: profiles, the shared page, memory, handles.
#include <doctest/doctest.h>

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>

#include "flexnpu/api/acl_consts.h"
#include "flexnpu/emulator/runtime/handles.hpp"
#include "flexnpu/emulator/runtime/memory.hpp"
#include "flexnpu/emulator/runtime/profile.hpp"
#include "flexnpu/emulator/runtime/shared_device.hpp"
#include "flexnpu/emulator/runtime/slowdown.hpp"

using namespace flexnpu;
using namespace flexnpu::emulator;

namespace {

// The same in children.
const std::string& machine() {
    static const std::string name = "parts-" + std::to_string(getpid());
    return name;
}
std::string profile_directory() {
    return std::filesystem::path(FLEXNPU_TEST_PROFILE).parent_path().parent_path().parent_path().string() +
           "/flexnpu/emulator/profiles";
}

std::string error_of(const std::function<void()>& call) {
    try {
        call();
    } catch (const std::runtime_error& error) {
        return error.what();
    }
    return "";
}

bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

// Runs `body` in a child that is then killed where it stands. The child has reported before.
[[maybe_unused]] void in_killed_child(const std::function<void()>& body) {
    int pipe_ends[2];
    REQUIRE(pipe(pipe_ends) == 0);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        body();
        if (write(pipe_ends[1], "x", 1) != 1) {
            _exit(1);
        }
        pause();
        _exit(1);
    }
    char byte;
    REQUIRE(read(pipe_ends[0], &byte, 1) == 1);
    REQUIRE(kill(child, SIGKILL) == 0);
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    close(pipe_ends[0]);
    close(pipe_ends[1]);
}

[[maybe_unused]] bool machine_exists() {
    std::string target = "flexnpu-emu-" + std::to_string(geteuid()) + "-" + machine();
    for (const auto& file : std::filesystem::directory_iterator("/proc/self/fd")) {
        std::error_code ignored;
        if (contains(std::filesystem::read_symlink(file.path(), ignored).string(), target)) {
            return true;
        }
    }
    return false;
}

}  // namespace

TEST_CASE("the roofline of the calibrated die") {
    Profile die = load_profile("ascend910c-die", profile_directory());
    CHECK(die.memory_bytes == 64ull << 30);
    // static + max(flops / (peak * efficiency), bytes / (rate * efficiency)), by hand.
    KernelCost big{.cube_flops = 2.0 * 4096 * 4096 * 4096,
                   .cube_dtype = acl::FLOAT16,
                   .vector_flops = 0,
                   .bytes = 3 * 2.0 * 4096 * 4096};
    CHECK(double(die.kernel_ns(big)) ==
          doctest::Approx(5000 + 137438953472.0 / (376e12 * 0.7) * 1e9).epsilon(1e-5));
    KernelCost thin{.cube_flops = 2.0 * 4096 * 4096,
                    .cube_dtype = acl::BF16,
                    .vector_flops = 0,
                    .bytes = 2.0 * 4096 * 4096};
    CHECK(double(die.kernel_ns(thin)) ==
          doctest::Approx(5000 + 33554432.0 / (1.6 * 1099511627776.0 * 0.6) * 1e9).epsilon(1e-5));
    KernelCost vector{.cube_flops = 0, .cube_dtype = 0, .vector_flops = 22e12 * 0.7 / 1e3, .bytes = 0};
    CHECK(die.kernel_ns(vector) == 2000 + 1'000'000);
    CHECK(die.kernel_ns(KernelCost{}) == 2000);
    CHECK(die.kernel_ns(vector, 0.5) == 1000 + 1'000'000);  // of the static part only
    // The types of the matrix unit.
    auto cube = [&](int32_t dtype) {
        return die.kernel_ns(
            KernelCost{.cube_flops = 1e12, .cube_dtype = dtype, .vector_flops = 0, .bytes = 0});
    };
    CHECK(cube(acl::INT8) < cube(acl::FLOAT16));
    CHECK(cube(acl::FLOAT16) < cube(acl::BF16));
    CHECK(cube(acl::BF16) < cube(acl::FLOAT));
    CHECK(cube(acl::DOUBLE) == cube(acl::FLOAT));
    // Nonsense costs neither wrap nor wedge.
    CHECK(die.kernel_ns(KernelCost{.cube_flops = 1e300, .cube_dtype = 0, .vector_flops = 0, .bytes = 0}) ==
          60'000'000'000);
    CHECK(die.kernel_ns(KernelCost{.cube_flops = 0, .cube_dtype = 0, .vector_flops = -1e300, .bytes = 0}) <=
          2000);
    CHECK(die.copy_ns(Profile::Copy::HostToDevice, 50'000'000'000) == 1'000'005'000);
}

TEST_CASE("a slowdown stretches every modelled time alike") {
    Profile die = load_profile("ascend910c-die", profile_directory());
    Profile slow = die;
    slow.slowdown = Slowdown("3");
    KernelCost cost{.cube_flops = 1e12, .cube_dtype = acl::FLOAT16, .vector_flops = 1e9, .bytes = 1e9};
    CHECK(double(slow.kernel_ns(cost, 0.5)) == doctest::Approx(3.0 * double(die.kernel_ns(cost, 0.5))));
    // Each is rounded down to a nanosecond.
    CHECK(double(slow.copy_ns(Profile::Copy::DeviceToHost, 1 << 20)) ==
          doctest::Approx(3.0 * double(die.copy_ns(Profile::Copy::DeviceToHost, 1 << 20))).epsilon(1e-4));
    CHECK(slow.replay_ns() == 3 * die.replay_ns());
    CHECK(slow.link_rate_now() == doctest::Approx(die.link_rate / 3));
    CHECK(slow.link_step_ns_now() == doctest::Approx(die.link_step_ns * 3));
}

TEST_CASE("a slowdown in a file is read as it changes, and nonsense counts as none") {
    std::string file =
        std::filesystem::temp_directory_path() / ("flexnpu-slowdown-" + std::to_string(getpid()));
    auto write = [&](double value) {
        std::fstream(file, std::ios::binary | std::ios::in | std::ios::out)
            .write(reinterpret_cast<const char*>(&value), sizeof value);
    };
    std::ofstream(file) << "12345678";
    Slowdown slowdown(file);
    write(2.5);
    CHECK(slowdown.factor() == 2.5);
    write(0.25);
    CHECK(slowdown.factor() == 0.25);
    for (double nonsense : {0.0, -1.0, 1e9, std::nan("")}) {
        write(nonsense);
        CHECK(slowdown.factor() == 1.0);
    }
    std::filesystem::remove(file);
}

TEST_CASE("every shipped profile loads") {
    int count = 0;
    for (const auto& entry : std::filesystem::directory_iterator(profile_directory())) {
        CAPTURE(entry.path().string());
        Profile profile = load_profile(entry.path().string(), "");
        CHECK(profile.name == entry.path().stem().string());
        ++count;
    }
    CHECK(count >= 2);
}

TEST_CASE("a bad profile is named with its field") {
    std::ifstream source(FLEXNPU_TEST_PROFILE);
    std::string good((std::istreambuf_iterator<char>(source)), {});
    std::string file =
        std::filesystem::temp_directory_path() / ("flexnpu-profile-" + std::to_string(getpid()) + ".toml");
    auto with = [&](const std::string& from, const std::string& to) {
        std::string text = good;
        auto at = text.find(from);
        REQUIRE(at != std::string::npos);
        text.replace(at, from.size(), to);
        std::ofstream(file) << text;
        return error_of([&] { load_profile(file, ""); });
    };
    CHECK(with("size_gib = 1.0", "size_gib = 1.0") == "");
    CHECK(contains(with("size_gib = 1.0", "size_gib = -1.0"), "memory.size_gib"));
    CHECK(contains(with("size_gib = 1.0", "size_gib = nan"), "memory.size_gib"));
    CHECK(contains(with("size_gib = 1.0", "size_gib = \"1\""), "memory.size_gib"));
    CHECK(contains(with("size_gib = 1.0", ""), "memory.size_gib must be given"));
    CHECK(contains(with("l2_mib", "l3_mib = 1\nl2_mib"), "memory.l3_mib is not a field"));
    CHECK(contains(with("[memory]", "[memory"), "line"));
    std::filesystem::remove(file);
    CHECK(contains(error_of([] { load_profile("no-such-chip", profile_directory()); }), "ascend910c-die"));
}

TEST_CASE("engines serve reservations one after the other") {
    SharedDevice device(machine(), 0, 1 << 20);
    CHECK(device.reserve(kCompute, 1000, 50) == 1000);
    CHECK(device.reserve(kCompute, 1000, 50) == 1050);
    CHECK(device.reserve(kHostToDevice, 1000, 50) == 1000);
    device.extend(kCompute, 25);
    CHECK(device.reserve(kCompute, 0, 5) == 1125);
    CHECK(device.reserve(kCompute, 5000, 5) == 5000);
    CHECK(device.busy_ns(kCompute) == 50 + 50 + 25 + 5 + 5);
}

TEST_CASE("concurrent reservations never overlap") {
    SharedDevice device(machine(), 0, 1 << 20);
    std::vector<uint64_t> starts[4];
    std::vector<std::thread> threads;
    for (auto& mine : starts) {
        threads.emplace_back([&] {
            for (int i = 0; i < 5000; ++i) {
                mine.push_back(device.reserve(kCompute, 7, 10));
            }
        });
    }
    for (auto& thread : threads) {
        thread.join();
    }
    std::set<uint64_t> all;
    for (auto& mine : starts) {
        CHECK(std::is_sorted(mine.begin(), mine.end()));
        all.insert(mine.begin(), mine.end());
    }
    CHECK(all.size() == 20000);
    CHECK(*all.begin() == 7);
    CHECK(*all.rbegin() == 7 + 10 * 19999);
}

#ifndef __SANITIZE_THREAD__  // these fork
TEST_CASE("processes see one device, and a killed one leaves nothing") {
    SharedDevice device(machine(), 0, 1 << 20);
    CHECK(device.users() == 1);
    in_killed_child([] {
        SharedDevice same(machine(), 0, 1 << 20);
        if (!same.take_memory(1 << 19) || same.users() != 2 || same.reserve(kCompute, 500, 100) != 500) {
            _exit(2);
        }
    });
    CHECK(device.reserve(kCompute, 0, 1) == 600);  // the timeline went on
    CHECK(device.take_memory(1 << 20));            // the dead process's half is free again
    CHECK(device.users() == 1);
    CHECK(!device.take_memory(1));
    device.give_memory(1 << 20);
    CHECK(device.used() == 0);
}

TEST_CASE("a process killed while it holds the table's mutex does not stop the others") {
    SharedDevice device(machine(), 0, 1 << 20);
    for (int round = 0; round < 20; ++round) {
        pid_t child = fork();
        REQUIRE(child >= 0);
        if (child == 0) {
            SharedDevice same(machine(), 0, 1 << 20);
            for (;;) {
                same.take_memory(1024);
                same.give_memory(1024);
            }
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(3 + round % 5));
        kill(child, SIGKILL);
        waitpid(child, nullptr, 0);
        REQUIRE(device.take_memory(1 << 20));
        device.give_memory(1 << 20);
    }
    CHECK(device.users() == 1);
}

TEST_CASE("the device ends with its last user, even a killed one") {
    in_killed_child([] {
        SharedDevice* only = new SharedDevice(machine(), 0, 1 << 20);
        only->reserve(kCompute, 0, 77);
    });
    CHECK(!machine_exists());
    SharedDevice fresh(machine(), 0, 1 << 20);
    CHECK(fresh.busy_ns(kCompute) == 0);
}
#endif

TEST_CASE("devices of one machine differ, and two sizes of one device are refused") {
    SharedDevice first(machine(), 0, 1 << 20), second(machine(), 1, 1 << 20);
    first.reserve(kCompute, 0, 100);
    CHECK(second.busy_ns(kCompute) == 0);
    CHECK(contains(error_of([] { SharedDevice other(machine(), 0, 1 << 21); }), "FLEXNPU_EMU_PROFILE"));
    CHECK(first.users() == 1);
}

TEST_CASE("memory: a random life keeps every byte accounted for and no two blocks overlapping") {
    SharedDevice device(machine(), 0, 64 << 20);
    Arena arena(device);
    std::mt19937 random(7);
    std::map<char*, uint64_t> live;
    for (int step = 0; step < 4000; ++step) {
        if (live.empty() || random() % 5 < 3) {
            uint64_t size = 1 + random() % (1 << (8 + random() % 14));
            auto* p = static_cast<char*>(arena.allocate(size));
            if (p == nullptr) {
                continue;
            }
            REQUIRE(reinterpret_cast<uintptr_t>(p) % Arena::kAlignment == 0);
            auto after = live.upper_bound(p);
            REQUIRE((after == live.end() || p + size <= after->first));
            REQUIRE((after == live.begin() || std::prev(after)->first + std::prev(after)->second <= p));
            REQUIRE(arena.contains_range(p, size));
            REQUIRE(!arena.contains_range(p, size + Arena::kAlignment));
            p[0] = p[size - 1] = 1;
            live[p] = size;
        } else {
            auto at = std::next(live.begin(), long(random() % live.size()));
            REQUIRE(!arena.release(at->first + 1));
            REQUIRE(arena.release(at->first));
            REQUIRE(!arena.release(at->first));
            REQUIRE(!arena.contains_range(at->first, 1));
            live.erase(at);
        }
        uint64_t sum = 0;
        for (auto [p, size] : live) {
            sum += (size + Arena::kAlignment - 1) / Arena::kAlignment * Arena::kAlignment;
        }
        REQUIRE(arena.allocated() == sum);
        REQUIRE(device.used() == sum);
    }
    for (auto [p, size] : live) {
        REQUIRE(arena.release(p));
    }
    CHECK(arena.allocate(64 << 20) != nullptr);  // nothing is lost to fragments
}

TEST_CASE("memory is committed by the touch and given back by the free") {
    SharedDevice device(machine(), 0, 1 << 30);
    Arena arena(device);
    auto resident_pages = [](char* p, size_t size) {
        std::vector<unsigned char> pages(size / 4096);
        REQUIRE(mincore(p, size, pages.data()) == 0);
        return std::count_if(pages.begin(), pages.end(), [](unsigned char page) { return page & 1; });
    };
    constexpr size_t size = 64 << 20;
    auto* p = static_cast<char*>(arena.allocate(size));
    REQUIRE(p != nullptr);
    CHECK(resident_pages(p, size) == 0);
    std::memset(p, 1, size / 2);
    CHECK(resident_pages(p, size) == long(size / 2 / 4096));
    CHECK(arena.release(p));
    CHECK(resident_pages(p, size) == 0);
}

TEST_CASE("handles: a slot used again makes another handle") {
    HandleTable<int> table(HandleKind::Stream);
    HandleTable<int> events(HandleKind::Event);
    void* first = table.add(std::make_shared<int>(1));
    CHECK(*table.get(first) == 1);
    CHECK(events.get(first) == nullptr);
    CHECK(table.remove(first) != nullptr);
    CHECK(table.remove(first) == nullptr);
    void* second = table.add(std::make_shared<int>(2));
    CHECK(second != first);
    CHECK(table.get(first) == nullptr);
    CHECK(*table.get(second) == 2);
    CHECK(table.get(nullptr) == nullptr);
    CHECK(uint64_t(second) < 1ull << 47);
}

TEST_CASE("all processes of a device share its streams, and one that dies leaves none behind") {
    const std::string machine = "limits-" + std::to_string(getpid());
    emulator::SharedDevice mine(machine, 0, 1 << 20);
    REQUIRE(mine.objects_left(emulator::DeviceObject::Stream) == 1984);
    const pid_t child = fork();
    if (child == 0) {
        emulator::SharedDevice theirs(machine, 0, 1 << 20);
        int taken = 0;
        while (theirs.take_object(emulator::DeviceObject::Stream)) taken++;
        _exit(taken == 1984 && theirs.objects_left(emulator::DeviceObject::Event) == 65536 ? 0 : 1);
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 0);
    // It has ended with all of them in its name.
    CHECK(mine.take_object(emulator::DeviceObject::Stream));
    CHECK(mine.objects_left(emulator::DeviceObject::Stream) == 1983);
}
