// Mutated messages for the ring and socket decoders: none may crash, hang or leak, and an honest client beside them goes on.
//
//   fuzz_plane [MESSAGES [SEED]]
//
// Run it from a build with -DFLEXNPU_SANITIZE=address,undefined for what it is worth; the unit tests run it briefly.
#include <poll.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstring>
#include <random>

#include "flexnpu/wire/futex.hpp"
#include "flexnpu/wire/meta.hpp"
#include "plane_fixture.hpp"

using namespace flexnpu;
using namespace flexnpu::test;

namespace {

using Bytes = std::vector<uint8_t>;
std::mt19937_64 rng;

uint64_t below(uint64_t n) { return rng() % n; }

[[noreturn]] void die(const char* what) {
    fprintf(stderr, "fuzz_plane: %s\n", what);
    exit(1);
}

// A client that writes what it likes.
struct Raw {
    int fd = -1;
    wire::SessionPage* page = nullptr;
    daemon::Fd bell;
    wire::RingMap ring;
    uint64_t head = 0;
    uint64_t sequence = 0;
    uint32_t request = 0;

    explicit Raw(const std::string& path) {
        fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
        if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) die("cannot connect");
    }
    ~Raw() {
        if (page) munmap(page, wire::kSessionBytes);
        ::close(fd);
    }
    bool send_raw(const void* p, size_t n) { return send(fd, p, n, MSG_NOSIGNAL) == ssize_t(n); }
    // The next answer and its descriptors; false when hung up.
    bool receive(wire::Answer* answer, std::vector<daemon::Fd>* fds, int timeout_ms = 20'000) {
        pollfd p{fd, POLLIN, 0};
        if (poll(&p, 1, timeout_ms) <= 0) return false;
        iovec io{answer, sizeof(*answer)};
        alignas(cmsghdr) char control[CMSG_SPACE(4 * sizeof(int))];
        msghdr h{};
        h.msg_iov = &io;
        h.msg_iovlen = 1;
        h.msg_control = control;
        h.msg_controllen = sizeof(control);
        const ssize_t n = recvmsg(fd, &h, MSG_CMSG_CLOEXEC);
        for (cmsghdr* c = n > 0 ? CMSG_FIRSTHDR(&h) : nullptr; c; c = CMSG_NXTHDR(&h, c)) {
            for (size_t i = 0; i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
                int got;
                std::memcpy(&got, CMSG_DATA(c) + i * sizeof(int), sizeof(got));
                fds->emplace_back(got);
            }
        }
        return n == sizeof(*answer);
    }
    bool ask(wire::Ask what, wire::Answer* answer, std::vector<daemon::Fd>* fds, uint64_t bytes = 0) {
        const wire::Request r{wire::kMagic, wire::kVersion, what, 0, bytes, api::kTableHash};
        return send_raw(&r, sizeof(r)) && receive(answer, fds);
    }
    void open() {
        wire::Answer answer;
        std::vector<daemon::Fd> fds;
        answer.message[0] = '\0';
        bool ok = false;
        // Earlier sessions are torn down more slowly than we make new ones.
        for (int i = 0; i < 2000 && !ok; i++) {
            ok = ask(wire::Ask::hello, &answer, &fds) && answer.status == 0 && fds.size() == 2;
            if (!ok && !std::strstr(answer.message, "sessions are open")) break;
            if (!ok) usleep(10'000);
        }
        if (!ok) {
            fprintf(stderr, "hello refused: %.200s\n", answer.message);
            die("an honest client is refused");
        }
        void* area = mmap(nullptr, wire::kSessionBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fds[0].get(), 0);
        if (area == MAP_FAILED) die("mmap");
        page = static_cast<wire::SessionPage*>(area);
        bell = std::move(fds[1]);
        fds.clear();
        if (!ask(wire::Ask::new_ring, &answer, &fds) || answer.status != 0 || !ring.open(fds[0].get())) die("ring refused");
    }
    bool alive() {
        pollfd p{fd, 0, 0};
        return !(poll(&p, 1, 0) > 0 && (p.revents & (POLLHUP | POLLERR)));
    }
    bool room(size_t n) {
        const uint64_t until = wire::now_ns() + 20'000'000'000ull;
        while (head + n - ring.header().tail.load() > wire::kRingBytes) {
            if (!alive()) return false;
            if (wire::now_ns() > until) die("the daemon does not read the ring");
            knock();
            usleep(50);
        }
        return true;
    }
    void knock() {
        const uint64_t one = 1;
        [[maybe_unused]] ssize_t n = write(bell.get(), &one, sizeof(one));
    }
    // Writes bytes as they are, record header included.
    bool put(const Bytes& bytes) {
        if (!room(bytes.size())) return false;
        std::memcpy(ring.data(head), bytes.data(), bytes.size());
        head += bytes.size();
        ring.header().head.store(head);
        if (page->doze.load() != wire::kAwake) knock();
        return true;
    }
    // A well-formed question; its status, or -1 if the session is gone.
    int32_t call(wire::Kind kind, const Bytes& payload) {
        Bytes b(sizeof(wire::Record) + payload.size());
        const wire::Record r{uint32_t(b.size()), kind, 0, ++request | 0x80000000u, 0, ++sequence};
        std::memcpy(b.data(), &r, sizeof(r));
        if (!payload.empty()) std::memcpy(b.data() + sizeof(r), payload.data(), payload.size());
        if (!put(b)) return -1;
        const uint64_t until = wire::now_ns() + 20'000'000'000ull;
        while (ring.header().reply.load() != r.request) {
            if (!alive()) return -1;
            if (wire::now_ns() > until) die("no answer");
            knock();
            usleep(20);
        }
        return ring.header().status;
    }
};

template <class T>
void append(Bytes& b, const T& v) {
    const auto* p = reinterpret_cast<const uint8_t*>(&v);
    b.insert(b.end(), p, p + sizeof(v));
}

Bytes record(wire::Kind kind, const Bytes& payload, bool ask) {
    Bytes b;
    append(b, wire::Record{uint32_t(sizeof(wire::Record) + payload.size()), kind, 0, ask ? uint32_t(1 + below(1000)) : 0, 0, below(1 << 20)});
    b.insert(b.end(), payload.begin(), payload.end());
    return b;
}

// What a session holds, for messages that are almost right.
struct World {
    uint64_t memory = 0, stream = 0, event = 0, reserved = 0, physical = 0;
    struct Defined {
        uint64_t shape;
        uint32_t op;
        uint64_t addresses;
    };
    std::vector<Defined> defined;
};

Bytes meta_of(uint32_t op, size_t* addresses) {
    wire::MetaWriter w;
    *addresses = 0;
    const int64_t dims[] = {int64_t(below(5)), int64_t(1 + below(8))}, strides[] = {dims[1], 1};
    auto tensor = [&](char kind) {
        w.tensor(kind, int(below(13)), int(below(3)), int64_t(below(3)), dims, strides, dims);
        ++*addresses;
    };
    auto scalar = [&] {
        const unsigned char value[16] = {1};
        w.head('S', true, int(below(10)), 0, 0);
        w.raw(value, 16);
    };
    for (const char* k = api::kOps[op].kinds; *k; k++) {
        const uint64_t word = below(4);
        const double real = 0.5;
        switch (*k) {
            case 'T': case 't': tensor(*k); break;
            case 'L': case 'l':
                w.head(*k, true, 0, 0, 2);
                tensor('T');
                tensor('T');
                break;
            case 'S': scalar(); break;
            case 'C':
                w.head('C', true, 0, 0, 2);
                scalar();
                scalar();
                break;
            case 'I': w.array('I', dims, 2, 8); break;
            case 'F': w.array('F', dims, 3, 4); break;
            case 'B': w.array('B', "\1\0\1", 3, 1); break;
            case 's': w.array('s', "name", 4, 1); break;
            case 'd': case 'f': w.word(*k, &real); break;
            default: w.word(*k, &word); break;
        }
    }
    const auto b = w.bytes();
    return {b.begin(), b.end()};
}

// A message that an honest client might send.
Bytes honest(World& w) {
    using wire::Kind;
    const auto kind = below(4) ? Kind(1 + below(uint64_t(Kind::count_) - 1)) : below(2) ? Kind::launch : Kind::define_shape;
    Bytes p;
    switch (kind) {
        case Kind::launch: {
            World::Defined d{below(64) | uint64_t(1) << 32, uint32_t(below(api::kOpCount)), below(4)};
            if (!w.defined.empty() && below(8)) d = w.defined[below(w.defined.size())];
            const uint64_t n = d.addresses;
            append(p, wire::Launch{w.stream, w.memory, below(100), d.shape, d.op, uint32_t(n), below(4) ? 0 : below(10)});
            for (uint64_t i = 0; i < n; i++) append(p, w.memory);
            return record(kind, p, false);
        }
        case Kind::copy: {
            wire::Copy c{w.stream, w.memory, w.memory, 1 + below(64), wire::Place(below(4)), wire::Place(below(4)), uint32_t(below(3)), uint32_t(below(70)),
                         uint32_t(below(4)), uint32_t(below(2))};
            if (below(2)) c.to_place = wire::Place::device;
            if (c.to_place == wire::Place::staging) c.to = below(wire::kBlocks * wire::kBlockBytes + 10);
            if (c.from_place == wire::Place::staging) c.from = below(wire::kBlocks * wire::kBlockBytes + 10);
            append(p, c);
            if (c.from_place == wire::Place::inline_data) p.resize(p.size() + wire::round8(c.bytes));
            return record(kind, p, below(2));
        }
        case Kind::memset:
            append(p, wire::Memset{w.stream, below(4) ? w.memory : w.reserved + 4096 * below(8), 64, below(65), 1, uint32_t(below(2))});
            return record(kind, p, true);
        case Kind::record_event: case Kind::wait_event: case Kind::reset_event: case Kind::destroy_event: case Kind::sync_event:
        case Kind::query_event: case Kind::event_timestamp:
            append(p, wire::EventOp{w.event, below(2) ? w.stream : below(3), 1});
            if (kind == Kind::destroy_event && below(20)) return honest(w);
            return record(kind, p, kind >= Kind::sync_event);
        case Kind::event_elapsed:
            append(p, wire::EventPair{w.event, w.event});
            return record(kind, p, true);
        case Kind::drop_shape:
            append(p, wire::DropShape{below(64) | uint64_t(1) << 32});
            return record(kind, p, false);
        case Kind::define_shape: {
            const uint32_t op = uint32_t(below(api::kOpCount));
            size_t n = 0;
            const Bytes meta = meta_of(op, &n);
            const uint64_t shape = below(64) | uint64_t(1) << 32;
            append(p, wire::DefineShape{shape, op, uint32_t(n), uint32_t(meta.size()), 0});
            std::erase_if(w.defined, [&](const World::Defined& d) { return d.shape == shape; });
            w.defined.push_back({shape, op, n});
            for (size_t i = 0; i < n; i++) append(p, w.memory);
            p.insert(p.end(), meta.begin(), meta.end());
            return record(kind, p, below(2));
        }
        case Kind::malloc:
            append(p, wire::Malloc{below(100000), 0, uint32_t(below(2))});
            return record(kind, p, true);
        case Kind::free:
            append(p, wire::Free{below(50) ? below(1 << 20) : w.memory, 0});
            return record(kind, p, true);
        case Kind::mem_info:
            append(p, wire::MemInfo{1, 0});
            return record(kind, p, true);
        case Kind::create_event:
            if (below(20)) return honest(w);
            append(p, wire::CreateEvent{wire::make_handle(wire::HandleKind::event, uint32_t(below(100)), 1), uint32_t(below(16)), uint32_t(below(2))});
            return record(kind, p, below(2));
        case Kind::create_stream:
            if (below(20)) return honest(w);
            append(p, wire::CreateStream{uint32_t(below(8)), uint32_t(below(16))});
            return record(kind, p, true);
        case Kind::destroy_stream:
            append(p, wire::StreamOp{below(50) ? below(1 << 20) : w.stream, -1});
            return record(kind, p, true);
        case Kind::sync_stream: case Kind::query_stream: case Kind::abort_stream: case Kind::stream_id: case Kind::sync_device:
            append(p, wire::StreamOp{w.stream, int64_t(below(3)) - 1});
            return record(kind, p, true);
        case Kind::forward: {
            const uint64_t n = below(5);
            append(p, wire::Forward{uint32_t(below(api::FN_COUNT)), uint32_t(n), uint32_t(below(40)), 0});
            for (uint64_t i = 0; i < n; i++) append(p, below(3));
            return record(kind, p, true);
        }
        case Kind::virtual_memory: {
            wire::VirtualMemory v{};
            v.call = uint32_t(below(8));
            v.bytes = 4096 * (1 + below(4));
            v.offset = 4096 * below(3);
            v.handle = below(4) ? w.physical : wire::make_handle(wire::HandleKind::physical, uint32_t(below(8)), 1 + uint32_t(below(3)));
            v.address = w.reserved + 4096 * below(8);
            if (v.call == wire::VirtualMemory::release && below(20)) return honest(w);
            append(p, v);
            return record(kind, p, true);
        }
        case Kind::late_dims:
            append(p, wire::LateDims{below(10)});
            return record(kind, p, true);
        case Kind::text:
            append(p, wire::Text{uint32_t(below(5)), int32_t(below(12)), 5, 0});
            append(p, uint64_t(0x6f6c6c6568));
            return record(kind, p, true);
        default:
            p.resize(8 * below(8));
            return record(kind, p, below(2));
    }
}

void mutate(Bytes& b, size_t from) {
    static constexpr uint64_t interesting[] = {0, 1, 7, 8, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fffffff, 0xffffffff, 0x8000000000000000, ~0ull, 1ull << 40};
    for (uint64_t n = 1 + below(3); n > 0; n--) {
        if (b.size() <= from) return;
        const size_t at = from + below(b.size() - from);
        switch (below(6)) {
            case 0: b[at] ^= uint8_t(1 << below(8)); break;
            case 1: b[at] = uint8_t(rng()); break;
            case 2: case 3: {
                const size_t width = size_t(1) << below(4);
                const size_t aligned = at / width * width;
                if (aligned < from || aligned + width > b.size()) break;
                const uint64_t v = interesting[below(std::size(interesting))] + below(3) - 1;
                std::memcpy(b.data() + aligned, &v, width);
                break;
            }
            case 4: b.resize(from + (b.size() - from) / 8 * below(9) / 8 * 8); break;
            case 5: b.resize(b.size() + 8 * below(32), uint8_t(rng())); break;
        }
    }
    b.resize((b.size() + 7) / 8 * 8);
    if (b.size() > wire::kMaxRecord) b.resize(wire::kMaxRecord);
}

World furnish(Raw& raw) {
    World w;
    Bytes p;
    append(p, wire::Malloc{1 << 16, 0, 0});
    if (raw.call(wire::Kind::malloc, p) == 0) w.memory = raw.ring.header().data[0];
    p.clear();
    append(p, wire::CreateStream{0, 0});
    if (raw.call(wire::Kind::create_stream, p) == 0) w.stream = raw.ring.header().data[0];
    p.clear();
    wire::VirtualMemory v{};
    v.call = wire::VirtualMemory::reserve;
    v.bytes = 1 << 16;
    append(p, v);
    if (raw.call(wire::Kind::virtual_memory, p) == 0) w.reserved = raw.ring.header().data[0];
    p.clear();
    v.call = wire::VirtualMemory::allocate;
    append(p, v);
    if (raw.call(wire::Kind::virtual_memory, p) == 0) w.physical = raw.ring.header().data[0];
    p.clear();
    const uint64_t event = wire::make_handle(wire::HandleKind::event, 0, 1);
    append(p, wire::CreateEvent{event, 0, 0});
    if (raw.call(wire::Kind::create_event, p) == 0) w.event = event;
    return w;
}

void fuzz_rings(Running& running, uint64_t messages) {
    Raw honest_one(running.path());
    honest_one.open();
    World kept = furnish(honest_one);
    if (!kept.memory || !kept.stream || !kept.event || !kept.reserved || !kept.physical) die("an honest client gets no objects");
    uint64_t sent = 0;
    while (sent < messages) {
        Raw raw(running.path());
        raw.open();
        World w = furnish(raw);
        for (int i = 0; i < 4000 && sent < messages; i++, sent++) {
            Bytes b = honest(w);
            if (below(4)) {
                // Mostly the payload: a broken frame ends the session.
                mutate(b, below(400) ? sizeof(wire::Record) : 0);
                if (b.size() < sizeof(wire::Record)) b.resize(sizeof(wire::Record));
                wire::Record r;
                std::memcpy(&r, b.data(), sizeof(r));
                if (below(400)) r.size = uint32_t(b.size());
                std::memcpy(b.data(), &r, sizeof(r));
            }
            if (!below(5000)) raw.ring.header().head.store(rng());
            if (!raw.put(b)) break;
        }
        Bytes p;
        append(p, wire::StreamOp{kept.stream, -1});
        if (honest_one.call(wire::Kind::sync_stream, p) != 0) die("an honest client suffers");
    }
}

void fuzz_socket(Running& running, uint64_t messages) {
    for (uint64_t i = 0; i < messages;) {
        Raw raw(running.path());
        if (below(2)) raw.open();
        for (int k = 0; k < 20 && i < messages; k++, i++) {
            const wire::Request r{wire::kMagic, wire::kVersion, wire::Ask(below(6)), uint32_t(below(4)), below(2) ? below(100000) : rng(), api::kTableHash};
            Bytes b;
            append(b, r);
            if (below(2)) {
                for (uint64_t n = 1 + below(3); n > 0; n--) b[below(b.size())] = uint8_t(rng());
                if (!below(8)) b.resize(below(100));
            }
            if (b.empty() || !raw.send_raw(b.data(), b.size())) break;
            wire::Answer answer;
            std::vector<daemon::Fd> fds;
            if (!raw.receive(&answer, &fds)) break;
        }
    }
}

void fuzz_meta(uint64_t messages) {
    std::vector<wire::ArgMeta> args;
    for (uint64_t i = 0; i < messages; i++) {
        const uint32_t op = uint32_t(below(api::kOpCount));
        size_t n = 0;
        Bytes b = meta_of(op, &n);
        if (!wire::decode_meta(b, api::kOps[op].kinds, &args)) die("honest metadata refused");
        mutate(b, 0);
        if (!wire::decode_meta(b, api::kOps[op].kinds, &args)) continue;
        for (const wire::ArgMeta& a : args) {
            for (const wire::TensorMeta& t : a.tensors) {
                wire::Extent e;
                if (t.present && wire::extent_of(t, 1 + uint32_t(below(128)), below(2), &e) && e.bytes >> 62) die("an extent overflows");
            }
        }
    }
}

}  // namespace

int main(int argc, char** argv) {
    const uint64_t messages = argc > 1 ? strtoull(argv[1], nullptr, 0) : 40'000;
    const uint64_t seed = argc > 2 ? strtoull(argv[2], nullptr, 0) : 1;
    rng.seed(seed);
    Mock mock;
    {
        Running running;
        fuzz_meta(messages);
        fuzz_rings(running, messages);
        fuzz_socket(running, messages / 10);
        const auto counters = running.plane.counters();
        printf("{\"messages\": %llu, \"seed\": %llu, \"refused\": %llu, \"malformed\": %llu, \"sessions_broken\": %llu, \"launches\": %llu}\n",
               static_cast<unsigned long long>(messages), static_cast<unsigned long long>(seed), static_cast<unsigned long long>(counters.at("refused")),
               static_cast<unsigned long long>(counters.at("malformed")), static_cast<unsigned long long>(counters.at("sessions_broken")),
               static_cast<unsigned long long>(counters.at("launches")));
        if (counters.at("refused") == 0 || counters.at("sessions_broken") == 0) die("nothing was refused: the fuzzer does not reach the decoders");
        if (counters.at("launches") == 0) die("nothing was launched: the fuzzer does not get past the decoders");
    }
    const MockHeld held = mock.mock_held();
    if (held.streams || held.events || held.memory || held.host || held.executors || held.tensors) die("a session's objects were not freed");
    return 0;
}
