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

#include "flexnpu/daemon/aborts.hpp"
#include "flexnpu/daemon/captures.hpp"
#include "flexnpu/daemon/copy_engine.hpp"
#include "flexnpu/daemon/dispatch.hpp"
#include "flexnpu/daemon/exports.hpp"
#include "flexnpu/daemon/failures.hpp"
#include "flexnpu/daemon/first_call_runner.hpp"
#include "flexnpu/daemon/holdings.hpp"
#include "flexnpu/daemon/host_calls.hpp"
#include "flexnpu/daemon/inbox.hpp"
#include "flexnpu/daemon/lanes.hpp"
#include "flexnpu/daemon/lent.hpp"
#include "flexnpu/daemon/limits.hpp"
#include "flexnpu/daemon/markers.hpp"
#include "flexnpu/daemon/polling.hpp"
#include "flexnpu/daemon/session.hpp"
#include "flexnpu/daemon/snapshot.hpp"
#include "flexnpu/daemon/spares.hpp"
#include "flexnpu/daemon/synchronises.hpp"
#include "flexnpu/daemon/timed_replies.hpp"
#include "flexnpu/daemon/turn.hpp"
#include "flexnpu/daemon/workers.hpp"
#include "flexnpu/gate/gate.hpp"
#include "flexnpu/wire/layout.hpp"

namespace flexnpu::daemon {

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
    Lanes& lanes() { return lanes_; }

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
    void collective(Session& s, Payload p);
    void communicator(Session& s, Payload p, const Reply& reply);
    void kernel(Session& s, Payload p, const Reply& reply);
    void launch_kernel(Session& s, Payload p);
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
    void graph_text(Session& s, Payload p, const Reply& reply);
    void control_graph(Session& s, Payload p, const Reply& reply);
    bool capture_event(Session& s, Lane& lane, Event& event, ItemType type);
    void use_real_event(Lane& lane, Event& event, ItemType type, int64_t deadline_ns);

    // Of other parts, by the names that the handlers use.
    void refuse(Session& s, const Reply& reply, int32_t code, const std::string& message) {
        failures_.refuse(s, reply, code, message);
    }
    void refuse_later(Session& s, Lane* lane, int32_t code, std::string message) {
        failures_.refuse_later(s, lane, code, std::move(message));
    }
    void malformed(Session& s, const Reply& reply, const std::string& what) {
        failures_.malformed(s, reply, what);
    }
    void malformed(Session& s) { failures_.malformed(s); }
    Lane* lane_of(Session& s, uint64_t handle) { return lanes_.of(s, handle); }
    void push(Lane& lane, std::unique_ptr<Item> item) { lanes_.push(lane, std::move(item)); }
    void after(const std::vector<Lane*>& lanes, bool step_end, std::function<void()> job) {
        lanes_.after(lanes, step_end, std::move(job));
    }
    Worker& worker_of(Ring& ring) { return workers_.of(ring); }

    // The heads of records' handlers; what is wrong has been reported and counted when they say so.
    // The payload, which is one T and nothing else; false: it is not.
    template <class T>
    bool taken(Session& s, Payload p, T* out, const Reply& reply, const char* function);
    // The same of a record that nobody waits for, and the lane of its stream; nullptr: one of the two is
    // missing.
    template <class T>
    Lane* taken(Session& s, Payload p, T* out);
    // The event that a call names, or nullptr.
    Event* event_at(Session& s, uint64_t handle, const Reply& reply, const char* function);
    // The lane that a call names, or nullptr.
    Lane* lane_at(Session& s, uint64_t handle, const Reply& reply, const char* function);
    // Why a handle names no event of the session.
    static Failure no_event(const Session& s, const char* function, uint64_t handle);
    static bool readable(const Session& s);
    int32_t wait_between_sessions(const Mark& mark, const Ring& ring) const;
    static void when_recorded(const std::shared_ptr<Mark>& mark, std::function<void()> job);
    // A lane's stream has come to a marker.
    void reached(uint32_t lane, const Completions::Marker& m, double us);
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
    Timers timers_;
    Turn turn_;
    Spares spares_;
    Failures failures_;
    Workers workers_;
    TimedReplies timed_;
    Markers markers_;
    LentBuffers lent_;
    FirstCallRunner first_calls_;
    Lanes lanes_;
    HostCalls host_calls_;
    Captures captures_;
    CopyEngine copy_engine_;
    Dispatch dispatch_;
    Aborts aborts_;
    Synchronises syncs_;

    std::vector<std::shared_ptr<Session>> sessions_;
    std::vector<uint8_t> payload_;
    bool nothing_queued() const;
    std::shared_ptr<Threads::Group> teardown_share_;
    std::unique_ptr<Worker> reaper_;
    // What tears down sessions which other ranks may keep waiting, each by itself.
    std::vector<std::unique_ptr<Worker>> ranked_teardowns_;
    Exports exports_;
    Holdings holdings_;
    std::map<std::string, std::weak_ptr<Event>> ipc_events_;  // by key; the dispatcher's
    void share_event(Session& s, const wire::Share& w, const std::string& key, const Reply& reply);
    // Of all sessions: addresses and mappings are this process's, and everybody's.
    std::atomic<uint64_t> reserved_bytes_{0}, pieces_{0};
    uint64_t next_graph_ = 1, next_function_ = 1;

    struct {
        uint64_t records = 0, sessions = 0, sessions_broken = 0, naps = 0, sleeps = 0, shapes = 0, graphs = 0;
    } count_;
};

}  // namespace flexnpu::daemon
