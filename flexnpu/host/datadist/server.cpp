#include "server.hpp"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <vector>

#include "flexnpu/host/complaint.hpp"

namespace flexnpu::host::datadist {

namespace {

constexpr size_t kMostClients = 512;
constexpr auto kHello = std::chrono::seconds(10);
constexpr uint32_t kMostTransfers = 4096;  // of one client, at once

}  // namespace

Server::Server(std::string engine, Fd listener, Registry& registry)
    : engine_(std::move(engine)),
      listener_(std::move(listener)),
      stop_(eventfd(0, EFD_CLOEXEC)),
      registry_(registry) {
    if (!stop_) throw std::system_error(errno, std::generic_category(), "eventfd");
    thread_ = std::thread([this] { serve(); });
}

Server::~Server() {
    const uint64_t one = 1;
    while (::write(stop_.get(), &one, sizeof(one)) < 0 && errno == EINTR) {
    }
    thread_.join();
}

void Server::serve() {
    std::vector<pollfd> polled;
    for (;;) {
        polled.assign({{stop_.get(), POLLIN, 0}, {listener_.get(), POLLIN, 0}});
        int wait = -1;
        const auto now = std::chrono::steady_clock::now();
        for (const Client& one : clients_) {
            polled.push_back({one.fd.get(), short(one.out.empty() ? POLLIN : POLLOUT), 0});
            if (one.known) continue;
            const auto left = std::chrono::ceil<std::chrono::milliseconds>(one.due - now).count();
            wait = int(std::clamp<int64_t>(left, 0, wait < 0 ? INT32_MAX : wait));
        }
        // No descriptors are left: those that are there are served, and the waiting are looked at again.
        if (clients_.size() >= kMostClients) polled[1].fd = -1;
        if (poll(polled.data(), polled.size(), wait) < 0 && errno != EINTR) return;
        if (polled[0].revents) break;
        size_t i = 2;
        for (auto at = clients_.begin(); at != clients_.end(); i++) {
            bool stays = at->known || std::chrono::steady_clock::now() < at->due;
            if (stays && polled[i].revents) stays = at->out.empty() ? read(*at) : write(*at);
            if (!stays) registry_.end_transfers(at->running);
            at = stays ? std::next(at) : clients_.erase(at);
        }
        if (polled[1].revents) accept_all();
    }
    for (const Client& one : clients_) registry_.end_transfers(one.running);
    clients_.clear();
}

void Server::accept_all() {
    while (clients_.size() < kMostClients) {
        Fd fd(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
        if (!fd) {
            if (errno == EMFILE || errno == ENFILE) {
                flexnpu_host_complain("libllm_datadist: no more descriptors for engines that connect");
                std::this_thread::sleep_for(std::chrono::milliseconds(50));
            }
            return;
        }
        clients_.push_back({std::move(fd), std::chrono::steady_clock::now() + kHello});
    }
}

bool Server::read(Client& client) {
    char bytes[4096];
    const ssize_t n = recv(client.fd.get(), bytes, sizeof(bytes), 0);
    if (n == 0) return false;
    if (n < 0) return errno == EAGAIN || errno == EINTR;
    if (client.closing) return true;
    client.in.append(bytes, size_t(n));
    size_t done = 0;
    while (done < client.in.size() && !client.closing) {
        std::string wrong;
        const std::span<const uint8_t> left(reinterpret_cast<const uint8_t*>(client.in.data()) + done,
                                            client.in.size() - done);
        const auto message = decode(left, kMostToServer, &wrong);
        if (!wrong.empty()) refuse(client, wrong);
        if (!message) break;
        done += message->size;
        answer(client, *message);
        // Who sends on and reads nothing gets no more than this kept for it.
        if (client.out.size() > 2 * kMostToClient) return false;
    }
    client.in.erase(0, done);
    return client.out.empty() || write(client);
}

bool Server::write(Client& client) {
    const ssize_t n = send(client.fd.get(), client.out.data(), client.out.size(), MSG_NOSIGNAL);
    if (n < 0) return errno == EAGAIN || errno == EINTR;
    client.out.erase(0, size_t(n));
    if (client.out.empty() && client.closing) shutdown(client.fd.get(), SHUT_WR);
    return true;
}

void Server::refuse(Client& client, const std::string& why) {
    client.out += encode(Kind::refused, why.substr(0, kMostText));
    registry_.end_transfers(client.running);
    client.running = 0;
    // What it still sends is read away for a while: a socket that is closed over it would take the answer
    // along.
    client.closing = true;
    client.known = false;
    client.due = std::chrono::steady_clock::now() + kHello;
}

void Server::answer(Client& client, const Message& message) {
    if (message.kind == Kind::hello && !client.known) {
        const auto hello = read_hello(message.payload);
        const Identity own = identity(engine_);
        if (!hello) return refuse(client, "a hello that cannot be read");
        if (std::string_view(hello->host) != own.host)
            return refuse(client, "it is on another host, and memory is shared within one only");
        if (std::string_view(hello->engine) != own.engine)
            return refuse(client, "here is engine " + engine_ + ", not the one that is meant");
        client.known = true;
        client.out += encode(registry_.table(engine_));
        return;
    }
    if (!client.known) return refuse(client, "a message before hello");
    if (message.kind == Kind::begin) {
        const auto generation = read_begin(message.payload);
        if (!generation || client.running >= kMostTransfers)
            return refuse(client, generation ? "too many transfers at once" : "a begin that cannot be read");
        // First it counts, then the table is read: what is removed after that waits for this transfer.
        registry_.begin_transfer();
        client.running++;
        client.out +=
            *generation == registry_.generation() ? encode(Kind::go) : encode(registry_.table(engine_));
        return;
    }
    if (message.kind == Kind::end && message.payload.empty() && client.running > 0) {
        client.running--;
        registry_.end_transfers(1);
        return;
    }
    refuse(client, "message " + std::to_string(int(message.kind)) + " out of turn");
}

}  // namespace flexnpu::host::datadist
