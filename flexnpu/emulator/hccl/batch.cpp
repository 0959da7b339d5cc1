// Sends and receives: both ends of a message meet, then its chunks go through the channel's two halves.
#include <algorithm>
#include <cstring>

#include "flexnpu/api/acl_consts.h"
#include "flexnpu/api/hccl_types.hpp"
#include "flexnpu/emulator/hccl/task.hpp"
#include "flexnpu/emulator/runtime/clock.hpp"

namespace flexnpu::emulator::hccl {

namespace types = flexnpu::hccl;

namespace {

constexpr uint64_t kHalf = kChannelWindow / 2;

class Batch final : public Task {
public:
    Batch(std::shared_ptr<Communicator> comm, std::vector<Message> messages)
        : Task(std::move(comm), Op::SendRecv), messages_(std::move(messages)), places_(messages_.size()) {}

    int run(Meeting* meeting) override;
    void take_places() override {
        std::lock_guard lock(comm_->order);
        for (size_t i = 0; i < messages_.size(); ++i) {
            places_[i] = ++call_order(i).issued;
        }
        placed_ = true;
    }
    void give_up_places() override {
        std::lock_guard lock(comm_->order);
        for (size_t i = 0; i < messages_.size(); ++i) {
            call_order(i).done = std::max(call_order(i).done, places_[i]);
        }
        placed_ = false;
        wake_waiters(comm_->page());
    }

private:
    enum class State : uint8_t { Queued, Offered, Moving, Done };
    struct Progress {
        State state = State::Queued;
        uint64_t number = 0;  // of the message in its channel
        uint64_t moved = 0;   // bytes
        uint64_t chunks = 0;  // of the channel when the message began
    };

    CallOrder& call_order(size_t i) {
        return messages_[i].send ? comm_->sends[messages_[i].peer] : comm_->receives[messages_[i].peer];
    }
    bool advance(size_t i, Progress& p, const Meeting* meeting);
    bool begin(size_t i, Progress& p, const Meeting* meeting);
    bool meet_peer(const Message& m, Progress& p);
    bool move(const Message& m, Progress& p);
    void finish(size_t i, Progress& p);

    const std::vector<Message> messages_;
    std::vector<uint64_t> places_;
    uint64_t ready_ns_ = 0;  // when the last end of all messages was ready
};

// Tries to bring message i further. Whether it did.
bool Batch::advance(size_t i, Progress& p, const Meeting* meeting) {
    const Message& m = messages_[i];
    switch (p.state) {
        case State::Queued: return begin(i, p, meeting);
        case State::Offered: return meet_peer(m, p);
        case State::Moving:
            if (move(m, p)) {
                if (p.state == State::Done) {
                    finish(i, p);
                }
                return true;
            }
            return false;
        default: return false;
    }
}

bool Batch::begin(size_t i, Progress& p, const Meeting* meeting) {
    Communicator& c = *comm_;
    const Message& m = messages_[i];
    {
        std::lock_guard lock(c.order);
        if (call_order(i).done + 1 != places_[i]) {
            return false;
        }
    }
    if (m.send) {
        Channel& ch = c.channel(c.rank, m.peer);
        p.number = ch.offered.load() + 1;
        p.chunks = ch.written.load();
        ch.send_bytes[p.number % 2] = m.bytes;
        ch.send_ready_ns[p.number % 2] = meeting->ready_ns;
        ch.offered.store(p.number);
    } else {
        Channel& ch = c.channel(m.peer, c.rank);
        p.number = ch.accepted.load() + 1;
        p.chunks = ch.read.load();
        ch.recv_bytes[p.number % 2] = m.bytes;
        ch.recv_ready_ns[p.number % 2] = meeting->ready_ns;
        ch.accepted.store(p.number);
    }
    wake_waiters(c.page());
    p.state = State::Offered;
    return true;
}

bool Batch::meet_peer(const Message& m, Progress& p) {
    Communicator& c = *comm_;
    Channel& ch = m.send ? c.channel(c.rank, m.peer) : c.channel(m.peer, c.rank);
    if (ch.offered.load() < p.number || ch.accepted.load() < p.number) {
        return false;
    }
    const uint64_t sent = ch.send_bytes[p.number % 2], wanted = ch.recv_bytes[p.number % 2];
    if (sent != wanted) {
        const uint32_t from = m.send ? c.rank : m.peer, to = m.send ? m.peer : c.rank;
        c.fail(types::E_PARA, "rank " + std::to_string(from) + " sends " + std::to_string(sent) +
                                  " bytes where rank " + std::to_string(to) + " receives " +
                                  std::to_string(wanted));
        return false;
    }
    ready_ns_ = std::max({ready_ns_, ch.send_ready_ns[p.number % 2], ch.recv_ready_ns[p.number % 2]});
    p.state = State::Moving;
    return true;
}

bool Batch::move(const Message& m, Progress& p) {
    Communicator& c = *comm_;
    const uint64_t all = flexnpu_emu_mode() == kModeCompute ? m.bytes : 0;
    const uint64_t chunks = (all + kHalf - 1) / kHalf;
    bool moved = false;
    if (m.send) {
        Channel& ch = c.channel(c.rank, m.peer);
        while (p.moved < all && ch.written.load() - ch.read.load() < 2) {
            const uint64_t n = std::min(kHalf, all - p.moved), at = ch.written.load();
            std::memcpy(c.channel_window(c.rank, m.peer) + at % 2 * kHalf, m.buffer + p.moved, n);
            p.moved += n;
            ch.written.store(at + 1);
            wake_waiters(c.page());
            moved = true;
        }
        if (ch.read.load() >= p.chunks + chunks) {
            p.state = State::Done;
            moved = true;
        }
        return moved;
    }
    Channel& ch = c.channel(m.peer, c.rank);
    while (p.moved < all && ch.read.load() < ch.written.load()) {
        const uint64_t n = std::min(kHalf, all - p.moved), at = ch.read.load();
        std::memcpy(m.buffer + p.moved, c.channel_window(m.peer, c.rank) + at % 2 * kHalf, n);
        p.moved += n;
        ch.read.store(at + 1);
        wake_waiters(c.page());
        moved = true;
    }
    if (p.moved == all) {
        p.state = State::Done;
        moved = true;
    }
    return moved;
}

void Batch::finish(size_t i, Progress&) {
    {
        std::lock_guard lock(comm_->order);
        call_order(i).done = places_[i];
    }
    wake_waiters(comm_->page());
}

int Batch::run(Meeting* meeting) {
    Communicator& c = *comm_;
    if (c.error() != 0) {
        give_up_places();
        return failed();
    }
    if (!placed_) {
        take_places();
    }
    ready_ns_ = meeting->ready_ns;
    const uint64_t begin_ns = now_ns();
    uint64_t waited = 0, sent = 0, received = 0;
    for (const Message& m : messages_) {
        (m.send ? sent : received) += m.peer != c.rank ? m.bytes : 0;
    }
    std::vector<Progress> progress(messages_.size());
    bool ok = true;
    for (bool done = false; ok && !done;) {
        uint64_t peers = 0;
        bool moved = false;
        done = true;
        for (size_t i = 0; i < messages_.size(); ++i) {
            while (progress[i].state != State::Done && advance(i, progress[i], meeting)) {
                moved = true;
            }
            if (progress[i].state != State::Done) {
                done = false;
                peers |= uint64_t(1) << messages_[i].peer;
            }
        }
        ok = c.error() == 0;
        if (moved || done || !ok) {
            continue;
        }
        const uint64_t from = now_ns();
        ok = c.wait(
            [&] {
                bool any = false;
                for (size_t i = 0; i < messages_.size(); ++i) {
                    any = (progress[i].state != State::Done && advance(i, progress[i], meeting)) || any;
                }
                return any;
            },
            peers, meeting);
        waited += now_ns() - from;
    }
    if (!ok) {
        give_up_places();
        return failed();
    }
    placed_ = false;
    uint64_t duration = messages_ns(sent, received);
    const uint64_t start = meeting->reserve_link(meeting, ready_ns_, duration);
    // Only what it worked itself: it may have waited for the others to come.
    const uint64_t real = now_ns() - begin_ns - waited;
    if (real > duration) {
        meeting->extend_link(meeting, real - duration);
        duration = real;
    }
    meeting->end_ns = std::max(meeting->end_ns, start + duration);
    return 0;
}

}  // namespace

std::unique_ptr<Task> make_batch(std::shared_ptr<Communicator> comm, std::vector<Message> messages) {
    return std::make_unique<Batch>(std::move(comm), std::move(messages));
}

}  // namespace flexnpu::emulator::hccl
