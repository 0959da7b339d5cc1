// The data socket: makes sessions, rings and shared host memory, and notices when a client ends.
#pragma once

#include <sys/socket.h>

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "flexnpu/daemon/limits.hpp"
#include "flexnpu/daemon/pins.hpp"
#include "flexnpu/daemon/sessions.hpp"

namespace flexnpu::daemon {

// Who may have a session, besides root: these users, and members of these groups.
struct Access {
    std::vector<uint32_t> users, groups;
    // `fd` is connected to the peer: it knows the peer's further groups.
    bool permits(const ucred& peer, int fd) const;
};

// Its thread waits for nobody: what the dispatching thread must do for a client is a call, and the client is
// answered when it is done. Until then the client's further requests wait, and other clients are served.
class Acceptor {
public:
    // Owns the socket file at `path` from here on.
    Acceptor(Inbox& inbox, Sessions& sessions, Vendor& vendor, int32_t device, std::string path,
             std::string soc, Access access, Limits limits);
    ~Acceptor();

    // A listening data socket (mode 0666: the peer's credentials decide). Throws std::runtime_error.
    static Fd listen_at(const std::string& path);
    void start(Fd listener);
    void stop();

    void counters(std::map<std::string, uint64_t>* out) const;

private:
    struct Client;
    void loop();
    void accept_one();
    // Refuses a connection before it has said anything.
    void turn_away(Client& client, const std::string& why);
    void drop_silent();
    // False: the client is to be closed.
    bool serve(Client& client);
    void close(uint64_t key);
    void hello(Client& client, const wire::Request& request);
    void new_ring(Client& client);
    void free_ring(Client& client, uint32_t number);
    void host_memory(Client& client, uint64_t bytes);
    void free_host_memory(Client& client, uint32_t region);
    // Runs f(sessions, args...) on the dispatching thread, then finish(client, outcome) on this one, unless
    // the client has gone by then. `held` lives until then: calls keep only a weak pointer to what a client
    // that goes takes along.
    template <class Finish, class F, class... A>
    void call(Client& client, std::shared_ptr<void> held, Finish finish, F f, A... args);
    void finish_calls();
    // Whether the client's requests are read.
    void read_from(Client& client, bool on);
    void answer(Client& client, int32_t status, const std::string& message, uint32_t number = 0,
                std::vector<int> fds = {});

    Inbox& inbox_;  // of the dispatching thread, whose the sessions are
    Sessions& sessions_;
    Vendor& vendor_;
    const int32_t device_;
    std::string path_, soc_;
    Access access_;
    const Limits limits_;
    Usage usage_;
    const std::shared_ptr<Pins> pins_;
    Fd listener_, epoll_, wake_;
    Fd spare_;  // given up for a moment when no descriptor is left, so that a client can be told
    std::thread thread_;
    std::atomic<bool> stop_{false};
    std::mutex finished_mutex_;
    std::vector<std::function<void()>> finished_;  // calls that have been run: what is left is this thread's
    std::map<uint64_t, std::unique_ptr<Client>> clients_;
    uint64_t next_key_ = 16;
    uint32_t next_session_ = 1;
    size_t silent_ = 0;  // connections that are no session yet
    std::atomic<uint64_t> turned_away_{0}, malformed_{0}, silent_dropped_{0}, out_of_descriptors_{0};
};

}  // namespace flexnpu::daemon
