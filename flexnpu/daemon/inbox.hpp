// Jobs that other threads give to the dispatching thread, and how they wake it.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "flexnpu/daemon/calls.hpp"
#include "flexnpu/daemon/fd.hpp"
#include "flexnpu/wire/layout.hpp"

namespace flexnpu::daemon {

class Inbox {
public:
    using Job = std::function<void()>;
    Inbox();

    // ---- any thread ----

    // Runs `job` on the dispatching thread, soon.
    void post(Job job) {
        put(std::move(job));
        wake();
    }
    // post() in two steps.
    void put(Job job);
    void wake();
    // Runs f(target, args...) on the dispatching thread and waits for its result. A call that has not begun
    // within the time is cancelled; one that has begun is waited for: calls do not block. Once a call has
    // timed out, no other waits until the thread has come round: the next would end alike, and its caller
    // may have others to serve.
    template <class Target, class F, class... A>
    auto call(std::chrono::milliseconds within, Target& target, F f, A... args)
        -> Outcome<std::invoke_result_t<F, Target&, A&...>>;
    // The same without waiting: `done` gets the outcome on the dispatching thread, and owns all that it
    // names. It does not run for a call that is cancelled. Null: calls are not taken.
    template <class Done, class Target, class F, class... A>
    [[nodiscard]] std::shared_ptr<CallTicket> submit(Done done, Target& target, F f, A... args);
    // Queues a call's job; false: calls are not taken.
    [[nodiscard]] bool put_call(Job job);
    // How often the jobs have been taken; nothing while the thread is known to be late.
    std::optional<uint64_t> takes() const;
    // A call has timed out that was made after `takes`. Says nothing of a thread that came round since.
    void set_late(uint64_t takes);
    // Whether calls are taken: while the dispatching thread runs.
    void take_calls(bool on);

    // ---- the dispatching thread ----

    bool empty() const { return !has_jobs_.load(std::memory_order_seq_cst); }
    // The jobs so far, oldest first.
    std::vector<Job> take();
    wire::Doze doze() const { return wire::Doze(doze_.load(std::memory_order_seq_cst)); }
    // How deep the thread is about to sleep. Set before it looks once more whether there is work.
    void set_doze(wire::Doze doze) { doze_.store(doze, std::memory_order_seq_cst); }
    // Readable when somebody has woken the thread; to be read empty.
    int wake_fd() const { return wake_.get(); }

private:
    mutable std::mutex mutex_;
    std::vector<Job> jobs_;
    bool takes_calls_ = false;
    bool late_ = false;
    uint64_t takes_ = 0;
    std::atomic<bool> has_jobs_{false};
    std::atomic<uint32_t> doze_{wire::kAwake};
    const Fd wake_;
};

template <class Done, class Target, class F, class... A>
std::shared_ptr<CallTicket> Inbox::submit(Done done, Target& target, F f, A... args) {
    static_assert(kNoCaptures<F>, "a call's function captures nothing: give it arguments");
    static_assert((kOwned<A> && ...), "a call owns its arguments: no pointers or references");
    using R = std::invoke_result_t<F, Target&, A&...>;
    auto ticket = std::make_shared<CallTicket>();
    const bool queued =
        put_call([&target, ticket, done = std::move(done), f, ... args = std::move(args)]() mutable {
            if (!ticket->begin()) return;
            const auto run = [&]() -> Outcome<R> {
                try {
                    if constexpr (std::is_void_v<R>) {
                        std::invoke(f, target, args...);
                        return std::monostate();
                    } else {
                        return std::invoke(f, target, args...);
                    }
                } catch (const std::exception&) {
                    return CallError::failed;
                }
            };
            done(run());
        });
    return queued ? ticket : nullptr;
}

template <class Target, class F, class... A>
auto Inbox::call(std::chrono::milliseconds within, Target& target, F f, A... args)
    -> Outcome<std::invoke_result_t<F, Target&, A&...>> {
    using R = std::invoke_result_t<F, Target&, A&...>;
    const auto before = takes();
    if (!before) return CallError::timed_out;
    auto promise = std::make_shared<std::promise<Outcome<R>>>();
    auto future = promise->get_future();
    // The job alone keeps the promise: if it is dropped, the wait ends.
    const auto ticket =
        submit([promise = std::move(promise)](Outcome<R> outcome) { promise->set_value(std::move(outcome)); },
               target, f, std::move(args)...);
    if (!ticket) return CallError::stopped;
    if (future.wait_for(within) != std::future_status::ready && ticket->cancel()) {
        set_late(*before);
        return CallError::timed_out;
    }
    try {
        return future.get();
    } catch (const std::future_error&) {
        return CallError::stopped;
    }
}

}  // namespace flexnpu::daemon
