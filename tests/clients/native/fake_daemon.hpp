// A daemon that answers when and how a test wants: a listening socket, and one thread that serves what
// connects to it.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "flexnpu/wire/futex.hpp"
#include "flexnpu/wire/layout.hpp"
#include "flexnpu/wire/ring.hpp"

namespace flexnpu::test {

// Shared memory as the daemon makes it, with a first byte to know it by.
inline int make_memory(size_t bytes, char mark = 0, bool sealed = true) {
    const int fd = memfd_create("flexnpu-fake", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0 || ftruncate(fd, off_t(bytes)) != 0) throw std::runtime_error("memfd");
    if (mark && pwrite(fd, &mark, 1, 0) != 1) throw std::runtime_error("pwrite");
    if (sealed) fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    return fd;
}

class FakeDaemon {
public:
    // One program's connection.
    struct Peer {
        int fd;
        wire::SessionPage* page = nullptr;
        std::vector<std::unique_ptr<wire::Consumer>> rings;
    };

    FakeDaemon() {
        char name[] = "/tmp/flexnpu-fake-XXXXXX";
        directory_ = mkdtemp(name);
        listen_at();
        thread_ = std::thread([this] { loop(); });
    }
    ~FakeDaemon() {
        over_ = true;
        poke();
        thread_.join();
        for (auto& peer : peers_) ::close(peer->fd);
        if (listener_ >= 0) ::close(listener_);
        ::close(wake_);
        unlink(path().c_str());
        rmdir(directory_.c_str());
    }
    std::string path() const { return directory_ + "/npu0.sock"; }

    // Called, on the daemon's thread, for every question; true: it has been dealt with. Else it is answered
    // as a daemon would.
    using OnRequest = std::function<bool(FakeDaemon&, Peer&, const wire::Request&)>;
    // The same for records in rings. Records that nobody waits for are dropped, others answered with words
    // that count up from `word`.
    using OnRecord = std::function<bool(FakeDaemon&, wire::Consumer&, const wire::Record&)>;
    void on(OnRequest request, OnRecord record = {}) {
        std::lock_guard lock(mutex_);
        on_request_ = std::move(request);
        on_record_ = std::move(record);
    }
    // While it is stopped nothing is read and nothing answered.
    void stop() {
        std::unique_lock lock(mutex_);
        stopped_ = true;
        poke();
        changed_.wait(lock, [this] { return asleep_; });
    }
    void go_on() {
        std::lock_guard lock(mutex_);
        stopped_ = false;
        changed_.notify_all();
    }
    // Runs `job` on the daemon's thread.
    void run(std::function<void(FakeDaemon&)> job) {
        std::unique_lock lock(mutex_);
        jobs_.push_back(std::move(job));
        poke();
        changed_.wait(lock, [this] { return jobs_.empty() || over_; });
    }
    // Waits until `done()`, which is asked anew whenever the daemon has served something.
    void until(const std::function<bool()>& done) {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, done);
    }
    // As if it were killed.
    void die() {
        run([](FakeDaemon& d) {
            ::close(std::exchange(d.listener_, -1));
            for (auto& peer : d.peers_) ::close(peer->fd);
            d.peers_.clear();
        });
    }

    // On the daemon's thread:
    std::vector<std::unique_ptr<Peer>>& peers() { return peers_; }
    // `keep`: the descriptors stay open here as well.
    void send_answer(const Peer& peer, wire::Answer a, const std::vector<int>& fds = {}, bool keep = false) {
        a.magic = wire::kMagic;
        iovec io{&a, sizeof(a)};
        alignas(cmsghdr) char control[CMSG_SPACE(2 * sizeof(int))] = {};
        msghdr h{};
        h.msg_iov = &io;
        h.msg_iovlen = 1;
        if (!fds.empty()) {
            h.msg_control = control;
            h.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
            cmsghdr* c = CMSG_FIRSTHDR(&h);
            c->cmsg_level = SOL_SOCKET;
            c->cmsg_type = SCM_RIGHTS;
            c->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
            std::memcpy(CMSG_DATA(c), fds.data(), fds.size() * sizeof(int));
        }
        sendmsg(peer.fd, &h, MSG_NOSIGNAL);
        if (keep) return;
        for (int fd : fds) ::close(fd);
    }
    static wire::Answer answer_to(const wire::Request& r, uint32_t number = 0) {
        wire::Answer a{};
        a.question = r.question;
        a.ask = r.ask;
        a.number = number;
        return a;
    }
    void serve(Peer& peer, const wire::Request& r) {
        switch (r.ask) {
            case wire::Ask::hello: {
                const int memory = make_memory(wire::kSessionBytes);
                peer.page = static_cast<wire::SessionPage*>(
                    mmap(nullptr, wire::kSessionBytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0));
                return send_answer(peer, answer_to(r), {memory, eventfd(0, EFD_CLOEXEC)});
            }
            case wire::Ask::new_ring: {
                const int memory = make_memory(wire::kRingFileBytes);
                wire::RingMap map;
                map.open(memory);
                peer.rings.push_back(std::make_unique<wire::Consumer>(std::move(map)));
                return send_answer(peer, answer_to(r, uint32_t(peer.rings.size() - 1)), {memory});
            }
            case wire::Ask::host_memory:
                return send_answer(peer, answer_to(r, ++regions_), {make_memory(r.bytes, 'R')});
            default: return send_answer(peer, answer_to(r));
        }
    }
    static void reply(wire::Consumer& ring, uint32_t request, int32_t status, uint64_t word) {
        wire::RingHeader& slot = ring.header();
        slot.status = status;
        slot.words = 1;
        for (uint64_t i = 0; i < 8; i++) slot.data[i] = word + i;
        slot.message[0] = '\0';
        slot.reply.store(request, std::memory_order_seq_cst);
        wire::futex_wake(slot.reply);
    }
    // What has been asked for, in order.
    std::vector<wire::Ask> asked() {
        std::vector<wire::Ask> all;
        run([&](FakeDaemon& d) { all = d.asked_; });
        return all;
    }
    std::atomic<uint64_t> word{0x10000};

private:
    void listen_at() {
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        std::strcpy(address.sun_path, path().c_str());
        listener_ = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
            listen(listener_, 1) != 0)
            throw std::runtime_error("bind");
    }
    void poke() {
        const uint64_t one = 1;
        [[maybe_unused]] const ssize_t n = write(wake_, &one, sizeof(one));
    }
    void loop() {
        while (!over_) {
            {
                std::unique_lock lock(mutex_);
                asleep_ = true;
                changed_.notify_all();
                changed_.wait(lock, [this] { return !stopped_ || over_; });
                asleep_ = false;
                while (!jobs_.empty()) {
                    auto job = std::move(jobs_.front());
                    job(*this);
                    jobs_.pop_front();
                }
                changed_.notify_all();
                if (over_) return;
            }
            std::vector<pollfd> fds{{wake_, POLLIN, 0}, {listener_, POLLIN, 0}};
            for (auto& peer : peers_) fds.push_back({peer->fd, POLLIN, 0});
            // Rings are looked at a thousand times a second: this daemon never dozes, so nobody rings.
            ::poll(fds.data(), fds.size(), 1);
            std::unique_lock lock(mutex_);
            if (stopped_) continue;
            if (fds[0].revents) {
                uint64_t n;
                [[maybe_unused]] const ssize_t got = read(wake_, &n, sizeof(n));
            }
            if (listener_ >= 0) {
                const int fd = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
                if (fd >= 0) peers_.push_back(std::make_unique<Peer>(Peer{fd, nullptr, {}}));
            }
            for (auto& peer : peers_) serve_one(*peer);
            changed_.notify_all();
        }
    }
    void serve_one(Peer& peer) {
        wire::Request r{};
        if (recv(peer.fd, &r, sizeof(r), MSG_DONTWAIT) > 0) {
            asked_.push_back(r.ask);
            if (!(on_request_ && on_request_(*this, peer, r))) serve(peer, r);
        }
        for (auto& ring : peer.rings) {
            wire::Record record;
            while (ring->peek(&record) == wire::Look::record) {
                if (!(on_record_ && on_record_(*this, *ring, record)) && record.request)
                    reply(*ring, record.request, 0, word.fetch_add(0x10000));
                ring->pop(record);
            }
        }
    }

    std::string directory_;
    int listener_ = -1, wake_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    std::thread thread_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::atomic<bool> over_{false};
    bool stopped_ = false, asleep_ = false;
    std::deque<std::function<void(FakeDaemon&)>> jobs_;
    OnRequest on_request_;
    OnRecord on_record_;
    std::vector<std::unique_ptr<Peer>> peers_;
    std::vector<wire::Ask> asked_;
    uint32_t regions_ = 0;
};

}  // namespace flexnpu::test
