// The data plane's one dispatching thread: drains the rings, validates, queues in lanes, asks the gate, calls
// the vendor.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "flexnpu/daemon/completions.hpp"
#include "flexnpu/daemon/exports.hpp"
#include "flexnpu/daemon/holdings.hpp"
#include "flexnpu/daemon/inbox.hpp"
#include "flexnpu/daemon/limits.hpp"
#include "flexnpu/daemon/polling.hpp"
#include "flexnpu/daemon/session.hpp"
#include "flexnpu/daemon/snapshot.hpp"
#include "flexnpu/daemon/spares.hpp"
#include "flexnpu/daemon/synchronises.hpp"
#include "flexnpu/gate/gate.hpp"
#include "flexnpu/wire/layout.hpp"

namespace flexnpu::daemon {

class Footprint;

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
    void post(std::function<void()> job) { inbox_.post(std::move(job)); }
    // How other threads ask: calls of functions that take a Dispatcher& first.
    Inbox& inbox() { return inbox_; }
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
    // Makes the snapshot that other threads read.
    void publish();
    std::vector<SessionInfo> session_infos() const;
    std::vector<LaneInfo> lane_infos() const;
    std::map<std::string, uint64_t> counters() const;
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
    static bool keep_bytes(Lane& lane, CopyItem& copy, const void* from, uint64_t bytes);
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
    // What waits in a lane until its turn or its deadline: whichever is first settles it.
    struct Timed {
        bool over = false;
        Timers::Id timer{};
    };
    std::shared_ptr<Timed> timed(int64_t deadline_ns, const char* function, const Reply& reply);
    bool settle(const std::shared_ptr<Timed>& t);
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
    void drop_lane(Lane& lane);
    // What a copy that is not dispatched would have read goes back to where it came from.
    void give_back_source(Lane& lane, const Item& item);
    static std::vector<std::shared_ptr<Mark>> orphans_of(const Session& s);
    void end_session(std::shared_ptr<Session> s);
    void tear_down(std::shared_ptr<Session> s);
    void end_streams(Session& s);

    Vendor& vendor_;
    int32_t device_;
    const Limits limits_;
    const bool allow_kernels_;
    gate::Gate gate_;
    std::thread thread_;
    std::atomic<bool> stop_{false};
    Inbox inbox_;
    std::atomic<bool> running_{false};
    std::atomic<uint64_t> end_by_ns_{INT64_MAX};  // when streams are aborted at the latest
    const std::shared_ptr<std::atomic<size_t>> live_sessions_ = std::make_shared<std::atomic<size_t>>(0);

    SnapshotBoard board_;
    Polling polling_;
    Spares spares_;
    Synchronises syncs_;

    std::vector<std::shared_ptr<Session>> sessions_;
    std::unordered_map<uint32_t, Lane*> lanes_;
    Lane* last_lane_ = nullptr;                       // that the gate decided for
    uint64_t now_ = 0;                                // the clock, read once a record, ns
    std::vector<std::unique_ptr<Item>> spare_items_;  // of launches
    uint32_t next_lane_ = 1;
    std::vector<uint8_t> payload_;
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
    Worker discarding_worker_;  // for what comes back to a session that has ended
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

}  // namespace flexnpu::daemon
