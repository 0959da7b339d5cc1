// An operation of a communicator as a task of a stream.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "flexnpu/emulator/hccl/communicator.hpp"
#include "flexnpu/emulator/kernel.hpp"

namespace flexnpu::emulator::hccl {

class Task {
public:
    Task(std::shared_ptr<Communicator> comm, Op op) : comm_(std::move(comm)), op_(op) {}
    virtual ~Task() = default;

    // Runs it: on the stream's worker, perhaps several times. An ACL error, with its message set.
    virtual int run(Meeting* meeting) = 0;
    // Takes the places in the communicator's lines, at the call; not for a task that is being captured.
    virtual void take_places() = 0;
    // The task will not run: whoever is behind it goes on.
    virtual void give_up_places() = 0;

    // Queues it on the stream; the HcclResult.
    static int32_t launch(std::unique_ptr<Task> task, void* stream);

protected:
    // What the failed communicator has to say, as this task's error.
    int failed();

    std::shared_ptr<Communicator> comm_;
    const Op op_;
    bool placed_ = false;  // holds places that it has not used
    bool counted_ = false;
};

// One rank's part of a collective.
struct Part {
    int32_t dtype = 0;
    int32_t reduce = 0;
    uint32_t root = 0;
    uint64_t count = 0;  // what all ranks must agree on; 0: nothing
    const char* send = nullptr;
    char* recv = nullptr;
    // Bytes: pieces that go to and come from each rank, by where they lie in `send` and `recv`.
    struct Piece {
        uint64_t offset = 0, bytes = 0;
    };
    std::vector<Piece> out, in;
};

// AllReduce and Reduce: `send` and `recv` whole. AllGather and Broadcast: out[0] is what all get. The others:
// a piece for each.
std::unique_ptr<Task> make_collective(std::shared_ptr<Communicator> comm, Op op, Part part);

struct Message {
    bool send = false;
    uint32_t peer = 0;
    char* buffer = nullptr;
    uint64_t bytes = 0;
};
// All of them at once, in any order but that of messages of one direction with one peer.
std::unique_ptr<Task> make_batch(std::shared_ptr<Communicator> comm, std::vector<Message> messages);

// Device time of a collective of `ranks` by the ring algorithms (Thakur, Rabenseifner, Gropp, Int. J. of High
// Performance Computing Applications 19(1), 2005): bytes over the link's rate, and a step's time for each
// step. `bytes`: of the vector reduced or broadcast, or gathered or scattered over all ranks.
uint64_t ring_ns(Op op, uint32_t ranks, uint64_t bytes);
// Of messages that send and receive that many bytes; a link carries both directions at once.
uint64_t messages_ns(uint64_t sent, uint64_t received);

}  // namespace flexnpu::emulator::hccl
