#include "flexnpu/daemon/dispatcher.hpp"

#include <poll.h>
#include <sys/prctl.h>

#include <algorithm>

#include "flexnpu/wire/futex.hpp"
#include "flexnpu/wire/merge.hpp"

namespace flexnpu::daemon {

using wire::now_ns;

namespace {

constexpr uint64_t kLongestSleepNs = 1'000'000'000;
// Records taken from one session before the next is looked at.
constexpr int kBatch = 32;
// A session with more than this in its lanes is not read from: its rings fill, and its threads wait. One
// whose lanes wait for a function of its own, which may call us, is read from for longer.
constexpr uint64_t kMaxQueued = 1 << 16;
constexpr uint64_t kMaxQueuedCalling = 8 * kMaxQueued;
// When the daemon stops, all streams together get this long.
constexpr uint64_t kStopMs = 3000;
// How often the system is asked again for threads that it has refused.
constexpr uint64_t kRetryThreadsNs = 100'000'000;

bool readable(const Session& s) {
    return !s.broken && s.queued + s.host_backlog.size() <= (s.host_open ? kMaxQueuedCalling : kMaxQueued);
}

}  // namespace

Dispatcher::Dispatcher(Vendor& vendor, int32_t device, const Limits& limits)
    : vendor_(vendor),
      device_(device),
      limits_(limits.resolved()),
      payload_(wire::kMaxRecord),
      spares_(vendor),
      workers_(vendor, device, size_t(limits_.threads)),
      timed_(timers_, failures_),
      markers_(vendor, inbox_, spares_, workers_),
      lent_(vendor, spares_),
      first_calls_(vendor, inbox_, workers_),
      lanes_({vendor, gate_, board_, timers_, lent_, markers_, first_calls_, failures_, turn_}),
      host_calls_(vendor, spares_, markers_, lanes_, failures_),
      captures_(vendor, spares_, lanes_),
      dispatch_({vendor, gate_, inbox_, workers_, spares_, lent_, markers_, lanes_, host_calls_, captures_,
                 copy_engine_, failures_}),
      aborts_({vendor, inbox_, lent_, markers_, lanes_, host_calls_, dispatch_, failures_}),
      syncs_(vendor, inbox_, workers_, lanes_),
      releases_(vendor, inbox_, workers_, spares_, markers_, lanes_),
      address_space_(vendor),
      teardown_({vendor, inbox_, workers_, spares_, markers_, captures_, address_space_}),
      sessions_({vendor, inbox_, board_, lanes_, exports_, teardown_}, limits_),
      records_({vendor, inbox_, workers_, lanes_, failures_},
               {gate_, spares_, lent_, markers_, timed_, first_calls_, captures_, copy_engine_, aborts_,
                syncs_, releases_, exports_, address_space_, sessions_},
               device, limits_.allow_kernels != 0) {
    markers_.on_reached = [this](uint32_t lane, const Completions::Marker& m, double us) {
        reached(lane, m, us);
    };
    first_calls_.on_over = [this](uint32_t lane, uint64_t ticket) { lanes_.first_call_over(lane, ticket); };
}

Dispatcher::~Dispatcher() { stop(); }

void Dispatcher::start() {
    workers_.start();
    teardown_.start();
    inbox_.take_calls(true);
    publish();
    thread_ = start_thread("flexnpu-plane", [this] { loop(); });
}

void Dispatcher::stop() {
    if (!thread_.joinable()) return;
    inbox_.take_calls(false);
    inbox_.post([this] { stop_ = true; });
    thread_.join();
    teardown_.hurry(now_ns() + kStopMs * 1'000'000);
    sessions_.end_all();
    syncs_.clear();
    timers_.clear();
    teardown_.stop();
    workers_.stop();
    vendor_.enter(device_);
    run_posted();  // what markers have brought back
    spares_.release();
}

void Dispatcher::run_posted() {
    for (auto& job : inbox_.take()) guard(nullptr, "a posted job", job);
}

template <class F>
void Dispatcher::guard(Session* session, const char* where, F f) {
    turn_.serving = session;
    if (!guarded(where, f)) {
        if (Session* s = session ? session : turn_.serving) guarded(where, [&] { sessions_.sever(*s); });
    }
    turn_.serving = nullptr;
}

void Dispatcher::loop() {
    vendor_.enter(device_);
    prctl(PR_SET_TIMERSLACK, 1);  // naps and the gate's waits are tens of microseconds
    while (!stop_) {
        // What is wrong with one session has been dealt with where it was noticed.
        if (!guarded("the dispatching thread", [this] { turn(); })) usleep(1000);
    }
}

void Dispatcher::turn() {
    run_posted();
    if (stop_) return;  // not after another sleep
    bool worked = drain();
    for (const auto& s : sessions_.all())
        guard(s.get(), "a host function's end", [&] { worked |= host_calls_.poll(*s); });
    if (!worked) turn_.now = now_ns();
    const uint64_t now = turn_.now;
    guard(nullptr, "a timer", [&] { timers_.run(now); });
    pump();
    if (board_.due(now)) publish();
    if (worked) {
        syncs_.poll(now);
        return;
    }
    if (lent_.due(now)) {
        for (auto& s : sessions_.all()) {
            guard(s.get(), "a buffer's return", [&] {
                s->each_lane([this](const std::shared_ptr<Lane>& lane) { lent_.reclaim(*lane, false); });
            });
        }
    }
    if (syncs_.poll(now)) {
        wire::cpu_relax();
        return;
    }
    bool nap = false;
    if (polling_.expecting(now, &nap)) {
        for (int i = 0; i < 8; i++) wire::cpu_relax();
        return;
    }
    if (nap)
        naps_++;
    else
        sleeps_++;
    const uint64_t until = next_turn(nap);
    set_doze(nap ? wire::kNapping : wire::kAsleep);
    // Store `doze`, then load `head`; the client stores `head`, then loads `doze`. All four are seq_cst,
    // so one of us sees the other.
    if (inbox_.empty() && rings_empty()) sleep(until);
    set_doze(wire::kAwake);
    turn_.now = now_ns();
}

uint64_t Dispatcher::next_turn(bool nap) {
    const uint64_t now = turn_.now;
    uint64_t until = std::min(
        {gate_.wake_at(now), timers_.next(), syncs_.next_poll(), board_.due_at(), now + kLongestSleepNs});
    if (lent_.any()) until = std::min(until, now + LentBuffers::kReclaimNs);
    if (workers_.threads().wanted()) {
        workers_.threads().retry();
        until = std::min(until, now + kRetryThreadsNs);
    }
    for (auto& s : sessions_.all()) {
        // The client takes its time.
        if (!s->host_backlog.empty()) until = std::min(until, now + HostCalls::kTellNs);
    }
    return nap ? std::min(until, now + polling_.nap_ns(records_seen_)) : until;
}

void Dispatcher::set_doze(wire::Doze doze) {
    inbox_.set_doze(doze);
    for (auto& s : sessions_.all()) s->page->doze.store(doze, std::memory_order_seq_cst);
}

bool Dispatcher::rings_empty() const {
    for (auto& s : sessions_.all()) {
        if (host_calls_.answered(*s)) return false;
        if (!readable(*s)) continue;
        for (auto& r : s->rings) {
            if (r->has_head || !r->consumer.empty()) return false;
        }
    }
    return true;
}

void Dispatcher::sleep(uint64_t until) {
    const uint64_t now = now_ns();
    if (until <= now) return;
    polling_.slept();
    std::vector<pollfd> fds;
    fds.push_back({inbox_.wake_fd(), POLLIN, 0});
    for (auto& s : sessions_.all()) fds.push_back({s->doorbell.get(), POLLIN, 0});
    const timespec t{time_t((until - now) / 1'000'000'000ull), long((until - now) % 1'000'000'000ull)};
    if (ppoll(fds.data(), fds.size(), &t, nullptr) <= 0) return;
    for (const pollfd& f : fds) {
        uint64_t n;
        if (f.revents & POLLIN) [[maybe_unused]]
            ssize_t got = read(f.fd, &n, sizeof(n));
    }
}

bool Dispatcher::drain() {
    bool worked = false;
    // By index: what has been posted may add and remove sessions.
    for (size_t i = 0; i < sessions_.all().size(); i++) {
        const std::shared_ptr<Session> s = sessions_.all()[i];
        for (const auto& ring : s->given_back) {
            if (!ring->worker) std::erase(s->rings, ring);
        }
        s->given_back.clear();
        for (int n = 0; n < kBatch && readable(*s); n++) {
            const wire::Merged m = wire::next(s->rings);
            if (m.look == wire::Look::empty) break;
            if (m.look == wire::Look::broken) {
                sessions_.sever(*s);
                break;
            }
            // What happened before this record was published (a synchronise answered by a worker) is reported
            // before it.
            run_posted();
            if (s->removed) break;
            const std::shared_ptr<Ring>& ring = s->rings[m.ring];
            ring->consumer.read(m.record, payload_.data());
            ring->consumer.pop(m.record);
            ring->has_head = false;
            worked = true;
            records_seen_++;
            s->calls++;
            turn_.now = now_ns();
            guard(s.get(), "a message", [&] {
                polling_.taken(ring, m.record, turn_.now);
                records_.handle(
                    *s, ring, m.record,
                    std::span<const uint8_t>(payload_.data(), m.record.size - sizeof(wire::Record)));
            });
            pump();
        }
    }
    return worked;
}

void Dispatcher::pump() {
    while (auto decision = gate_.next(turn_.now)) {
        if (Lane* lane = lanes_.decided(decision->lane))
            guard(lane->session, "a launch", [&] { dispatch_.dispatch(*lane, *decision); });
        // A transparent gate has no use for the exact time.
        if (gate_.settings().enabled) turn_.now = now_ns();
    }
}

void Dispatcher::reached(uint32_t id, const Completions::Marker& m, double us) {
    Lane* lane = lanes_.find(id);
    if (!lane) return;
    if (m.call) return host_calls_.reached(*lane, m.ticket);
    if (m.ticket != 0) return gate_.completed(now_ns(), id, m.ticket, us);
    lanes_.not_full(*lane);
}

}  // namespace flexnpu::daemon
