#include "flexnpu/daemon/acceptor.hpp"

#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "flexnpu/daemon/acceptor_client.hpp"
#include "flexnpu/wire/futex.hpp"

namespace flexnpu::daemon {

using wire::Answer;
using wire::Request;

namespace {

// epoll keys: the listener, the wake-up, then two a client (its socket, its process).
constexpr uint64_t kListener = 0, kWake = 1;
// How often connections that say nothing are looked at, while there are any.
constexpr int kLookMs = 500;

constexpr const char* kStopped = "FlexNPU: the daemon was stopped";

}  // namespace

Acceptor::Acceptor(Inbox& inbox, Sessions& sessions, Vendor& vendor, int32_t device, std::string path,
                   std::string soc, Access access, Limits limits)
    : inbox_(inbox),
      sessions_(sessions),
      vendor_(vendor),
      device_(device),
      path_(std::move(path)),
      soc_(std::move(soc)),
      access_(std::move(access)),
      limits_(limits.resolved()),
      usage_(limits_),
      pins_(std::make_shared<Pins>(vendor, limits_)) {
    // A session whose rings cannot be trusted is hung up on: its client gets an error, and the hang-up frees
    // what it held.
    sessions_.on_broken = [](Session& s) { shutdown(s.socket.get(), SHUT_RDWR); };
}

Acceptor::~Acceptor() { stop(); }

bool Access::permits(const ucred& peer, int fd) const {
    const auto holds = [](const std::vector<uint32_t>& all, uint32_t one) {
        return std::find(all.begin(), all.end(), one) != all.end();
    };
    if (peer.uid == 0 || holds(users, peer.uid) || holds(groups, peer.gid)) return true;
    if (groups.empty()) return false;
    gid_t more[1024];
    socklen_t length = sizeof(more);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, more, &length) != 0) return false;
    return std::any_of(more, more + length / sizeof(gid_t), [&](gid_t g) { return holds(groups, g); });
}

Fd Acceptor::listen_at(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof(address.sun_path)) {
        throw std::runtime_error("the socket path " + path + " is longer than " +
                                 std::to_string(sizeof(address.sun_path) - 1) + " characters");
    }
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    Fd listener(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (listener.get() < 0 ||
        bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
        throw std::runtime_error("cannot bind " + path + ": " + strerror(errno));
    }
    // Anyone may connect; SO_PEERCRED decides who is served.
    if (chmod(path.c_str(), 0666) != 0 || listen(listener.get(), 64) != 0) {
        const int error = errno;
        unlink(path.c_str());
        throw std::runtime_error("cannot listen at " + path + ": " + strerror(error));
    }
    return listener;
}

void Acceptor::start(Fd listener) {
    listener_ = std::move(listener);
    epoll_ = Fd(epoll_create1(EPOLL_CLOEXEC));
    wake_ = Fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    spare_ = Fd(open("/dev/null", O_RDONLY | O_CLOEXEC));
    epoll_event e{EPOLLIN, {.u64 = kListener}};
    epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, listener_.get(), &e);
    e.data.u64 = kWake;
    epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &e);
    thread_ = start_thread("flexnpu-accept", [this] { loop(); });
}

void Acceptor::stop() {
    if (!thread_.joinable()) return;
    stop_ = true;
    const uint64_t one = 1;
    [[maybe_unused]] ssize_t n = write(wake_.get(), &one, sizeof(one));
    thread_.join();
    for (auto& [key, client] : clients_) {
        if (client->pending) client->pending->cancel();
        client->request = {};
        if (client->session || client->opening) answer(*client, acl::RT_INTERNAL, kStopped);
    }
    clients_.clear();
    finished_.clear();
    listener_ = Fd();
    unlink(path_.c_str());
}

void Acceptor::loop() {
    vendor_.enter(device_);  // it registers and unregisters memory
    while (!stop_) {
        epoll_event events[64];
        const int n = epoll_wait(epoll_.get(), events, 64, silent_ ? kLookMs : -1);
        if (silent_) guarded("a silent client", [this] { drop_silent(); });
        for (int i = 0; i < n; i++) {
            const uint64_t key = events[i].data.u64;
            if (key == kWake) {
                guarded("a request", [this] { finish_calls(); });
                continue;
            }
            if (key == kListener) {
                guarded("a connection", [this] { accept_one(); });
                continue;
            }
            auto it = clients_.find(key & ~uint64_t(1));
            if (it == clients_.end()) continue;
            // An odd key is the client's process: it has ended, whoever else still holds its socket.
            const bool ended = (key & 1) || (events[i].events & (EPOLLHUP | EPOLLERR | EPOLLRDHUP));
            bool kept = false;
            if (!ended) guarded("a request", [&] { kept = serve(*it->second); });
            if (!kept) guarded("a client's end", [&] { close(it->first); });
        }
    }
}

void Acceptor::accept_one() {
    auto accept_now = [this] {
        return Fd(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    };
    auto client = std::make_unique<Client>();
    client->socket = accept_now();
    if (client->socket.get() < 0) {
        if (errno != EMFILE && errno != ENFILE) {
            // Not for long either, but the listener stays ready: do not turn in circles meanwhile.
            if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) usleep(10'000);
            return;
        }
        out_of_descriptors_++;
        spare_ = Fd();
        client->socket = accept_now();
        if (client->socket.get() >= 0)
            turn_away(*client, "FlexNPU: the daemon has no file descriptors left; see its ulimit -n");
        client.reset();
        spare_ = Fd(open("/dev/null", O_RDONLY | O_CLOEXEC));
        if (spare_.get() < 0) usleep(10'000);
        return;
    }
    socklen_t length = sizeof(client->peer);
    if (getsockopt(client->socket.get(), SOL_SOCKET, SO_PEERCRED, &client->peer, &length) != 0) return;
    // Other refusals are answers to hello; connections that never say it are bounded here.
    if (const std::string why = usage_.take_connection(client->peer.uid); !why.empty())
        return turn_away(*client, why);
    client->amounts.connections = 1;
    client->since_ns = wire::now_ns();
    silent_++;
    const uint64_t key = client->key = next_key_;
    next_key_ += 2;
    epoll_event e{EPOLLIN | EPOLLRDHUP, {.u64 = key}};
    epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, client->socket.get(), &e);
    clients_[key] = std::move(client);
}

void Acceptor::turn_away(Client& client, const std::string& why) {
    turned_away_++;
    answer(client, acl::RT_INTERNAL, why);
}

// Also those that were refused and have not gone.
void Acceptor::drop_silent() {
    const uint64_t now = wire::now_ns();
    std::vector<uint64_t> late;
    char byte;
    for (auto& [key, client] : clients_) {
        if (client->session || client->opening || now - client->since_ns <= limits_.hello_ms * 1'000'000)
            continue;
        // It has spoken, and it is this process that was stopped or held up since.
        if (recv(client->socket.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0) continue;
        late.push_back(key);
    }
    for (uint64_t key : late) {
        silent_dropped_++;
        close(key);
    }
}

void Acceptor::counters(std::map<std::string, uint64_t>* out) const {
    (*out)["turned_away"] = turned_away_;
    (*out)["malformed_requests"] = malformed_;
    (*out)["silent_dropped"] = silent_dropped_;
    (*out)["out_of_descriptors"] = out_of_descriptors_;
    usage_.counters(out);
    pins_->counters(out);
}

void Acceptor::close(uint64_t key) {
    auto it = clients_.find(key);
    if (it == clients_.end()) return;
    Client& client = *it->second;
    usage_.give(client.peer.uid, client.amounts);
    if (!client.session && !client.opening) silent_--;
    epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, client.socket.get(), nullptr);
    const bool not_run = client.pending && client.pending->cancel();
    const std::shared_ptr<Session> s = client.session ? client.session : not_run ? nullptr : client.opening;
    if (s) {
        if (client.session && s->process.get() >= 0)
            epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, s->process.get(), nullptr);
        shutdown(client.socket.get(), SHUT_RDWR);
        // Behind the call that adds it, if that has just begun.
        inbox_.post([&all = sessions_, id = s->id] { all.remove(id); });
    }
    clients_.erase(it);
}

void Acceptor::finish_calls() {
    uint64_t n;
    [[maybe_unused]] ssize_t got = read(wake_.get(), &n, sizeof(n));
    std::vector<std::function<void()>> finished;
    {
        std::lock_guard lock(finished_mutex_);
        finished.swap(finished_);
    }
    for (auto& f : finished) f();
}

void Acceptor::read_from(Client& client, bool on) {
    epoll_event e{on ? EPOLLIN | EPOLLRDHUP : EPOLLRDHUP, {.u64 = client.key}};
    epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, client.socket.get(), &e);
}

void Acceptor::answer(Client& client, int32_t status, const std::string& message, uint32_t number,
                      std::vector<int> fds) {
    Answer a{};
    a.magic = wire::kMagic;
    a.status = status;
    a.number = number;
    a.device = client.session ? client.session->device : 0;
    a.question = client.request.question;
    a.ask = client.request.ask;
    std::strncpy(a.soc, soc_.c_str(), sizeof(a.soc) - 1);
    std::strncpy(a.message, message.c_str(), sizeof(a.message) - 1);
    iovec io{&a, sizeof(a)};
    alignas(cmsghdr) char control[CMSG_SPACE(2 * sizeof(int))] = {};
    msghdr header{};
    header.msg_iov = &io;
    header.msg_iovlen = 1;
    if (!fds.empty()) {
        header.msg_control = control;
        header.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
        cmsghdr* c = CMSG_FIRSTHDR(&header);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
        std::memcpy(CMSG_DATA(c), fds.data(), fds.size() * sizeof(int));
    }
    // A client that does not read its answers loses them: we never wait for one.
    [[maybe_unused]] ssize_t n = sendmsg(client.socket.get(), &header, MSG_NOSIGNAL | MSG_DONTWAIT);
}

bool Acceptor::serve(Client& client) {
    if (client.pending) return true;
    Request request;
    // MSG_TRUNC: a longer message than a request is told from a request. Descriptors sent to us are dropped
    // by the kernel.
    const ssize_t n = recv(client.socket.get(), &request, sizeof(request), MSG_DONTWAIT | MSG_TRUNC);
    if (n < 0) return errno == EAGAIN || errno == EINTR;
    if (n == 0) return false;
    constexpr ssize_t kHead = offsetof(Request, ask);
    if (n < kHead || request.magic != wire::kMagic ||
        (request.version == wire::kVersion && n != sizeof(request))) {
        malformed_++;
        return false;
    }
    client.request = {};
    if (request.version != wire::kVersion) {
        answer(client, acl::RT_INTERNAL,
               "FlexNPU: the program's libraries and the daemon are of different versions");
        return true;
    }
    client.request = request;
    if ((request.ask == wire::Ask::hello) == (client.session != nullptr)) {
        malformed_++;
        answer(client, acl::INVALID_PARAM, "FlexNPU: a session is opened once, before anything else");
        return true;
    }
    switch (request.ask) {
        case wire::Ask::hello: hello(client, request); return true;
        case wire::Ask::new_ring: new_ring(client); return true;
        case wire::Ask::host_memory: host_memory(client, request.bytes); return true;
        case wire::Ask::free_host_memory: free_host_memory(client, request.region); return true;
        case wire::Ask::free_ring: free_ring(client, request.region); return true;
    }
    malformed_++;
    answer(client, acl::INVALID_PARAM, "FlexNPU: unknown request");
    return true;
}

}  // namespace flexnpu::daemon
