// The client's connection to the daemon: one session a process, one ring a thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "flexnpu/wire/handle.hpp"
#include "flexnpu/wire/ring.hpp"

namespace flexnpu::api {
struct LateDims;
}

namespace flexnpu::client {

class HostCalls;
class Session;

// A call spins for its answer for twice the time that such calls usually take, if that is no more than this; else it sleeps soon.
inline constexpr uint64_t kLongestSpinNs = 150'000;
inline constexpr uint64_t kShortestSpinNs = 3'000;
// How often a sleeping call looks whether the daemon lives, ns.
inline constexpr uint64_t kSliceNs = 100'000'000;

// A ring and the right to use it: one thread at a time.
class Channel {
public:
    Channel(Session& session, wire::RingMap map) : session_(session), producer_(std::move(map)) {
        for (uint64_t& t : usual_ns_) t = kLongestSpinNs / 4;
    }

    // Starts an asynchronous record with `payload` bytes; returns where they go, or nullptr (error recorded) when the daemon is gone.
    // Waits while the ring is full.
    uint8_t* open(size_t payload);
    // Publishes it. No answer will come. A napping dispatcher sees it within its nap; `soon`: wakes it.
    void close(size_t payload, wire::Kind kind, bool soon = false);

    // Sends a record of `head` and up to two byte strings behind it, and waits for the answer. Returns its status with message and last error
    // recorded; the answer's words stay in words() until the next call.
    int32_t call(wire::Kind kind, const void* head, size_t head_bytes, const void* more = nullptr, size_t more_bytes = 0,
                 const void* rest = nullptr, size_t rest_bytes = 0);
    template <wire::Plain T>
    int32_t call(wire::Kind kind, const T& head) {
        return call(kind, &head, sizeof(head));
    }
    template <wire::Plain T>
    int32_t post(wire::Kind kind, const T& head) {
        uint8_t* p = open(sizeof(head));
        if (!p) return gone();
        std::memcpy(p, &head, sizeof(head));
        close(sizeof(head), kind);
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
    uint64_t usual_ns_[size_t(wire::Kind::count_)];  // how long calls of a kind have lately taken
};

// Host memory that the daemon maps too (aclrtMallocHost).
struct HostRegion {
    uint64_t address;
    uint64_t bytes;
    uint32_t region;
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

private:
    typename std::vector<Range>::const_iterator upper(uint64_t address) const {
        size_t low = 0, high = items_.size();
        while (low < high) {
            const size_t mid = (low + high) / 2;
            if (items_[mid].address <= address) low = mid + 1; else high = mid;
        }
        return items_.begin() + ptrdiff_t(low);
    }
    mutable std::mutex mutex_;
    std::vector<Range> items_;
};

// Handles that the daemon has given out and not taken back: lets an asynchronous call refuse a stale handle at once, where CANN
// would. The daemon checks again by itself.
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
    uint64_t take();
    // Once the destruction has been written: whoever takes the slot next writes after that.
    void give_back(uint64_t handle);

private:
    std::mutex mutex_;
    std::vector<uint64_t> free_;
    uint32_t next_ = 0;
};

class Session {
public:
    // The process's session, made by the first call of any thread; nullptr with the error recorded when there is no daemon.
    static Session* get();
    // Whether there is one already.
    static Session* peek();

    // The calling thread's ring; nullptr with the error recorded when the daemon is gone.
    static Channel* channel();

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

    wire::SessionPage& page() { return *page_; }
    const char* soc() const { return soc_; }
    int device() const { return device_; }
    int doorbell() const { return doorbell_; }

    Ranges<HostRegion> host;
    Ranges<DeviceRange> memory;
    LiveHandles streams;
    LiveHandles events;
    EventNumbers event_numbers;
    // Kinds of events that the daemon is known to make, by flags (below 32; bit 32 + flags: made by the Ex function).
    std::atomic<uint64_t> event_kinds{0};
    // Fills in the shapes that launches on this stream (of all streams: nullptr with `all`) have left for their outputs. After a synchronise.
    void settle(Channel& channel, uint64_t stream, bool all);
    void add_late(uint64_t number, uint64_t stream, std::vector<std::shared_ptr<api::LateDims>> outputs);

    // Launches since the last synchronise, for SessionPage::steps.
    std::atomic<bool> step_open{false};

private:
    friend struct Thread;
    Session() = default;
    bool connect();
    bool ask(const wire::Request& request, wire::Answer* answer, int* fds, size_t want_fds);
    Channel* take_channel();
    void give_channel(Channel* channel);
    static void after_fork();
    void abandon();

    std::string path_;
    int socket_ = -1;
    int doorbell_ = -1;
    int device_ = 0;
    char soc_[64] = {};
    wire::SessionPage* page_ = nullptr;
    uint8_t* staging_ = nullptr;
    std::atomic<bool> dead_{false};
    std::atomic<HostCalls*> host_calls_{nullptr};
    std::mutex socket_mutex_;
    std::mutex channel_mutex_;
    std::vector<Channel*> idle_;
    std::vector<Channel*> all_;
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
