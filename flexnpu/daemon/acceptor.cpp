#include "flexnpu/daemon/acceptor.hpp"

#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <stdexcept>

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
constexpr const char* kStopping = "FlexNPU: the daemon is stopping";
constexpr const char* kFailed = "FlexNPU: the daemon has no memory for this";

// Shared memory of a fixed size: sealed, so that a client cannot pull it from under us.
Fd make_memory(const char* name, uint64_t bytes) {
    Fd fd(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (fd.get() < 0 || ftruncate(fd.get(), off_t(bytes)) != 0) return Fd();
    if (fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) return Fd();
    return fd;
}

std::string read_comm(int32_t pid) {
    std::ifstream file("/proc/" + std::to_string(pid) + "/comm");
    std::string comm;
    std::getline(file, comm);
    return comm.empty() ? "?" : comm;
}

}  // namespace

struct Acceptor::Client {
    uint64_t key = 0;
    Fd socket;
    ucred peer{};
    std::shared_ptr<Session> session;  // after hello
    // What its last request waits for, and what it has made for that; null: nothing.
    std::shared_ptr<CallTicket> pending;
    std::shared_ptr<void> held;
    std::shared_ptr<Session> opening;  // while its hello is pending
    Usage::Amounts amounts;
    uint64_t since_ns = 0;
    uint32_t next_region = 1;
    Request request{};                              // being served; its answer repeats its number
    std::map<uint32_t, std::weak_ptr<Ring>> rings;  // by number
    uint32_t next_ring = 0;
};

Acceptor::Acceptor(Dispatcher& dispatcher, Vendor& vendor, int32_t device, std::string path, std::string soc,
                   Access access, Limits limits)
    : dispatcher_(dispatcher),
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
    dispatcher_.on_broken = [](Session& s) { shutdown(s.socket.get(), SHUT_RDWR); };
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
        dispatcher_.post([&d = dispatcher_, id = s->id] { d.remove_session(id); });
    }
    clients_.erase(it);
}

template <class Finish, class F, class... A>
void Acceptor::call(Client& client, std::shared_ptr<void> held, Finish finish, F f, A... args) {
    auto done = [this, key = client.key, finish = std::move(finish)](auto outcome) {
        {
            std::lock_guard lock(finished_mutex_);
            finished_.push_back([this, key, finish, outcome = std::move(outcome)]() mutable {
                auto it = clients_.find(key);
                if (it == clients_.end()) return;
                Client& c = *it->second;
                c.pending.reset();
                const std::shared_ptr<void> until_finished = std::move(c.held);
                finish(c, outcome);
                read_from(c, true);
            });
        }
        const uint64_t one = 1;
        [[maybe_unused]] ssize_t n = write(wake_.get(), &one, sizeof(one));
    };
    client.held = std::move(held);
    client.pending = dispatcher_.submit(std::move(done), f, std::move(args)...);
    if (client.pending) return read_from(client, false);
    client.held.reset();
    answer(client, acl::RT_INTERNAL, kStopping);
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

void Acceptor::hello(Client& client, const Request& request) {
    if (request.table_hash != api::kTableHash) {
        return answer(client, acl::RT_INTERNAL,
                      "FlexNPU: the program's libraries and the daemon come from different builds; install "
                      "one for both");
    }
    if (request.region >= wire::kMaxDevices) {
        malformed_++;
        return answer(client, acl::INVALID_PARAM, "FlexNPU: malformed hello");
    }
    if (!access_.permits(client.peer, client.socket.get())) {
        turned_away_++;
        const std::string who = "user " + std::to_string(client.peer.uid);
        return answer(
            client, acl::RT_INTERNAL,
            "FlexNPU: " + who + " may not use this device; see flexnpud --allow-uid and --allow-group");
    }
    const uint64_t quota = limits_.device_bytes_per_session;
    if (quota && request.bytes > quota) {
        return answer(client, acl::RT_MEMORY_ALLOCATION,
                      "FlexNPU: a quota of " + std::to_string(request.bytes) + " bytes is more than the " +
                          std::to_string(quota) + " that this daemon gives a session; see flexnpud --quota");
    }
    if (const std::string why = usage_.take_session(client.peer.uid, dispatcher_.live_sessions());
        !why.empty())
        return turn_away(client, why);
    client.amounts.sessions = 1;
    // What a session that comes to nothing has taken goes back.
    auto refuse = [this](Client& c, int32_t status, const std::string& why) {
        const Usage::Amounts taken{.sessions = c.amounts.sessions, .host_bytes = c.amounts.host_bytes};
        usage_.give(c.peer.uid, taken);
        c.amounts.sessions = c.amounts.host_bytes = 0;
        answer(c, status, why);
    };
    if (const std::string why = usage_.take_host(client.peer.uid, wire::kSessionBytes); !why.empty()) {
        turned_away_++;
        return refuse(client, acl::RT_MEMORY_ALLOCATION, "FlexNPU: a session needs " + why);
    }
    client.amounts.host_bytes = wire::kSessionBytes;
    auto memory = std::make_shared<Fd>(make_memory("flexnpu-session", wire::kSessionBytes));
    Fd bell(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    void* area = memory->get() < 0 ? MAP_FAILED
                                   : mmap(nullptr, wire::kSessionBytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                                          memory->get(), 0);
    if (area == MAP_FAILED || bell.get() < 0)
        return refuse(client, acl::RT_MEMORY_ALLOCATION,
                      std::string("FlexNPU: no memory for a session: ") + strerror(errno));
    auto s = std::make_shared<Session>();
    s->live = dispatcher_.count_session();
    s->page = static_cast<wire::SessionPage*>(area);
    s->staging = static_cast<uint8_t*>(area) + wire::kSessionPageBytes;
    s->staging_pin = pins_->pin(client.peer.uid, s->staging, wire::kBlocks * wire::kBlockBytes);
    s->id = next_session_++;
    s->set_device(int32_t(request.region));
    s->pid = client.peer.pid;
    s->uid = client.peer.uid;
    s->comm = read_comm(client.peer.pid);
    s->end_ms = limits_.end_ms;
    s->account = std::make_shared<Account>(request.bytes ? request.bytes : quota);
    s->page->magic = wire::kMagic;
    s->page->version = wire::kVersion;
    s->page->session = s->id;
    s->doorbell = std::move(bell);
    s->socket = Fd(fcntl(client.socket.get(), F_DUPFD_CLOEXEC, 3));
    // The socket's hang-up is missed while a child that forked still holds it; the process's end is not.
    s->process = Fd(int(syscall(SYS_pidfd_open, client.peer.pid, 0)));
    if (s->socket.get() < 0)
        return refuse(client, acl::RT_INTERNAL, std::string("FlexNPU: no session: ") + strerror(errno));
    client.opening = s;
    silent_--;
    call(
        client, s,
        [this, memory, refuse](Client& c, Outcome<bool>& added) {
            const std::shared_ptr<Session> opened = std::move(c.opening);
            if (!added || !added.value()) {
                silent_++;
                c.since_ns = wire::now_ns();
                return refuse(c, acl::RT_INTERNAL, kFailed);
            }
            c.session = opened;
            if (opened->process.get() >= 0) {
                epoll_event e{EPOLLIN, {.u64 = c.key | 1}};
                epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, opened->process.get(), &e);
            }
            answer(c, 0, "", opened->id, {memory->get(), opened->doorbell.get()});
        },
        &Dispatcher::open_session, std::weak_ptr<Session>(s));
    if (!client.pending) {
        client.opening.reset();
        silent_++;
    }
}

void Acceptor::new_ring(Client& client) {
    if (const std::string why = usage_.take_ring(client.peer.uid, client.amounts.rings); !why.empty()) {
        return answer(client, acl::RT_INTERNAL, why);
    }
    client.amounts.rings++;
    auto undo = [&] {
        client.amounts.rings--;
        usage_.give(client.peer.uid, {.rings = 1});
    };
    Fd memory = make_memory("flexnpu-ring", wire::kRingFileBytes);
    wire::RingMap map;
    if (memory.get() < 0 || !map.open(memory.get())) {
        const int error = errno;
        undo();
        return answer(client, acl::RT_MEMORY_ALLOCATION,
                      std::string("FlexNPU: no memory for a ring: ") + strerror(error));
    }
    auto ring = std::make_shared<Ring>(std::move(map));
    call(
        client, ring,
        [this, ring = std::weak_ptr<Ring>(ring), file = std::make_shared<Fd>(std::move(memory))](
            Client& c, Outcome<bool>& added) {
            if (!added || !added.value()) return answer(c, acl::RT_INTERNAL, kFailed);
            const uint32_t number = c.next_ring++;
            c.rings[number] = ring;
            answer(c, 0, "", number, {file->get()});
        },
        &Dispatcher::add_ring, client.session, std::weak_ptr<Ring>(ring));
}

// A ring that its client could not map: nobody has written to it, so nothing of it is under way.
void Acceptor::free_ring(Client& client, uint32_t number) {
    auto it = client.rings.find(number);
    const std::shared_ptr<Ring> ring = it == client.rings.end() ? nullptr : it->second.lock();
    if (!ring || ring->consumer.header().head.load() != 0) {
        malformed_++;
        return answer(client, acl::INVALID_PARAM, "FlexNPU: no unused ring of this number");
    }
    dispatcher_.post([s = client.session, ring] { s->given_back.push_back(ring); });
    client.rings.erase(it);
    client.amounts.rings--;
    usage_.give(client.peer.uid, {.rings = 1});
    answer(client, 0, "");
}

void Acceptor::host_memory(Client& client, uint64_t bytes) {
    if (bytes == 0) return answer(client, acl::RT_MEMORY_ALLOCATION, "aclrtMallocHost: size is 0");
    if (const std::string why = usage_.take_host(client.peer.uid, bytes); !why.empty()) {
        return answer(client, acl::RT_MEMORY_ALLOCATION, "aclrtMallocHost: " + why);
    }
    client.amounts.host_bytes += bytes;
    auto undo = [&] {
        client.amounts.host_bytes -= bytes;
        usage_.give(client.peer.uid, {.host_bytes = bytes});
    };
    Fd memory = make_memory("flexnpu-host", bytes);
    void* area = memory.get() < 0 ? MAP_FAILED
                                  : mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory.get(), 0);
    if (area == MAP_FAILED) {
        const int error = errno;
        undo();
        return answer(client, acl::RT_MEMORY_ALLOCATION, std::string("aclrtMallocHost: ") + strerror(error));
    }
    auto region = std::make_shared<HostMemory>(static_cast<uint8_t*>(area), bytes,
                                               pins_->pin(client.peer.uid, area, bytes));
    const uint32_t number = client.next_region++;
    call(
        client, region,
        [this, number, bytes, file = std::make_shared<Fd>(std::move(memory))](Client& c,
                                                                              Outcome<bool>& added) {
            if (added && added.value()) return answer(c, 0, "", number, {file->get()});
            c.amounts.host_bytes -= bytes;
            usage_.give(c.peer.uid, {.host_bytes = bytes});
            answer(c, acl::RT_MEMORY_ALLOCATION, kFailed);
        },
        &Dispatcher::add_host, client.session, number, std::weak_ptr<HostMemory>(region));
}

void Acceptor::free_host_memory(Client& client, uint32_t number) {
    call(
        client, nullptr,
        [this](Client& c, Outcome<std::shared_ptr<HostMemory>>& taken) {
            std::shared_ptr<HostMemory> region = taken ? std::move(taken.value()) : nullptr;
            if (!region) return answer(c, acl::RT_PARAM_INVALID, "aclrtFreeHost: no such memory");
            c.amounts.host_bytes -= region->bytes;
            usage_.give(c.peer.uid, {.host_bytes = region->bytes});
            region.reset();
            answer(c, 0, "");
        },
        &Dispatcher::retire_host, client.session, number);
}

}  // namespace flexnpu::daemon
