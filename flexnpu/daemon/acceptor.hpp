// The data socket: makes sessions, rings and shared host memory, and notices when a client ends.
#pragma once

#include <sys/socket.h>

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "flexnpu/daemon/dispatcher.hpp"

namespace flexnpu::daemon {

struct Limits {
    size_t sessions = 256;
    size_t rings_per_session = 256;
    uint64_t host_bytes_per_session = uint64_t(64) << 30;
    uint64_t device_bytes_per_session = 0;  // 0: as many as the device has
};

// Who may have a session, besides root: these users, and members of these groups.
struct Access {
    std::vector<uint32_t> users, groups;
    // `fd` is connected to the peer: it knows the peer's further groups.
    bool permits(const ucred& peer, int fd) const;
};

class Acceptor {
public:
    // Owns the socket file at `path` from here on.
    Acceptor(Dispatcher& dispatcher, std::string path, std::string soc, Access access, Limits limits);
    ~Acceptor();

    // A listening data socket (mode 0666: the peer's credentials decide). Throws std::runtime_error.
    static Fd listen_at(const std::string& path);
    void start(Fd listener);
    void stop();

    uint64_t turned_away() const { return turned_away_; }
    uint64_t malformed() const { return malformed_; }

private:
    struct Client;
    void loop();
    void accept_one();
    // False: the client is to be closed.
    bool serve(Client& client);
    void close(uint64_t key);
    void hello(Client& client, const wire::Request& request);
    void new_ring(Client& client);
    void host_memory(Client& client, uint64_t bytes);
    void free_host_memory(Client& client, uint32_t region);
    void answer(Client& client, int32_t status, const std::string& message, uint32_t number = 0, std::vector<int> fds = {});

    Dispatcher& dispatcher_;
    std::string path_, soc_;
    Access access_;
    Limits limits_;
    Fd listener_, epoll_, wake_;
    std::thread thread_;
    std::atomic<bool> stop_{false};
    std::map<uint64_t, std::unique_ptr<Client>> clients_;
    uint64_t next_key_ = 16;
    uint32_t next_session_ = 1;
    std::atomic<uint64_t> turned_away_{0}, malformed_{0};
};

}  // namespace flexnpu::daemon
