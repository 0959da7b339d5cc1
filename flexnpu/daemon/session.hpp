// What the daemon holds for one client. Everything without a lock of its own belongs to the dispatcher's
// thread.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "flexnpu/daemon/completions.hpp"
#include "flexnpu/daemon/fd.hpp"
#include "flexnpu/daemon/first_calls.hpp"
#include "flexnpu/daemon/holdings.hpp"
#include "flexnpu/daemon/item.hpp"
#include "flexnpu/daemon/memory_map.hpp"
#include "flexnpu/daemon/pins.hpp"
#include "flexnpu/daemon/polling.hpp"
#include "flexnpu/daemon/shape.hpp"
#include "flexnpu/daemon/table.hpp"
#include "flexnpu/daemon/threads.hpp"
#include "flexnpu/daemon/timers.hpp"
#include "flexnpu/wire/adaptive_wait.hpp"
#include "flexnpu/wire/ring.hpp"

namespace flexnpu::daemon {

// One of the client's rings, and what serves its blocking calls.
struct Ring {
    explicit Ring(wire::RingMap map) : consumer(std::move(map)) {}
    wire::Consumer consumer;
    wire::Record head{};
    bool has_head = false;
    std::unique_ptr<Worker> worker;
    std::shared_ptr<Threads::Group> group;  // its session's
    // The session has ended and another thread takes the worker down: the dispatcher gives it no more.
    std::atomic<bool> closed{false};
    // Held while an answer is written: an honest client has one question under way at a time, another may
    // have many.
    std::mutex answer;
    std::vector<uint8_t> rest;  // of an answer that is longer than the slot
    Arrivals arrivals;          // the dispatching thread's
    // Of the chunks of a copy under way: on the worker's thread while `copying`, else on the dispatcher's.
    Failure chunk_failure;
    std::atomic<uint32_t> copying{0};  // copies that the worker has yet to make
};

// Where the answer to a synchronous record goes.
struct Reply {
    std::shared_ptr<Ring> ring;
    uint32_t request = 0;
    void send(int32_t status, const char* message, const uint64_t* words, size_t n) const;
    void ok() const { send(0, "", nullptr, 0); }
    void ok(uint64_t a) const { send(0, "", &a, 1); }
    void ok(uint64_t a, uint64_t b) const {
        const uint64_t both[] = {a, b};
        send(0, "", both, 2);
    }
    void fail(const Failure& f) const { send(f.code, f.message.c_str(), nullptr, 0); }
};

struct Lane;
struct Graph;
struct TaskGroup;
struct Communicator;   // communicators.hpp
struct Communicators;  // of a session
struct Binary;         // kernels.hpp
struct Function;
struct Kernels;  // of a session

// One use of an event: what a record writes and the waits behind it wait for.
//
// A wait binds to the record that precedes it in program order. The vendor's event is shared by all records
// of the client's event, unless the event is recorded anew while operators that mean the earlier record have
// yet to be dispatched: then the new record gets a vendor event of its own, so that no wait can take the
// later record for the earlier one.
//
// A real event (ACL_EVENT_EXTERNAL), which graphs record and wait for when they are replayed, keeps its one
// vendor's event: each record has a mark of its own that names it, and is dispatched after the earlier record
// and what uses that.
struct Mark {
    Mark(Vendor& v, void* e) : vendor(v), event(e) {}
    explicit Mark(const std::shared_ptr<Mark>& earlier)
        : vendor(earlier->vendor),
          event(earlier->event),
          owner(earlier->owner ? earlier->owner : earlier),
          previous(earlier) {}
    ~Mark() {
        if (!owner) vendor.aclrtDestroyEvent(event);
    }
    void recorded_by(uint32_t lane_id, uint64_t item_ticket) {
        lane = lane_id;
        ticket = item_ticket;
    }
    Vendor& vendor;
    void* event;
    bool pending = false;           // recorded by the program, not yet by the vendor
    bool between_sessions = false;  // of an event that other sessions may have opened
    int32_t error = 0;              // why it was not: its stream was aborted
    bool recorded = false;          // by the program, ever
    uint32_t lane = 0;              // of the item that records it,
    uint64_t ticket = 0;            // and which item that is
    uint32_t queued_waits = 0;      // waits for a record of it that the vendor has not been given
    std::vector<Lane*> blocked;     // lanes whose next item waits for the record's dispatch
    std::vector<std::function<void()>> waiters;  // to run then
    std::weak_ptr<Graph> capture;  // under way when the event was recorded: who waits for it joins
    // Of real events:
    std::shared_ptr<Mark> owner, previous;
    uint32_t users = 0;  // waits and resets that mean this record and have yet to be dispatched
};

struct Event : std::enable_shared_from_this<Event> {
    bool real() const { return flags & acl::EVENT_EXTERNAL; }
    uint32_t flags = 0;
    bool ex = false;
    bool ipc = false;  // made to be opened by other sessions
    Holding place;     // among the events of who made it
    std::shared_ptr<Mark> mark;
    std::vector<std::shared_ptr<Mark>>
        earlier;          // that waits may still mean; kept for aclrtQueryEventWaitStatus
    std::string ipc_key;  // by which others open it; empty: not exported
    // The record of now is `fresh`: waits that were there before keep the mark that they mean.
    void renew(std::shared_ptr<Mark> fresh);
    // Whether waits for earlier records are under way. Forgets those that are over.
    bool waits_pending();
};

// A resource that a dispatched copy still reads.
struct Lent {
    void* event;
    uint8_t* buffer;
    int32_t block;
    uint32_t ticket;
};

struct Session;

// A client's stream.
struct Lane : std::enable_shared_from_this<Lane> {
    uint32_t id = 0;
    uint64_t handle = 0;  // the client's; 0: its default stream
    Session* session = nullptr;
    void* stream = nullptr;  // the vendor's
    Holding place;           // among its session's
    // Of a lane that was destroyed: a synchronise of another thread may still be looking at the vendor's
    // stream, which goes with the last of them.
    Vendor* ends_with = nullptr;
    ~Lane() {
        if (ends_with) ends_with->aclrtDestroyStream(stream);
    }
    std::deque<std::unique_ptr<Item>> backlog;  // not yet with the gate
    std::deque<std::unique_ptr<Item>> queue;    // with the gate
    bool blocked =
        false;  // the backlog's first is a wait for, or a reset of, a record that has not been dispatched
    Timers::Id blocked_until{};  // of that wait, if it has a deadline
    bool calling = false;        // nothing goes on until a host function has returned,
    uint64_t call = 0;           // the item with this ticket
    struct Call {
        uint64_t function, ticket;
        bool block;
    };
    std::deque<Call> calls;        // host functions that the vendor's stream has yet to reach
    bool aborting = false;         // the vendor empties its stream
    uint64_t first_call = 0;       // the item with this ticket waits for its operator's first call
    bool stop_on_failure = false;  // aclrtSetStreamFailureMode
    uint64_t last_ticket = 0;
    uint64_t launched = 0;
    uint64_t completed = 0;
    uint64_t in_flight_since_sync = 0;
    // Work given to the vendor's stream, and how much of it is known to be over: a stream that is full would
    // block its caller, who is everybody's dispatcher, so a lane never fills its stream.
    uint64_t given = 0;
    uint64_t over = 0;
    struct Fence {
        void* event;
        uint64_t given;
    };
    std::deque<Fence> fences;
    bool full = false;       // waits for its first fence
    bool step_open = false;  // operators since the last synchronise
    // How long its synchronises take, by the operators before them: bit_width of their number. Behind a
    // replay it is the graph's.
    wire::AdaptiveWait sync_waits[16];
    std::weak_ptr<Graph> replayed;  // last, since the last synchronise
    Failure failure;
    std::deque<Lent> lent;
    std::shared_ptr<Held>
        workspace;  // ours, for operators that ask for more at launch than their first call said
    std::vector<std::shared_ptr<Held>> old_workspaces;  // may be in use by what is in flight
    std::shared_ptr<Completions::Lane> markers;
    // As of the last record read: the capture that the lane is part of, the task group that is open in it,
    // and the update that it makes.
    std::shared_ptr<Graph> capture;
    std::shared_ptr<TaskGroup> group, update;
    // The capture that the program has ended and the vendor has not: what comes behind is none of it, and
    // waits.
    std::shared_ptr<Graph> ending;
    bool update_refused = false;  // and what comes until its end is left alone, too
    bool update_failed = false;   // the same, as of the last item dispatched
    // As of the last item dispatched:
    bool in_capture = false, in_update = false;
    // An event behind what the vendor's stream held when it began to capture.
    std::shared_ptr<void> before_capture;
    Graph* graph() const;  // that the lane captures or updates, or nullptr
    bool idle() const { return backlog.empty() && queue.empty() && !calling; }
    bool held() const { return blocked || full || calling || aborting || first_call; }
};

// Addresses that a session has reserved and physical memory that it holds. Its calls run on workers.
struct VirtualMemory {
    std::mutex mutex;
    std::map<uint64_t, uint64_t> reserved;  // address -> bytes
    uint64_t reserved_bytes = 0;
    uint64_t pieces = 0;                 // mapped
    std::atomic<uint32_t> unmapping{0};  // no longer to be named, not yet unmapped
    Table<Held> physical{wire::HandleKind::physical};

    // How many handles there are of this memory.
    size_t handles_of(const Allocation* allocation) const {
        size_t n = 0;
        physical.each([&](const std::shared_ptr<Held>& one) { n += one->allocation().get() == allocation; });
        return n;
    }
};

// Host memory shared with the client.
struct HostMemory {
    uint8_t* address = nullptr;
    uint64_t bytes = 0;
    std::unique_ptr<Pins::Pin> pin;
    HostMemory(uint8_t* a, uint64_t n, std::unique_ptr<Pins::Pin> p)
        : address(a), bytes(n), pin(std::move(p)) {}
    ~HostMemory();
};

struct Session : std::enable_shared_from_this<Session> {
    uint32_t id = 0;
    int32_t pid = 0;
    uint32_t uid = 0;
    int32_t device = 0;  // this daemon's, as the program counts: what the session's handles are tagged with
    std::string comm;
    Fd socket, process, doorbell;
    wire::SessionPage* page = nullptr;
    uint8_t* staging = nullptr;
    std::unique_ptr<Pins::Pin> staging_pin;
    std::vector<std::shared_ptr<Ring>> rings;
    std::vector<std::shared_ptr<Ring>> given_back;  // by the client, which has not used them
    // Its shares of the threads: for calls, and for waiting for its lanes' markers.
    std::shared_ptr<Threads::Group> call_share, wait_share;
    Table<Lane> streams{wire::HandleKind::stream};
    Table<Event> events{wire::HandleKind::event};
    Table<Graph> graphs{wire::HandleKind::graph};
    Table<TaskGroup> groups{wire::HandleKind::task_group};
    std::vector<std::weak_ptr<Lane>> leaving_lanes;  // destroyed by the program, and not yet over
    std::shared_ptr<Lane> default_lane;
    Failure no_default_lane;         // why there is none
    std::shared_ptr<Holder> holder;  // of what is limited in number
    FirstCalls first_calls;
    // Events that could not be made and that nobody waited for, by handle: who names one is told why.
    std::unordered_map<uint64_t, Failure> bad_events;
    std::vector<std::shared_ptr<Shape>> shapes;
    std::unordered_map<uint32_t, std::shared_ptr<HostMemory>> host;
    // Definitions that nobody waited for and that failed, by the shape's number: a launch reports it.
    std::unordered_map<uint64_t, Failure> bad_shapes;
    // Launches whose outputs' shapes the client will ask for, oldest first.
    std::deque<std::pair<uint64_t, std::shared_ptr<Shape>>> late;
    MemoryMap memory;
    std::shared_ptr<Account> account = std::make_shared<Account>();  // of its device memory
    VirtualMemory virtual_memory;
    // Memory of other sessions, by the key that named it.
    struct Import {
        uint64_t address, bytes;
        uint32_t times;
    };
    std::map<std::string, Import> imports;
    std::set<uint64_t> ipc_events;  // handles of events that it has exported or opened
    // Memory that the program gave back and that what it launched before may still touch.
    std::mutex leaving_mutex;
    std::list<MemoryMap::Range> leaving;
    std::vector<std::shared_ptr<HostMemory>> leaving_host;  // the dispatcher's
    // One for each call on a worker that touches device memory: expired when the call is over.
    std::vector<std::weak_ptr<void>> uses;
    std::shared_ptr<Communicators> communicators;  // made with the first
    std::shared_ptr<Kernels> kernels;              // the same
    uint64_t calls = 0;
    uint64_t queued = 0;       // items in all lanes
    uint64_t graph_bytes = 0;  // of pageable memory that its graphs keep
    // Host functions: those to tell the client of, and those that lanes wait for.
    struct HostTold {
        uint32_t lane;
        Lane::Call call;
        bool dropped;
    };
    std::deque<HostTold> host_backlog;
    struct HostOpen {
        uint32_t ticket = 0;  // 0: free
        uint32_t lane = 0;
        uint64_t call = 0;
    };
    HostOpen host_slots[wire::kHostSlots];
    uint32_t host_open = 0;
    uint32_t host_given = 0;
    uint32_t host_ticket = 0;
    std::atomic<uint64_t> refused{0};
    bool broken = false;
    bool removed = false;
    uint64_t end_ms = 10'000;  // how long its streams may take to end by themselves once its client has gone
    std::shared_ptr<void> live;  // counted among the live sessions until this ends
    ~Session();

    // Before any object is made: every table's handles are tagged.
    void set_device(int32_t number) {
        device = number;
        streams.set_tag(wire::device_tag(number));
        events.set_tag(wire::device_tag(number));
        graphs.set_tag(wire::device_tag(number));
        groups.set_tag(wire::device_tag(number));
        virtual_memory.physical.set_tag(wire::device_tag(number));
    }
    template <class F>
    void each_lane(F f) const {
        if (default_lane) f(default_lane);
        streams.each(f);
    }
    // Whether a stream that the program has destroyed is not over.
    bool lanes_leave() const {
        return std::any_of(leaving_lanes.begin(), leaving_lanes.end(),
                           [](const auto& one) { return !one.expired(); });
    }
    // To be kept for as long as a call on a worker touches device memory.
    std::shared_ptr<void> use() {
        if (uses.size() >= 64) std::erase_if(uses, [](const auto& u) { return u.expired(); });
        auto one = std::make_shared<char>();
        uses.push_back(one);
        return one;
    }
    // A staging block is with the client again.
    void give_block(int32_t block, uint32_t ticket);
};

}  // namespace flexnpu::daemon
