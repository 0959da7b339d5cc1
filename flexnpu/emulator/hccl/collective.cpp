// Collectives: how data crosses, and what time that takes.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "acl.gen.h"
#include "flexnpu/api/acl_consts.h"
#include "flexnpu/api/hccl_types.hpp"
#include "flexnpu/emulator/hccl/reduce.hpp"
#include "flexnpu/emulator/hccl/task.hpp"
#include "flexnpu/emulator/runtime/clock.hpp"

namespace flexnpu::emulator::hccl {

namespace types = flexnpu::hccl;

namespace {

constexpr double kLongestNs = 600e9;

uint64_t link_ns(double bytes, double steps) {
    double rate = 1, step_ns = 0;
    flexnpu_emu_link(&rate, &step_ns);
    return uint64_t(std::llround(std::min(bytes / rate * 1e9 + steps * step_ns, kLongestNs)));
}

bool is_capturing(aclrtStream stream) {
    aclmdlRICaptureStatus status = acl::CAPTURE_NONE;
    aclmdlRI model = nullptr;
    return aclmdlRICaptureGetInfo(stream, &status, &model) == 0 && status == acl::CAPTURE_ACTIVE;
}

class Collective final : public Task {
public:
    Collective(std::shared_ptr<Communicator> comm, Op op, Part part)
        : Task(std::move(comm), op), part_(std::move(part)) {}

    int run(Meeting* meeting) override;
    void take_places() override {
        std::lock_guard lock(comm_->order);
        place_ = ++comm_->collectives.issued;
        placed_ = true;
    }
    void give_up_places() override { pass(); }

private:
    bool take_turn(const Meeting* meeting);
    void pass();
    bool agree();
    bool move(const Meeting* meeting);
    bool reduce_whole(const Meeting* meeting);
    bool spread(const Meeting* meeting);
    bool exchange(const Meeting* meeting);

    bool reduces() const { return op_ == Op::AllReduce || op_ == Op::Reduce; }
    bool spreads() const { return op_ == Op::AllGather || op_ == Op::Broadcast; }
    uint64_t longest_of_all() {
        uint64_t longest = 0;
        for (uint32_t r = 0; r < comm_->ranks; ++r) {
            longest = std::max(longest, comm_->slot(r).call.longest);
        }
        return longest;
    }

    const Part part_;
    uint64_t place_ = 0;
};

bool Collective::take_turn(const Meeting* meeting) {
    if (!placed_) {
        std::lock_guard lock(comm_->order);
        place_ = ++comm_->collectives.issued;
        placed_ = true;
    }
    return comm_->wait(
        [this] {
            std::lock_guard lock(comm_->order);
            return comm_->collectives.done + 1 == place_;
        },
        0, meeting);
}

void Collective::pass() {
    if (!placed_) {
        return;
    }
    placed_ = false;
    {
        std::lock_guard lock(comm_->order);
        // Out of turn only when the communicator has failed or the task was dropped, which fails it.
        comm_->collectives.done = std::max(comm_->collectives.done, place_);
    }
    wake_waiters(comm_->page());
}

int Collective::run(Meeting* meeting) {
    Communicator& c = *comm_;
    if (c.error() != 0 || !take_turn(meeting) || c.error() != 0) {
        pass();
        return failed();
    }
    Call& call = c.slot(c.rank).call;
    call.op = op_;
    call.dtype = part_.dtype;
    call.reduce = part_.reduce;
    call.root = part_.root;
    call.count = part_.count;
    call.ready_ns = meeting->ready_ns;
    call.longest = call.moved = 0;
    uint64_t out = 0, in = 0;
    for (uint32_t r = 0; r < c.ranks; ++r) {
        call.piece[r] = r < part_.out.size() ? part_.out[r].bytes : 0;
        call.longest = std::max(call.longest, call.piece[r]);
        out += call.piece[r];
        in += r < part_.in.size() ? part_.in[r].bytes : 0;
    }
    call.moved = reduces() ? part_.count * types::element_size(part_.dtype) : std::max(out, in);
    bool ok = c.meet(meeting) && agree();
    if (ok) {
        uint64_t ready = 0, moved = 0;
        for (uint32_t r = 0; r < c.ranks; ++r) {
            ready = std::max(ready, c.slot(r).call.ready_ns);
            moved = std::max(moved, c.slot(r).call.moved);
        }
        uint64_t duration = ring_ns(op_, c.ranks, moved);
        const uint64_t start = meeting->reserve_link(meeting, ready, duration);
        if (flexnpu_emu_mode() == kModeCompute) {
            const uint64_t begin = now_ns();
            ok = move(meeting);
            const uint64_t real = now_ns() - begin;
            if (real > duration) {
                meeting->extend_link(meeting, real - duration);
                duration = real;
            }
        }
        c.slot(c.rank).end_ns = start + duration;
        ok = ok && c.meet(meeting);
        if (ok) {
            // Over when it is over for the last rank.
            for (uint32_t r = 0; r < c.ranks; ++r) {
                meeting->end_ns = std::max(meeting->end_ns, c.slot(r).end_ns);
            }
        }
    }
    pass();
    return ok ? 0 : failed();
}

// Whether all ranks have called the same; every rank finds the same answer.
bool Collective::agree() {
    Communicator& c = *comm_;
    const Call& mine = c.slot(0).call;
    for (uint32_t r = 1; r < c.ranks; ++r) {
        const Call& other = c.slot(r).call;
        if (other.op != mine.op || other.dtype != mine.dtype || other.reduce != mine.reduce ||
            other.root != mine.root || other.count != mine.count) {
            auto told = [](const Call& call) {
                return std::string(name_of(call.op)) + "(count " + std::to_string(call.count) + ", type " +
                       std::to_string(call.dtype) + ", reduction " + std::to_string(call.reduce) + ", root " +
                       std::to_string(call.root) + ")";
            };
            c.fail(types::E_PARA,
                   "rank 0 calls " + told(mine) + ", rank " + std::to_string(r) + " " + told(other));
            return false;
        }
    }
    if (reduces()) {
        return true;
    }
    for (uint32_t r = 0; r < c.ranks; ++r) {
        const Call& other = c.slot(r).call;
        const uint64_t given = other.piece[spreads() ? 0 : c.rank];
        const uint64_t wanted = r < part_.in.size() ? part_.in[r].bytes : 0;
        if (given != wanted) {
            c.fail(types::E_PARA, std::string(name_of(op_)) + ": rank " + std::to_string(r) + " gives " +
                                      std::to_string(given) + " bytes where rank " + std::to_string(c.rank) +
                                      " wants " + std::to_string(wanted));
            return false;
        }
    }
    return true;
}

bool Collective::move(const Meeting* meeting) {
    if (op_ == Op::Barrier) {
        return true;
    }
    return reduces() ? reduce_whole(meeting) : spreads() ? spread(meeting) : exchange(meeting);
}

// Every rank reduces its share of each chunk over all ranks, in place in its window; then all (or the root)
// take the shares.
bool Collective::reduce_whole(const Meeting* meeting) {
    Communicator& c = *comm_;
    const uint64_t size = types::element_size(part_.dtype);
    const uint64_t room = kWindow / size;
    for (uint64_t at = 0; at < part_.count; at += room) {
        const uint64_t n = std::min(room, part_.count - at);
        std::memcpy(c.window(c.rank), part_.send + at * size, n * size);
        if (!c.meet(meeting)) {
            return false;
        }
        auto share = [&](uint32_t r) { return n * r / c.ranks * size; };
        const uint64_t first = share(c.rank), bytes = share(c.rank + 1) - first;
        std::vector<const void*> inputs;
        for (uint32_t r = 0; r < c.ranks; ++r) {
            inputs.push_back(c.window(r) + first);
        }
        reduce_rows(part_.dtype, part_.reduce, inputs, c.window(c.rank) + first, bytes / size);
        if (!c.meet(meeting)) {
            return false;
        }
        if (op_ == Op::AllReduce || c.rank == part_.root) {
            for (uint32_t r = 0; r < c.ranks; ++r) {
                std::memcpy(part_.recv + at * size + share(r), c.window(r) + share(r),
                            share(r + 1) - share(r));
            }
        }
        if (!c.meet(meeting)) {
            return false;
        }
    }
    return true;
}

// What a rank gives goes to all.
bool Collective::spread(const Meeting* meeting) {
    Communicator& c = *comm_;
    const uint64_t longest = longest_of_all();
    const uint64_t mine = part_.out.empty() ? 0 : part_.out[0].bytes;
    for (uint64_t at = 0; at < longest; at += kWindow) {
        if (at < mine) {
            std::memcpy(c.window(c.rank), part_.send + at, std::min(kWindow, mine - at));
        }
        if (!c.meet(meeting)) {
            return false;
        }
        for (uint32_t r = 0; r < c.ranks; ++r) {
            const Part::Piece in = r < part_.in.size() ? part_.in[r] : Part::Piece{};
            if (at < in.bytes) {
                std::memcpy(part_.recv + in.offset + at, c.window(r), std::min(kWindow, in.bytes - at));
            }
        }
        if (!c.meet(meeting)) {
            return false;
        }
    }
    return true;
}

// A piece from every rank for every rank, which the receiver keeps, or reduces over the senders.
bool Collective::exchange(const Meeting* meeting) {
    Communicator& c = *comm_;
    const uint64_t longest = longest_of_all();
    const uint64_t room = kWindow / c.ranks / 64 * 64;
    for (uint64_t at = 0; at < longest; at += room) {
        for (uint32_t r = 0; r < part_.out.size(); ++r) {
            const Part::Piece& out = part_.out[r];
            if (at < out.bytes) {
                std::memcpy(c.window(c.rank) + r * room, part_.send + out.offset + at,
                            std::min(room, out.bytes - at));
            }
        }
        if (!c.meet(meeting)) {
            return false;
        }
        if (op_ == Op::ReduceScatter) {
            const uint64_t bytes = part_.in[0].bytes;
            if (at < bytes) {
                std::vector<const void*> inputs;
                for (uint32_t r = 0; r < c.ranks; ++r) {
                    inputs.push_back(c.window(r) + c.rank * room);
                }
                reduce_rows(part_.dtype, part_.reduce, inputs, part_.recv + at,
                            std::min(room, bytes - at) / types::element_size(part_.dtype));
            }
        } else {
            for (uint32_t r = 0; r < part_.in.size(); ++r) {
                const Part::Piece& in = part_.in[r];
                if (at < in.bytes) {
                    std::memcpy(part_.recv + in.offset + at, c.window(r) + c.rank * room,
                                std::min(room, in.bytes - at));
                }
            }
        }
        if (!c.meet(meeting)) {
            return false;
        }
    }
    return true;
}

}  // namespace

uint64_t ring_ns(Op op, uint32_t ranks, uint64_t bytes) {
    const double n = ranks, all = double(bytes);
    if (ranks < 2) {
        return 0;
    }
    switch (op) {
        case Op::AllReduce: return link_ns(2 * (n - 1) / n * all, 2 * (n - 1));
        case Op::Broadcast:
        case Op::Reduce: return link_ns(all, n - 1);
        case Op::Barrier: return link_ns(0, 2 * (n - 1));
        default: return link_ns((n - 1) / n * all, n - 1);
    }
}

uint64_t messages_ns(uint64_t sent, uint64_t received) {
    return link_ns(double(std::max(sent, received)), 1);
}

int Task::failed() {
    return flexnpu_emu_fail(acl::RT_INTERNAL, "%s on communicator %s: %s", name_of(op_),
                            comm_->name().c_str(), comm_->error_text().c_str());
}

int32_t Task::launch(std::unique_ptr<Task> task, void* stream) {
    Kernel kernel;
    kernel.name = name_of(task->op_);
    kernel.meet = [](void* self, Meeting* meeting) { return static_cast<Task*>(self)->run(meeting); };
    // Both are called for a kernel whatever becomes of it.
    kernel.run = [](void*) { return 0; };
    kernel.destroy = [](void* self) {
        auto* dropped = static_cast<Task*>(self);
        if (dropped->placed_) {
            dropped->comm_->fail(types::E_REMOTE,
                                 "rank " + std::to_string(dropped->comm_->rank) + " dropped a " +
                                     name_of(dropped->op_) +
                                     " that the others wait for: its stream was aborted or destroyed");
            dropped->give_up_places();
        }
        if (dropped->counted_) {
            dropped->comm_->over();
        }
        delete dropped;
    };
    kernel.self = task.get();
    if (!is_capturing(stream)) {
        task->take_places();
        task->comm_->issued();
        task->counted_ = true;
    }
    if (aclrtLaunchKernelWithHostArgs(nullptr, 1, stream, nullptr, &kernel, sizeof(kernel), nullptr, 0) !=
        0) {
        kernel.destroy(task.release());  // the message is set
        return types::E_RUNTIME;
    }
    static_cast<void>(task.release());  // the stream's now
    return types::SUCCESS;
}

std::unique_ptr<Task> make_collective(std::shared_ptr<Communicator> comm, Op op, Part part) {
    return std::make_unique<Collective>(std::move(comm), op, std::move(part));
}

}  // namespace flexnpu::emulator::hccl
