// A connection of the data socket, and how it is answered by way of the dispatching thread.
#pragma once

#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "flexnpu/daemon/acceptor.hpp"

namespace flexnpu::daemon {

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
    wire::Request request{};                        // being served; its answer repeats its number
    std::map<uint32_t, std::weak_ptr<Ring>> rings;  // by number
    uint32_t next_ring = 0;
};

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
    client.pending = inbox_.submit(std::move(done), sessions_, f, std::move(args)...);
    if (client.pending) return read_from(client, false);
    client.held.reset();
    answer(client, acl::RT_INTERNAL, "FlexNPU: the daemon is stopping");
}

}  // namespace flexnpu::daemon
