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

#include "flexnpu/client/graphs/graphs.hpp"
#include "flexnpu/client/session/channel.hpp"
#include "flexnpu/client/session/connection.hpp"
#include "flexnpu/client/session/handles.hpp"
#include "flexnpu/client/session/ranges.hpp"
#include "flexnpu/client/steps/steps.hpp"
#include "flexnpu/wire/futex.hpp"
#include "flexnpu/wire/handle.hpp"
#include "flexnpu/wire/ring.hpp"

namespace flexnpu::api {
struct LateDims;
}

namespace flexnpu::client {

class HostCalls;

// An address or a handle, as it travels.
inline uint64_t number(const void* p) { return reinterpret_cast<uint64_t>(p); }

// How long a thread spins for a staging block before it sleeps, ns.
inline constexpr uint64_t kBlockSpinNs = 40'000;

struct Operators;  // operators/aclnn.cpp: shapes and executors

class Session {
public:
    // How many devices the process has: FLEXNPU_SOCKETS (a list; the place in it is the device's number),
    // else FLEXNPU_SOCKET. 0, with the error recorded, when neither is set.
    static int count();
    // The session of a device, opened by the first call of any thread. nullptr, with the error recorded, when
    // its daemon opens none.
    static Session* of(int device);
    // The same if there is one already.
    static Session* opened(int device);
    // The session of the calling thread's device. nullptr, with RT_CONTEXT_NULL recorded, when the thread has
    // no device.
    static Session* get();
    // For questions that need no device: the session of the calling thread's device, else any that is open,
    // else the first device's.
    static Session* any();
    // The session that an address or a handle belongs to; nullptr if none is open.
    static Session* holder(uint64_t tagged) { return opened(wire::tagged_device(tagged)); }
    // Makes `device` the calling thread's; -1: none.
    static void use(int device);
    static int current();
    // Ends the session: the daemon frees what it holds. Its rings stay mapped until the threads that used
    // them have noticed.
    static void close(int device);

    // Keeps the session's memory mapped until leave(). False: it is being unmapped already.
    bool join();
    void leave();

    // The calling thread's ring of a session: of its device's, of any(), of this one. nullptr, with the error
    // recorded, when there is no device or its daemon is gone. Callers then return last_error().
    static Channel* channel();
    static Channel* any_channel();
    Channel* mine();

    // Looks whether the daemon lives. Once dead, a session stays dead.
    bool alive() { return connection_.alive(); }
    int32_t gone() { return connection_.gone(); }  // records the error and returns it
    const std::string& path() const { return connection_.path(); }

    // Wakes the dispatcher if it sleeps more deeply than `from`.
    void ring_bell(wire::Doze from);
    // Host functions in streams, see streams/host_calls.hpp.
    HostCalls& host_calls();
    // Whether any were ever launched or subscribed to.
    HostCalls* peek_host_calls() { return host_calls_.load(std::memory_order_acquire); }

    // A staging block. With `later` the daemon gives it back when it is done; else the caller does.
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
    // After a synchronise: asks for the shapes of outputs that were known only when their operators had run.
    // Of the launches on `stream`, or on every stream with `all`.
    void settle(Channel& channel, uint64_t stream, bool all);
    void add_late(uint64_t number, uint64_t stream, std::vector<std::shared_ptr<api::LateDims>> outputs);

    Steps steps;
    // The lane whose step counts a launch into the stream. Launches of one capture count together, whichever
    // of its streams they go into.
    StepLane& step_lane(uint64_t stream) {
        if (__builtin_expect(graphs.any(), 0)) {
            if (const auto capture = graphs.of(stream)) stream = capture->origin;
        }
        return steps.lane(stream);
    }
    // Launches since the last synchronise, for SessionPage::steps.
    std::atomic<bool> step_open{false};
    // The last graph replayed since the last synchronise: the next one takes about as long as it did before.
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
    Channel* take_channel();
    void give_channel(Channel* channel);
    __attribute__((constructor)) static void watch_forks();
    __attribute__((destructor)) static void tell_last_steps();
    static void before_fork();
    static void after_fork_in_parent();
    static void after_fork_in_child();
    void abandon();
    void unmap();

    Connection connection_;
    int doorbell_ = -1;
    const int device_;
    char soc_[64] = {};
    wire::SessionPage* page_ = nullptr;
    uint8_t* staging_ = nullptr;
    std::atomic<HostCalls*> host_calls_{nullptr};
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
