// The daemon's threads: how many there are, whatever clients do, and what happens when there are no more.
#include <doctest/doctest.h>

#include <dirent.h>
#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <filesystem>
#include <stdexcept>

#include "flexnpu/daemon/threads.hpp"
#include "fuzz/raw_client.hpp"
#include "plane_fixture.hpp"

using namespace flexnpu;
using namespace flexnpu::test;
using daemon::Threads;
using daemon::Worker;
using wire::Kind;

namespace {

// Threads that the system still gives to this process.
std::atomic<int> threads_left{INT32_MAX};

size_t threads_now() {
    return size_t(std::distance(std::filesystem::directory_iterator("/proc/self/task"),
                                std::filesystem::directory_iterator()));
}

template <class F>
bool comes(F condition, int seconds = 20) {
    for (int i = 0; i < seconds * 500; i++) {
        if (condition()) return true;
        usleep(2000);
    }
    return false;
}

// A place where jobs stop until they are told to go on.
struct Latch {
    std::mutex mutex;
    std::condition_variable changed;
    bool open = false;
    std::atomic<int> at{0};
    void pass() {
        std::unique_lock lock(mutex);
        at++;
        changed.wait(lock, [this] { return open; });
        at--;
    }
    void release() {
        std::lock_guard lock(mutex);
        open = true;
        changed.notify_all();
    }
};

struct NoThreads {
    explicit NoThreads(int left = 0) { threads_left = left; }
    ~NoThreads() { threads_left = INT32_MAX; }
};

struct Held {
    Held() { mock().mock_hold(1); }
    ~Held() { mock().mock_hold(0); }
};

std::shared_ptr<Threads::Group> group(size_t share, std::function<void()> failed = {}) {
    return std::make_shared<Threads::Group>(share, std::move(failed));
}

// A client with streams whose markers the vendor does not reach while it is held.
struct Client : RawClient {
    std::vector<uint64_t> streams;
    explicit Client(const std::string& path) : RawClient(path) { open(); }
    void make(size_t n) {
        for (size_t i = 0; i < n; i++) {
            REQUIRE(call(Kind::create_stream, wire::CreateStream{0, 0}) == 0);
            streams.push_back(word());
        }
    }
    void mark_all() {
        for (uint64_t s : streams) say(Kind::host_func, wire::HostFunc{s, s, 0, 0});
    }
    bool works() {
        return call(Kind::malloc, wire::Malloc{4096, 0, 0}) == 0 &&
               call(Kind::free, wire::Free{word(), 0}) == 0;
    }
};

}  // namespace

// In place of the system's, for everything in this program.
extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*),
                              void* argument) noexcept {
    using Real = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
    static const auto real = reinterpret_cast<Real>(dlsym(RTLD_NEXT, "pthread_create"));
    if (threads_left.fetch_sub(1) <= 0) {
        threads_left++;
        return EAGAIN;
    }
    return real(thread, attributes, start, argument);
}

TEST_CASE("a group has its share of the threads, and what is beyond it waits in line") {
    Threads threads({.most = 8, .least = 2}, [] {});
    const auto greedy = group(3), modest = group(3);
    Latch latch;
    std::atomic<int> done{0};
    for (int i = 0; i < 20; i++) threads.run(greedy, [&] { latch.pass(), done++; });
    REQUIRE(comes([&] { return latch.at == 3; }));
    std::atomic<bool> ran{false};
    threads.run(modest, [&] { ran = true; });
    CHECK(comes([&] { return ran.load(); }));
    CHECK(latch.at == 3);
    CHECK(threads.wanted());
    latch.release();
    CHECK(comes([&] { return done == 20; }));
    CHECK(!threads.wanted());
}

TEST_CASE("no more threads than the bound, and threads that nobody needs end") {
    const size_t before = threads_now();
    Threads threads({.most = 6, .least = 2, .idle_ms = 20}, [] {});
    Latch latch;
    std::vector<std::shared_ptr<Threads::Group>> groups;
    std::atomic<int> done{0};
    for (int i = 0; i < 50; i++) {
        groups.push_back(group(4));
        threads.run(groups.back(), [&] { latch.pass(), done++; });
    }
    REQUIRE(comes([&] { return latch.at == 6; }));
    CHECK(threads_now() == before + 6);
    CHECK(!threads.try_run(group(4), [] {}));
    latch.release();
    CHECK(comes([&] { return done == 50; }));
    CHECK(comes([&] { return threads_now() <= before + 2; }));
}

TEST_CASE("where the system gives no more threads, those that are there serve everybody") {
    Threads threads({.most = 100, .least = 4}, [] {});
    const NoThreads none;
    const auto greedy = group(50), modest = group(50);
    Latch latch;
    std::atomic<int> done{0};
    for (int i = 0; i < 10; i++) threads.run(greedy, [&] { latch.pass(), done++; });
    // The first refusal is noticed with the fifth job.
    REQUIRE(comes([&] { return latch.at >= 2; }));
    std::map<std::string, uint64_t> counters;
    threads.counters(&counters);
    CHECK(counters["threads_refused"] > 0);
    CHECK(counters["threads"] == 4);
    latch.release();
    CHECK(comes([&] { return done == 10; }));
    // Now that a refusal is known, one group gets half of them.
    Latch again;
    for (int i = 0; i < 10; i++) threads.run(greedy, [&] { again.pass(), done++; });
    REQUIRE(comes([&] { return again.at == 2; }));
    std::atomic<bool> ran{false};
    threads.run(modest, [&] { ran = true; });
    CHECK(comes([&] { return ran.load(); }));
    again.release();
    CHECK(comes([&] { return done == 20; }));
}

TEST_CASE("threads that the system gives later are used") {
    Threads threads({.most = 100, .least = 2}, [] {});
    const auto one = group(50);
    Latch latch;
    std::atomic<int> done{0};
    {
        const NoThreads none;
        for (int i = 0; i < 10; i++) threads.run(one, [&] { latch.pass(), done++; });
        REQUIRE(comes([&] { return latch.at >= 1; }));
    }
    CHECK(comes([&] {
        threads.retry();
        return latch.at == 10;
    }));
    latch.release();
    CHECK(comes([&] { return done == 10; }));
}

TEST_CASE("a pool that cannot have its first threads says so") {
    const size_t before = threads_now();
    const NoThreads left(2);
    CHECK_THROWS_AS(Threads({.most = 100, .least = 4}, [] {}), std::system_error);
    CHECK(comes([&] { return threads_now() == before; }));
}

TEST_CASE("a worker's jobs run one after the other, and an exception ends none of the others") {
    Threads threads({.most = 8, .least = 2}, [] {});
    std::atomic<int> failures{0};
    const auto one = group(4, [&] { failures++; });
    std::vector<int> order;
    {
        Worker worker(threads, one);
        Latch latch;
        worker.post([&] { latch.pass(); });
        CHECK(!worker.try_post([&] { order.push_back(-1); }));
        for (int i = 0; i < 100; i++) {
            worker.post([&, i] {
                order.push_back(i);
                if (i % 10 == 0) throw std::runtime_error("a test's own");
            });
        }
        CHECK(worker.depth() >= 100);
        latch.release();
    }
    CHECK(order.size() == 100);
    CHECK(std::is_sorted(order.begin(), order.end()));
    CHECK(failures == 10);
    Worker worker(threads, one);
    std::atomic<bool> ran{false};
    CHECK(worker.try_post([&] { ran = true; }));
    CHECK(comes([&] { return worker.idle(); }));
    CHECK(ran);
}

TEST_CASE("threads do not grow with the lanes that wait for markers") {
    // FLEXNPU_TEST_STREAMS: more, for a figure.
    const char* const asked = getenv("FLEXNPU_TEST_STREAMS");
    const uint64_t streams = asked ? strtoull(asked, nullptr, 10) : 2000;
    daemon::Limits limits;
    limits.of(daemon::HeldKind::streams) = {1 << 20, 1 << 20, 1 << 20};
    Running running(limits);
    Client one(running.path()), two(running.path());
    one.make(streams);
    two.make(1);
    const size_t before = threads_now();
    {
        const Held held;
        one.mark_all();
        two.mark_all();
        REQUIRE(one.works());  // all of them are read
        const size_t now = threads_now();
        CHECK(now <= before + 20);
        MESSAGE(streams << " streams that wait: " << now << " threads, " << before << " before");
        CHECK(two.works());
    }
    // Every one is reported: no lane waits for a thread.
    CHECK(comes([&] {
        one.page->host_taken.store(one.page->host_given.load());
        one.knock();
        return one.page->host_given.load() == streams;
    }));
    CHECK(comes([&] { return two.page->host_given.load() == 1; }));
}

TEST_CASE("without threads to be had, lanes with markers, synchronises and calls are served all the same") {
    Running running;
    Client one(running.path()), two(running.path());
    one.make(300);
    two.make(1);
    const NoThreads none;
    {
        const Held held;
        one.mark_all();
        two.mark_all();
        usleep(50'000);
    }
    CHECK(comes([&] {
        one.page->host_taken.store(one.page->host_given.load());
        one.knock();
        return one.page->host_given.load() == 300;
    }));
    CHECK(comes([&] { return two.page->host_given.load() == 1; }));
    CHECK(one.works());
    CHECK(two.call(Kind::sync_stream, wire::StreamOp{two.streams[0], -1}) == 0);
    Client three(running.path());
    CHECK(three.works());
}

TEST_CASE("blocked synchronises of one session keep nobody from another's, nor from its own calls") {
    Running running;
    Client one(running.path()), two(running.path());
    one.make(1);
    two.make(1);
    const Held held;
    // More than threads of one session: each would hold one for as long as the device is busy.
    for (int i = 0; i < 600; i++)
        one.say(Kind::sync_stream, wire::StreamOp{one.streams[0], -1}, ++one.request | 0x80000000u);
    usleep(100'000);
    CHECK(two.works());
    CHECK(running.plane.counters().at("threads") < 400);
}
