// Hccl*: collectives and messages, as records in their streams.
//
// These functions return an HcclResult. What is wrong with an argument and can be seen here is told at once;
// what the daemon or the vendor finds is told by the stream's next synchronise.
#include <cstring>
#include <utility>
#include <vector>

#include "flexnpu/client/collectives/communicators.hpp"
#include "flexnpu/client/devices.hpp"
#include "flexnpu/client/session/session.hpp"

namespace hccl = flexnpu::hccl;
namespace wire = flexnpu::wire;
using flexnpu::client::Channel;
using flexnpu::client::number;
using flexnpu::client::refuse;
using flexnpu::client::Session;
using wire::Collective;
using wire::Kind;

namespace {

uint64_t address(const void* p) { return wire::untagged(number(p)); }

// The calls of a thread between HcclGroupStart and HcclGroupEnd.
struct Group {
    int depth = 0;
    struct Batch {
        uint64_t communicator, stream;
        std::vector<uint64_t> words;
    };
    std::vector<Batch> messages;
};
thread_local Group group;

// One call being checked and written.
class Call {
public:
    Call(const char* function, Collective::Of of, HcclComm comm, aclrtStream stream) : function_(function) {
        c_.of = of;
        c_.communicator = number(comm);
        c_.stream = number(stream);
        if (comm == nullptr) {
            result_ = refuse(hccl::E_PTR, "%s: the communicator is null", function);
            return;
        }
        known_ = flexnpu::client::known_communicator(comm);
        session_ = Session::holder(number(comm));
        if (!session_ || known_.ranks == 0) {
            result_ = refuse(hccl::E_PARA, "%s: %p is not a communicator", function, comm);
            return;
        }
        if (flexnpu::client::check_stream(*session_, function, number(stream)) != 0)
            result_ = hccl::E_RUNTIME;
    }
    Call& type(int32_t type) {
        if (!result_ && hccl::element_size(type) == 0)
            result_ = refuse(hccl::E_PARA, "%s: %d is not a data type", function_, type);
        return *this;
    }
    Call& reduction(int32_t op) {
        if (!result_ && (op < hccl::SUM || op > hccl::MIN))
            result_ = refuse(hccl::E_PARA, "%s: %d is not a reduction", function_, op);
        c_.reduction = op;
        return *this;
    }
    Call& peer(uint32_t rank) {
        if (!result_ && rank >= known_.ranks)
            result_ = refuse(hccl::E_PARA, "%s: rank %u of %u", function_, rank, known_.ranks);
        c_.peer = rank;
        return *this;
    }
    Call& send(const void* p, uint64_t count, int32_t type_of) {
        c_.send = address(p);
        c_.send_count = count;
        c_.send_type = type_of;
        return buffer(p, count).type(type_of);
    }
    Call& recv(const void* p, uint64_t count, int32_t type_of) {
        c_.recv = address(p);
        c_.recv_count = count;
        c_.recv_type = type_of;
        return buffer(p, count).type(type_of);
    }
    // `n` 64-bit numbers of the caller's.
    Call& numbers(const void* p, uint64_t n) {
        if (!result_ && p == nullptr) result_ = refuse(hccl::E_PTR, "%s: an argument is null", function_);
        if (result_) return *this;
        const size_t at = words_.size();
        words_.resize(at + n);
        std::memcpy(words_.data() + at, p, n * 8);
        return *this;
    }
    Call& word(uint64_t w) {
        words_.push_back(w);
        return *this;
    }

    uint32_t ranks() const { return known_.ranks; }
    uint32_t rank() const { return known_.rank; }
    int32_t result() const { return result_; }
    int32_t wrong(const char* what) {
        if (!result_) result_ = refuse(hccl::E_PARA, "%s: %s", function_, what);
        return result_;
    }

    int32_t post() {
        if (result_) return result_;
        c_.words = uint32_t(words_.size());
        const size_t payload = sizeof(c_) + words_.size() * 8;
        if (sizeof(wire::Record) + payload > wire::kMaxRecord)
            return wrong("too many ranks or messages for one call under FlexNPU");
        Channel* channel = session_->mine();
        uint8_t* p = channel ? channel->open(payload) : nullptr;
        if (!p) return hccl::E_RUNTIME;
        std::memcpy(p, &c_, sizeof(c_));
        if (!words_.empty()) std::memcpy(p + sizeof(c_), words_.data(), words_.size() * 8);
        // The other ranks wait for this one: no nap in between.
        channel->close(payload, Kind::collective, true);
        return hccl::SUCCESS;
    }

private:
    Call& buffer(const void* p, uint64_t count) {
        if (!result_ && p == nullptr && count != 0)
            result_ = refuse(hccl::E_PTR, "%s: a buffer is null", function_);
        return *this;
    }
    const char* function_;
    int32_t result_ = hccl::SUCCESS;
    flexnpu::client::KnownCommunicator known_;
    Session* session_ = nullptr;
    Collective c_{};
    std::vector<uint64_t> words_;
};

int32_t message(const char* function, bool sends, void* buffer, uint64_t count, int32_t type, uint32_t peer,
                HcclComm comm, aclrtStream stream) {
    Call call(function, sends ? Collective::send_one : Collective::receive_one, comm, stream);
    call.send(buffer, count, type).peer(peer);
    if (call.result() || group.depth == 0) return call.post();
    // Messages of a group go together, so that neither waits for the other.
    const uint64_t words[] = {(sends ? hccl::SEND : hccl::RECV) | uint64_t(uint32_t(type)) << 32,
                              address(buffer), count, peer};
    for (Group::Batch& b : group.messages) {
        if (b.communicator == number(comm) && b.stream == number(stream)) {
            b.words.insert(b.words.end(), std::begin(words), std::end(words));
            return 0;
        }
    }
    group.messages.push_back({number(comm), number(stream), {std::begin(words), std::end(words)}});
    return 0;
}

}  // namespace

extern "C" {

int32_t HcclAllReduce(void* send, void* recv, uint64_t count, HcclDataType type, HcclReduceOp op,
                      HcclComm comm, aclrtStream stream) {
    return Call("HcclAllReduce", Collective::all_reduce, comm, stream)
        .send(send, count, type)
        .recv(recv, count, type)
        .reduction(op)
        .post();
}
int32_t HcclReduce(void* send, void* recv, uint64_t count, HcclDataType type, HcclReduceOp op, uint32_t root,
                   HcclComm comm, aclrtStream stream) {
    Call call("HcclReduce", Collective::reduce, comm, stream);
    call.send(send, count, type).reduction(op).peer(root);
    // Only the root has somewhere to put it.
    call.recv(recv, recv ? count : 0, type);
    if (call.rank() == root && !recv && count) return call.wrong("a buffer is null");
    return call.post();
}
int32_t HcclBarrier(HcclComm comm, aclrtStream stream) {
    return Call("HcclBarrier", Collective::barrier, comm, stream).post();
}
int32_t HcclBroadcast(void* buffer, uint64_t count, HcclDataType type, uint32_t root, HcclComm comm,
                      aclrtStream stream) {
    return Call("HcclBroadcast", Collective::broadcast, comm, stream)
        .send(buffer, count, type)
        .peer(root)
        .post();
}
int32_t HcclAllGather(void* send, void* recv, uint64_t count, HcclDataType type, HcclComm comm,
                      aclrtStream stream) {
    return Call("HcclAllGather", Collective::all_gather, comm, stream)
        .send(send, count, type)
        .recv(recv, count, type)
        .post();
}
int32_t HcclAllGatherV(void* send, uint64_t count, void* recv, const void* counts, const void* displacements,
                       HcclDataType type, HcclComm comm, aclrtStream stream) {
    Call call("HcclAllGatherV", Collective::all_gather_v, comm, stream);
    return call.send(send, count, type)
        .recv(recv, 0, type)
        .numbers(counts, call.ranks())
        .numbers(displacements, call.ranks())
        .post();
}
int32_t HcclReduceScatter(void* send, void* recv, uint64_t count, HcclDataType type, HcclReduceOp op,
                          HcclComm comm, aclrtStream stream) {
    return Call("HcclReduceScatter", Collective::reduce_scatter, comm, stream)
        .send(send, count, type)
        .recv(recv, count, type)
        .reduction(op)
        .post();
}
int32_t HcclReduceScatterV(void* send, const void* counts, const void* displacements, void* recv,
                           uint64_t count, HcclDataType type, HcclReduceOp op, HcclComm comm,
                           aclrtStream stream) {
    Call call("HcclReduceScatterV", Collective::reduce_scatter_v, comm, stream);
    return call.send(send, 0, type)
        .recv(recv, count, type)
        .reduction(op)
        .numbers(counts, call.ranks())
        .numbers(displacements, call.ranks())
        .post();
}
int32_t HcclScatter(void* send, void* recv, uint64_t count, HcclDataType type, uint32_t root, HcclComm comm,
                    aclrtStream stream) {
    Call call("HcclScatter", Collective::scatter, comm, stream);
    call.recv(recv, count, type).peer(root).send(send, send ? count : 0, type);
    if (call.rank() == root && !send && count) return call.wrong("a buffer is null");
    return call.post();
}
int32_t HcclAlltoAll(const void* send, uint64_t send_count, HcclDataType send_type, const void* recv,
                     uint64_t recv_count, HcclDataType recv_type, HcclComm comm, aclrtStream stream) {
    return Call("HcclAlltoAll", Collective::all_to_all, comm, stream)
        .send(send, send_count, send_type)
        .recv(recv, recv_count, recv_type)
        .post();
}
int32_t HcclAlltoAllV(const void* send, const void* send_counts, const void* send_displacements,
                      HcclDataType send_type, const void* recv, const void* recv_counts,
                      const void* recv_displacements, HcclDataType recv_type, HcclComm comm,
                      aclrtStream stream) {
    Call call("HcclAlltoAllV", Collective::all_to_all_v, comm, stream);
    const uint64_t n = call.ranks();
    return call.send(send, 0, send_type)
        .recv(recv, 0, recv_type)
        .numbers(send_counts, n)
        .numbers(send_displacements, n)
        .numbers(recv_counts, n)
        .numbers(recv_displacements, n)
        .post();
}
int32_t HcclAlltoAllVC(const void* send, const void* matrix, HcclDataType send_type, const void* recv,
                       HcclDataType recv_type, HcclComm comm, aclrtStream stream) {
    Call call("HcclAlltoAllVC", Collective::all_to_all_vc, comm, stream);
    return call.send(send, 0, send_type)
        .recv(recv, 0, recv_type)
        .numbers(matrix, uint64_t(call.ranks()) * call.ranks())
        .post();
}

int32_t HcclSend(void* buffer, uint64_t count, HcclDataType type, uint32_t peer, HcclComm comm,
                 aclrtStream stream) {
    return message("HcclSend", true, buffer, count, type, peer, comm, stream);
}
int32_t HcclRecv(void* buffer, uint64_t count, HcclDataType type, uint32_t peer, HcclComm comm,
                 aclrtStream stream) {
    return message("HcclRecv", false, buffer, count, type, peer, comm, stream);
}
int32_t HcclBatchSendRecv(HcclSendRecvItem* items, uint32_t count, HcclComm comm, aclrtStream stream) {
    Call call("HcclBatchSendRecv", Collective::batch, comm, stream);
    if (count && !items) return refuse(hccl::E_PTR, "HcclBatchSendRecv: an argument is null");
    for (uint32_t i = 0; i < count; i++) {
        const HcclSendRecvItem& item = items[i];
        if (item.type != hccl::SEND && item.type != hccl::RECV)
            return call.wrong("an item is neither a send nor a receive");
        if (call.type(item.data_type).peer(item.peer).result()) return call.result();
        call.word(uint64_t(uint32_t(item.type)) | uint64_t(uint32_t(item.data_type)) << 32)
            .word(address(item.buffer))
            .word(item.count)
            .word(item.peer);
    }
    return call.post();
}

// Only messages need to be together: each call returns before the daemon has made it, so several
// communicators of a thread never wait for each other. What is called between goes at once.
int32_t HcclGroupStart() {
    group.depth++;
    return 0;
}
int32_t HcclGroupEnd() {
    if (group.depth == 0) return refuse(hccl::E_PARA, "HcclGroupEnd without HcclGroupStart");
    if (--group.depth > 0) return 0;
    int32_t result = 0;
    for (const Group::Batch& b : std::exchange(group.messages, {})) {
        Call call("HcclGroupEnd", Collective::batch, reinterpret_cast<HcclComm>(b.communicator),
                  reinterpret_cast<aclrtStream>(b.stream));
        const int32_t e = call.numbers(b.words.data(), b.words.size()).post();
        result = result ? result : e;
    }
    return result;
}

}  // extern "C"
