// Host functions and report threads: aclrtLaunchHostFunc, aclrtLaunchCallback, aclrtSubscribeReport,
// aclrtProcessReport.
#include "flexnpu/client/streams/host_calls.hpp"

#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>

#include <chrono>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "acl.gen.h"
#include "flexnpu/client/devices.hpp"
#include "flexnpu/client/error.hpp"
#include "flexnpu/client/session/session.hpp"
#include "flexnpu/wire/futex.hpp"
#include "flexnpu/wire/guard.hpp"

namespace acl = flexnpu::acl;
namespace wire = flexnpu::wire;

namespace flexnpu::client {

namespace {

// How often who sleeps here looks whether the daemon lives.
constexpr auto kLook = std::chrono::milliseconds(200);

// Queues by thread, for aclrtProcessReport. A child of fork() begins with none: the subscriptions are its
// parent's.
struct Registry {
    std::mutex mutex;
    std::unordered_map<uint64_t, std::shared_ptr<ReportQueue>> queues;
};
Registry* registry_now = nullptr;

Registry& registry() {
    static const bool made = [] {
        registry_now = new Registry;
        pthread_atfork(nullptr, nullptr, [] { registry_now = new Registry; });
        return true;
    }();
    (void)made;
    return *registry_now;
}

std::shared_ptr<ReportQueue> queue_of(uint64_t thread, bool make) {
    Registry& r = registry();
    std::lock_guard lock(r.mutex);
    auto it = r.queues.find(thread);
    if (it != r.queues.end()) return it->second;
    if (!make) return nullptr;
    return r.queues[thread] = std::make_shared<ReportQueue>();
}

// The program's signals stay with the program's threads. Detached: there is no moment at which one could be
// joined. False when the system has no thread left.
bool start_thread(std::function<void()> body) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    bool started = true;
    try {
        wire::start_thread("flexnpu-host", std::move(body)).detach();
    } catch (const std::system_error&) {
        started = false;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return started;
}

}  // namespace

// ---- one thread's callbacks ----

bool ReportQueue::push(Report report) {
    std::lock_guard lock(mutex_);
    if (streams_ == 0) return false;
    reports_.push_back(std::move(report));
    changed_.notify_one();
    return true;
}

void ReportQueue::subscribe() {
    std::lock_guard lock(mutex_);
    if (streams_++ == 0) gone_ = false;
}

void ReportQueue::unsubscribe() {
    std::deque<Report> given_up;
    {
        std::lock_guard lock(mutex_);
        if (streams_ == 0 || --streams_ > 0) return;
        given_up.swap(reports_);
        changed_.notify_all();
    }
    for (Report& r : given_up) r.returned(acl::SUCCESS);
}

bool ReportQueue::closed() const {
    std::lock_guard lock(mutex_);
    return streams_ == 0;
}

void ReportQueue::session_ended() {
    std::lock_guard lock(mutex_);
    gone_ = true;
    if (streams_ > 0) streams_--;
    changed_.notify_all();
}

int32_t ReportQueue::process(int64_t timeout_ms) {
    std::unique_lock lock(mutex_);
    auto ready = [this] { return !reports_.empty() || streams_ == 0 || gone_; };
    if (timeout_ms < 0) {
        changed_.wait(lock, ready);
    } else if (!changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms), ready)) {
        return acl::RT_REPORT_TIMEOUT;
    }
    if (reports_.empty()) return gone_ ? acl::RT_INTERNAL : acl::RT_THREAD_SUBSCRIBE;
    const Report report = std::move(reports_.front());
    reports_.pop_front();
    lock.unlock();
    report.function(report.argument);
    report.returned(acl::SUCCESS);
    return 0;
}

// ---- a session's ----

HostCalls& Session::host_calls() {
    if (HostCalls* h = host_calls_.load(std::memory_order_acquire)) return *h;
    auto* made = new HostCalls(*this);
    HostCalls* before = nullptr;
    if (host_calls_.compare_exchange_strong(before, made)) return *made;
    delete made;
    return *before;
}

int32_t HostCalls::launch(uint64_t stream, HostFunction function, void* argument, bool callback, bool block) {
    Channel* c = Session::channel();
    if (!c) return last_error();
    uint64_t number;
    {
        std::lock_guard lock(mutex_);
        if (!start()) return last_error();
        number = ++next_;
        launched_[number] = {function, argument, stream, callback};
    }
    const int32_t e = c->post(wire::Kind::host_func, wire::HostFunc{stream, number, block, 0});
    if (e) {
        std::lock_guard lock(mutex_);
        launched_.erase(number);
    }
    return e;
}

bool HostCalls::start() {
    if (started_) return true;
    if (!session_.join()) {
        session_.gone();
        return false;
    }
    started_ = start_thread([this] {
        wire::guarded("flexnpu-calls", [this] { receive(); });
        session_.leave();
    });
    if (started_) return true;
    session_.leave();
    fail(acl::RT_INTERNAL, "FlexNPU: no thread can be started for host functions; see ulimit -u");
    return false;
}

// Takes what the daemon gives, as long as it lives.
void HostCalls::receive() {
    prctl(PR_SET_NAME, "flexnpu-calls");
    wire::SessionPage& page = session_.page();
    uint32_t taken = page.host_taken.load(std::memory_order_relaxed);
    for (;;) {
        uint32_t given = page.host_given.load(std::memory_order_acquire);
        if (given == taken) {
            page.host_waiting.store(1, std::memory_order_seq_cst);
            given = page.host_given.load(std::memory_order_seq_cst);
            if (given == taken && session_.alive())
                wire::futex_wait(page.host_given, given, uint64_t(std::chrono::nanoseconds(kLook).count()));
            page.host_waiting.store(0, std::memory_order_relaxed);
            if (page.host_given.load(std::memory_order_acquire) == taken && !session_.alive()) break;
            continue;
        }
        const bool was_full = given - taken >= wire::kHostCalls;
        while (taken != given) {
            const wire::HostCall call = page.host_calls[taken % wire::kHostCalls];
            page.host_taken.store(++taken, std::memory_order_release);
            take(call);
        }
        if (was_full) session_.ring_bell(wire::kNapping);
    }
    {
        std::lock_guard lock(mutex_);
        for (auto& [stream, queue] : queues_) queue->session_ended();
        queues_.clear();
        ended_ = true;
    }
    std::lock_guard lock(jobs_mutex_);
    over_ = true;
    jobs_ready_.notify_all();
}

void HostCalls::take(const wire::HostCall& call) {
    Launched l;
    std::shared_ptr<ReportQueue> queue;
    {
        std::lock_guard lock(mutex_);
        auto it = launched_.find(call.function);
        if (it == launched_.end()) return;
        l = it->second;
        launched_.erase(it);
        auto q = queues_.find(l.stream);
        if (q != queues_.end()) queue = q->second;
    }
    if (call.slot == wire::kDropped) return;
    if (!l.callback) return run({l.function, l.argument, call.slot, call.ticket});
    auto back = [this, slot = call.slot, ticket = call.ticket](int32_t status) {
        returned(slot, ticket, status);
    };
    if (!queue || !queue->push({l.function, l.argument, back})) back(acl::RT_STREAM_NO_CALLBACK);
}

void HostCalls::returned(uint32_t slot, uint32_t ticket, int32_t status) {
    if (slot >= wire::kHostSlots) return;  // nobody waits
    if (!session_.join()) return;
    wire::SessionPage& page = session_.page();
    page.host_status[slot].store(status, std::memory_order_relaxed);
    // seq_cst: before the look at `doze`.
    page.host_done[slot].store(ticket, std::memory_order_seq_cst);
    session_.ring_bell(wire::kAwake);
    session_.leave();
}

void HostCalls::run(Job job) {
    {
        std::lock_guard lock(jobs_mutex_);
        if (jobs_.size() + 1 > idle_ && start_thread([this] { serve(); })) threads_++;
        if (threads_ > 0) {
            jobs_.push_back(job);
            jobs_ready_.notify_one();
            return;
        }
    }
    // No thread can be had: better here, where it holds up others, than never.
    job.function(job.argument);
    returned(job.slot, job.ticket, acl::SUCCESS);
}

void HostCalls::serve() {
    prctl(PR_SET_NAME, "flexnpu-host");
    std::unique_lock lock(jobs_mutex_);
    for (;;) {
        idle_++;
        jobs_ready_.wait(lock, [this] { return !jobs_.empty() || over_; });
        idle_--;
        if (jobs_.empty()) return;
        const Job job = jobs_.front();
        jobs_.pop_front();
        lock.unlock();
        wire::guarded("a host function", [&] { job.function(job.argument); });
        returned(job.slot, job.ticket, acl::SUCCESS);
        lock.lock();
    }
}

int32_t HostCalls::subscribe(uint64_t thread, uint64_t stream) {
    auto queue = queue_of(thread, true);
    std::shared_ptr<ReportQueue> before;
    {
        std::lock_guard lock(mutex_);
        // Who waits for callbacks must learn of the daemon's end, callbacks or not.
        if (!start()) return last_error();
        if (ended_) return session_.gone();
        auto& mine = queues_[stream];
        if (mine == queue)
            return fail(acl::RT_PARAM_INVALID,
                        "aclrtSubscribeReport: the stream is subscribed to this thread already");
        queue->subscribe();
        before = std::exchange(mine, queue);
    }
    if (before) before->unsubscribe();
    return 0;
}

int32_t HostCalls::unsubscribe(uint64_t thread, uint64_t stream) {
    auto queue = queue_of(thread, false);
    {
        std::lock_guard lock(mutex_);
        auto it = queues_.find(stream);
        if (it == queues_.end() || it->second != queue) {
            return fail(acl::RT_THREAD_SUBSCRIBE,
                        "aclrtUnSubscribeReport: the thread is not subscribed to the stream");
        }
        queues_.erase(it);
    }
    queue->unsubscribe();
    return 0;
}

bool HostCalls::subscribed(uint64_t stream) {
    std::lock_guard lock(mutex_);
    auto it = queues_.find(stream);
    return it != queues_.end() && !it->second->closed();
}

void HostCalls::forget(uint64_t stream) {
    std::shared_ptr<ReportQueue> queue;
    {
        std::lock_guard lock(mutex_);
        auto it = queues_.find(stream);
        if (it == queues_.end()) return;
        queue = std::move(it->second);
        queues_.erase(it);
    }
    queue->unsubscribe();
}

}  // namespace flexnpu::client

using namespace flexnpu::client;

namespace {

// The session of a stream that may be named here; nullptr with the error recorded.
Session* session_of(const char* function, aclrtStream s) {
    Channel* c = Session::channel();
    if (!c) return nullptr;
    return check_stream(c->session(), function, number(s)) == 0 ? &c->session() : nullptr;
}

}  // namespace

extern "C" {

aclError aclrtLaunchHostFunc(aclrtStream s, aclrtHostFunc function, void* argument) {
    if (!function) return fail(acl::INVALID_PARAM, "aclrtLaunchHostFunc: the function is null");
    Session* session = session_of("aclrtLaunchHostFunc", s);
    if (!session) return last_error();
    return session->host_calls().launch(number(s), reinterpret_cast<HostFunction>(function), argument, false,
                                        true);
}

aclError aclrtLaunchCallback(aclrtCallback function, void* argument, aclrtCallbackBlockType block,
                             aclrtStream s) {
    if (!function) return fail(acl::INVALID_PARAM, "aclrtLaunchCallback: the function is null");
    Session* session = session_of("aclrtLaunchCallback", s);
    if (!session) return last_error();
    if (!session->host_calls().subscribed(number(s))) {
        return fail(acl::RT_STREAM_NO_CALLBACK, "aclrtLaunchCallback: no thread is subscribed to the stream");
    }
    return session->host_calls().launch(number(s), reinterpret_cast<HostFunction>(function), argument, true,
                                        block != 0);
}

aclError aclrtSubscribeReport(uint64_t thread, aclrtStream s) {
    Session* session = session_of("aclrtSubscribeReport", s);
    return session ? session->host_calls().subscribe(thread, number(s)) : last_error();
}

aclError aclrtUnSubscribeReport(uint64_t thread, aclrtStream s) {
    Session* session = session_of("aclrtUnSubscribeReport", s);
    return session ? session->host_calls().unsubscribe(thread, number(s)) : last_error();
}

aclError aclrtProcessReport(int32_t timeout_ms) {
    if (timeout_ms < -1 || timeout_ms == 0)
        return fail(acl::INVALID_PARAM, "aclrtProcessReport: %d ms is not a timeout", timeout_ms);
    auto queue = queue_of(uint64_t(pthread_self()), false);
    const int32_t e = queue ? queue->process(timeout_ms) : int32_t(acl::RT_THREAD_SUBSCRIBE);
    switch (e) {
        case 0: return 0;
        case acl::RT_REPORT_TIMEOUT:
            return fail(e, "aclrtProcessReport: no callback within %d ms", timeout_ms);
        case acl::RT_THREAD_SUBSCRIBE:
            return fail(e, "aclrtProcessReport: this thread is subscribed to no stream");
        default: return fail(e, "FlexNPU: the daemon is gone; restart it, then this program");
    }
}

}  // extern "C"
