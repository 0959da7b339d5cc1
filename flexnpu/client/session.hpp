// The client's connections to the daemons: one session a device that the process uses, in it one ring a
// thread.
//
// The device that a thread uses (aclrtSetDevice, or a context's) decides which session its calls go to.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "flexnpu/client/graphs.hpp"
#include "flexnpu/client/steps.hpp"
#include "flexnpu/wire/futex.hpp"
#include "flexnpu/wire/handle.hpp"
#include "flexnpu/wire/patience.hpp"
#include "flexnpu/wire/ring.hpp"

namespace flexnpu::api {
struct LateDims;
}

namespace flexnpu::client {

class HostCalls;
class Session;

// How long a thread spins for a staging block before it sleeps, ns.
inline constexpr uint64_t kBlockSpinNs = 40'000;
// How often a sleeping call looks whether the daemon lives, ns.
inline constexpr uint64_t kSliceNs = 100'000'000;

// A ring and the right to use it: one thread at a time.
class Channel {
public:
    Channel(Session& session, wire::RingMap map) : session_(session), producer_(std::move(map)) {}

    // Starts an asynchronous record with `payload` bytes; returns where they go, or nullptr (error recorded)
    // when the daemon is gone. Waits while the ring is full.
    uint8_t* open(size_t payload);
    // Publishes it. No answer will come. A napping dispatcher sees it within its nap; `soon`: wakes it.
    void close(size_t payload, wire::Kind kind, bool soon = false);

    // Sends a record of `head` and up to two byte strings behind it, and waits for the answer. Returns its
    // status with message and last error recorded; the answer's words stay in words() until the next call.
    int32_t call(wire::Kind kind, const void* head, size_t head_bytes, const void* more = nullptr,
                 size_t more_bytes = 0, const void* rest = nullptr, size_t rest_bytes = 0);
    template <wire::Plain T>
    int32_t call(wire::Kind kind, const T& head) {
        return call(kind, &head, sizeof(head));
    }
    // call() in two steps: what is posted between them is not answered, and finish() waits for the answer to
    // what was begun.
    int32_t begin(wire::Kind kind, const void* head, size_t head_bytes, const void* more = nullptr,
                  size_t more_bytes = 0, const void* rest = nullptr, size_t rest_bytes = 0);
    int32_t finish();
    // `soon`: a napping dispatcher is woken, see close().
    template <wire::Plain T>
    int32_t post(wire::Kind kind, const T& head, bool soon = false) {
        uint8_t* p = open(sizeof(head));
        if (!p) return gone();
        std::memcpy(p, &head, sizeof(head));
        close(sizeof(head), kind, soon);
        return 0;
    }
    const uint64_t* words() { return producer_.header().data; }

    Session& session() { return session_; }

private:
    int32_t gone();
    void publish(size_t payload, wire::Kind kind, uint32_t request);

    Session& session_;
    wire::Producer producer_;
    uint32_t request_ = 0;
    // How long answers take: by kind of call; of copies that ride in the answer; of synchronises behind a
    // replay, by graph.
    static constexpr size_t kSmallCopy = size_t(wire::Kind::count_), kReplays = kSmallCopy + 1, kReplayed = 8;
    wire::Patience patience_[kReplays + kReplayed];
    size_t habit_ = 0;  // of the call under way
};

// Host memory that the daemon maps too (aclrtMallocHost).
struct HostRegion {
    uint64_t address;
    uint64_t bytes;
    uint32_t region;
    int file;  // for a child of fork(), see fork.hpp; -1: none
};

struct DeviceRange {
    uint64_t address;
    uint64_t bytes;
};

// Memory ranges by address, for lookups from any thread.
template <class Range>
class Ranges {
public:
    void add(const Range& r) {
        std::lock_guard lock(mutex_);
        items_.insert(upper(r.address), r);
    }
    bool remove(uint64_t address, Range* out) {
        std::lock_guard lock(mutex_);
        auto it = upper(address);
        if (it == items_.begin() || (--it)->address != address) return false;
        *out = *it;
        items_.erase(it);
        return true;
    }
    // The range that holds `address`.
    bool find(uint64_t address, Range* out) const {
        std::lock_guard lock(mutex_);
        auto it = upper(address);
        if (it == items_.begin()) return false;
        --it;
        if (address - it->address >= it->bytes) return false;
        *out = *it;
        return true;
    }
    bool empty() const {
        std::lock_guard lock(mutex_);
        return items_.empty();
    }
    // Keeps them as they are while the lock is held; then items() may be read.
    std::unique_lock<std::mutex> hold() const { return std::unique_lock(mutex_); }
    const std::vector<Range>& items() const { return items_; }
    std::vector<Range> take_all() {
        std::lock_guard lock(mutex_);
        return std::exchange(items_, {});
    }

private:
    typename std::vector<Range>::const_iterator upper(uint64_t address) const {
        size_t low = 0, high = items_.size();
        while (low < high) {
            const size_t mid = (low + high) / 2;
            if (items_[mid].address <= address)
                low = mid + 1;
            else
                high = mid;
        }
        return items_.begin() + ptrdiff_t(low);
    }
    mutable std::mutex mutex_;
    std::vector<Range> items_;
};

// Handles that the daemon has given out and not taken back: lets an asynchronous call refuse a stale handle
// at once, where CANN would. The daemon checks again by itself.
class LiveHandles {
public:
    void add(uint64_t handle);
    bool has(uint64_t handle) const {
        const uint32_t i = wire::handle_index(handle);
        const std::atomic<uint64_t>* chunk = chunks_[i / kChunk].load(std::memory_order_acquire);
        return chunk && chunk[i % kChunk].load(std::memory_order_relaxed) == handle && handle != 0;
    }
    // False if it is not live (any more).
    bool remove(uint64_t handle);

private:
    static constexpr uint32_t kChunk = 1024;
    std::mutex mutex_;
    std::atomic<std::atomic<uint64_t>*> chunks_[wire::kMaxObjects / kChunk] = {};
};

// Numbers for events, which the client chooses and the daemon checks.
class EventNumbers {
public:
    void set_tag(uint64_t tag) { tag_ = tag; }
    uint64_t take();
    // Once the destruction has been written: whoever takes the slot next writes after that.
    void give_back(uint64_t handle);

private:
    std::mutex mutex_;
    std::vector<uint64_t> free_;
    uint32_t next_ = 0;
    uint64_t tag_ = 0;
};

struct Operators;  // aclnn.cpp: shapes and executors

class Session {
public:
    // How many devices the process has: FLEXNPU_SOCKETS (a list; the place in it is the device's number),
    // else FLEXNPU_SOCKET. 0, with the error recorded, when neither is set.
    static int count();
    // The session of a device, made by the first call of any thread; nullptr with the error recorded when its
    // daemon does not answer.
    static Session* of(int device);
    // The same if there is one already.
    static Session* opened(int device);
    // That of the calling thread's device; nullptr with the error recorded (RT_CONTEXT_NULL) when it has
    // none.
    static Session* get();
    // For questions that need no device: the calling thread's, else one that is open, else the first
    // device's.
    static Session* any();
    // Whose this address or handle is; nullptr: of no device that is open.
    static Session* holder(uint64_t tagged) { return opened(wire::tagged_device(tagged)); }
    // Makes `device` the calling thread's; -1: none.
    static void use(int device);
    static int current();
    // Ends the session: the daemon frees what it holds. Its rings stay mapped until the threads that used
    // them have noticed.
    static void close(int device);

    // Keeps the session's mappings; false: they are on their way out already. Each successful join() needs a
    // leave().
    bool join();
    void leave();

    // The calling thread's ring of its device's session, or of this one; nullptr with the error recorded when
    // there is no device, or its daemon is gone. Callers then return last_error().
    static Channel* channel();
    static Channel* any_channel();
    Channel* mine();

    // Looks at the socket. Once dead, a session stays dead.
    bool alive();
    int32_t gone();  // records the error and returns it

    // Wakes the dispatcher if it dozes more deeply than `from`.
    void ring_bell(wire::Doze from);
    // Host functions in streams, see callbacks.hpp.
    HostCalls& host_calls();
    // Whether any were ever launched or subscribed to.
    HostCalls* peek_host_calls() { return host_calls_.load(std::memory_order_acquire); }

    // A staging block. `later`: it returns by itself when the daemon is done; else the caller gives it back.
    struct Block {
        uint32_t index = 0;
        uint32_t ticket = 0;
        uint8_t* data = nullptr;
        uint64_t offset = 0;
    };
    bool take_block(Block* out, bool later);
    bool wait_block(const Block& block);
    void give_block(const Block& block);

    // Memory shared with the daemon. False with the error recorded.
    bool map_host(size_t bytes, HostRegion* out);
    bool unmap_host(const HostRegion& region);
    // Host memory of a session that has ended.
    static bool free_orphan(uint64_t address);

    wire::SessionPage& page() { return *page_; }
    const char* soc() const { return soc_; }
    // Its number in the program, and what marks its handles and addresses.
    int device() const { return device_; }
    uint64_t tag() const { return wire::device_tag(device_); }
    int doorbell() const { return doorbell_; }

    Ranges<HostRegion> host;
    Ranges<DeviceRange> memory;
    LiveHandles streams;
    LiveHandles events;
    EventNumbers event_numbers;
    Graphs graphs;
    // Kinds of events that the daemon is known to make, by flags (below 32; bit 32 + flags: made by the Ex
    // function).
    std::atomic<uint64_t> event_kinds{0};
    // Fills in the shapes that launches on this stream (of all streams: nullptr with `all`) have left for
    // their outputs. After a synchronise.
    void settle(Channel& channel, uint64_t stream, bool all);
    void add_late(uint64_t number, uint64_t stream, std::vector<std::shared_ptr<api::LateDims>> outputs);

    Steps steps;
    // The lane whose step a launch into the stream counts in. What a stream captures is the capture's,
    // whichever stream it was put into.
    StepLane& step_lane(uint64_t stream) {
        if (__builtin_expect(graphs.any(), 0)) {
            if (const auto capture = graphs.of(stream)) stream = capture->origin;
        }
        return steps.lane(stream);
    }
    // Launches since the last synchronise, for SessionPage::steps.
    std::atomic<bool> step_open{false};
    // The graph replayed last since then: the synchronise takes about as long.
    std::atomic<uint64_t> replayed{0};

    std::atomic<Operators*> operators{nullptr};

private:
    friend struct Thread;
    explicit Session(int device)
        : steps({&flexnpu_step_semaphore, wire::now_ns, wire::ticks, flexnpu_step,
                 &flexnpu_step_begin_semaphore, flexnpu_step_begin, &flexnpu_step_waiting}),
          device_(device) {
        event_numbers.set_tag(tag());
    }
    bool connect(const std::string& path);
    bool ask(const wire::Request& request, wire::Answer* answer, int* fds, size_t want_fds);
    Channel* take_channel();
    void give_channel(Channel* channel);
    __attribute__((constructor)) static void watch_forks();
    __attribute__((destructor)) static void tell_last_steps();
    static void before_fork();
    static void after_fork_in_parent();
    static void after_fork_in_child();
    void abandon();
    void unmap();

    std::string path_;
    int socket_ = -1;
    int doorbell_ = -1;
    const int device_;
    char soc_[64] = {};
    wire::SessionPage* page_ = nullptr;
    uint8_t* staging_ = nullptr;
    std::atomic<bool> stopped_{false};
    std::atomic<bool> dead_{false};
    std::atomic<HostCalls*> host_calls_{nullptr};
    std::mutex socket_mutex_;
    std::mutex channel_mutex_;
    std::vector<Channel*> idle_;
    std::vector<Channel*> all_;
    // Under channel_mutex_: threads that have a ring here, others that joined, and the session itself until
    // it is closed.
    uint32_t uses_ = 1;
    std::mutex block_mutex_;
    struct Late {
        uint64_t number, stream;
        std::vector<std::shared_ptr<api::LateDims>> outputs;
    };
    std::atomic<bool> any_late_{false};
    std::mutex late_mutex_;
    std::vector<Late> late_;
    enum class Use : uint8_t { idle, held, later };
    Use block_use_[wire::kBlocks] = {};
    uint32_t block_ticket_[wire::kBlocks] = {};
};

}  // namespace flexnpu::client
