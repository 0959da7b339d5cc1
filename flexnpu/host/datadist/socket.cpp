#include "socket.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>

namespace flexnpu::host::datadist {

namespace {

// False when the deadline has come.
bool wait_for(int fd, short events, Deadline deadline) {
    for (;;) {
        const auto left =
            std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
        pollfd one{fd, events, 0};
        const int n = poll(&one, 1, int(std::clamp<int64_t>(left.count(), 0, 1 << 30)));
        if (n > 0) return true;
        if (n == 0 || errno != EINTR) return false;
    }
}

Fd open_socket(const Address& address) {
    Fd fd(socket(address.socket.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    const int on = 1;
    if (fd) setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    return fd;
}

}  // namespace

Fd::~Fd() {
    if (fd_ >= 0) close(fd_);
}

std::optional<Address> parse(const std::string& engine) {
    std::string host = engine, port;
    const bool six = engine.starts_with('[');
    if (six) {
        const size_t end = engine.find(']');
        if (end == std::string::npos) return std::nullopt;
        host = engine.substr(1, end - 1);
        const std::string rest = engine.substr(end + 1);
        if (!rest.empty() && rest[0] != ':') return std::nullopt;
        port = rest.empty() ? "0" : rest.substr(1);
    } else {
        const size_t colon = engine.find(':');
        host = engine.substr(0, colon);
        port = colon == std::string::npos ? "0" : engine.substr(colon + 1);
    }
    int number = 0;
    const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), number);
    if (error != std::errc() || end != port.data() + port.size() || number > 65535) return std::nullopt;
    Address address;
    address.port = uint16_t(std::max(number, 0));
    if (six) {
        sockaddr_in6 a{};
        a.sin6_family = AF_INET6;
        a.sin6_port = htons(address.port);
        if (inet_pton(AF_INET6, host.c_str(), &a.sin6_addr) != 1) return std::nullopt;
        std::memcpy(&address.socket, &a, sizeof(a));
        address.size = sizeof(a);
    } else {
        sockaddr_in a{};
        a.sin_family = AF_INET;
        a.sin_port = htons(address.port);
        if (inet_pton(AF_INET, host.c_str(), &a.sin_addr) != 1) return std::nullopt;
        std::memcpy(&address.socket, &a, sizeof(a));
        address.size = sizeof(a);
    }
    return address;
}

Fd listen_at(const Address& address, std::string* wrong) {
    Fd fd = open_socket(address);
    const int on = 1;
    if (!fd || setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 ||
        bind(fd.get(), reinterpret_cast<const sockaddr*>(&address.socket), address.size) != 0 ||
        listen(fd.get(), 128) != 0) {
        *wrong = strerror(errno);
        return Fd();
    }
    return fd;
}

Outcome connect_to(const Address& address, Deadline deadline, Fd* out, std::string* wrong) {
    Fd fd = open_socket(address);
    const auto* to = reinterpret_cast<const sockaddr*>(&address.socket);
    int error = fd && connect(fd.get(), to, address.size) == 0 ? 0 : errno;
    if (error == EINPROGRESS) {
        if (!wait_for(fd.get(), POLLOUT, deadline)) return Outcome::timeout;
        socklen_t size = sizeof(error);
        if (getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size) != 0) error = errno;
    }
    if (error != 0) {
        *wrong = strerror(error);
        return Outcome::ended;
    }
    *out = std::move(fd);
    return Outcome::done;
}

Outcome send_all(int fd, const std::string& bytes, Deadline deadline) {
    for (size_t done = 0; done < bytes.size();) {
        const ssize_t n = send(fd, bytes.data() + done, bytes.size() - done, MSG_NOSIGNAL);
        if (n > 0) {
            done += size_t(n);
        } else if (errno == EAGAIN) {
            if (!wait_for(fd, POLLOUT, deadline)) return Outcome::timeout;
        } else if (errno != EINTR) {
            return Outcome::ended;
        }
    }
    return Outcome::done;
}

Outcome receive(int fd, uint32_t most, Deadline deadline, Kind* kind, std::string* payload,
                std::string* wrong) {
    std::string bytes;
    size_t want = sizeof(Header);
    for (;;) {
        const size_t had = bytes.size();
        bytes.resize(want);
        const ssize_t n = recv(fd, bytes.data() + had, want - had, 0);
        bytes.resize(had + size_t(std::max<ssize_t>(n, 0)));
        if (n == 0) return Outcome::ended;
        if (n < 0 && errno == EAGAIN) {
            if (!wait_for(fd, POLLIN, deadline)) return Outcome::timeout;
            continue;
        }
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return Outcome::ended;
        const std::span<const uint8_t> seen(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
        const auto message = decode(seen, most, wrong);
        if (!wrong->empty()) return Outcome::ended;
        if (message) {
            *kind = message->kind;
            payload->assign(reinterpret_cast<const char*>(message->payload.data()), message->payload.size());
            return Outcome::done;
        }
        if (bytes.size() == sizeof(Header)) {
            Header header;
            std::memcpy(&header, bytes.data(), sizeof(header));
            want += header.bytes;
        }
    }
}

bool is_open(int fd) {
    char one;
    const ssize_t n = recv(fd, &one, 1, MSG_PEEK | MSG_DONTWAIT);
    return n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR));
}

}  // namespace flexnpu::host::datadist
