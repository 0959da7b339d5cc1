// How much of the daemon one session, one user and all together may have, and how much they have. Users are
// those of SO_PEERCRED.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <string>

namespace flexnpu::daemon {

// What sessions hold of the device's objects: limited in number, a session, a user and all together.
enum class HeldKind : uint8_t { streams, events, graphs, communicators, binaries };
inline constexpr size_t kHeldKinds = 5;

struct Limits {
    uint64_t sessions = 256;
    uint64_t sessions_per_user = 128;
    uint64_t rings = 4096;  // one a thread that calls
    uint64_t rings_per_user = 2048;
    uint64_t rings_per_session = 256;
    // Threads of the daemon for calls that may block; one session gets a quarter of them.
    uint64_t threads = 1024;
    // Memory that programs share with the daemon: staging areas and aclrtMallocHost. 0: three quarters and
    // half of the machine's.
    uint64_t host_bytes = 0;
    uint64_t host_bytes_per_user = 0;
    // How much of that may be registered with the vendor as page-locked (pins.hpp); the rest is not. 0: half
    // and a quarter of the machine's.
    uint64_t pinned_bytes = 0;
    uint64_t pinned_bytes_per_user = 0;
    uint64_t device_bytes_per_session = 0;  // 0: as many as the device has
    // 1: programs may load device code of their own, which nothing keeps from other programs' memory.
    uint64_t allow_kernels = 0;
    struct Objects {
        uint64_t all, per_user, per_session;
    };
    // By HeldKind. Streams and events: as many as a device of A2 and A3 has.
    std::array<Objects, kHeldKinds> objects{{{1984, 1536, 1024},
                                             {65536, 49152, 32768},
                                             {65536, 49152, 32768},
                                             {1024, 512, 256},
                                             {4096, 2048, 1024}}};
    Objects& of(HeldKind kind) { return objects[size_t(kind)]; }
    // A connection that has not become a session by then is dropped.
    uint64_t hello_ms = 10'000;
    // How long a control request waits for the dispatching thread: less than who asks waits for us.
    uint64_t call_ms = 1000;
    // How long what a client that has gone had launched may run on, before it is aborted.
    uint64_t end_ms = 10'000;

    // With the machine's memory filled in.
    Limits resolved() const;
};

// Of the acceptor's thread, but for the counters.
class Usage {
public:
    struct Amounts {
        uint64_t connections = 0, sessions = 0, rings = 0, host_bytes = 0;
    };
    explicit Usage(const Limits& limits) : limits_(limits) {}

    // Takes what is asked for; else says why not, naming the limit and the option that sets it, and counts.
    std::string take_connection(uint32_t uid);
    std::string take_session(uint32_t uid,
                             uint64_t live);  // `live`: sessions that are open or still being torn down
    std::string take_ring(uint32_t uid, uint64_t in_session);
    std::string take_host(uint32_t uid, uint64_t bytes);
    void give(uint32_t uid, const Amounts& amounts);

    void counters(std::map<std::string, uint64_t>* out) const;

private:
    const Limits limits_;
    std::map<uint32_t, Amounts> users_;
    Amounts all_;
    std::atomic<uint64_t> connections_{0}, sessions_{0}, rings_{0}, host_{0};  // refused
};

}  // namespace flexnpu::daemon
