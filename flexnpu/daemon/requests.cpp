// What clients ask for over the data socket: sessions, rings, host memory.
#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <fstream>

#include "flexnpu/daemon/acceptor_client.hpp"
#include "flexnpu/daemon/peer.hpp"
#include "flexnpu/wire/futex.hpp"

namespace flexnpu::daemon {

using wire::Request;

namespace {

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
    if (const std::string why = usage_.take_session(client.peer.uid, sessions_.live()); !why.empty())
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
    s->live = sessions_.count_live();
    s->page = static_cast<wire::SessionPage*>(area);
    s->staging = static_cast<uint8_t*>(area) + wire::kSessionPageBytes;
    s->staging_pin = pins_->pin(client.peer.uid, s->staging, wire::kBlocks * wire::kBlockBytes);
    s->id = next_session_++;
    s->set_device(int32_t(request.region));
    PeerProcess process = peer_process(client.socket.get(), client.peer, s->id);
    s->pid = process.number;
    s->uid = client.peer.uid;
    s->comm = read_comm(client.peer.pid);
    s->end_ms = limits_.end_ms;
    s->account = std::make_shared<Account>(request.bytes ? request.bytes : quota);
    s->page->magic = wire::kMagic;
    s->page->version = wire::kVersion;
    s->page->session = s->id;
    s->page->process = s->pid;
    s->doorbell = std::move(bell);
    s->socket = Fd(fcntl(client.socket.get(), F_DUPFD_CLOEXEC, 3));
    // The socket's hang-up is missed while a child that forked still holds it; the process's end is not.
    s->process = std::move(process.pidfd);
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
        &Sessions::open, std::weak_ptr<Session>(s));
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
        &Sessions::add_ring, client.session, std::weak_ptr<Ring>(ring));
}

// A ring that its client could not map: nobody has written to it, so nothing of it is under way.
void Acceptor::free_ring(Client& client, uint32_t number) {
    auto it = client.rings.find(number);
    const std::shared_ptr<Ring> ring = it == client.rings.end() ? nullptr : it->second.lock();
    if (!ring || ring->consumer.header().head.load() != 0) {
        malformed_++;
        return answer(client, acl::INVALID_PARAM, "FlexNPU: no unused ring of this number");
    }
    inbox_.post([s = client.session, ring] { s->given_back.push_back(ring); });
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
        &Sessions::add_host, client.session, number, std::weak_ptr<HostMemory>(region));
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
        &Sessions::retire_host, client.session, number);
}

}  // namespace flexnpu::daemon
