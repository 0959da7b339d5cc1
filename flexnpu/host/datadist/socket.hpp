// TCP sockets between engines: names, and what waits no longer than it may.
#pragma once

#include <sys/socket.h>

#include <chrono>
#include <optional>
#include <string>
#include <utility>

#include "messages.hpp"

namespace flexnpu::host::datadist {

using Deadline = std::chrono::steady_clock::time_point;

class Fd {
public:
    explicit Fd(int fd = -1) : fd_(fd) {}
    Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    Fd& operator=(Fd&& other) noexcept {
        std::swap(fd_, other.fd_);
        return *this;
    }
    ~Fd();
    int get() const { return fd_; }
    explicit operator bool() const { return fd_ >= 0; }

private:
    int fd_;
};

// An engine's name: "ip", "ip:port", "[ipv6]" or "[ipv6]:port".
struct Address {
    sockaddr_storage socket{};
    socklen_t size = 0;
    uint16_t port = 0;  // 0: it does not listen
};
std::optional<Address> parse(const std::string& engine);

// A socket that listens there, or that is connected; where there is none, *wrong says why.
Fd listen_at(const Address& address, std::string* wrong);
enum class Outcome { done, timeout, ended };
Outcome connect_to(const Address& address, Deadline deadline, Fd* out, std::string* wrong);

Outcome send_all(int fd, const std::string& bytes, Deadline deadline);
// One message of at most `most` bytes; its payload goes to *payload. `ended` with an empty *wrong: the other
// has closed the connection.
Outcome receive(int fd, uint32_t most, Deadline deadline, Kind* kind, std::string* payload,
                std::string* wrong);
// Whether the other end is still there, as far as can be told without waiting.
bool is_open(int fd);

}  // namespace flexnpu::host::datadist
