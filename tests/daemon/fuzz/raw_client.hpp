// A client that writes what it likes: no library between it and the daemon's sockets and rings.
#pragma once

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstring>
#include <string>
#include <vector>

#include "flexnpu/daemon/session.hpp"
#include "flexnpu/wire/futex.hpp"
#include "flexnpu/wire/layout.hpp"
#include "flexnpu/wire/ring.hpp"
#include "fn_ids.gen.h"

namespace flexnpu::test {

using Bytes = std::vector<uint8_t>;

[[noreturn]] inline void die(const char* what) {
    fprintf(stderr, "%s\n", what);
    abort();
}

template <class T>
void append(Bytes& b, const T& v) {
    const auto* p = reinterpret_cast<const uint8_t*>(&v);
    b.insert(b.end(), p, p + sizeof(v));
}

struct RawClient {
    int fd = -1;
    wire::SessionPage* page = nullptr;
    daemon::Fd bell;
    wire::RingMap ring;
    uint64_t head = 0;
    uint64_t sequence = 0;
    uint32_t request = 0;
    uint32_t questions = 0;

    explicit RawClient(const std::string& path) {
        fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
        if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) die("cannot connect");
    }
    ~RawClient() {
        if (page) munmap(page, wire::kSessionBytes);
        ::close(fd);
    }
    RawClient(const RawClient&) = delete;
    RawClient& operator=(const RawClient&) = delete;

    // `passed`: a descriptor to send along, or -1.
    bool send_raw(const void* p, size_t n, int passed = -1) {
        iovec io{const_cast<void*>(p), n};
        alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
        msghdr h{};
        h.msg_iov = &io;
        h.msg_iovlen = 1;
        if (passed >= 0) {
            h.msg_control = control;
            h.msg_controllen = sizeof(control);
            cmsghdr* c = CMSG_FIRSTHDR(&h);
            c->cmsg_level = SOL_SOCKET;
            c->cmsg_type = SCM_RIGHTS;
            c->cmsg_len = CMSG_LEN(sizeof(int));
            std::memcpy(CMSG_DATA(c), &passed, sizeof(int));
        }
        return sendmsg(fd, &h, MSG_NOSIGNAL) == ssize_t(n);
    }
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
    bool ask(wire::Ask what, wire::Answer* answer, std::vector<daemon::Fd>* fds, uint64_t bytes = 0,
             uint32_t region = 0) {
        wire::Request r{};
        r.magic = wire::kMagic;
        r.version = wire::kVersion;
        r.ask = what;
        r.region = region;
        r.bytes = bytes;
        r.table_hash = api::kTableHash;
        r.question = ++questions;
        if (!send_raw(&r, sizeof(r)) || !receive(answer, fds)) return false;
        if (answer->question != 0 && answer->question != r.question) die("an answer to another question");
        return true;
    }
    // A session and a ring.
    void open() {
        wire::Answer answer;
        std::vector<daemon::Fd> fds;
        answer.message[0] = '\0';
        bool ok = false;
        // Earlier sessions are torn down more slowly than we make new ones.
        for (int i = 0; i < 2000 && !ok; i++) {
            fds.clear();
            ok = ask(wire::Ask::hello, &answer, &fds) && answer.status == 0 && fds.size() >= 2;
            if (!ok && !std::strstr(answer.message, "open")) break;
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
        if (!ask(wire::Ask::new_ring, &answer, &fds) || answer.status != 0 || !ring.open(fds[0].get()))
            die("ring refused");
    }
    bool alive() {
        pollfd p{fd, 0, 0};
        return !(poll(&p, 1, 0) > 0 && (p.revents & (POLLHUP | POLLERR)));
    }
    bool room(size_t n) {
        if (head + n - ring.header().tail.load() <= wire::kRingBytes) return true;
        const uint64_t until = wire::now_ns() + 20'000'000'000ull;
        while (head + n - ring.header().tail.load() > wire::kRingBytes) {
            if (!alive()) return false;
            if (wire::now_ns() > until) die("the daemon does not read the ring");
            knock();
            usleep(20);
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
    // Whether the answer to `number` has come within the time.
    bool answered(uint32_t number, uint64_t within_ns) {
        const uint64_t until = wire::now_ns() + within_ns;
        while (ring.header().reply.load() != number) {
            if (!alive() || wire::now_ns() > until) return false;
            knock();
            usleep(10);
        }
        return true;
    }
    // A well-formed question; its status, or -1 if the session is gone.
    int32_t call(wire::Kind kind, const Bytes& payload) {
        Bytes b(sizeof(wire::Record) + payload.size());
        const wire::Record r{uint32_t(b.size()), kind, 0, ++request | 0x80000000u, 0, ++sequence};
        std::memcpy(b.data(), &r, sizeof(r));
        if (!payload.empty()) std::memcpy(b.data() + sizeof(r), payload.data(), payload.size());
        if (!put(b)) return -1;
        if (!answered(r.request, 20'000'000'000ull)) {
            if (alive()) die("no answer");
            return -1;
        }
        return ring.header().status;
    }
    template <class T>
    int32_t call(wire::Kind kind, const T& payload) {
        Bytes b;
        append(b, payload);
        return call(kind, b);
    }
    // A well-formed message that nobody waits for here; with a request number the daemon answers it.
    template <class T>
    void say(wire::Kind kind, const T& payload, uint32_t with_request = 0) {
        Bytes b;
        append(b, wire::Record{uint32_t(sizeof(wire::Record) + sizeof(T)), kind, 0, with_request, 0,
                               ++sequence});
        append(b, payload);
        if (!put(b)) die("the session is gone");
    }
    // The daemon has given us a function to call: its place among the page's.
    const wire::HostCall& function_given(uint32_t number) {
        for (int i = 0; i < 1000 && page->host_given.load() <= number; i++) {
            knock();
            usleep(2000);
        }
        if (page->host_given.load() <= number) die("no host function is given");
        return page->host_calls[number];
    }
    void function_returned(const wire::HostCall& call) {
        page->host_done[call.slot].store(call.ticket);
        knock();
    }
    uint64_t word(size_t i = 0) { return ring.header().data[i]; }
    std::string message() { return ring.header().message; }
};

// What a session may hold.
struct Objects {
    uint64_t memory = 0, stream = 0, event = 0;
};
inline constexpr uint64_t kObjectBytes = 1 << 16;

inline Objects furnish(RawClient& client) {
    Objects o;
    if (client.call(wire::Kind::malloc, wire::Malloc{kObjectBytes, 0, 0}) == 0) o.memory = client.word();
    if (client.call(wire::Kind::create_stream, wire::CreateStream{0, 0}) == 0) o.stream = client.word();
    const uint64_t event = wire::make_handle(wire::HandleKind::event, 0, 1);
    if (client.call(wire::Kind::create_event, wire::CreateEvent{event, 0, 0}) == 0) o.event = event;
    return o;
}

}  // namespace flexnpu::test
