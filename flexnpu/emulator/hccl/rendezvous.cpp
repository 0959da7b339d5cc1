#include "flexnpu/emulator/hccl/rendezvous.hpp"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstddef>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "flexnpu/api/guest.hpp"
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
    explicit Socket(int fd) : fd_(guest::above_standard(fd)) {}
    ~Socket() {
        if (fd_ >= 0) {
            close(fd_);
        }
    }
    Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    Socket& operator=(Socket&& other) noexcept {
        std::swap(fd_, other.fd_);
        return *this;
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
    return guest::above_standard(fd);
}

void set_timeout(int fd, int option, time_t seconds) {
    timeval time{seconds, 0};
    setsockopt(fd, SOL_SOCKET, option, &time, sizeof(time));
}

// Root infos of one process whose ranks have not all come. Each has a socket and a memory.
constexpr size_t kMaxOpen = 256;
// Who has come and not shown its token; the oldest gives way.
constexpr size_t kMaxPeers = 256;
// A peer shows its token within this time.
constexpr uint64_t kShowNs = 2'000'000'000;
// The first rank says how many there are only after it has been served: looked at again a little later.
constexpr uint64_t kLookNs = 20'000'000;

// A memory that is handed out until all ranks have it.
struct Rendezvous {
    Socket listener;
    Mapping memory;
    Token token;
    uint32_t ranks;
    uint64_t give_up_ns;
    uint32_t served = 0;

    // The ranks themselves say how many they are. 0: not known yet.
    uint32_t all() { return ranks != 0 ? ranks : memory.page().ranks.load(); }
};

// Who has come and has not shown its whole token yet.
struct Peer {
    Socket socket;
    std::shared_ptr<Rendezvous> at;
    uint64_t give_up_ns;
    Token shown{};
    size_t bytes = 0;

    enum class State : uint8_t { waits, gone, served };
    State look() {
        const ssize_t n = recv(socket.get(), shown.bytes + bytes, sizeof(shown.bytes) - bytes, MSG_DONTWAIT);
        if (n <= 0) {
            return n < 0 && (errno == EAGAIN || errno == EINTR) ? State::waits : State::gone;
        }
        bytes += size_t(n);
        if (bytes < sizeof(shown.bytes)) {
            return State::waits;
        }
        const bool admitted = same_secret(shown, at->token);
        return admitted && send_descriptor(socket.get(), at->memory.fd()) ? State::served : State::gone;
    }
};

// Serves all that is open in this process from one thread, which ends when nothing is. No peer, however slow,
// holds up another.
class Server {
public:
    Server() : wake_(guest::above_standard(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK))) {}

    // Throws Refusal.
    void add(std::shared_ptr<Rendezvous> one) {
        std::lock_guard lock(mutex_);
        if (open_.size() >= kMaxOpen) {
            throw Refusal{types::E_MEMORY, std::to_string(kMaxOpen) +
                                               " root infos of this process wait for their ranks: let them "
                                               "come, or wait until HCCL_CONNECT_TIMEOUT is over"};
        }
        if (!running_) {
            start();
        }
        open_.push_back(std::move(one));
        const uint64_t more = 1;
        [[maybe_unused]] const ssize_t n = write(wake_.get(), &more, sizeof(more));
    }

private:
    void start() {
        // The program's signals stay with the program's threads.
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        try {
            std::thread(&Server::run, this).detach();
            running_ = true;
        } catch (const std::system_error&) {
        }
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
        if (!running_) {
            throw Refusal{types::E_MEMORY, "the system gives this process no more threads"};
        }
    }

    void run() {
        std::vector<Peer> peers;
        for (;;) {
            std::vector<std::shared_ptr<Rendezvous>> open;
            uint64_t wake_ns = UINT64_MAX;
            const uint64_t now = now_ns();
            {
                std::lock_guard lock(mutex_);
                std::erase_if(open_, [&](const auto& one) {
                    const uint32_t all = one->all();
                    return (all != 0 && one->served >= all) || now > one->give_up_ns;
                });
                if (open_.empty() && peers.empty()) {
                    running_ = false;
                    return;
                }
                open = open_;
            }
            std::vector<pollfd> waits{{wake_.get(), POLLIN, 0}};
            for (const auto& one : open) {
                waits.push_back({one->listener.get(), POLLIN, 0});
                wake_ns = std::min(wake_ns, one->give_up_ns);
                if (one->served != 0 && one->all() == 0) {
                    wake_ns = std::min(wake_ns, now + kLookNs);
                }
            }
            for (const Peer& peer : peers) {
                waits.push_back({peer.socket.get(), POLLIN, 0});
                wake_ns = std::min(wake_ns, peer.give_up_ns);
            }
            const uint64_t ms = wake_ns > now ? (wake_ns - now) / 1'000'000 + 1 : 0;
            if (poll(waits.data(), waits.size(), int(std::min<uint64_t>(ms, INT_MAX))) < 0) {
                continue;
            }
            uint64_t woken = 0;
            [[maybe_unused]] const ssize_t n = read(wake_.get(), &woken, sizeof(woken));
            look_at(&peers, waits.data() + 1 + open.size());
            for (size_t i = 0; i < open.size(); ++i) {
                if ((waits[1 + i].revents & POLLIN) != 0) {
                    accept_one(open[i], &peers);
                }
            }
        }
    }

    static void look_at(std::vector<Peer>* peers, const pollfd* waits) {
        const uint64_t now = now_ns();
        std::vector<Peer> left;
        for (size_t i = 0; i < peers->size(); ++i) {
            Peer& peer = (*peers)[i];
            const auto state = waits[i].revents != 0 ? peer.look() : Peer::State::waits;
            peer.at->served += state == Peer::State::served ? 1 : 0;
            if (state == Peer::State::waits && now <= peer.give_up_ns) {
                left.push_back(std::move(peer));
            }
        }
        *peers = std::move(left);
    }

    static void accept_one(const std::shared_ptr<Rendezvous>& at, std::vector<Peer>* peers) {
        Socket socket(accept4(at->listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
        if (socket.get() < 0) {
            if (errno != EAGAIN && errno != ECONNABORTED) {
                usleep(10'000);  // no descriptor is left: the next look would end alike
            }
            return;
        }
        if (!same_user(socket.get())) {
            return;
        }
        if (peers->size() >= kMaxPeers) {
            peers->erase(peers->begin());
        }
        peers->push_back({std::move(socket), at, now_ns() + kShowNs});
    }

    std::mutex mutex_;
    std::vector<std::shared_ptr<Rendezvous>> open_;
    bool running_ = false;
    const Socket wake_;
};

// Never destroyed: its thread may run until the process is gone. A child of fork() has no such thread, and
// makes a server of its own.
std::atomic<Server*> g_server{nullptr};

Server& server() {
    static const int forked = pthread_atfork(nullptr, nullptr, [] { g_server.store(nullptr); });
    (void)forked;
    Server* found = g_server.load();
    if (found == nullptr) {
        auto made = std::make_unique<Server>();
        if (g_server.compare_exchange_strong(found, made.get())) {
            found = made.release();
        }
    }
    return *found;
}

}  // namespace

Token open_rendezvous(uint32_t ranks) {
    Token token;
    if (getrandom(token.bytes, sizeof(token.bytes), 0) != ssize_t(sizeof(token.bytes))) {
        refuse_errno(types::E_SYSCALL, "cannot make a token");
    }
    Socket listener(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    sockaddr_un address;
    const socklen_t size = address_of(token, &address);
    if (listener.get() < 0 || bind(listener.get(), reinterpret_cast<sockaddr*>(&address), size) != 0 ||
        listen(listener.get(), int(kMaxRanks)) != 0) {
        refuse_errno(types::E_SYSCALL, "cannot listen for the other ranks");
    }
    const uint64_t give_up_ns = now_ns() + connect_timeout_s() * 1'000'000'000;
    std::shared_ptr<Rendezvous> made;
    try {
        made.reset(new Rendezvous{std::move(listener), Mapping(Mapping::create()), token, ranks, give_up_ns});
    } catch (const std::exception& error) {
        throw Refusal{types::E_MEMORY, error.what()};
    }
    server().add(std::move(made));
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
