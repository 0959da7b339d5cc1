// Collectives between the devices of one process: a thread a rank, as the ranks' order is the test's to
// choose.
#include <doctest/doctest.h>

#include <unistd.h>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <thread>
#include <vector>

#include "acl.gen.h"
#include "flexnpu/api/hccl_types.hpp"

namespace acl = flexnpu::acl;
namespace hccl = flexnpu::hccl;

namespace {

// Runs `body(rank)` on a thread for each rank, with its device set.
void each(uint32_t ranks, const std::function<void(uint32_t)>& body) {
    std::vector<std::thread> threads;
    for (uint32_t r = 0; r < ranks; ++r) {
        threads.emplace_back([&, r] {
            REQUIRE(aclrtSetDevice(int32_t(r)) == 0);
            body(r);
        });
    }
    for (auto& thread : threads) {
        thread.join();
    }
}

struct Rank {
    HcclComm comm = nullptr;
    aclrtStream stream = nullptr;
};

class World {
public:
    explicit World(uint32_t ranks, const char* limit = "20") : ranks(ranks), rank(ranks) {
        setenv("HCCL_EXEC_TIMEOUT", limit, 1);
        HcclRootInfo root;
        REQUIRE(HcclGetRootInfo(&root) == 0);
        each(ranks, [&](uint32_t r) {
            REQUIRE_MESSAGE(HcclCommInitRootInfo(ranks, &root, r, &rank[r].comm) == 0, aclGetRecentErrMsg());
            REQUIRE(aclrtCreateStream(&rank[r].stream) == 0);
        });
    }
    ~World() {
        each(ranks, [&](uint32_t r) {
            CHECK(HcclCommDestroy(rank[r].comm) == 0);
            CHECK(aclrtDestroyStreamForce(rank[r].stream) == 0);
        });
    }
    const uint32_t ranks;
    std::vector<Rank> rank;
};

template <class T>
class Buffer {
public:
    explicit Buffer(size_t n, T value = T{}) : n_(n) {
        REQUIRE(aclrtMalloc(&p_, std::max<size_t>(n * sizeof(T), 1), 0) == 0);
        set(std::vector<T>(n, value));
    }
    ~Buffer() { aclrtFree(p_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    void set(const std::vector<T>& values) { std::memcpy(p_, values.data(), values.size() * sizeof(T)); }
    std::vector<T> get() const { return {static_cast<T*>(p_), static_cast<T*>(p_) + n_}; }
    operator void*() const { return p_; }

private:
    void* p_ = nullptr;
    size_t n_;
};

// Larger than a window for some counts, so that several chunks are needed; not a multiple of anything.
constexpr size_t kLong = (size_t(4) << 20) / 4 + 1237;

}  // namespace

TEST_CASE("all ranks get the same sum, product, largest and smallest") {
    for (uint32_t n : {1u, 2u, 4u}) {
        World world(n);
        each(n, [&](uint32_t r) {
            auto [comm, stream] = world.rank[r];
            for (size_t count : {size_t(1), size_t(3), kLong}) {
                Buffer<float> in(count, float(r + 1)), out(count);
                const float expected[] = {float(n) * float(n + 1) / 2,
                                          n == 1   ? 1.f
                                          : n == 2 ? 2.f
                                                   : 24.f,
                                          float(n), 1.f};
                for (int32_t op : {hccl::SUM, hccl::PROD, hccl::MAX, hccl::MIN}) {
                    REQUIRE(HcclAllReduce(in, out, count, hccl::FP32, op, comm, stream) == 0);
                    REQUIRE(aclrtSynchronizeStream(stream) == 0);
                    CHECK(out.get() == std::vector<float>(count, expected[op]));
                }
            }
            // In place, and a sum that does not fit in 32 bits.
            Buffer<int64_t> wide(5, int64_t(1) << 40);
            REQUIRE(HcclAllReduce(wide, wide, 5, hccl::INT64, hccl::SUM, comm, stream) == 0);
            REQUIRE(aclrtSynchronizeStream(stream) == 0);
            CHECK(wide.get() == std::vector<int64_t>(5, int64_t(n) << 40));
            // bfloat16 3.0 and float16 3.0; sums of small integers are exact.
            Buffer<uint16_t> brain(7, 0x4040), half(7, 0x4200);
            REQUIRE(HcclAllReduce(brain, brain, 7, hccl::BFP16, hccl::SUM, comm, stream) == 0);
            REQUIRE(HcclAllReduce(half, half, 7, hccl::FP16, hccl::SUM, comm, stream) == 0);
            REQUIRE(aclrtSynchronizeStream(stream) == 0);
            const uint16_t brains[] = {0, 0x4040, 0x40c0, 0, 0x4140},
                           halves[] = {0, 0x4200, 0x4600, 0, 0x4a00};
            CHECK(brain.get() == std::vector<uint16_t>(7, brains[n]));
            CHECK(half.get() == std::vector<uint16_t>(7, halves[n]));
        });
    }
}

TEST_CASE("pieces go where they belong") {
    constexpr uint32_t n = 4;
    World world(n);
    for (size_t count : {size_t(3), kLong}) {
        each(n, [&](uint32_t r) {
            auto [comm, stream] = world.rank[r];
            // [from][to] -> 100 * from + to
            Buffer<int32_t> mine(count, int32_t(r)), all(n * count), matrix(n * count), other(n * count);
            std::vector<int32_t> rows;
            for (uint32_t to = 0; to < n; ++to) {
                rows.insert(rows.end(), count, int32_t(100 * r + to));
            }
            matrix.set(rows);
            REQUIRE(HcclAllGather(mine, all, count, hccl::INT32, comm, stream) == 0);
            REQUIRE(HcclAlltoAll(matrix, count, hccl::INT32, other, count, hccl::INT32, comm, stream) == 0);
            REQUIRE(aclrtSynchronizeStream(stream) == 0);
            const auto gathered = all.get(), turned = other.get();
            for (uint32_t from = 0; from < n; ++from) {
                CHECK(gathered[from * count + count - 1] == int32_t(from));
                CHECK(turned[from * count] == int32_t(100 * from + r));
                CHECK(turned[from * count + count - 1] == int32_t(100 * from + r));
            }
            Buffer<int32_t> sum(count), part(count);
            REQUIRE(HcclReduceScatter(matrix, sum, count, hccl::INT32, hccl::SUM, comm, stream) == 0);
            REQUIRE(HcclScatter(matrix, part, count, hccl::INT32, 2, comm, stream) == 0);
            REQUIRE(aclrtSynchronizeStream(stream) == 0);
            CHECK(sum.get() == std::vector<int32_t>(count, int32_t(600 + 4 * r)));
            CHECK(part.get() == std::vector<int32_t>(count, int32_t(200 + r)));
            REQUIRE(HcclBroadcast(mine, count, hccl::INT32, 3, comm, stream) == 0);
            REQUIRE(HcclReduce(matrix, other, count, hccl::INT32, hccl::MAX, 1, comm, stream) == 0);
            REQUIRE(HcclBarrier(comm, stream) == 0);
            REQUIRE(aclrtSynchronizeStream(stream) == 0);
            CHECK(mine.get() == std::vector<int32_t>(count, 3));
            CHECK(other.get()[0] == (r == 1 ? 300 : int32_t(r)));
        });
    }
}

TEST_CASE("pieces of different sizes") {
    constexpr uint32_t n = 3;
    World world(n);
    each(n, [&](uint32_t r) {
        auto [comm, stream] = world.rank[r];
        const uint64_t counts[] = {1, 0, 5}, at[] = {0, 1, 2};
        Buffer<int32_t> mine(std::max<uint64_t>(counts[r], 1), int32_t(10 + r)), all(7, -1);
        REQUIRE(HcclAllGatherV(mine, counts[r], all, counts, at, hccl::INT32, comm, stream) == 0);
        REQUIRE(aclrtSynchronizeStream(stream) == 0);
        CHECK(all.get() == std::vector<int32_t>{10, -1, 12, 12, 12, 12, 12});
        // Rank r sends r + to elements to each; the matrix says the same.
        std::vector<uint64_t> give, give_at, take, take_at, matrix;
        for (uint32_t q = 0; q < n; ++q) {
            give.push_back(r + q);
            give_at.push_back(q * 8);
            take.push_back(q + r);
            take_at.push_back(q * 8);
            for (uint32_t to = 0; to < n; ++to) {
                matrix.push_back(q + to);
            }
        }
        Buffer<int32_t> out(24, int32_t(r)), in(24, -1);
        REQUIRE(HcclAlltoAllV(out, give.data(), give_at.data(), hccl::INT32, in, take.data(), take_at.data(),
                              hccl::INT32, comm, stream) == 0);
        REQUIRE(aclrtSynchronizeStream(stream) == 0);
        for (uint32_t q = 0; q < n; ++q) {
            for (uint32_t i = 0; i < 8; ++i) {
                CHECK(in.get()[q * 8 + i] == (i < q + r ? int32_t(q) : -1));
            }
        }
        REQUIRE(HcclAlltoAllVC(out, matrix.data(), hccl::INT32, in, hccl::INT32, comm, stream) == 0);
        REQUIRE(aclrtSynchronizeStream(stream) == 0);
        uint32_t i = 0;
        for (uint32_t q = 0; q < n; ++q) {
            for (uint32_t k = 0; k < q + r; ++k, ++i) {
                CHECK(in.get()[i] == int32_t(q));
            }
        }
        Buffer<int32_t> sum(6);
        REQUIRE(HcclReduceScatterV(out, counts, at, sum, counts[r], hccl::INT32, hccl::SUM, comm, stream) ==
                0);
        REQUIRE(aclrtSynchronizeStream(stream) == 0);
        CHECK(sum.get()[0] == (counts[r] ? 3 : 0));
        CHECK(sum.get()[4] == (counts[r] == 5 ? 3 : 0));
    });
}

TEST_CASE("messages, alone, crossing, and to oneself") {
    constexpr uint32_t n = 4;
    World world(n);
    each(n, [&](uint32_t r) {
        auto [comm, stream] = world.rank[r];
        const uint32_t next = (r + 1) % n, before = (r + n - 1) % n;
        // Crossing, larger than a channel, in both directions at once.
        Buffer<int32_t> out(kLong, int32_t(r)), in(kLong, -1), self(2, int32_t(r)), echo(2, -1);
        HcclSendRecvItem items[] = {{hccl::SEND, out, kLong, hccl::INT32, next},
                                    {hccl::RECV, in, kLong, hccl::INT32, before},
                                    {hccl::SEND, self, 2, hccl::INT32, r},
                                    {hccl::RECV, echo, 2, hccl::INT32, r}};
        REQUIRE(HcclBatchSendRecv(items, 4, comm, stream) == 0);
        REQUIRE(aclrtSynchronizeStream(stream) == 0);
        CHECK(in.get() == std::vector<int32_t>(kLong, int32_t(before)));
        CHECK(echo.get() == self.get());
        // The same as a group: neither order can lock.
        REQUIRE(HcclGroupStart() == 0);
        REQUIRE(HcclSend(out, 9, hccl::INT32, before, comm, stream) == 0);
        REQUIRE(HcclRecv(in, 9, hccl::INT32, next, comm, stream) == 0);
        REQUIRE(HcclGroupEnd() == 0);
        REQUIRE(aclrtSynchronizeStream(stream) == 0);
        CHECK(in.get()[8] == int32_t(next));
        // Many in a row keep their order.
        for (int32_t i = 0; i < 50; ++i) {
            if (r == 0) {
                Buffer<int32_t> value(1, i);
                REQUIRE(HcclSend(value, 1, hccl::INT32, 1, comm, stream) == 0);
                REQUIRE(aclrtSynchronizeStream(stream) == 0);
            } else if (r == 1) {
                REQUIRE(HcclRecv(in, 1, hccl::INT32, 0, comm, stream) == 0);
                REQUIRE(aclrtSynchronizeStream(stream) == 0);
                CHECK(in.get()[0] == i);
            }
        }
    });
}

TEST_CASE("a collective starts when the last rank is there, and takes the model's time on all") {
    constexpr uint32_t n = 2;
    World world(n);
    // 2 (n-1)/n * 4e6 bytes at 1e9 a second, and 2 (n-1) steps of a microsecond: 4.002 ms.
    constexpr uint64_t count = 1'000'000;
    float ms[n];
    std::atomic<bool> first_waits{false};
    each(n, [&](uint32_t r) {
        auto [comm, stream] = world.rank[r];
        Buffer<float> data(count, 1);
        aclrtEvent start, end;
        REQUIRE(aclrtCreateEventExWithFlag(&start, acl::EVENT_TIME_LINE) == 0);
        REQUIRE(aclrtCreateEventExWithFlag(&end, acl::EVENT_TIME_LINE) == 0);
        if (r == 1) {
            while (!first_waits) std::this_thread::sleep_for(std::chrono::milliseconds(1));
            std::this_thread::sleep_for(std::chrono::milliseconds(60));
        }
        REQUIRE(aclrtRecordEvent(start, stream) == 0);
        if (r == 0) {
            REQUIRE(aclrtSynchronizeEvent(start) == 0);
            first_waits = true;
        }
        REQUIRE(HcclAllReduce(data, data, count, hccl::FP32, hccl::SUM, comm, stream) == 0);
        REQUIRE(aclrtRecordEvent(end, stream) == 0);
        REQUIRE(aclrtSynchronizeStream(stream) == 0);
        REQUIRE(aclrtEventElapsedTime(&ms[r], start, end) == 0);
        aclrtDestroyEvent(start);
        aclrtDestroyEvent(end);
    });
    CHECK(ms[0] >= 60);
    CHECK(ms[1] >= 4.002f - 0.001f);
    CHECK(ms[0] - ms[1] >= 50);  // both ended at once
}

TEST_CASE("streams of one communicator keep the order of the calls") {
    constexpr uint32_t n = 2;
    World world(n);
    each(n, [&](uint32_t r) {
        auto [comm, first] = world.rank[r];
        aclrtStream second;
        REQUIRE(aclrtCreateStream(&second) == 0);
        Buffer<int32_t> a(1, 1), b(1, 10);
        // On rank 0 the first stream is late: its collective is still the first.
        if (r == 0) {
            REQUIRE(aclrtLaunchHostFunc(first,
                                        reinterpret_cast<aclrtHostFunc>(+[](void*) { usleep(30'000); }),
                                        nullptr) == 0);
        }
        REQUIRE(HcclAllReduce(a, a, 1, hccl::INT32, hccl::SUM, comm, first) == 0);
        REQUIRE(HcclAllReduce(b, b, 1, hccl::INT32, hccl::SUM, comm, second) == 0);
        REQUIRE(aclrtSynchronizeStream(second) == 0);
        REQUIRE(aclrtSynchronizeStream(first) == 0);
        CHECK(a.get()[0] == 2);
        CHECK(b.get()[0] == 20);
        aclrtDestroyStream(second);
    });
}

TEST_CASE("ranks that disagree are told, all of them") {
    World world(2);
    each(2, [&](uint32_t r) {
        auto [comm, stream] = world.rank[r];
        Buffer<float> data(8, 1);
        REQUIRE(HcclAllReduce(data, data, r == 0 ? 4 : 8, hccl::FP32, hccl::SUM, comm, stream) == 0);
        CHECK(aclrtSynchronizeStream(stream) != 0);
        CHECK(std::string(aclGetRecentErrMsg()).find("rank 0 calls HcclAllReduce(count 4") !=
              std::string::npos);
        int32_t error = 0;
        REQUIRE(HcclGetCommAsyncError(comm, &error) == 0);
        CHECK(error == hccl::E_PARA);
        // Nothing works any more, until all resume.
        REQUIRE(HcclAllReduce(data, data, 8, hccl::FP32, hccl::SUM, comm, stream) == 0);
        CHECK(aclrtSynchronizeStream(stream) != 0);
        REQUIRE(HcclCommResume(comm) == 0);
        data.set(std::vector<float>(8, 1));
        REQUIRE(HcclAllReduce(data, data, 8, hccl::FP32, hccl::SUM, comm, stream) == 0);
        CHECK(aclrtSynchronizeStream(stream) == 0);
        CHECK(data.get() == std::vector<float>(8, 2));
    });
}

TEST_CASE("every rank finds the whole reason, however close together they fail") {
    constexpr uint32_t n = 4;
    World world(n);
    for (int round = 0; round < 200; ++round) {
        each(n, [&](uint32_t r) {
            auto [comm, stream] = world.rank[r];
            Buffer<float> data(8, 1);
            REQUIRE(HcclAllReduce(data, data, r == 0 ? 4 : 8, hccl::FP32, hccl::SUM, comm, stream) == 0);
            CHECK(aclrtSynchronizeStream(stream) != 0);
            const std::string told = aclGetRecentErrMsg();
            CHECK_MESSAGE(told.find("rank 0 calls HcclAllReduce(count 4") != std::string::npos, told);
            CHECK_MESSAGE(told.find("rank 1 HcclAllReduce(count 8") != std::string::npos, told);
            REQUIRE(HcclCommResume(comm) == 0);
        });
    }
}

TEST_CASE("who does not come is waited for no longer than the limit; an aborted stream lets go at once") {
    using Clock = std::chrono::steady_clock;
    {
        World world(2, "1");
        each(2, [&](uint32_t r) {
            if (r == 0) {
                Buffer<float> data(8, 1);
                REQUIRE(HcclAllReduce(data, data, 8, hccl::FP32, hccl::SUM, world.rank[0].comm,
                                      world.rank[0].stream) == 0);
                CHECK(aclrtSynchronizeStream(world.rank[0].stream) != 0);
                int32_t error = 0;
                REQUIRE(HcclGetCommAsyncError(world.rank[0].comm, &error) == 0);
                CHECK(error == hccl::E_TIMEOUT);
            }
        });
    }
    World world(2);
    each(2, [&](uint32_t r) {
        auto [comm, stream] = world.rank[r];
        Buffer<float> data(8, 1);
        const auto start = Clock::now();
        if (r == 0) {
            REQUIRE(HcclAllReduce(data, data, 8, hccl::FP32, hccl::SUM, comm, stream) == 0);
            REQUIRE(HcclAllReduce(data, data, 8, hccl::FP32, hccl::SUM, comm, stream) == 0);
            usleep(20'000);
            REQUIRE(aclrtStreamAbort(stream) == 0);
            CHECK(aclrtSynchronizeStream(stream) != 0);
        } else {
            HcclSendRecvItem item{hccl::RECV, data, 8, hccl::FP32, 0};
            REQUIRE(HcclBatchSendRecv(&item, 1, comm, stream) == 0);
            CHECK(aclrtSynchronizeStream(stream) != 0);
        }
        CHECK(Clock::now() - start < std::chrono::minutes(2));  // the limit is half an hour
    });
}

TEST_CASE("one device holds one rank") {
    HcclRootInfo root;
    REQUIRE(HcclGetRootInfo(&root) == 0);
    std::vector<std::thread> threads;
    for (uint32_t r = 0; r < 2; ++r) {
        threads.emplace_back([&, r] {
            REQUIRE(aclrtSetDevice(1) == 0);
            HcclComm comm = nullptr;
            CHECK(HcclCommInitRootInfo(2, &root, r, &comm) == hccl::E_PARA);
            CHECK(std::string(aclGetRecentErrMsg()).find("both on device 1") != std::string::npos);
        });
    }
    for (auto& t : threads) {
        t.join();
    }
}

TEST_CASE("one call makes all communicators of a process; some ranks make one of their own") {
    int32_t devices[] = {2, 0, 1};
    HcclComm comms[3];
    REQUIRE(HcclCommInitAll(3, devices, comms) == 0);
    each(3, [&](uint32_t r) {
        REQUIRE(aclrtSetDevice(devices[r]) == 0);
        aclrtStream stream;
        REQUIRE(aclrtCreateStream(&stream) == 0);
        uint32_t rank = 99, size = 99;
        CHECK(HcclGetRankId(comms[r], &rank) == 0);
        CHECK(HcclGetRankSize(comms[r], &size) == 0);
        CHECK(rank == r);
        CHECK(size == 3);
        HcclComm sub = nullptr;
        uint32_t members[] = {2, 0};
        const uint32_t place = r == 2 ? 0 : 1;
        REQUIRE(HcclCreateSubCommConfig(&comms[r], 2, r == 1 ? nullptr : members, 7, place, nullptr, &sub) ==
                0);
        CHECK((sub == nullptr) == (r == 1));
        Buffer<int32_t> data(1, int32_t(1 + r)), all(2);
        if (sub != nullptr) {
            REQUIRE(HcclAllGather(data, all, 1, hccl::INT32, sub, stream) == 0);
            CHECK(aclrtSynchronizeStream(stream) == 0);
            CHECK(all.get() == std::vector<int32_t>{3, 1});
            char name[hccl::kNameBytes], parent[hccl::kNameBytes];
            REQUIRE(HcclGetCommName(sub, name) == 0);
            REQUIRE(HcclGetCommName(comms[r], parent) == 0);
            CHECK(std::string(name) == std::string(parent) + "-7");
            CHECK(HcclCommDestroy(sub) == 0);
        }
        CHECK(HcclCommDestroy(comms[r]) == 0);
        aclrtDestroyStream(stream);
    });
}

TEST_CASE("wrong arguments are refused by name") {
    World world(1);
    auto [comm, stream] = world.rank[0];
    Buffer<float> data(8);
    float host[8] = {};
    CHECK(HcclAllReduce(data, data, 8, hccl::FP32, 9, comm, stream) == hccl::E_PARA);
    CHECK(HcclAllReduce(data, data, 8, 99, hccl::SUM, comm, stream) == hccl::E_PARA);
    CHECK(HcclAllReduce(data, data, 8, hccl::INT128, hccl::SUM, comm, stream) == hccl::E_NOT_SUPPORT);
    CHECK(HcclAllReduce(host, data, 8, hccl::FP32, hccl::SUM, comm, stream) == hccl::E_PARA);
    CHECK(HcclAllReduce(data, data, uint64_t(1) << 62, hccl::FP32, hccl::SUM, comm, stream) == hccl::E_PARA);
    CHECK(HcclAllReduce(data, data, 8, hccl::FP32, hccl::SUM, nullptr, stream) == hccl::E_PTR);
    CHECK(HcclSend(data, 8, hccl::FP32, 1, comm, stream) == hccl::E_PARA);
    CHECK(HcclBroadcast(data, 8, hccl::FP32, 1, comm, stream) == hccl::E_PARA);
    CHECK(HcclAllReduce(data, data, 8, hccl::FP32, hccl::SUM, comm, reinterpret_cast<aclrtStream>(0x1234)) ==
          hccl::E_RUNTIME);
    CHECK(HcclGroupEnd() == hccl::E_PARA);
    HcclRootInfo none{};
    HcclComm made = nullptr;
    CHECK(HcclCommInitRootInfo(1, &none, 0, &made) == hccl::E_PARA);
    CHECK(HcclCommInitRootInfo(65, &none, 0, &made) == hccl::E_PARA);
    CHECK(HcclCommInitClusterInfoConfig("ranks.json", 0, nullptr, &made) == hccl::E_NOT_SUPPORT);
    CHECK(std::string(aclGetRecentErrMsg()).find("HcclCommInitClusterInfoConfig") != std::string::npos);
}

int main(int argc, char** argv) {
    setenv("FLEXNPU_EMU_PROFILE", FLEXNPU_TEST_PROFILE, 1);
    setenv("FLEXNPU_EMU_MODE", "compute", 1);
    setenv("FLEXNPU_EMU_DEVICES", "4", 1);
    setenv("FLEXNPU_EMU_MACHINE", ("hccl-" + std::to_string(getpid())).c_str(), 1);
    setenv("HCCL_CONNECT_TIMEOUT", "20", 1);
    if (aclInit(nullptr) != 0 || aclrtSetDevice(0) != 0) {
        std::fprintf(stderr, "cannot open the emulated device: %s\n", aclGetRecentErrMsg());
        return 1;
    }
    doctest::Context context(argc, argv);
    int failed = context.run();
    return aclFinalize() == 0 ? failed : 1;
}
