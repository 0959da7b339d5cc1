// What the client believes, and how long it waits, when its daemon is slow, stopped, dead or confused.
#include <dlfcn.h>
#include <doctest/doctest.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <algorithm>
#include <string>

#include "acl.gen.h"
#include "fake_daemon.hpp"

using namespace flexnpu;
using namespace flexnpu::test;
using wire::Ask;
using wire::Kind;

namespace {

constexpr size_t kSmall = size_t(64) << 10, kLarge = size_t(64) << 20;

// The client library, found as a program that loads it finds it.
struct Library {
    void* handle = dlopen(FLEXNPU_CLIENT_LIBRARY, RTLD_NOW | RTLD_LOCAL);
#define X(name) decltype(&::name) name = reinterpret_cast<decltype(&::name)>(dlsym(handle, #name));
    X(aclrtSetDevice)
    X(aclrtResetDeviceForce)
    X(aclrtMallocHost)
    X(aclrtFreeHost)
    X(aclrtMalloc)
    X(aclrtCreateEventWithFlag)
    X(aclrtRecordEvent)
    X(aclrtMemsetAsync)
    X(aclrtSynchronizeStream)
    X(aclrtSynchronizeStreamWithTimeout)
    X(aclrtSubscribeReport)
    X(aclrtProcessReport)
    X(aclGetRecentErrMsg)
#undef X
    std::string message() const {
        const char* text = aclGetRecentErrMsg();
        return text ? text : "";
    }
};
const Library& acl_of() {
    static const Library one;
    return one;
}

// A program with a session of a daemon that does as it is told. What hangs is killed.
struct Program {
    FakeDaemon daemon;
    const Library& l = acl_of();
    bool opened = false;
    explicit Program(bool open_now = true) {
        alarm(100);
        setenv("FLEXNPU_SOCKET", daemon.path().c_str(), 1);
        unsetenv("FLEXNPU_CONNECT_TIMEOUT");
        if (open_now) open();
    }
    void open() {
        REQUIRE(l.aclrtSetDevice(0) == 0);
        opened = true;
    }
    ~Program() {
        daemon.on({});
        daemon.go_on();
        if (opened) l.aclrtResetDeviceForce(0);
        alarm(0);
    }
    size_t times(Ask what) {
        const auto all = daemon.asked();
        return size_t(std::count(all.begin(), all.end(), what));
    }
};

// A thread that uses the program's device.
template <class F>
std::thread user(F f) {
    return std::thread([f] {
        acl_of().aclrtSetDevice(0);
        f();
    });
}

// The next question of a kind, kept until the test answers it.
struct Held {
    FakeDaemon& daemon;
    Ask what;
    std::atomic<bool> seen{false};
    FakeDaemon::Peer* peer = nullptr;
    wire::Request request{};
    Held(FakeDaemon& d, Ask w) : daemon(d), what(w) {
        daemon.on([this](FakeDaemon&, FakeDaemon::Peer& p, const wire::Request& r) {
            if (r.ask != what || seen) return false;
            peer = &p;
            request = r;
            seen = true;
            return true;
        });
    }
    void wait() {
        daemon.until([this] { return seen.load(); });
    }
    void answer() {
        daemon.run([this](FakeDaemon& d) { d.serve(*peer, request); });
    }
};

// Once the daemon, which lives in this process, is through with what it was asked.
int open_files(FakeDaemon& daemon) {
    daemon.asked();
    int n = 0;
    for (int fd = 0; fd < 1024; fd++) n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

char first(void* p) { return *static_cast<char*>(p); }

}  // namespace

TEST_CASE("an answer to another question is not believed, and what it brings is given back") {
    Program p;
    const int files = open_files(p.daemon);
    std::atomic<uint32_t> freed{0};
    bool late = true;
    p.daemon.on([&](FakeDaemon& d, FakeDaemon::Peer& peer, const wire::Request& r) {
        if (r.ask == Ask::free_host_memory && r.region == 777) freed++;
        if (r.ask != Ask::host_memory || !std::exchange(late, false)) return false;
        wire::Answer a = FakeDaemon::answer_to(r, 777);
        a.question = r.question + 1000;
        d.send_answer(peer, a, {make_memory(kSmall, 'S')});
        return false;
    });
    void* host = nullptr;
    REQUIRE(p.l.aclrtMallocHost(&host, kLarge) == 0);
    CHECK(first(host) == 'R');
    static_cast<volatile char*>(host)[kLarge - 1] = 1;
    p.daemon.until([&] { return freed == 1; });
    REQUIRE(p.l.aclrtFreeHost(host) == 0);
    // The answer to that release was nobody's either.
    REQUIRE(p.l.aclrtMallocHost(&host, kSmall) == 0);
    CHECK(first(host) == 'R');
    REQUIRE(p.l.aclrtFreeHost(host) == 0);
    CHECK(open_files(p.daemon) == files);
}

TEST_CASE("a file that is smaller than it must be is not mapped") {
    for (const bool sealed : {true, false}) {
        CAPTURE(sealed);
        Program p;
        const size_t bytes = sealed ? kSmall : kLarge;
        std::atomic<int> freed{0};
        p.daemon.on([&](FakeDaemon& d, FakeDaemon::Peer& peer, const wire::Request& r) {
            if (r.ask == Ask::free_host_memory || r.ask == Ask::free_ring) freed++;
            if (r.ask != Ask::host_memory && r.ask != Ask::new_ring) return false;
            d.send_answer(peer, FakeDaemon::answer_to(r, 5), {make_memory(bytes, 'S', sealed)});
            return true;
        });
        void* host = nullptr;
        CHECK(p.l.aclrtMallocHost(&host, kLarge) != 0);
        CHECK(p.l.aclrtMalloc(&host, 64, 0) != 0);  // needs a ring
        p.daemon.until([&] { return freed == 2; });
    }
    Program p(false);
    p.daemon.on([&](FakeDaemon& d, FakeDaemon::Peer& peer, const wire::Request& r) {
        if (r.ask != Ask::hello) return false;
        d.send_answer(peer, FakeDaemon::answer_to(r), {make_memory(4096), eventfd(0, EFD_CLOEXEC)});
        return true;
    });
    CHECK(p.l.aclrtSetDevice(0) != 0);
}

TEST_CASE(
    "a synchronise is over in its time though the daemon is silent, and its late answer is nobody else's") {
    Program p;
    struct {
        std::atomic<bool> seen{false};
        wire::Consumer* ring = nullptr;
        uint32_t request = 0;
    } held;
    p.daemon.on({}, [&](FakeDaemon&, wire::Consumer& ring, const wire::Record& r) {
        if (r.kind != Kind::sync_stream || held.seen) return false;
        held.ring = &ring;
        held.request = r.request;
        held.seen = true;
        return true;
    });
    SUBCASE("in the same thread") {
        CHECK(p.l.aclrtSynchronizeStreamWithTimeout(nullptr, 20) == acl::RT_WAIT_TIMEOUT);
        std::thread answering(
            [&] { p.daemon.run([&](FakeDaemon& d) { d.reply(*held.ring, held.request, 0, 0xbad0000); }); });
        const uint64_t next = p.daemon.word;
        void* memory = nullptr;
        CHECK(p.l.aclrtMalloc(&memory, 64, 0) == 0);
        answering.join();
        CHECK(reinterpret_cast<uint64_t>(memory) == next);
    }
    SUBCASE("in a thread that has ended") {
        user([&] {
            CHECK(p.l.aclrtSynchronizeStreamWithTimeout(nullptr, 20) == acl::RT_WAIT_TIMEOUT);
        }).join();
        // The next thread has a ring of its own: the ended one's would answer it with what is late.
        user([&] {
            const uint64_t next = p.daemon.word;
            void* memory = nullptr;
            CHECK(p.l.aclrtMalloc(&memory, 64, 0) == 0);
            CHECK(reinterpret_cast<uint64_t>(memory) == next);
        }).join();
        CHECK(p.times(Ask::new_ring) == 2);
    }
}

TEST_CASE("a synchronise whose ring is full is over in its time") {
    Program p;
    void *event = nullptr, *memory = nullptr;
    REQUIRE(p.l.aclrtMalloc(&memory, 64, 0) == 0);
    REQUIRE(p.l.aclrtCreateEventWithFlag(&event, 0) == 0);
    p.daemon.stop();
    constexpr size_t kFill = sizeof(wire::Record) + sizeof(wire::Memset);
    const auto left = [&] {
        const wire::RingHeader& ring = p.daemon.peers().at(0)->rings.at(0)->header();
        return wire::kRingBytes - (ring.head - ring.tail);
    };
    while (left() >= kFill) REQUIRE(p.l.aclrtMemsetAsync(memory, 64, 0, 64, nullptr) == 0);
    while (left() >= sizeof(wire::Record) + sizeof(wire::EventOp))
        REQUIRE(p.l.aclrtRecordEvent(event, nullptr) == 0);
    REQUIRE(left() < sizeof(wire::Record) + sizeof(wire::StreamOp));
    CHECK(p.l.aclrtSynchronizeStreamWithTimeout(nullptr, 20) == acl::RT_WAIT_TIMEOUT);
    p.daemon.go_on();
    CHECK(p.l.aclrtSynchronizeStream(nullptr) == 0);
}

TEST_CASE("without a descriptor left a call fails by name, and the daemon keeps nothing") {
    Program p;
    const int memory = make_memory(kSmall, 'R'), ring = make_memory(wire::kRingFileBytes);
    std::atomic<int> freed{0};
    p.daemon.on([&](FakeDaemon& d, FakeDaemon::Peer& peer, const wire::Request& r) {
        if (r.ask == Ask::free_host_memory && r.region == 41) freed++;
        if (r.ask == Ask::free_ring && r.region == 42) freed++;
        if (r.ask == Ask::host_memory)
            d.send_answer(peer, FakeDaemon::answer_to(r, 41), {memory}, true);
        else if (r.ask == Ask::new_ring)
            d.send_answer(peer, FakeDaemon::answer_to(r, 42), {ring}, true);
        else
            return false;
        return true;
    });
    rlimit before{}, none{};
    getrlimit(RLIMIT_NOFILE, &before);
    none = before;
    const int lowest = dup(0);
    none.rlim_cur = rlim_t(lowest);
    ::close(lowest);
    setrlimit(RLIMIT_NOFILE, &none);
    void* host = nullptr;
    const int32_t no_memory = p.l.aclrtMallocHost(&host, kSmall);
    const std::string why = p.l.message();
    const int32_t no_ring = p.l.aclrtMalloc(&host, 64, 0);
    setrlimit(RLIMIT_NOFILE, &before);
    CHECK(no_memory != 0);
    CHECK(why.find("ulimit -n") != std::string::npos);
    CHECK(no_ring != 0);
    p.daemon.until([&] { return freed == 2; });
    p.daemon.on({});
    CHECK(p.l.aclrtMallocHost(&host, kSmall) == 0);
    CHECK(p.l.aclrtMalloc(&host, 64, 0) == 0);
    ::close(memory);
    ::close(ring);
}

TEST_CASE("signals end no wait") {
    struct sigaction interrupting{}, before{};
    interrupting.sa_handler = [](int) {};
    sigaction(SIGUSR1, &interrupting, &before);
    const auto disturb = [](std::thread& thread) {
        for (int i = 0; i < 100; i++) {
            pthread_kill(thread.native_handle(), SIGUSR1);
            usleep(500);
        }
    };
    SUBCASE("for an answer") {
        Program p;
        Held held(p.daemon, Ask::host_memory);
        std::thread asking = user([&] {
            void* host = nullptr;
            CHECK(p.l.aclrtMallocHost(&host, kSmall) == 0);
        });
        held.wait();
        disturb(asking);
        held.answer();
        asking.join();
    }
    SUBCASE("to be connected") {
        Program p(false);
        p.daemon.stop();
        std::vector<int> queued;
        for (int i = 0; i < 2; i++) {
            sockaddr_un address{};
            address.sun_family = AF_UNIX;
            std::strcpy(address.sun_path, p.daemon.path().c_str());
            queued.push_back(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
            REQUIRE(connect(queued.back(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
        }
        std::thread connecting([&] { CHECK(p.l.aclrtSetDevice(0) == 0); });
        disturb(connecting);
        p.daemon.go_on();
        connecting.join();
        p.opened = true;
        for (int fd : queued) ::close(fd);
        p.open();
    }
    sigaction(SIGUSR1, &before, nullptr);
}

TEST_CASE("a fork waits for nobody's question, and the child asks for itself") {
    SUBCASE("while a session is being opened") {
        Program p(false);
        Held held(p.daemon, Ask::hello);
        std::atomic<bool> opened{false};
        std::thread opening([&] {
            CHECK(p.l.aclrtSetDevice(0) == 0);
            opened = true;
        });
        held.wait();
        const pid_t child = fork();
        if (child == 0) _exit(0);
        CHECK_FALSE(opened);
        int status = -1;
        waitpid(child, &status, 0);
        CHECK(status == 0);
        held.answer();
        opening.join();
        p.open();
    }
    SUBCASE("while one is asked") {
        Program p;
        Held held(p.daemon, Ask::host_memory);
        std::thread asking = user([&] {
            void* host = nullptr;
            CHECK(p.l.aclrtMallocHost(&host, kSmall) == 0);
            INFO(p.l.message());
            REQUIRE(host);
            CHECK(first(host) == 'R');
        });
        held.wait();
        const pid_t child = fork();
        if (child == 0) {
            alarm(50);
            void* host = nullptr;
            const bool good = p.l.aclrtSetDevice(0) == 0 && p.l.aclrtMallocHost(&host, kSmall) == 0;
            _exit(good && first(host) == 'R' ? 0 : 1);
        }
        int status = -1;
        waitpid(child, &status, 0);
        CHECK(status == 0);
        held.answer();
        asking.join();
    }
}

TEST_CASE("a thread that is cancelled amid a question leaves no answer to others") {
    Program p;
    Held held(p.daemon, Ask::host_memory);
    std::thread cancelled = user([&] {
        void* host = nullptr;
        p.l.aclrtMallocHost(&host, kSmall);
        pthread_testcancel();
        CHECK(false);
    });
    held.wait();
    pthread_cancel(cancelled.native_handle());
    usleep(50'000);  // for who obeys at once
    std::thread asking = user([&] {
        void* host = nullptr;
        CHECK(p.l.aclrtMallocHost(&host, kLarge) == 0);
        static_cast<volatile char*>(host)[kLarge - 1] = 1;
    });
    held.answer();
    asking.join();
    cancelled.join();
}

TEST_CASE("a daemon's death ends every wait") {
    Program p;
    SUBCASE("for a session's own question") {
        Held held(p.daemon, Ask::host_memory);
        std::thread asking = user([&] {
            void* host = nullptr;
            CHECK(p.l.aclrtMallocHost(&host, kSmall) == acl::RT_INTERNAL);
            CHECK(p.l.message().find("is gone") != std::string::npos);
        });
        held.wait();
        p.daemon.die();
        asking.join();
    }
    SUBCASE("for a ring's answer") {
        std::atomic<bool> seen{false};
        p.daemon.on({}, [&](FakeDaemon&, wire::Consumer&, const wire::Record& r) {
            if (r.kind == Kind::sync_stream) seen = true;
            return seen.load();
        });
        std::thread asking = user([&] { CHECK(p.l.aclrtSynchronizeStream(nullptr) == acl::RT_INTERNAL); });
        p.daemon.until([&] { return seen.load(); });
        p.daemon.die();
        asking.join();
    }
    SUBCASE("for callbacks that nobody has launched") {
        std::atomic<bool> subscribed{false};
        std::thread waiting = user([&] {
            CHECK(p.l.aclrtSubscribeReport(uint64_t(pthread_self()), nullptr) == 0);
            subscribed = true;
            CHECK(p.l.aclrtProcessReport(-1) != 0);
        });
        while (!subscribed) usleep(100);
        p.daemon.die();
        waiting.join();
    }
    CHECK(p.l.aclrtSynchronizeStream(nullptr) == acl::RT_INTERNAL);
}

TEST_CASE("a session that does not open is given up in the time that the program has set, with a reason") {
    Program p(false);
    Held held(p.daemon, Ask::hello);
    setenv("FLEXNPU_CONNECT_TIMEOUT", "soon", 1);
    CHECK(p.l.aclrtSetDevice(0) == acl::RT_INTERNAL);
    CHECK(p.l.message().find("FLEXNPU_CONNECT_TIMEOUT is 'soon'") != std::string::npos);
    setenv("FLEXNPU_CONNECT_TIMEOUT", "0.2", 1);
    // Both threads share one attempt, or make one each.
    const auto attempt = [&] {
        CHECK(p.l.aclrtSetDevice(0) == acl::RT_INTERNAL);
        const std::string why = p.l.message();
        CHECK(why.find(p.daemon.path()) != std::string::npos);
        CHECK(why.find("busy or stopped") != std::string::npos);
    };
    attempt();
    held.seen = false;
    std::thread one(attempt);
    held.wait();
    one.join();
    unsetenv("FLEXNPU_CONNECT_TIMEOUT");
    p.open();
}

TEST_CASE("a program ends while its threads wait") {
    Program p;
    const pid_t child = fork();
    if (child == 0) {
        alarm(50);
        p.l.aclrtSetDevice(0);
        std::atomic<int> waiting{0};
        for (int i = 0; i < 2; i++) {
            user([&p, &waiting, i] {
                void* host = nullptr;
                waiting++;
                i ? p.l.aclrtMallocHost(&host, kSmall) : p.l.aclrtSynchronizeStream(nullptr);
            }).detach();
        }
        while (waiting < 2) usleep(100);
        exit(0);
    }
    p.daemon.on(
        [](FakeDaemon&, FakeDaemon::Peer&, const wire::Request& r) { return r.ask == Ask::host_memory; },
        [](FakeDaemon&, wire::Consumer&, const wire::Record& r) { return r.kind == Kind::sync_stream; });
    int status = -1;
    waitpid(child, &status, 0);
    CHECK(status == 0);
}
