// The data plane's one dispatching thread: drains the rings, validates, queues in lanes, asks the gate, calls
// the vendor.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "flexnpu/daemon/calls.hpp"
#include "flexnpu/daemon/completions.hpp"
#include "flexnpu/daemon/exports.hpp"
#include "flexnpu/daemon/holdings.hpp"
#include "flexnpu/daemon/limits.hpp"
#include "flexnpu/daemon/session.hpp"
#include "flexnpu/gate/gate.hpp"
#include "flexnpu/wire/adaptive_wait.hpp"
#include "flexnpu/wire/layout.hpp"

namespace flexnpu::daemon {

class Footprint;

struct LaneInfo {
    uint32_t lane, session;
    int32_t pid;
    std::string comm;
    uint64_t stream;
    gate::Phase phase;
    uint64_t queued, in_flight;
    double in_flight_us;
    uint64_t launched, completed;
    double device_us, gated_us;
    bool held_now;
};

struct SessionInfo {
    uint32_t session;
    int32_t pid;
    std::string comm;
    uint32_t uid;
    uint64_t memory_bytes, memory_quota_bytes, rings, lanes, calls, refused, ring_full, launches, steps;
};

// What is known of a plane at one time.
struct Snapshot {
    std::vector<SessionInfo> sessions;
    std::vector<LaneInfo> lanes;
    std::map<std::string, uint64_t> counters;
    uint64_t taken_ns = 0;  // of CLOCK_MONOTONIC
};

// Copies above this size keep the device's copy engine for longer than a dispatcher can wait.
inline constexpr uint64_t kLargeCopy = wire::kQuickCopy;

class Dispatcher {
public:
    Dispatcher(Vendor& vendor, int32_t device, const Limits& limits = {});
    ~Dispatcher();

    void start();
    // Ends the thread and frees every session.
    void stop();

    // Runs `job` on the dispatching thread, soon.
    void post(std::function<void()> job);
    // Runs f(dispatcher, args...) on the dispatching thread and waits for its result. A call that has not
    // begun within the time is cancelled; one that has begun is waited for: calls do not block. Any other
    // thread.
    template <class F, class... A>
    auto call(std::chrono::milliseconds within, F f, A... args)
        -> Outcome<std::invoke_result_t<F, Dispatcher&, A&...>>;
    // The same without waiting: `done` gets the outcome on the dispatching thread, and owns all that it
    // names. It does not run for a call that is cancelled. Null: the dispatching thread does not run.
    template <class Done, class F, class... A>
    [[nodiscard]] std::shared_ptr<CallTicket> submit(Done done, F f, A... args);

    // The latest snapshot, at most as old as this call if the dispatching thread makes one within the time.
    // When that thread is known to be late, nothing is waited for. Any thread.
    std::shared_ptr<const Snapshot> snapshot(std::chrono::milliseconds within);

    // On the dispatching thread.
    void add_session(std::shared_ptr<Session> session);
    // The acceptor's calls. False: what they would add has gone, since its client has.
    bool open_session(const std::weak_ptr<Session>& session);
    bool add_ring(const std::shared_ptr<Session>& s, const std::weak_ptr<Ring>& ring);
    bool add_host(const std::shared_ptr<Session>& s, uint32_t number,
                  const std::weak_ptr<HostMemory>& region);
    void remove_session(uint32_t id);
    // Takes shared host memory from the session; it is unmapped when no copy can touch it any more. Null:
    // there is none of that number, or too much waits for its copies already.
    std::shared_ptr<HostMemory> retire_host(const std::shared_ptr<Session>& session, uint32_t number);
    Session* session(uint32_t id);
    gate::Gate& gate() { return gate_; }
    void set_decode_targets(double target_us);
    bool has_lane(uint32_t id) const { return lanes_.count(id) != 0; }

    // Sessions that are being opened, open or being torn down. Any thread.
    size_t live_sessions() const { return live_sessions_->load(); }
    // Counts one more, until the result ends. Any thread.
    std::shared_ptr<void> count_session() {
        ++*live_sessions_;
        return {nullptr, [all = live_sessions_](void*) { --*all; }};
    }

    // Called, on the dispatching thread, for a session whose rings cannot be trusted any more.
    std::function<void(Session&)> on_broken;

private:
    struct Context;

    void loop();
    void turn();
    // Runs `f`; an exception is noted, and ends the session that was being served.
    template <class F>
    void guard(Session* session, const char* where, F f);
    void sever(Session& s);
    void run_posted();
    bool drain();
    void pump();
    void handle(Session& s, const std::shared_ptr<Ring>& ring, const wire::Record& record);
    void sleep(uint64_t until);
    bool rings_empty() const;
    // Notes that a record of this kind has been taken from the ring.
    void taken(const std::shared_ptr<Ring>& ring, const wire::Record& record, uint64_t now);
    // Whether a record is likely to come at once. `nap`: asynchronous ones are likely to come before long.
    bool expecting(uint64_t now, bool* nap);
    // Makes the snapshot that other threads read.
    void publish();
    void publish_if_due();
    std::vector<SessionInfo> session_infos() const;
    std::vector<LaneInfo> lane_infos() const;
    std::map<std::string, uint64_t> counters() const;
    // Queues a call's job; false: the thread does not run.
    bool queue_call(std::function<void()> job);
    // post() in two steps.
    void put(std::function<void()> job);
    void wake();
    void set_doze(wire::Doze doze);

    // Records. `p` is the payload, in our own memory.
    using Payload = std::span<const uint8_t>;
    void launch(Session& s, Payload p);
    void copy(Session& s, Payload p, const Reply& reply);
    void memset(Session& s, Payload p, const Reply& reply);
    void record_event(Session& s, Payload p);
    void order_event(Session& s, Payload p, ItemType type, const char* function);
    void define_shape(Session& s, Payload p, const Reply& reply);
    void keep_shape(Session& s, uint64_t number, std::shared_ptr<Shape> shape);
    void allocate(Session& s, Payload p, const Reply& reply);
    void release(Session& s, Payload p, const Reply& reply);
    // Runs `job`, on the ring's worker, when all that the session has launched so far is over; false: it is
    // not, after a long time.
    void when_unused(Session& s, const Reply& reply, MemoryMap::Range range,
                     std::function<void(bool over, MemoryMap::Range)> job);
    void create_stream(Session& s, Payload p, const Reply& reply);
    void destroy_stream(Session& s, Payload p, const Reply& reply);
    void sync_stream(Session& s, Payload p, const Reply& reply);
    void sync_device(Session& s, Payload p, const Reply& reply);
    void query_stream(Session& s, Payload p, const Reply& reply);
    void create_event(Session& s, Payload p, const Reply& reply);
    void sync_event(Session& s, Payload p, const Reply& reply);
    void host_func(Session& s, Payload p);
    void abort_stream(Session& s, Payload p, const Reply& reply);
    void abort_device(Session& s, Payload p, const Reply& reply);
    void query_event(Session& s, Payload p, const Reply& reply);
    void elapsed(Session& s, Payload p, const Reply& reply);
    void timestamp(const Event& e, const Reply& reply) const;
    void forward(Session& s, Payload p, const Reply& reply);
    void text(Session& s, Payload p, const Reply& reply);
    void run_op(Session& s, Payload p, const Reply& reply);
    void cache_hint(Session& s, Payload p);
    void dispatch_hint(Lane& lane, Item& item);
    void collective(Session& s, Payload p);
    void communicator(Session& s, Payload p, const Reply& reply);
    void dispatch_collective(Lane& lane, Item& item);
    void kernel(Session& s, Payload p, const Reply& reply);
    void launch_kernel(Session& s, Payload p);
    void dispatch_kernel(Lane& lane, Item& item);
    // Ends what a dying session's collectives wait for.
    void abandon_collectives(Session& s);
    void virtual_memory(Session& s, Payload p, const Reply& reply);
    void share(Session& s, Payload p, const Reply& reply);
    void reserve(Session& s, const wire::VirtualMemory& v, const Reply& reply);
    void map(Session& s, const wire::VirtualMemory& v, const Reply& reply);
    void unmap(Session& s, const wire::VirtualMemory& v, const Reply& reply);
    void give_back_virtual_memory(Session& s, std::vector<MemoryMap::Range> ranges);

    // Graphs; graphs.cpp.
    void capture_begin(Session& s, Payload p, const Reply& reply);
    void capture_end(Session& s, Payload p, const Reply& reply);
    void capture_ended(Session& s, const std::shared_ptr<Graph>& graph, Failure failure, const Reply& reply);
    void capture_info(Session& s, Payload p, const Reply& reply);
    void group_begin(Session& s, Payload p, const Reply& reply);
    void group_end(Session& s, Payload p, const Reply& reply);
    void update_begin(Session& s, Payload p);
    void update_end(Session& s, Payload p);
    void value_op(Session& s, Payload p);
    void launch_graph(Session& s, Payload p);
    void destroy_graph(Session& s, Payload p, const Reply& reply);
    void enter_capture(Lane& lane);
    void forget_graph(Session& s, const std::shared_ptr<Graph>& graph);
    void graph_text(Session& s, Payload p, const Reply& reply);
    void control_graph(Session& s, Payload p, const Reply& reply);
    // The footprint that this lane's next operator adds to, or nullptr.
    static Footprint* footprint_of(Lane& lane);
    // A captured copy's bytes, in memory that lives as long as the graph.
    static bool keep_bytes(Lane& lane, Item& item, const void* from, uint64_t bytes);
    bool capture_event(Session& s, Lane& lane, Event& event, ItemType type);
    void use_real_event(Lane& lane, Event& event, ItemType type, int64_t deadline_ns);
    static Mark* obstacle(const Item& item);
    static void detach(Lane& lane, const Item& item);
    void release_marks(Item& item);
    void unblock(Mark& mark);
    void dispatch_replay(Lane& lane, Item& item);
    void dispatch_update(Lane& lane, Item& item);
    // A workspace for a captured operator; nullptr with the failure recorded.
    Held* captured_workspace(Lane& lane, Item& item, uint64_t bytes);
    void tear_down_graphs(Session& s);

    // A refused call: counted, and answered or kept for the lane's next synchronise.
    void refuse(Session& s, const Reply& reply, int32_t code, std::string message);
    void refuse_later(Session& s, Lane* lane, int32_t code, std::string message);

    Lane* lane_of(Session& s, uint64_t handle);
    // The heads of records' handlers; what is wrong has been reported and counted when they say so.
    // The payload, which is one T and nothing else; false: it is not.
    template <class T>
    bool taken(Session& s, Payload p, T* out, const Reply& reply, const char* function);
    // The same of a record that nobody waits for, and the lane of its stream; nullptr: one of the two is
    // missing.
    template <class T>
    Lane* taken(Session& s, Payload p, T* out);
    void malformed(Session& s, const Reply& reply, const std::string& what);
    void malformed(Session& s);
    // The event that a call names, or nullptr.
    Event* event_at(Session& s, uint64_t handle, const Reply& reply, const char* function);
    // The lane that a call names, or nullptr.
    Lane* lane_at(Session& s, uint64_t handle, const Reply& reply, const char* function);
    // Why a handle names no event of the session.
    static Failure no_event(const Session& s, const char* function, uint64_t handle);
    std::shared_ptr<Lane> new_lane(Session& s, const char* function, Failure* failure);
    Failure make_stream(Lane& lane, uint32_t priority, uint32_t flags) const;
    void enter_lane(Lane& lane);
    void push(Lane& lane, std::unique_ptr<Item> item);
    std::unique_ptr<Item> spare_item();
    void keep_item(std::unique_ptr<Item> item);
    void flow(Lane& lane);
    void dispatch(Lane& lane, const gate::Decision& decision);
    void publish_held(const Lane& lane, uint64_t held_ns);
    void count_operator(Lane& lane, const Item& item);
    void dispatch_launch(Lane& lane, Item& item);
    // First calls of operators, first_calls.cpp.
    bool first_call_over(Lane& lane, Item& item);
    void begin_first_call(Session& s, const std::shared_ptr<Shape>& shape, std::vector<uint64_t> addresses,
                          std::function<void(const Failure&, uint64_t workspace)> done);
    void drop_first(uint32_t lane, uint64_t ticket, const Failure& failure);
    void drop_executor(aclOpExecutor* executor) const;
    void dispatch_copy(Lane& lane, Item& item);
    void dispatch_record(Lane& lane, Item& item);
    void dispatch_wait(Lane& lane, Item& item);
    void dispatch_host_func(Lane& lane, Item& item);
    void recorded(Mark& mark);
    void give_up_wait(uint32_t lane, uint64_t ticket);
    // Host functions, see host_calls.cpp.
    void host_reached(Lane& lane);
    void tell(Session& s);
    bool host_answered(const Session& s) const;
    bool poll_host();
    // Drops what the lane holds, the vendor's stream first; `done` gets the vendor's error.
    void abort_lane(const std::shared_ptr<Lane>& lane, Worker& worker, std::function<void(Failure)> done);
    void empty_lane(Lane& lane);
    static bool readable(const Session& s);
    void fail(Lane& lane, int32_t code, std::string message);
    // Runs `job` when everything that these lanes hold now has been dispatched.
    void after(const std::vector<Lane*>& lanes, bool step_end, std::function<void()> job);
    std::vector<Lane*> lanes_of(Session& s);
    Worker& worker_of(Ring& ring);
    // A synchronise whose lanes have been dispatched.
    struct Waiting {
        std::shared_ptr<Session> session;
        std::vector<std::shared_ptr<Lane>> lanes;
        std::vector<std::pair<uint32_t, uint64_t>> tickets;
        Failure failure;
        int64_t deadline_ns;  // < 0: none
        uint64_t began;
        wire::AdaptiveWait::Plan poll;
        Reply reply;
        // Where the time that it took is recorded: with its graph, or its lane.
        std::weak_ptr<Graph> graph;
        size_t bucket;
        bool looked = false;  // at spin_from or later
        bool threadless = false;
    };
    bool answer_if_complete(Waiting& w);
    void wait_for(Waiting& w) const;
    static void answer(const Waiting& w);
    bool poll_waiting(uint64_t now);
    // When the first of the synchronises will be worth a look.
    uint64_t next_poll() const;
    static std::shared_ptr<wire::AdaptiveWait> adaptive_wait_of(
        const std::weak_ptr<Graph>& graph, const std::vector<std::shared_ptr<Lane>>& lanes, size_t bucket);
    void finish_sync(std::shared_ptr<Session> s, std::vector<std::shared_ptr<Lane>> lanes,
                     int64_t deadline_ns, const Reply& reply);
    // What waits in a lane until its turn or its deadline: whichever is first settles it.
    struct Timed {
        bool over = false;
        Timers::Id timer{};
    };
    std::shared_ptr<Timed> timed(int64_t deadline_ns, const char* function, const Reply& reply);
    bool settle(const std::shared_ptr<Timed>& t);
    static int32_t left_ms(int64_t deadline_ns);
    int32_t wait_between_sessions(const Mark& mark, const Ring& ring) const;
    void synced(uint32_t lane_id, uint64_t ticket);
    static void when_recorded(const std::shared_ptr<Mark>& mark, std::function<void()> job);
    void reclaim(Lane& lane, bool all);
    // Whether the vendor's stream has room for one more; if not, the lane goes on by itself when it has.
    bool room(Lane& lane);
    void fence(Lane& lane);
    void progress(Lane& lane);
    // Reports the marker to marked() when the lane's stream has reached it.
    void mark(Lane& lane, const Completions::Marker& m);
    void marked(uint32_t lane, const Completions::Marker& m, double us);
    bool reclaim_some();
    void* spare_event();
    uint8_t* spare_buffer();
    void drop_lane(Lane& lane);
    static std::vector<std::shared_ptr<Mark>> orphans_of(const Session& s);
    void bury(std::shared_ptr<Session> s);
    void tear_down(std::shared_ptr<Session> s);
    void end_streams(Session& s);

    Vendor& vendor_;
    int32_t device_;
    const Limits limits_;
    const bool allow_kernels_;
    gate::Gate gate_;
    std::thread thread_;
    std::atomic<bool> stop_{false};
    Fd wake_;
    std::atomic<uint32_t> doze_{wire::kAwake};
    std::mutex posted_mutex_;
    std::vector<std::function<void()>> posted_;
    bool takes_calls_ = false;  // between start() and stop(); under posted_mutex_
    std::atomic<bool> has_posted_{false};
    std::atomic<bool> running_{false};
    std::atomic<uint64_t> end_by_ns_{INT64_MAX};  // when streams are aborted at the latest
    const std::shared_ptr<std::atomic<size_t>> live_sessions_ = std::make_shared<std::atomic<size_t>>(0);

    std::mutex snapshot_mutex_;
    std::condition_variable snapshot_there_;
    std::shared_ptr<const Snapshot> snapshot_ = std::make_shared<Snapshot>();
    uint64_t snapshot_asked_ns_ = 0;  // since when one has been asked for and not been made; 0: none has
    uint64_t published_ns_ = 0;       // the dispatcher's
    bool changed_ = true;             // sessions or lanes have come or gone since then

    std::vector<std::shared_ptr<Session>> sessions_;
    std::unordered_map<uint32_t, Lane*> lanes_;
    Lane* last_lane_ = nullptr;                       // that the gate decided for
    uint64_t now_ = 0;                                // the clock, read once a record, ns
    std::vector<std::unique_ptr<Item>> spare_items_;  // of launches
    uint32_t next_lane_ = 1;
    std::vector<uint8_t> payload_;
    std::vector<void*> spare_events_;  // timing events for markers and reclaims
    std::vector<uint8_t*> spare_buffers_;
    std::vector<void*> slabs_;
    std::vector<std::shared_ptr<Ring>> lively_;  // rings with a record lately
    bool slept_ = false;                         // since the last record was taken
    std::vector<Waiting> waiting_;
    uint64_t lent_ = 0;
    uint64_t reclaimed_ns_ = 0;
    Timers timers_;
    // Large copies that keep the device's copy engine: on workers, and until when those given to streams may
    // take.
    std::atomic<uint32_t> large_copies_{0};
    uint64_t copying_until_ = 0;
    bool copies_are_slow() const;
    bool nothing_queued() const;
    std::unique_ptr<Threads> threads_;
    std::unique_ptr<Completions> completions_;
    std::shared_ptr<Threads::Group> teardown_share_;
    std::unique_ptr<Worker> reaper_;
    // What tears down sessions which other ranks may keep waiting, each by itself.
    std::vector<std::unique_ptr<Worker>> ranked_teardowns_;
    Worker nobody_;  // for what comes back to a session that has ended
    std::atomic<uint64_t> quota_refusals_{0};
    Exports exports_;
    Holdings holdings_;
    std::map<std::string, std::weak_ptr<Event>> ipc_events_;  // by key; the dispatcher's
    void share_event(Session& s, const wire::Share& w, const std::string& key, const Reply& reply);
    // Of all sessions: addresses and mappings are this process's, and everybody's.
    std::atomic<uint64_t> reserved_bytes_{0}, pieces_{0};
    uint64_t next_graph_ = 1, next_function_ = 1;
    Item* dispatching_ = nullptr;
    Session* serving_ = nullptr;  // whose work the thread is at, as far as it is known

    struct {
        uint64_t records = 0, launches = 0, copies = 0, collectives = 0, refused = 0, malformed = 0,
                 sessions = 0, sessions_broken = 0, naps = 0, sleeps = 0, shapes = 0, vendor_errors = 0,
                 markers = 0, host_calls = 0, aborts = 0, timeouts = 0, captured = 0, graphs = 0, replays = 0,
                 first_calls = 0;
    } count_;
};

// ---- calls ----

template <class Done, class F, class... A>
std::shared_ptr<CallTicket> Dispatcher::submit(Done done, F f, A... args) {
    static_assert(kNoCaptures<F>, "a call's function captures nothing: give it arguments");
    static_assert((kOwned<A> && ...), "a call owns its arguments: no pointers or references");
    using R = std::invoke_result_t<F, Dispatcher&, A&...>;
    auto ticket = std::make_shared<CallTicket>();
    const bool queued =
        queue_call([this, ticket, done = std::move(done), f, ... args = std::move(args)]() mutable {
            if (!ticket->begin()) return;
            const auto run = [&]() -> Outcome<R> {
                try {
                    if constexpr (std::is_void_v<R>) {
                        std::invoke(f, *this, args...);
                        return std::monostate();
                    } else {
                        return std::invoke(f, *this, args...);
                    }
                } catch (const std::exception&) {
                    return CallError::failed;
                }
            };
            done(run());
        });
    return queued ? ticket : nullptr;
}

template <class F, class... A>
auto Dispatcher::call(std::chrono::milliseconds within, F f, A... args)
    -> Outcome<std::invoke_result_t<F, Dispatcher&, A&...>> {
    using R = std::invoke_result_t<F, Dispatcher&, A&...>;
    auto promise = std::make_shared<std::promise<Outcome<R>>>();
    auto future = promise->get_future();
    // The job alone keeps the promise: if it is dropped, the wait ends.
    const auto ticket =
        submit([promise = std::move(promise)](Outcome<R> outcome) { promise->set_value(std::move(outcome)); },
               f, std::move(args)...);
    if (!ticket) return CallError::stopped;
    if (future.wait_for(within) != std::future_status::ready && ticket->cancel()) return CallError::timed_out;
    try {
        return future.get();
    } catch (const std::future_error&) {
        return CallError::stopped;
    }
}

}  // namespace flexnpu::daemon
