#include "flexnpu/emulator/hccl/rendezvous.hpp"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>

#include "flexnpu/api/hccl_types.hpp"
#include "flexnpu/emulator/hccl/page.hpp"
#include "flexnpu/emulator/hccl/refusal.hpp"
#include "flexnpu/emulator/runtime/clock.hpp"

namespace flexnpu::emulator::hccl {

namespace types = flexnpu::hccl;

namespace {

// The first part of a token is the socket's name, which anybody on the machine can list; the rest is the
// secret.
constexpr size_t kNameBytes = 12;

[[noreturn]] void refuse_errno(int32_t result, const std::string& what) {
    throw Refusal{result, what + ": " + std::strerror(errno)};
}

class Socket {
public:
    explicit Socket(int fd) : fd_(fd) {}
    ~Socket() {
        if (fd_ >= 0) {
            close(fd_);
        }
    }
    Socket(const Socket&) = delete;
    Socket& operator=(const Socket&) = delete;
    int get() const { return fd_; }

private:
    int fd_;
};

socklen_t address_of(const Token& token, sockaddr_un* address) {
    std::string name = "flexnpu-hccl-";
    for (size_t i = 0; i < kNameBytes; ++i) {
        constexpr char kDigits[] = "0123456789abcdef";
        name += kDigits[token.bytes[i] >> 4];
        name += kDigits[token.bytes[i] & 15];
    }
    std::memset(address, 0, sizeof(*address));
    address->sun_family = AF_UNIX;
    std::memcpy(address->sun_path + 1, name.data(), name.size());
    return socklen_t(offsetof(sockaddr_un, sun_path) + 1 + name.size());
}

bool same_user(int fd) {
    ucred peer{};
    socklen_t size = sizeof(peer);
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == geteuid();
}

// Every byte is looked at, so that the time tells nothing.
bool same_secret(const Token& a, const Token& b) {
    unsigned char difference = 0;
    for (size_t i = 0; i < sizeof(a.bytes); ++i) {
        difference |= a.bytes[i] ^ b.bytes[i];
    }
    return difference == 0;
}

bool send_descriptor(int socket, int fd) {
    char byte = 1;
    iovec io{&byte, 1};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &io;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &fd, sizeof(fd));
    return sendmsg(socket, &message, MSG_NOSIGNAL) == 1;
}

int receive_descriptor(int socket) {
    char byte = 0;
    iovec io{&byte, 1};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &io;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != 1) {
        return -1;
    }
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    if (header == nullptr || header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS ||
        header->cmsg_len != CMSG_LEN(sizeof(int))) {
        return -1;
    }
    int fd = -1;
    std::memcpy(&fd, CMSG_DATA(header), sizeof(fd));
    return fd;
}

void set_timeout(int fd, int option, time_t seconds) {
    timeval time{seconds, 0};
    setsockopt(fd, SOL_SOCKET, option, &time, sizeof(time));
}

// Hands the memory out until all ranks have it.
void serve(int listener, const std::shared_ptr<Mapping>& memory, Token token, uint32_t ranks) {
    Socket open(listener);
    const uint64_t give_up = now_ns() + connect_timeout_s() * 1'000'000'000;
    uint32_t served = 0;
    for (;;) {
        // The ranks themselves say how many they are.
        const uint32_t all = ranks != 0 ? ranks : memory->page().ranks.load();
        const uint64_t now = now_ns();
        if ((all != 0 && served >= all) || now > give_up) {
            return;
        }
        pollfd wait{listener, POLLIN, 0};
        // The first rank says how many there are only after it has been served: looked at again a little
        // later.
        const int ms = all == 0 && served != 0 ? 20 : int((give_up - now) / 1'000'000 + 1);
        if (poll(&wait, 1, ms) <= 0) {
            continue;
        }
        Socket peer(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
        if (peer.get() < 0 || !same_user(peer.get())) {
            continue;
        }
        set_timeout(peer.get(), SO_RCVTIMEO, 2);
        Token shown{};
        if (recv(peer.get(), shown.bytes, sizeof(shown.bytes), MSG_WAITALL) != ssize_t(sizeof(shown.bytes)) ||
            !same_secret(shown, token)) {
            continue;
        }
        if (send_descriptor(peer.get(), memory->fd())) {
            ++served;
        }
    }
}

}  // namespace

Token open_rendezvous(uint32_t ranks) {
    Token token;
    if (getrandom(token.bytes, sizeof(token.bytes), 0) != ssize_t(sizeof(token.bytes))) {
        refuse_errno(types::E_SYSCALL, "cannot make a token");
    }
    std::shared_ptr<Mapping> memory;
    try {
        memory = std::make_shared<Mapping>(Mapping::create());
    } catch (const std::exception& error) {
        throw Refusal{types::E_MEMORY, error.what()};
    }
    const int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un address;
    const socklen_t size = address_of(token, &address);
    if (listener < 0 || bind(listener, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
        listen(listener, int(kMaxRanks)) != 0) {
        int error = errno;
        if (listener >= 0) {
            close(listener);
        }
        errno = error;
        refuse_errno(types::E_SYSCALL, "cannot listen for the other ranks");
    }
    // The program's signals stay with the program's threads.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    std::thread(serve, listener, memory, token, ranks).detach();
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return token;
}

int join_rendezvous(const Token& token) {
    Socket peer(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address;
    const socklen_t size = address_of(token, &address);
    if (peer.get() < 0 || connect(peer.get(), reinterpret_cast<sockaddr*>(&address), size) != 0) {
        refuse_errno(types::E_TCP_CONNECT,
                     "nobody serves this root info: its process has ended, all ranks have come, or it is "
                     "older than HCCL_CONNECT_TIMEOUT");
    }
    if (!same_user(peer.get())) {
        throw Refusal{types::E_TCP_CONNECT, "the rank that made this root info is of another user"};
    }
    set_timeout(peer.get(), SO_RCVTIMEO, time_t(connect_timeout_s()));
    int fd = -1;
    if (send(peer.get(), token.bytes, sizeof(token.bytes), MSG_NOSIGNAL) == ssize_t(sizeof(token.bytes))) {
        fd = receive_descriptor(peer.get());
    }
    if (fd < 0) {
        throw Refusal{types::E_TCP_CONNECT, "the rank that made this root info does not let this one in"};
    }
    return fd;
}

}  // namespace flexnpu::emulator::hccl
