// The device model on small cases that were worked out by hand.
#include <doctest/doctest.h>

#include <vector>

#include "flexnpu/device/device.hpp"

using namespace flexnpu::device;

namespace {

// 4 cube and 8 vector cores of one operation a us, memory of 8 bytes a us, a core of 4.
Chip chip(Contention contention = Contention::Fluid) { return {contention, 4, 8, 1, 1, 8, 4}; }

Kernel products(uint64_t ticket, double ops, uint32_t blocks = 0) {
    Kernel kernel;
    kernel.ticket = ticket;
    kernel.cube_ops = ops;
    kernel.blocks = blocks;
    return kernel;
}

Kernel copies(uint64_t ticket, double bytes, uint32_t blocks = 0) {
    Kernel kernel;
    kernel.ticket = ticket;
    kernel.bytes = bytes;
    kernel.blocks = blocks;
    return kernel;
}

std::vector<double> ends(Device& device, size_t kernels) {
    std::vector<double> at(kernels, -1);
    while (const auto done = device.next(kNever)) {
        at[done->ticket] = done->end_us;
    }
    return at;
}

}  // namespace

TEST_CASE("a kernel alone takes launch, static, and the larger of computing and moving") {
    for (const Contention contention : {Contention::Serial, Contention::Fluid}) {
        Device device(chip(contention));
        const uint32_t stream = *device.add_stream();
        Kernel kernel = products(0, 40);
        kernel.launch_us = 3;
        kernel.static_us = 2;
        kernel.bytes = 40;  // 5 us at 8 a us: less than the 10 us of computing
        REQUIRE(device.submit(1, stream, kernel));
        kernel.ticket = 1;
        kernel.bytes = 160;  // 20 us
        REQUIRE(device.submit(1, stream, kernel));
        CHECK(ends(device, 2) == std::vector<double>{16, 41});
    }
}

TEST_CASE("kernels of two streams run side by side where cores are free") {
    Device device(chip());
    const uint32_t a = *device.add_stream(), b = *device.add_stream();
    device.submit(0, a, products(0, 20, 2));  // 2 of 4 cores, 10 us
    device.submit(0, b, products(1, 20, 2));
    device.submit(0, b, products(2, 40));  // 4 blocks of 10 us
    CHECK(ends(device, 3) == std::vector<double>{10, 10, 20});
    CHECK(device.use().cube_core_us == doctest::Approx(80));

    Device serial(chip(Contention::Serial));
    serial.add_stream(), serial.add_stream();
    serial.submit(0, a, products(0, 20, 2));
    serial.submit(0, b, products(1, 20, 2));
    CHECK(ends(serial, 2) == std::vector<double>{10, 20});
}

TEST_CASE("more blocks than cores run in waves, a batch only where it fits") {
    Device device(chip());
    const uint32_t a = *device.add_stream(), b = *device.add_stream();
    device.submit(0, a, products(0, 60, 6));  // waves of 4 and 2 blocks of 10 us
    Kernel batch = products(1, 30, 3);
    batch.launch = Launch::Batch;
    device.submit(0, b, batch);  // 2 cores are free from 10 us on, 3 from 20 us on
    CHECK(ends(device, 2) == std::vector<double>{20, 30});
    batch.blocks = 5;
    CHECK_FALSE(device.submit(device.now_us(), b, batch));
}

TEST_CASE("a batch that waits keeps what comes free from those behind it, but not other units") {
    Device device(chip());
    const uint32_t a = *device.add_stream(), b = *device.add_stream(), c = *device.add_stream(),
                   d = *device.add_stream();
    device.submit(0, a, products(0, 20, 2));
    Kernel batch = products(1, 40, 4);
    batch.launch = Launch::Batch;
    device.submit(0, b, batch);
    device.submit(0, c, products(2, 1, 1));
    Kernel vector;
    vector.ticket = 3;
    vector.vector_ops = 8;
    vector.unit = Unit::Vector;
    device.submit(0, d, vector);
    CHECK(ends(device, 4) == std::vector<double>{10, 20, 21, 1});
}

TEST_CASE("a priority counts where a core comes free, and takes nothing that runs") {
    Device device(chip());
    const uint32_t low = *device.add_stream(7), high = *device.add_stream(0);
    device.submit(0, low, products(0, 80, 8));  // two waves of 10 us
    device.submit(5, high, products(1, 40));
    CHECK(ends(device, 2) == std::vector<double>{30, 20});
    CHECK_FALSE(device.add_stream(8).has_value());
}

TEST_CASE("memory is shared by core, and none gets more than it can use") {
    Device device(chip());
    const uint32_t a = *device.add_stream(), b = *device.add_stream();
    device.submit(0, a, copies(0, 24, 3));  // could use 12 a us of 8
    device.submit(0, b, copies(1, 8, 1));   // could use 4: gets 8 / 4 cores
    CHECK(device.running()[0].rate == doctest::Approx(6));
    CHECK(device.running()[1].rate == doctest::Approx(2));
    CHECK(ends(device, 2) == std::vector<double>{4, 4});

    Kernel slow = products(2, 10, 1);  // uses 1 a us while it computes
    slow.bytes = 10;
    device.submit(10, a, slow);
    device.submit(10, b, copies(3, 70, 3));
    const auto done = device.next(kNever);
    CHECK(done->end_us == doctest::Approx(20));
    CHECK(device.next(kNever)->end_us == doctest::Approx(20));
}

TEST_CASE("a core limit caps the blocks of what is submitted after it") {
    Device device(chip());
    const uint32_t a = *device.add_stream(), b = *device.add_stream();
    CHECK(device.set_limit(a, 2, 4));
    device.submit(0, a, products(0, 40));  // 2 blocks of 20 us
    device.submit(0, b, products(1, 20, 2));
    Kernel mixed = products(2, 4);  // a core limit of 4 vector cores is 2 mixed blocks
    mixed.unit = Unit::Mixed;
    mixed.vector_ops = 16;
    device.submit(30, a, mixed);
    mixed.ticket = 3;
    mixed.limited = false;
    device.submit(30, a, mixed);
    CHECK(ends(device, 4) == std::vector<double>{20, 10, 34, 36});
}

TEST_CASE("a device has 1,984 streams, and what no core can do is refused") {
    Device device(chip());
    for (uint32_t i = 0; i < Device::kMaxStreams; ++i) {
        REQUIRE(device.add_stream() == i);
    }
    CHECK_FALSE(device.add_stream().has_value());
    CHECK(device.submit(0, 5, products(0, 4)));
    CHECK_FALSE(device.remove_stream(5));
    ends(device, 1);
    CHECK(device.remove_stream(5));
    CHECK_FALSE(device.submit(2, 5, products(0, 4)));
    CHECK(device.add_stream() == 5u);
    CHECK_FALSE(device.submit(2, 5, products(0, -1)));
    Kernel wrong = products(0, 1);
    wrong.unit = Unit::Vector;
    CHECK_FALSE(device.submit(2, 5, wrong));
    CHECK_FALSE(device.submit(2, Device::kMaxStreams, products(0, 1)));
    CHECK(device.next_at() == kNever);
}
