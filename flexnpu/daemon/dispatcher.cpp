#include "flexnpu/daemon/dispatcher.hpp"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "flexnpu/daemon/communicators.hpp"
#include "flexnpu/daemon/graphs.hpp"
#include "flexnpu/daemon/kernels.hpp"
#include "flexnpu/wire/futex.hpp"
#include "flexnpu/wire/merge.hpp"

namespace flexnpu::daemon {

using wire::Kind;
using wire::now_ns;

namespace {

// Spin for a record that is likely to come within this time; sleep for others.
constexpr uint64_t kMostSpinNs = 80'000;
// By how much a record that woke us was there earlier than we saw it.
constexpr uint64_t kWokenNs = 30'000;
// A sleep that lasted no longer too long than this was prompt.
constexpr uint64_t kPromptNs = 25'000;
// While a client is busy, look into the rings this often without being woken: an asynchronous call then costs
// its caller no system call, and us one timer for several calls.
constexpr uint64_t kNapNs = 50'000;
// This long after the last asynchronous record, sleep until somebody rings: naps cost more than the caller's
// system call then.
constexpr uint64_t kNapForNs = 400'000;
// A ring without a record for so long is not lively any more.
constexpr uint64_t kLivelyNs = 20'000'000;
constexpr uint64_t kLongestSleepNs = 1'000'000'000;
// How often copies that have lent out a buffer are looked at.
constexpr uint64_t kReclaimNs = 200'000;
// How often a snapshot is made for other threads while nobody asks for one, and how soon after sessions or
// lanes have come or gone.
constexpr uint64_t kPublishNs = 1'000'000'000, kChangedNs = 20'000'000;
// A dying session's streams, if it has communicators, get this long to end by themselves: other ranks wait.
constexpr uint64_t kRanksEndMs = 2000;
// When the daemon stops, all streams together get this long.
constexpr uint64_t kStopMs = 3000;
// How often a synchronise that has found no thread is looked at.
constexpr uint64_t kLookNs = 500'000;
// How often a client that has not taken its host functions is looked at.
constexpr uint64_t kTellNs = 1'000'000;
// Records taken from one session before the next is looked at.
constexpr int kBatch = 32;
// A session with more than this in its lanes is not read from: its rings fill, and its threads wait. One
// whose lanes wait for a function of its own, which may call us, is read from for longer.
constexpr uint64_t kMaxQueued = 1 << 16;
constexpr uint64_t kMaxQueuedCalling = 8 * kMaxQueued;
// Items of one lane between us and the device. Hardware streams hold about a thousand or two; with fewer than
// this a device runs dry.
constexpr uint64_t kInFlight = 512;
constexpr uint64_t kFenceEvery = 64;
constexpr size_t kMostSpareItems = 1024, kMostSpareAddresses = 64;
constexpr uint64_t kMostLeavingHost = uint64_t(1) << 30;
constexpr uint64_t kSlowCopyBytesPerNs = 8;  // a cautious 8 GB/s
// Sessions that are torn down at one time.
constexpr size_t kTeardowns = 32;
// Threads of the pool that wait for one session's markers, twice: it gets half of its share for that.
constexpr size_t kMarkerShare = 16;
// How often the system is asked again for threads that it has refused.
constexpr uint64_t kRetryThreadsNs = 100'000'000;
constexpr uint32_t kMarkerFlags = acl::EVENT_SYNC | acl::EVENT_TIME_LINE;

}  // namespace

Dispatcher::Dispatcher(Vendor& vendor, int32_t device, const Limits& limits)
    : vendor_(vendor),
      device_(device),
      limits_(limits.resolved()),
      allow_kernels_(limits.allow_kernels != 0),
      wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      payload_(wire::kMaxRecord),
      holdings_(limits_) {}

Dispatcher::~Dispatcher() { stop(); }

void Dispatcher::start() {
    threads_ = std::make_unique<Threads>(Threads::Bounds{.most = size_t(limits_.threads)},
                                         [this] { vendor_.enter(device_); });
    completions_ = std::make_unique<Completions>(vendor_, *threads_, [this] { vendor_.enter(device_); });
    teardown_share_ = std::make_shared<Threads::Group>(kTeardowns, nullptr);
    reaper_ = std::make_unique<Worker>(*threads_, teardown_share_);
    running_ = true;
    {
        std::lock_guard lock(posted_mutex_);
        takes_calls_ = true;
    }
    publish();
    thread_ = start_thread("flexnpu-plane", [this] { loop(); });
}

void Dispatcher::stop() {
    if (!thread_.joinable()) return;
    {
        std::lock_guard lock(posted_mutex_);
        takes_calls_ = false;
    }
    post([this] { stop_ = true; });
    thread_.join();
    running_ = false;
    end_by_ns_ = now_ns() + kStopMs * 1'000'000;
    for (auto& s : sessions_) {
        s->removed = true;
        const auto orphans = orphans_of(*s);
        s->each_lane([this](const std::shared_ptr<Lane>& lane) { drop_lane(*lane); });
        for (const auto& mark : orphans) mark->waiters.clear();  // they hold the mark
        bury(s);
    }
    sessions_.clear();
    waiting_.clear();
    timers_.clear();
    ranked_teardowns_.clear();
    reaper_.reset();
    completions_.reset();
    threads_.reset();
    vendor_.enter(device_);
    run_posted();  // what markers have brought back
    for (void* e : spare_events_) vendor_.aclrtDestroyEvent(e);
    for (void* p : slabs_) vendor_.aclrtFreeHost(p);
    spare_events_.clear();
    slabs_.clear();
}

// ---- the loop ----

void Dispatcher::post(std::function<void()> job) {
    put(std::move(job));
    wake();
}

void Dispatcher::put(std::function<void()> job) {
    std::lock_guard lock(posted_mutex_);
    posted_.push_back(std::move(job));
    has_posted_.store(true, std::memory_order_seq_cst);
}

void Dispatcher::wake() {
    if (doze_.load(std::memory_order_seq_cst) != wire::kAwake) {
        const uint64_t one = 1;
        [[maybe_unused]] ssize_t n = write(wake_.get(), &one, sizeof(one));
    }
}

bool Dispatcher::queue_call(std::function<void()> job) {
    {
        std::lock_guard lock(posted_mutex_);
        if (!takes_calls_) return false;
        posted_.push_back(std::move(job));
        has_posted_.store(true, std::memory_order_seq_cst);
    }
    wake();
    return true;
}

void Dispatcher::run_posted() {
    if (!has_posted_.load(std::memory_order_acquire)) return;
    std::vector<std::function<void()>> jobs;
    {
        std::lock_guard lock(posted_mutex_);
        jobs.swap(posted_);
        has_posted_.store(false, std::memory_order_relaxed);
    }
    for (auto& job : jobs) guard(nullptr, "a posted job", job);
}

// Its rings are not read any more, and its client is hung up on.
void Dispatcher::sever(Session& s) {
    if (s.broken) return;
    s.broken = true;
    count_.sessions_broken++;
    s.refused++;
    if (on_broken) on_broken(s);
}

template <class F>
void Dispatcher::guard(Session* session, const char* where, F f) {
    serving_ = session;
    if (!guarded(where, f)) {
        dispatching_ = nullptr;
        if (Session* s = session ? session : serving_) guarded(where, [&] { sever(*s); });
    }
    serving_ = nullptr;
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
    worked |= poll_host();
    if (!worked) now_ = now_ns();
    const uint64_t now = now_;
    guard(nullptr, "a timer", [&] { timers_.run(now); });
    pump();
    publish_if_due();
    if (worked) {
        if (!waiting_.empty()) poll_waiting(now);
        return;
    }
    if (lent_ && now - reclaimed_ns_ > kReclaimNs) {
        reclaimed_ns_ = now;
        reclaim_some();
    }
    if (!waiting_.empty() && poll_waiting(now)) {
        wire::cpu_relax();
        return;
    }
    bool nap = false;
    if (expecting(now, &nap)) {
        for (int i = 0; i < 8; i++) wire::cpu_relax();
        return;
    }
    uint64_t until = std::min({gate_.wake_at(now), timers_.next(), next_poll(), now + kLongestSleepNs});
    if (lent_) until = std::min(until, now + kReclaimNs);
    if (changed_) until = std::min(until, published_ns_ + kChangedNs);
    if (threads_->wanted()) {
        threads_->retry();
        until = std::min(until, now + kRetryThreadsNs);
    }
    for (auto& s : sessions_) {
        if (!s->host_backlog.empty()) until = std::min(until, now + kTellNs);  // the client takes its time
    }
    if (nap) {
        until = std::min(until, now + kNapNs);
        count_.naps++;
        set_doze(wire::kNapping);
    } else {
        count_.sleeps++;
        set_doze(wire::kAsleep);
    }
    // Store `doze`, then load `head`; the client stores `head`, then loads `doze`. All four are seq_cst,
    // so one of us sees the other.
    if (!has_posted_.load(std::memory_order_seq_cst) && rings_empty()) sleep(until);
    set_doze(wire::kAwake);
    now_ = now_ns();
}

// How long after this record, or its answer, the client's next one comes is learnt by kind. Operators come in
// rows: what follows one is not foretold, and naps do for them.
void Dispatcher::taken(const std::shared_ptr<Ring>& ring, const wire::Record& record, uint64_t now) {
    Ring::Arrivals& h = ring->arrivals;
    if (h.last != Kind::launch) {
        const uint64_t at = slept_ ? now - kWokenNs : now;
        const auto after = [at](uint64_t then) { return at > then ? at - then : 0; };
        h.after_record[size_t(h.last)].learn(after(h.since));
        if (h.answered_at) h.after_answer[size_t(h.last)].learn(after(h.answered_at));
    }
    slept_ = false;
    h.last = record.kind < Kind::count_ ? record.kind : Kind::invalid;
    h.question = record.request;
    h.since = now;
    h.answered_at = 0;
    h.spin_until = 0;
    if (h.last != Kind::launch) {
        const wire::AdaptiveWait::Plan plan = h.after_record[size_t(h.last)].plan(now);
        if (plan.spin_until <= now + kMostSpinNs) h.spin_until = plan.spin_until;
        h.nap = plan.spin_from == now;
    } else {
        h.nap = true;
    }
    if (!h.lively) {
        h.lively = true;
        lively_.push_back(ring);
    }
}

bool Dispatcher::expecting(uint64_t now, bool* nap) {
    bool spin = false;
    std::erase_if(lively_, [&](const std::shared_ptr<Ring>& ring) {
        Ring::Arrivals& h = ring->arrivals;
        if (h.question && !h.answered_at &&
            ring->consumer.header().reply.load(std::memory_order_relaxed) == h.question) {
            h.answered_at = now;
            const wire::AdaptiveWait::Plan plan = h.after_answer[size_t(h.last)].plan(now);
            if (plan.spin_until <= now + kMostSpinNs) h.spin_until = std::max(h.spin_until, plan.spin_until);
        }
        spin |= now < h.spin_until;
        *nap |= h.nap && !h.question && now - h.since < kNapForNs;
        const bool over = ring->closed || now - std::max(h.since, h.answered_at) > kLivelyNs;
        if (over) h.lively = false;
        return over;
    });
    return spin;
}

void Dispatcher::set_doze(wire::Doze doze) {
    doze_.store(doze, std::memory_order_seq_cst);
    for (auto& s : sessions_) s->page->doze.store(doze, std::memory_order_seq_cst);
}

bool Dispatcher::readable(const Session& s) {
    return !s.broken && s.queued + s.host_backlog.size() <= (s.host_open ? kMaxQueuedCalling : kMaxQueued);
}

bool Dispatcher::rings_empty() const {
    for (auto& s : sessions_) {
        if (host_answered(*s)) return false;
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
    slept_ = true;
    std::vector<pollfd> fds;
    fds.push_back({wake_.get(), POLLIN, 0});
    for (auto& s : sessions_) fds.push_back({s->doorbell.get(), POLLIN, 0});
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
    for (size_t i = 0; i < sessions_.size(); i++) {
        const std::shared_ptr<Session> s = sessions_[i];
        for (const auto& ring : s->given_back) {
            if (!ring->worker) std::erase(s->rings, ring);
        }
        s->given_back.clear();
        for (int n = 0; n < kBatch && readable(*s); n++) {
            const wire::Merged m = wire::next(s->rings);
            if (m.look == wire::Look::empty) break;
            if (m.look == wire::Look::broken) {
                sever(*s);
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
            count_.records++;
            s->calls++;
            now_ = now_ns();
            guard(s.get(), "a message", [&] {
                taken(ring, m.record, now_);
                handle(*s, ring, m.record);
            });
            pump();
        }
    }
    return worked;
}

void Dispatcher::pump() {
    while (auto decision = gate_.next(now_)) {
        if (!last_lane_ || last_lane_->id != decision->lane) {
            auto it = lanes_.find(decision->lane);
            last_lane_ = it == lanes_.end() ? nullptr : it->second;
        }
        if (last_lane_) guard(last_lane_->session, "a launch", [&] { dispatch(*last_lane_, *decision); });
        // A transparent gate has no use for the exact time.
        if (gate_.settings().enabled) now_ = now_ns();
    }
}

// ---- sessions ----

void Dispatcher::add_session(std::shared_ptr<Session> session) {
    count_.sessions++;
    session->page->doze.store(doze_.load(), std::memory_order_seq_cst);
    // A call that ends in an exception ends its session: the hang-up is noticed by the acceptor.
    const auto hang_up = [weak = session->weak_from_this()] {
        if (const auto s = weak.lock()) shutdown(s->socket.get(), SHUT_RDWR);
    };
    session->holder = holdings_.holder(session->uid);
    session->call_share = std::make_shared<Threads::Group>(std::max<size_t>(1, limits_.threads / 4), hang_up);
    session->wait_share = std::make_shared<Threads::Group>(kMarkerShare, hang_up);
    sessions_.push_back(std::move(session));
    changed_ = true;
}

bool Dispatcher::open_session(const std::weak_ptr<Session>& session) {
    auto s = session.lock();
    if (s) add_session(s);
    return s != nullptr;
}

bool Dispatcher::add_ring(const std::shared_ptr<Session>& s, const std::weak_ptr<Ring>& ring) {
    auto r = ring.lock();
    if (!r) return false;
    r->group = s->call_share;
    s->rings.push_back(r);
    return true;
}

bool Dispatcher::add_host(const std::shared_ptr<Session>& s, uint32_t number,
                          const std::weak_ptr<HostMemory>& region) {
    auto r = region.lock();
    if (r) s->host[number] = r;
    return r != nullptr;
}

// The client waits for its copies before it frees; one that does not must not pull memory from under the
// device.
std::shared_ptr<HostMemory> Dispatcher::retire_host(const std::shared_ptr<Session>& session,
                                                    uint32_t number) {
    Session& s = *session;
    auto it = s.host.find(number);
    if (it == s.host.end()) return nullptr;
    bool quiet = s.queued == 0 &&
                 std::all_of(s.uses.begin(), s.uses.end(), [](const auto& use) { return use.expired(); });
    s.each_lane([&](const std::shared_ptr<Lane>& lane) {
        int32_t status = acl::STREAM_NOT_READY;
        // A stream that captures must not be asked.
        quiet = quiet && !lane->in_capture && vendor_.aclrtStreamQuery(lane->stream, &status) == 0 &&
                status == acl::STREAM_COMPLETE;
    });
    if (quiet) s.leaving_host.clear();
    uint64_t waiting = 0;
    for (const auto& region : s.leaving_host) waiting += region->bytes;
    if (!quiet && !s.leaving_host.empty() && waiting + it->second->bytes > kMostLeavingHost) return nullptr;
    std::shared_ptr<HostMemory> region = std::move(it->second);
    s.host.erase(it);
    if (!quiet) s.leaving_host.push_back(region);
    return region;
}

Session* Dispatcher::session(uint32_t id) {
    for (auto& s : sessions_) {
        if (s->id == id) return s.get();
    }
    return nullptr;
}

void Dispatcher::remove_session(uint32_t id) {
    for (size_t i = 0; i < sessions_.size(); i++) {
        if (sessions_[i]->id != id) continue;
        std::shared_ptr<Session> s = sessions_[i];
        sessions_.erase(sessions_.begin() + ptrdiff_t(i));
        changed_ = true;
        s->removed = true;
        exports_.forget(s->id, nullptr);
        const auto orphans = orphans_of(*s);
        s->each_lane([this](const std::shared_ptr<Lane>& lane) { drop_lane(*lane); });
        // Others may have opened its events: from here on these are theirs, and nobody waits for records that
        // will not come.
        for (const uint64_t event : s->ipc_events) s->events.remove(event);
        for (const auto& mark : orphans) {
            mark->pending = false;
            for (Lane* l : std::exchange(mark->blocked, {})) {
                l->blocked = false;
                flow(*l);
            }
            for (auto& w : std::exchange(mark->waiters, {})) w();
        }
        bury(s);
        return;
    }
}

// Records that the session has not dispatched, of events that other sessions may wait for.
std::vector<std::shared_ptr<Mark>> Dispatcher::orphans_of(const Session& s) {
    std::vector<std::shared_ptr<Mark>> out;
    s.each_lane([&](const std::shared_ptr<Lane>& lane) {
        for (auto* items : {&lane->backlog, &lane->queue}) {
            for (auto& item : *items) {
                if (item->type == ItemType::record && item->mark->between_sessions) out.push_back(item->mark);
            }
        }
    });
    return out;
}

// Forgets what the lane has not dispatched.
void Dispatcher::drop_lane(Lane& lane) {
    gate_.remove_lane(lane.id);
    lanes_.erase(lane.id);
    changed_ = true;
    if (last_lane_ == &lane) last_lane_ = nullptr;
    timers_.cancel(std::exchange(lane.blocked_until, {}));
    for (auto* items : {&lane.backlog, &lane.queue}) {
        for (auto& item : *items) {
            lane.session->queued--;
            lane.session->give_block(item->block, item->ticket_of_block);
            if (item->buffer) spare_buffers_.push_back(item->buffer);
            if (item->mark) {
                std::erase(item->mark->blocked, &lane);
                if (!item->mark->between_sessions) item->mark->waiters.clear();
                if (item->type == ItemType::wait) item->mark->queued_waits -= uint32_t(item->value);
            }
            detach(lane, *item);
            for (const auto& m : item->makes) {
                m->waiters.clear();
                m->previous.reset();  // one by one: a long chain that ends at once would end on the stack
            }
        }
        items->clear();
    }
    lent_ -= lane.lent.size();
}

// One session after the other, but for those that wait for ranks elsewhere.
void Dispatcher::bury(std::shared_ptr<Session> s) {
    for (auto& ring : s->rings) ring->closed = true;
    if (!s->communicators) return reaper_->post([this, s] { tear_down(s); });
    std::erase_if(ranked_teardowns_, [](const auto& one) { return one->idle(); });
    ranked_teardowns_.push_back(std::make_unique<Worker>(*threads_, teardown_share_));
    ranked_teardowns_.back()->post([this, s] {
        abandon_collectives(*s);
        tear_down(s);
    });
}

// Sees to it that the session's streams end: by themselves or, after a time, by an abort. Whoever waits for
// them then returns: the session's own threads, and other ranks.
void Dispatcher::end_streams(Session& s) {
    const uint64_t end_ms = s.communicators ? std::min(s.end_ms, kRanksEndMs) : s.end_ms;
    const uint64_t give_up = std::min(now_ns() + end_ms * 1'000'000, end_by_ns_.load());
    const auto end = [&](const std::shared_ptr<Lane>& lane) {
        int32_t status = acl::STREAM_NOT_READY;
        while (vendor_.aclrtStreamQuery(lane->stream, &status) == 0 && status != acl::STREAM_COMPLETE) {
            if (now_ns() > give_up) {
                if (vendor_.aclrtStreamAbort) vendor_.aclrtStreamAbort(lane->stream);
                return;
            }
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
        }
    };
    s.each_lane(end);
    for (const auto& one : s.leaving_lanes) {
        if (const auto lane = one.lock()) end(lane);
    }
}

// On the reaper's thread. Waits for what is in flight, then gives everything back.
void Dispatcher::tear_down(std::shared_ptr<Session> s) {
    end_streams(*s);
    for (auto& ring : s->rings) ring->worker.reset();
    tear_down_graphs(*s);
    s->communicators.reset();
    // Of all together: a stream that has been aborted and does not end is left.
    const int64_t deadline_ns = int64_t(std::min(now_ns() + s->end_ms * 1'000'000, end_by_ns_.load()));
    s->each_lane([this, deadline_ns](const std::shared_ptr<Lane>& lane) {
        if (lane->markers) completions_->close(lane->markers);
        vendor_.aclrtSynchronizeStreamWithTimeout(lane->stream, left_ms(deadline_ns));
        for (const Lent& l : lane->lent) vendor_.aclrtDestroyEvent(l.event);
        std::vector<uint8_t*> buffers;
        for (const Lent& l : lane->lent) {
            if (l.buffer) buffers.push_back(l.buffer);
        }
        if (!buffers.empty() && running_) {
            post([this, buffers] {
                spare_buffers_.insert(spare_buffers_.end(), buffers.begin(), buffers.end());
            });
        }
        lane->lent.clear();
        for (const Lane::Fence& f : lane->fences) vendor_.aclrtDestroyEvent(f.event);
        lane->old_workspaces.clear();
        lane->workspace.reset();
        vendor_.aclrtDestroyStream(lane->stream);
    });
    s->kernels.reset();
    s->events.each([](const std::shared_ptr<Event>& e) { e->mark->waiters.clear(); });
    s->events = Table<Event>(wire::HandleKind::event);
    s->streams = Table<Lane>(wire::HandleKind::stream);
    s->default_lane.reset();
    s->shapes.clear();
    s->late.clear();
    std::vector<MemoryMap::Range> ranges = s->memory.take_all();
    std::move(s->leaving.begin(), s->leaving.end(), std::back_inserter(ranges));
    s->leaving.clear();
    give_back_virtual_memory(*s, std::move(ranges));
    s->host.clear();
    s->leaving_host.clear();
    s->staging_pin.reset();
    s->live.reset();
}

Worker& Dispatcher::worker_of(Ring& ring) {
    if (ring.closed) return nobody_;
    if (!ring.worker) {
        ring.worker = std::make_unique<Worker>(*threads_, ring.group);
    }
    return *ring.worker;
}

// ---- what other threads see ----

void Dispatcher::publish() {
    auto made = std::make_shared<Snapshot>();
    made->taken_ns = published_ns_ = now_ns();
    changed_ = false;
    {
        std::lock_guard lock(snapshot_mutex_);
        snapshot_asked_ns_ = 0;  // who asks from here on asks for the next
    }
    made->sessions = session_infos();
    made->lanes = lane_infos();
    made->counters = counters();
    {
        std::lock_guard lock(snapshot_mutex_);
        snapshot_ = std::move(made);
    }
    snapshot_there_.notify_all();
}

void Dispatcher::publish_if_due() {
    const uint64_t since = now_ - std::min(now_, published_ns_);
    if (since >= kPublishNs || (changed_ && since >= kChangedNs)) publish();
}

std::shared_ptr<const Snapshot> Dispatcher::snapshot(std::chrono::milliseconds within) {
    const uint64_t now = now_ns(), within_ns = uint64_t(within.count()) * 1'000'000;
    std::unique_lock lock(snapshot_mutex_);
    if (snapshot_asked_ns_ == 0) {
        snapshot_asked_ns_ = now;
        lock.unlock();
        if (!queue_call([this] { publish(); })) {
            lock.lock();
            snapshot_asked_ns_ = 0;
            return snapshot_;
        }
        lock.lock();
    } else if (now - std::min(now, snapshot_asked_ns_) > within_ns) {
        return snapshot_;  // asked for so long ago that another wait would end like the last
    }
    snapshot_there_.wait_for(lock, within, [&] { return snapshot_->taken_ns >= now; });
    return snapshot_;
}

std::vector<SessionInfo> Dispatcher::session_infos() const {
    std::vector<SessionInfo> out;
    for (auto& s : sessions_) {
        uint64_t lanes = s->streams.size() + (s->default_lane ? 1 : 0);
        out.push_back({s->id, s->pid, s->comm, s->uid, s->account->used(), s->account->quota(),
                       s->rings.size(), lanes, s->calls, s->refused.load(), s->page->ring_full.load(),
                       s->page->launches.load(), s->page->steps.load()});
    }
    return out;
}

std::vector<LaneInfo> Dispatcher::lane_infos() const {
    std::vector<LaneInfo> out;
    for (auto& s : sessions_) {
        s->each_lane([&](const std::shared_ptr<Lane>& lane) {
            const auto g = gate_.stats(lane->id).value_or(gate::LaneStats{});
            out.push_back({lane->id, s->id, s->pid, s->comm, lane->handle, g.phase,
                           lane->backlog.size() + lane->queue.size(), g.in_flight, g.in_flight_us,
                           lane->launched,
                           std::max(lane->completed,
                                    lane->launched -
                                        std::min(lane->launched, g.in_flight + lane->in_flight_since_sync)),
                           g.device_us, g.gated_us, g.held_now});
        });
    }
    return out;
}

std::map<std::string, uint64_t> Dispatcher::counters() const {
    const gate::Counters g = gate_.counters();
    uint64_t refused = count_.refused;
    std::map<std::string, uint64_t> out{
        {"records", count_.records},
        {"launches", count_.launches},
        {"copies", count_.copies},
        {"collectives", count_.collectives},
        {"refused", refused},
        {"malformed", count_.malformed},
        {"sessions_opened", count_.sessions},
        {"sessions_broken", count_.sessions_broken},
        {"naps", count_.naps},
        {"sleeps", count_.sleeps},
        {"shapes_defined", count_.shapes},
        {"vendor_errors", count_.vendor_errors},
        {"markers", count_.markers},
        {"graphs_captured", count_.graphs},
        {"captured_launches", count_.captured},
        {"graph_replays", count_.replays},
        {"quota_refusals", quota_refusals_.load()},
        {"host_functions", count_.host_calls},
        {"stream_aborts", count_.aborts},
        {"timeouts", count_.timeouts},
        {"first_calls_beside", count_.first_calls},
        {"gate_decisions", g.decisions},
        {"gate_held", g.held},
        {"gate_forced", g.forced},
        {"gate_oversize", g.oversize},
        {"gate_expired_leases", g.expired_leases},
        {"gate_lost_completions", g.lost_completions},
        {"gate_unknown_completions", g.unknown_completions},
        {"gate_cost_keys", g.cost_keys},
        {"gate_cost_samples", g.cost_samples},
        {"gate_cost_evicted", g.cost_evicted},
        {"overlap_slowdown_milli", uint64_t(gate_.overlap_slowdown() * 1000)},
    };
    threads_->counters(&out);
    completions_->counters(&out);
    holdings_.counters(&out);
    return out;
}

void Dispatcher::set_decode_targets(double target_us) {
    for (const auto& [id, lane] : lanes_) {
        const auto stats = gate_.stats(id);
        if (stats && stats->phase == gate::Phase::Decode) gate_.set_phase(id, stats->phase, target_us);
    }
}

// ---- refusals and failures ----

void Dispatcher::refuse(Session& s, const Reply& reply, int32_t code, std::string message) {
    count_.refused++;
    s.refused++;
    reply.send(code, message.c_str(), nullptr, 0);
}

void Dispatcher::refuse_later(Session& s, Lane* lane, int32_t code, std::string message) {
    count_.refused++;
    s.refused++;
    if (lane) fail(*lane, code, std::move(message));
}

// The first failure since the last synchronise is the one that it reports.
void Dispatcher::fail(Lane& lane, int32_t code, std::string message) {
    // A capture's failures are for its end to report.
    Graph* capture = dispatching_ ? dispatching_->capturing.get() : lane.capture.get();
    Failure& first = capture && !capture->over ? capture->failure : lane.failure;
    if (first.code == 0) first = {code, std::move(message)};
}

// ---- lanes ----

// A lane whose vendor's stream has yet to be made, if the session may have one more.
std::shared_ptr<Lane> Dispatcher::new_lane(Session& s, const char* function, Failure* failure) {
    auto lane = std::make_shared<Lane>();
    lane->session = &s;
    return s.holder->take(HeldKind::streams, function, &lane->place, failure) ? lane : nullptr;
}

// Makes the vendor's stream. May take its time; any thread.
Failure Dispatcher::make_stream(Lane& lane, uint32_t priority, uint32_t flags) const {
    const int32_t e = vendor_.aclrtCreateStreamWithConfig(&lane.stream, priority, flags);
    return e ? Failure{e, vendor_.message("aclrtCreateStreamWithConfig", e)} : Failure{};
}

void Dispatcher::enter_lane(Lane& lane) {
    lane.id = next_lane_++;
    lanes_[lane.id] = &lane;
    gate_.add_lane(lane.id);
    changed_ = true;
}

// A session's default stream is a stream of its own: the vendor's would tie all sessions together.
Lane* Dispatcher::lane_of(Session& s, uint64_t handle) {
    if (handle != 0) return s.streams.find(handle);
    if (!s.default_lane) {
        auto lane = new_lane(s, "the default stream", &s.no_default_lane);
        if (!lane) return nullptr;
        s.no_default_lane = make_stream(*lane, 0, 0);
        if (s.no_default_lane.code) return nullptr;
        enter_lane(*lane);
        s.default_lane = std::move(lane);
    }
    return s.default_lane.get();
}

std::vector<Lane*> Dispatcher::lanes_of(Session& s) {
    std::vector<Lane*> out;
    s.each_lane([&](const std::shared_ptr<Lane>& lane) { out.push_back(lane.get()); });
    return out;
}

// Operators are by far the most frequent items: theirs, with room for addresses, are used again.
std::unique_ptr<Item> Dispatcher::spare_item() {
    if (spare_items_.empty()) return std::make_unique<Item>();
    std::unique_ptr<Item> item = std::move(spare_items_.back());
    spare_items_.pop_back();
    return item;
}

void Dispatcher::keep_item(std::unique_ptr<Item> item) {
    if (spare_items_.size() >= kMostSpareItems || item->addresses.capacity() > kMostSpareAddresses) return;
    item->shape.reset();
    item->capturing.reset();
    item->group.reset();
    spare_items_.push_back(std::move(item));
}

void Dispatcher::push(Lane& lane, std::unique_ptr<Item> item) {
    if (item->type != ItemType::sync && (lane.capture || lane.update)) {
        item->capturing = lane.update ? lane.update->graph.lock() : lane.capture;
        item->group = lane.update ? lane.update : lane.group;
    }
    item->behind = lane.ending && item->type != ItemType::sync;
    item->ticket = ++lane.last_ticket;
    lane.session->queued++;
    lane.backlog.push_back(std::move(item));
    flow(lane);
}

// Hands the backlog to the gate, up to a wait whose record has not been dispatched: the gate need not know
// about such waits, and nothing behind one can be admitted before its time.
void Dispatcher::flow(Lane& lane) {
    serving_ = lane.session;
    if (lane.held()) return;
    while (!lane.backlog.empty()) {
        Item& item = *lane.backlog.front();
        if (Mark* first = obstacle(item)) {
            lane.blocked = true;
            first->blocked.push_back(&lane);
            if (item.type == ItemType::wait && item.deadline_ns >= 0) {
                lane.blocked_until =
                    timers_.add(uint64_t(item.deadline_ns),
                                [this, id = lane.id, ticket = item.ticket] { give_up_wait(id, ticket); });
            }
            return;
        }
        if (item.behind && lane.ending) return;
        if (item.type == ItemType::launch && item.shape->first_call != Shape::FirstCall::over &&
            !first_call_over(lane, item))
            return;
        if (!item.capturing && !room(lane)) return;
        gate::Item g;
        g.ticket = item.ticket;
        g.costed = ((item.type == ItemType::launch || item.type == ItemType::kernel) && !item.capturing) ||
                   item.type == ItemType::replay;
        g.step_end = item.step_end;
        if (item.shape) g.key = item.shape->key();
        if (item.graph) g.key = gate::graph_key(item.graph->serial, item.graph->us);
        if (item.function) g.key = gate::kernel_key(item.function->serial, uint32_t(item.b));
        gate_.enqueue(now_, lane.id, g);
        if (item.type == ItemType::collective) item.value = may_block(item) ? 1 : 0;
        if (((item.type == ItemType::host_func || item.type == ItemType::collective) && item.value) ||
            item.type == ItemType::call) {
            lane.calling = true;
            lane.call = item.ticket;
        }
        lane.queue.push_back(std::move(lane.backlog.front()));
        lane.backlog.pop_front();
        if (lane.calling) return;
    }
}

void Dispatcher::after(const std::vector<Lane*>& lanes, bool step_end, std::function<void()> job) {
    auto left = std::make_shared<size_t>(1);
    auto shared_job = std::make_shared<std::function<void()>>(std::move(job));
    auto arrive = [left, shared_job] {
        if (--*left == 0) (*shared_job)();
    };
    for (Lane* lane : lanes) {
        if (lane->idle() && !(step_end && lane->step_open)) continue;
        ++*left;
        auto item = std::make_unique<Item>();
        item->type = ItemType::sync;
        item->step_end = step_end && lane->step_open;
        item->job = arrive;
        push(*lane, std::move(item));
    }
    arrive();
}

// ---- dispatch ----

void Dispatcher::progress(Lane& lane) {
    while (!lane.fences.empty()) {
        const Lane::Fence f = lane.fences.front();
        int32_t status = acl::EVENT_RECORDED_NOT_READY;
        if (vendor_.aclrtQueryEventStatus(f.event, &status) != 0 || status != acl::EVENT_RECORDED_COMPLETE)
            return;
        lane.over = std::max(lane.over, f.given);
        spare_events_.push_back(f.event);
        lane.fences.pop_front();
    }
}

bool Dispatcher::room(Lane& lane) {
    if (lane.given + lane.queue.size() - lane.over < kInFlight) return true;
    progress(lane);
    if (lane.given + lane.queue.size() - lane.over < kInFlight || lane.fences.empty()) return true;
    lane.full = true;
    const Lane::Fence f = lane.fences.front();
    lane.fences.pop_front();
    lane.over = std::max(lane.over, f.given);  // will be, when the marker comes back
    mark(lane, {f.event, nullptr, 0});
    return false;
}

// Something has been given to the vendor's stream.
void Dispatcher::fence(Lane& lane) {
    if (++lane.given % kFenceEvery != 0) return;
    void* e = spare_event();
    if (!e) return;
    if (vendor_.aclrtRecordEvent(e, lane.stream) != 0) return spare_events_.push_back(e);
    lane.fences.push_back({e, lane.given});
}

void Dispatcher::mark(Lane& lane, const Completions::Marker& m) {
    if (!lane.markers) {
        lane.markers = completions_->lane(lane.session->wait_share,
                                          [this, id = lane.id](const Completions::Marker& m, double us) {
                                              post([this, id, m, us] { marked(id, m, us); });
                                          });
    }
    completions_->add(lane.markers, m);
}

void Dispatcher::marked(uint32_t id, const Completions::Marker& m, double us) {
    spare_events_.push_back(m.end);
    if (m.start) spare_events_.push_back(m.start);
    auto it = lanes_.find(id);
    if (it == lanes_.end()) return;
    if (m.ticket != 0) return gate_.completed(now_ns(), id, m.ticket, us);
    if (m.call) return host_reached(*it->second);
    it->second->full = false;
    flow(*it->second);
}

void* Dispatcher::spare_event() {
    if (!spare_events_.empty()) {
        void* e = spare_events_.back();
        spare_events_.pop_back();
        return e;
    }
    void* e = nullptr;
    return vendor_.aclrtCreateEventWithFlag(&e, kMarkerFlags) == 0 ? e : nullptr;
}

// Small buffers in the vendor's host memory, so that asynchronous copies may read them.
uint8_t* Dispatcher::spare_buffer() {
    if (spare_buffers_.empty()) {
        constexpr size_t n = 64;
        void* slab = nullptr;
        if (vendor_.aclrtMallocHost(&slab, n * wire::kInlineBytes) != 0) return nullptr;
        slabs_.push_back(slab);
        for (size_t i = 0; i < n; i++)
            spare_buffers_.push_back(static_cast<uint8_t*>(slab) + i * wire::kInlineBytes);
    }
    uint8_t* b = spare_buffers_.back();
    spare_buffers_.pop_back();
    return b;
}

// For the program's own records of its steps, and for nothing of ours: it may write there what it likes.
void Dispatcher::publish_held(const Lane& lane, uint64_t held_ns) {
    const uint32_t at = wire::gated_lane(lane.handle);
    if (at < wire::kGatedLanes)
        lane.session->page->gated_ns[at].fetch_add(held_ns, std::memory_order_relaxed);
}

void Dispatcher::dispatch(Lane& lane, const gate::Decision& d) {
    if (lane.queue.empty() || lane.queue.front()->ticket != d.ticket)
        return;  // the lane has been emptied since
    std::unique_ptr<Item> item = std::move(lane.queue.front());
    lane.queue.pop_front();
    lane.session->queued--;
    if (d.held_ns) publish_held(lane, d.held_ns);
    void* start = nullptr;
    if (d.timed && (start = spare_event())) vendor_.aclrtRecordEvent(start, lane.stream);
    // What would have been updated is left alone. Its events stay: others wait for them.
    const bool orders =
        item->type == ItemType::record || item->type == ItemType::wait || item->type == ItemType::reset;
    if (lane.update_failed && item->capturing && item->type != ItemType::update_end && !orders) return;
    dispatching_ = item.get();
    if (item->capturing && (item->capturing == lane.capture || item->capturing == lane.ending))
        enter_capture(lane);
    switch (item->type) {
        case ItemType::launch: dispatch_launch(lane, *item); break;
        case ItemType::copy: dispatch_copy(lane, *item); break;
        case ItemType::memset:
            if (int32_t e = vendor_.aclrtMemsetAsync(reinterpret_cast<void*>(item->a), item->bytes,
                                                     item->value, item->bytes, lane.stream)) {
                fail(lane, e, vendor_.message("aclrtMemsetAsync", e));
            }
            break;
        case ItemType::record: dispatch_record(lane, *item); break;
        case ItemType::wait: dispatch_wait(lane, *item); break;
        case ItemType::host_func: dispatch_host_func(lane, *item); break;
        case ItemType::reset:
            if (int32_t e = vendor_.aclrtResetEvent(item->mark->event, lane.stream))
                fail(lane, e, vendor_.message("aclrtResetEvent", e));
            break;
        case ItemType::call: item->work(lane, item->ticket); break;
        case ItemType::hint: dispatch_hint(lane, *item); break;
        case ItemType::replay: dispatch_replay(lane, *item); break;
        case ItemType::value: {
            const int32_t e =
                Vendor::call(item->value ? vendor_.aclrtValueWait : vendor_.aclrtValueWrite,
                             reinterpret_cast<void*>(item->a), item->b, uint32_t(item->flag), lane.stream);
            if (e) fail(lane, e, vendor_.message(item->value ? "aclrtValueWait" : "aclrtValueWrite", e));
            break;
        }
        case ItemType::update_begin:
        case ItemType::update_end: dispatch_update(lane, *item); break;
        case ItemType::sync:
            dispatching_ = nullptr;
            item->job();
            break;
        case ItemType::collective: dispatch_collective(lane, *item); break;
        case ItemType::kernel: dispatch_kernel(lane, *item); break;
    }
    dispatching_ = nullptr;
    const ItemType type = item->type;
    const bool captured = item->capturing != nullptr;
    if (type == ItemType::launch)
        keep_item(std::move(item));
    else
        release_marks(*item);
    if (captured)
        return;  // nothing of ours in a stream that captures; the gate has not been told to expect more
    if (type != ItemType::sync) fence(lane);
    if (d.mark || d.timed) {
        if (void* end = spare_event()) {
            vendor_.aclrtRecordEvent(end, lane.stream);
            count_.markers++;
            mark(lane, {end, start, d.ticket});
        } else {
            if (start) spare_events_.push_back(start);
            gate_.completed(now_ns(), lane.id, d.ticket, -1);
        }
    }
}

void Dispatcher::count_operator(Lane& lane, const Item& item) {
    if (item.capturing) {
        count_.captured++;
        return;
    }
    lane.launched++;
    lane.in_flight_since_sync++;
    lane.step_open = true;
    count_.launches++;
}

void Dispatcher::dispatch_launch(Lane& lane, Item& item) {
    Shape& shape = *item.shape;
    uint64_t need = 0;
    aclOpExecutor* executor = nullptr;
    count_operator(lane, item);
    const bool credited = shape.first_call == Shape::FirstCall::credited;
    const uint64_t began = credited ? now_ns() : 0;
    const int32_t e = shape.first(item.addresses, &need, &executor);
    if (credited) {
        shape.first_call = Shape::FirstCall::over;
        lane.session->first_calls.learn_inline(shape.key(), now_ns() - began);
    }
    if (e) {
        count_.vendor_errors++;
        fail(lane, e, vendor_.message(shape.name(), e));
        return;
    }
    void* workspace = reinterpret_cast<void*>(item.a);
    uint64_t size = item.b;
    if (need > size && item.capturing) {
        Held* own = captured_workspace(lane, item, need);
        if (!own) return;
        workspace = reinterpret_cast<void*>(own->address());
        size = own->bytes();
    } else if (need > size) {
        if (!lane.workspace || need > lane.workspace->bytes()) {
            if (lane.workspace) lane.old_workspaces.push_back(std::exchange(lane.workspace, nullptr));
            std::string message;
            if (int32_t e = allocate_memory(vendor_, lane.session->account, {shape.name(), need},
                                            &lane.workspace, &message)) {
                if (lane.session->account->left() < need)
                    quota_refusals_++;
                else
                    count_.vendor_errors++;
                fail(lane, e, std::move(message));
                return;
            }
        }
        workspace = reinterpret_cast<void*>(lane.workspace->address());
        size = lane.workspace->bytes();
    }
    if (int32_t e = vendor_.second(shape.op())(workspace, size, executor, lane.stream)) {
        count_.vendor_errors++;
        fail(lane, e, vendor_.message(shape.name(), e));
    }
}

void Dispatcher::dispatch_copy(Lane& lane, Item& item) {
    count_.copies++;
    if (!item.capturing && item.bytes > kLargeCopy && item.value != acl::DEVICE_TO_DEVICE) {
        copying_until_ = std::max(copying_until_, now_ns()) + item.bytes / kSlowCopyBytesPerNs;
    }
    const int32_t e =
        vendor_.aclrtMemcpyAsync(reinterpret_cast<void*>(item.a), item.bytes,
                                 reinterpret_cast<const void*>(item.b), item.bytes, item.value, lane.stream);
    if (e) {
        count_.vendor_errors++;
        fail(lane, e, vendor_.message("aclrtMemcpyAsync", e));
    }
    if (!item.buffer && item.block < 0) return;
    void* event = e == 0 ? spare_event() : nullptr;
    if (event && vendor_.aclrtRecordEvent(event, lane.stream) == 0) {
        lane.lent.push_back({event, item.buffer, item.block, item.ticket_of_block});
        lent_++;
        return;
    }
    if (e == 0) vendor_.aclrtSynchronizeStream(lane.stream);
    if (item.buffer) spare_buffers_.push_back(item.buffer);
    lane.session->give_block(item.block, item.ticket_of_block);
}

// Whether a small copy made here and now could queue behind a large one, and all lanes with it.
bool Dispatcher::copies_are_slow() const {
    return large_copies_.load(std::memory_order_relaxed) > 0 || now_ns() < copying_until_;
}

void Dispatcher::dispatch_record(Lane& lane, Item& item) {
    const std::shared_ptr<Mark> mark = item.mark;
    if (int32_t e = vendor_.aclrtRecordEvent(mark->event, lane.stream))
        fail(lane, e, vendor_.message("aclrtRecordEvent", e));
    if (item.as_it_is || !item.makes.empty()) return;
    item.mark.reset();
    recorded(*mark);
}

void Dispatcher::recorded(Mark& mark) {
    mark.pending = false;
    auto blocked = std::exchange(mark.blocked, {});
    auto waiters = std::exchange(mark.waiters, {});
    for (Lane* l : blocked) {
        l->blocked = false;
        timers_.cancel(std::exchange(l->blocked_until, {}));
        flow(*l);
    }
    for (auto& w : waiters) w();
}

void Dispatcher::dispatch_wait(Lane& lane, Item& item) {
    item.mark->queued_waits -= uint32_t(item.value);
    // The vendor's function with a timeout is newer than the one without.
    static const auto timed_wait = reinterpret_cast<decltype(&::aclrtStreamWaitEventWithTimeout)>(
        vendor_.function(api::FN_aclrtStreamWaitEventWithTimeout));
    const int32_t e = item.deadline_ns >= 0 && timed_wait
                          ? timed_wait(lane.stream, item.mark->event, left_ms(item.deadline_ns))
                          : vendor_.aclrtStreamWaitEvent(lane.stream, item.mark->event);
    if (e) fail(lane, e, vendor_.message("aclrtStreamWaitEvent", e));
}

// A wait at its lane's head whose record has not come in time: the lane goes on, and its next synchronise
// reports it.
void Dispatcher::give_up_wait(uint32_t id, uint64_t ticket) {
    auto it = lanes_.find(id);
    if (it == lanes_.end()) return;
    Lane& lane = *it->second;
    if (!lane.blocked || lane.backlog.empty() || lane.backlog.front()->ticket != ticket) return;
    const std::unique_ptr<Item> item = std::move(lane.backlog.front());
    detach(lane, *item);
    item->mark->queued_waits -= uint32_t(item->value);
    lane.blocked = false;
    lane.blocked_until = {};
    lane.backlog.pop_front();
    lane.session->queued--;
    count_.timeouts++;
    release_marks(*item);
    dispatching_ = item.get();
    fail(lane, acl::RT_WAIT_TIMEOUT, "aclrtStreamWaitEvent: the event was not recorded in time");
    dispatching_ = nullptr;
    flow(lane);
}

// Buffers of copies that are over go back to where they came from.
void Dispatcher::reclaim(Lane& lane, bool all) {
    while (!lane.lent.empty()) {
        const Lent l = lane.lent.front();
        int32_t status = acl::EVENT_RECORDED_NOT_READY;
        if (!all &&
            (vendor_.aclrtQueryEventStatus(l.event, &status) != 0 || status != acl::EVENT_RECORDED_COMPLETE))
            return;
        lane.lent.pop_front();
        lent_--;
        spare_events_.push_back(l.event);
        if (l.buffer) spare_buffers_.push_back(l.buffer);
        lane.session->give_block(l.block, l.ticket);
    }
}

bool Dispatcher::reclaim_some() {
    for (auto& s : sessions_) {
        s->each_lane([this](const std::shared_ptr<Lane>& lane) { reclaim(*lane, false); });
    }
    return lent_ == 0;
}

// ---- synchronising ----

// A synchronise of this lane has been answered, or is about to be.
void Dispatcher::synced(uint32_t lane_id, uint64_t ticket) {
    auto it = lanes_.find(lane_id);
    if (it == lanes_.end()) return;
    Lane& lane = *it->second;
    if (lane.last_ticket == ticket) {
        lane.completed = lane.launched;
        lane.in_flight_since_sync = 0;
        lane.step_open = false;
        lane.replayed.reset();
        progress(lane);
        lane.over = lane.given;
        reclaim(lane, true);
        lane.old_workspaces.clear();
        gate_.step_end(now_ns(), lane_id);
    }
}

// How long is left, in the vendor's terms: at least 1 ms.
int32_t Dispatcher::left_ms(int64_t deadline_ns) {
    const int64_t left = deadline_ns - int64_t(now_ns());
    return left <= 0 ? 1 : int32_t(std::min<int64_t>((left + 999'999) / 1'000'000, INT32_MAX));
}

// Answers at the deadline unless settle() comes first. Without a deadline there is nothing to settle:
// nullptr.
std::shared_ptr<Dispatcher::Timed> Dispatcher::timed(int64_t deadline_ns, const char* function,
                                                     const Reply& reply) {
    if (deadline_ns < 0) return nullptr;
    auto t = std::make_shared<Timed>();
    t->timer = timers_.add(uint64_t(deadline_ns), [this, t, function, reply] {
        t->over = true;
        count_.timeouts++;
        reply.fail({acl::RT_WAIT_TIMEOUT, std::string(function) + ": not over in time"});
    });
    return t;
}

// False: the deadline came first.
bool Dispatcher::settle(const std::shared_ptr<Timed>& t) {
    if (!t) return true;
    if (t->over) return false;
    t->over = true;
    timers_.cancel(t->timer);
    return true;
}

// Everything that the caller waits for has been dispatched. What is nearly over is polled for, since handing
// the wait to a thread that sleeps takes longer; the rest is waited for by the ring's worker.
void Dispatcher::finish_sync(std::shared_ptr<Session> s, std::vector<std::shared_ptr<Lane>> lanes,
                             int64_t deadline_ns, const Reply& reply) {
    const uint64_t began = now_ns();
    Waiting w{std::move(s),
              std::move(lanes),
              {},
              {},
              deadline_ns,
              began,
              {began, began + wire::AdaptiveWait::kFirstSpinNs},
              reply,
              {},
              0};
    if (!w.lanes.empty()) {
        const Lane& lane = *w.lanes.front();
        w.graph = lane.replayed;
        w.bucket =
            std::min<size_t>(std::bit_width(lane.in_flight_since_sync), std::size(lane.sync_waits) - 1);
        w.poll = adaptive_wait_of(w.graph, w.lanes, w.bucket)->plan(began);
    }
    for (auto& lane : w.lanes) {
        if (w.failure.code == 0) w.failure = std::exchange(lane->failure, {});
        w.tickets.emplace_back(lane->id, lane->last_ticket);
    }
    if (!answer_if_complete(w)) waiting_.push_back(std::move(w));
}

bool Dispatcher::answer_if_complete(Waiting& w) {
    for (auto& lane : w.lanes) {
        int32_t status = acl::STREAM_NOT_READY;
        const int32_t e = vendor_.aclrtStreamQuery(lane->stream, &status);
        // A stream that cannot be asked about does not keep a synchronise without a thread waiting for ever.
        if (e ? !w.threadless : status != acl::STREAM_COMPLETE) return false;
    }
    wait_for(w);  // returns at once, with an operator's error if there was one
    if (w.failure.code == 0) {
        for (auto [id, ticket] : w.tickets) synced(id, ticket);
    }
    answer(w);
    return true;
}

void Dispatcher::wait_for(Waiting& w) const {
    for (auto& lane : w.lanes) {
        const int32_t e = w.deadline_ns < 0 ? vendor_.aclrtSynchronizeStream(lane->stream)
                                            : vendor_.aclrtSynchronizeStreamWithTimeout(
                                                  lane->stream, left_ms(w.deadline_ns));
        if (e && w.failure.code == 0) w.failure = {e, vendor_.message("aclrtSynchronizeStream", e)};
    }
}

void Dispatcher::answer(const Waiting& w) {
    if (w.failure.code)
        w.reply.fail(w.failure);
    else
        w.reply.ok();
}

// A session that has ended takes its graphs down on another thread: the pointer keeps what it points into.
std::shared_ptr<wire::AdaptiveWait> Dispatcher::adaptive_wait_of(
    const std::weak_ptr<Graph>& graph, const std::vector<std::shared_ptr<Lane>>& lanes, size_t bucket) {
    if (lanes.empty()) return nullptr;
    if (const auto g = graph.lock()) return {g, &g->sync_waits};
    return {lanes.front(), &lanes.front()->sync_waits[bucket]};
}

uint64_t Dispatcher::next_poll() const {
    uint64_t first = UINT64_MAX;
    for (const Waiting& w : waiting_) first = std::min(first, w.poll.spin_from);
    return first;
}

// Polls for synchronises that are likely to be over soon. True while there are any.
bool Dispatcher::poll_waiting(uint64_t now) {
    bool busy = false;
    for (size_t i = 0; i < waiting_.size();) {
        Waiting& w = waiting_[i];
        const bool look = now >= w.poll.spin_from;
        const bool done = w.session->removed || (look && answer_if_complete(w));
        const bool first = look && !std::exchange(w.looked, true);
        if (!done && now < w.poll.spin_until) {
            busy |= look;
            i++;
            continue;
        }
        const auto usual = adaptive_wait_of(w.graph, w.lanes, w.bucket);
        if (done) {
            // Over at the first look after a sleep: who knows since when.
            const bool slept = first && w.poll.spin_from > w.began;
            if (usual && !slept)
                usual->learn(now - w.began);
            else if (usual && now < w.poll.spin_from + kPromptNs)
                usual->forget();
        } else if (w.deadline_ns >= 0 && now >= uint64_t(w.deadline_ns)) {
            wait_for(w);  // for a millisecond, with the vendor's own error
            answer(w);
        } else {
            // The worker keeps the session: its lanes must not be torn down under the wait. tear_down() ends
            // the worker first.
            Worker& worker = worker_of(*w.reply.ring);
            auto waiting = std::make_shared<Waiting>(std::move(w));
            const bool taken = worker.try_post([this, waiting] {
                Waiting& w = *waiting;
                wait_for(w);
                // Told before the answer, so that it is known before the client's next record; woken for it
                // after.
                const bool failed = w.failure.code != 0;
                if (!failed) {
                    put([this, tickets = w.tickets, lanes = w.lanes, graph = w.graph, bucket = w.bucket,
                         took = now_ns() - w.began] {
                        if (const auto usual = adaptive_wait_of(graph, lanes, bucket)) usual->learn(took);
                        for (auto [id, ticket] : tickets) synced(id, ticket);
                    });
                }
                answer(w);
                if (!failed) wake();
            });
            if (!taken) {
                // No thread to be had: the look is repeated now and then.
                w = std::move(*waiting);
                w.threadless = true;
                w.poll = {now + kLookNs, now + kLookNs};
                i++;
                continue;
            }
        }
        waiting_.erase(waiting_.begin() + ptrdiff_t(i));
    }
    return busy;
}

}  // namespace flexnpu::daemon
