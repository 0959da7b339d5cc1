#include "flexnpu/daemon/records/collectives.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#include "flexnpu/api/hccl_types.hpp"
#include "flexnpu/daemon/communicators.hpp"

namespace flexnpu::daemon {

namespace {

constexpr uint64_t kMostElements = uint64_t(1) << 44;

constexpr const char* kNames[wire::Collective::count_] = {
    "HcclAllReduce",      "HcclReduce",    "HcclAllGather", "HcclAllGatherV", "HcclReduceScatter",
    "HcclReduceScatterV", "HcclBroadcast", "HcclScatter",   "HcclAlltoAll",   "HcclAlltoAllV",
    "HcclAlltoAllVC",     "HcclBarrier",   "HcclSend",      "HcclRecv",       "HcclBatchSendRecv"};

using Of = wire::Collective::Of;

// Bytes of `count` elements, `times` over; false when they are absurd.
bool bytes_of(uint64_t count, int32_t type, uint64_t times, uint64_t* out) {
    const uint64_t size = hccl::element_size(type);
    if (size == 0 || count > kMostElements || times > kMostRanks) return false;
    const unsigned __int128 all = static_cast<unsigned __int128>(count) * size * times;
    *out = uint64_t(all);
    return all < uint64_t(1) << 62;
}

// The end of n pieces, whose counts and displacements (elements) are given.
bool end_of(const uint64_t* counts, const uint64_t* displacements, uint32_t n, int32_t type, uint64_t* out) {
    *out = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t end;
        if (displacements[i] > kMostElements || counts[i] > kMostElements ||
            !bytes_of(displacements[i] + counts[i], type, 1, &end))
            return false;
        if (counts[i]) *out = std::max(*out, end);
    }
    return true;
}

// One operation with everything that it needs, in our own memory.
struct Operation {
    wire::Collective c;
    std::vector<uint64_t> words;
    std::vector<HcclSendRecvItem> messages;
    // What it touches.
    std::vector<MemoryMap::Span> spans;

    void* send() const { return reinterpret_cast<void*>(c.send); }
    void* recv() const { return reinterpret_cast<void*>(c.recv); }
};

// Fills in what `o` touches. False if its numbers cannot be right.
bool measure(Operation& o, uint32_t n, uint32_t rank) {
    const wire::Collective& c = o.c;
    auto touch = [&](uint64_t address, uint64_t count, int32_t type, uint64_t times) {
        uint64_t bytes;
        if (!bytes_of(count, type, times, &bytes)) return false;
        o.spans.push_back({address, bytes});
        return true;
    };
    auto pieces = [&](uint64_t address, const uint64_t* counts, int32_t type) {
        uint64_t bytes;
        if (!end_of(counts, counts + n, n, type, &bytes)) return false;
        o.spans.push_back({address, bytes});
        return true;
    };
    const bool reduces = c.of == Of::all_reduce || c.of == Of::reduce || c.of == Of::reduce_scatter ||
                         c.of == Of::reduce_scatter_v;
    if (reduces && (c.reduction < hccl::SUM || c.reduction > hccl::MIN)) return false;
    const bool aims = c.of == Of::reduce || c.of == Of::broadcast || c.of == Of::scatter ||
                      c.of == Of::send_one || c.of == Of::receive_one;
    if (aims && c.peer >= n) return false;
    const size_t words = c.of == Of::all_gather_v || c.of == Of::reduce_scatter_v ? 2 * size_t(n)
                         : c.of == Of::all_to_all_v                               ? 4 * size_t(n)
                         : c.of == Of::all_to_all_vc                              ? size_t(n) * n
                                                                                  : 0;
    if (c.of == Of::batch ? o.words.size() % 4 != 0 : o.words.size() != words) return false;
    switch (c.of) {
        case Of::all_reduce:
            return touch(c.send, c.send_count, c.send_type, 1) && touch(c.recv, c.send_count, c.send_type, 1);
        case Of::reduce:
            return touch(c.send, c.send_count, c.send_type, 1) &&
                   (c.peer != rank || touch(c.recv, c.send_count, c.send_type, 1));
        case Of::all_gather:
            return touch(c.send, c.send_count, c.send_type, 1) && touch(c.recv, c.send_count, c.send_type, n);
        case Of::all_gather_v:
            return touch(c.send, c.send_count, c.send_type, 1) && pieces(c.recv, o.words.data(), c.send_type);
        case Of::reduce_scatter:
            return touch(c.send, c.recv_count, c.recv_type, n) && touch(c.recv, c.recv_count, c.recv_type, 1);
        case Of::reduce_scatter_v:
            return pieces(c.send, o.words.data(), c.recv_type) && touch(c.recv, c.recv_count, c.recv_type, 1);
        case Of::broadcast:
        case Of::send_one:
        case Of::receive_one: return touch(c.send, c.send_count, c.send_type, 1);
        case Of::scatter:
            return touch(c.recv, c.recv_count, c.recv_type, 1) &&
                   (c.peer != rank || touch(c.send, c.recv_count, c.recv_type, n));
        case Of::all_to_all:
            return touch(c.send, c.send_count, c.send_type, n) && touch(c.recv, c.recv_count, c.recv_type, n);
        case Of::all_to_all_v:
            return pieces(c.send, o.words.data(), c.send_type) &&
                   pieces(c.recv, o.words.data() + 2 * size_t(n), c.recv_type);
        case Of::all_to_all_vc: {
            uint64_t out = 0, in = 0;
            for (uint32_t r = 0; r < n; r++) {
                const uint64_t give = o.words[size_t(rank) * n + r], take = o.words[size_t(r) * n + rank];
                if (give > kMostElements || take > kMostElements) return false;
                out += give;
                in += take;
            }
            return out <= kMostElements && in <= kMostElements && touch(c.send, out, c.send_type, 1) &&
                   touch(c.recv, in, c.recv_type, 1);
        }
        case Of::batch:
            for (size_t i = 0; i < o.words.size(); i += 4) {
                const auto type = int32_t(uint32_t(o.words[i] >> 32));
                const auto way = uint32_t(o.words[i]);
                if (way > 1 || o.words[i + 3] >= n || !touch(o.words[i + 1], o.words[i + 2], type, 1))
                    return false;
                o.messages.push_back({int32_t(way), reinterpret_cast<void*>(o.words[i + 1]), o.words[i + 2],
                                      type, uint32_t(o.words[i + 3])});
            }
            return true;
        case Of::barrier: return true;
        case Of::count_: break;
    }
    return false;
}

// The vendor's call; HcclResult.
int32_t perform(const Vendor& v, Operation& o, HcclComm comm, uint32_t n, void* stream) {
    const wire::Collective& c = o.c;
    const uint64_t* w = o.words.data();
    auto with = [](auto* f, auto... args) { return f ? f(args...) : int32_t(hccl::E_NOT_SUPPORT); };
    switch (c.of) {
        case Of::all_reduce:
            return with(v.HcclAllReduce, o.send(), o.recv(), c.send_count, c.send_type, c.reduction, comm,
                        stream);
        case Of::reduce:
            return with(v.HcclReduce, o.send(), o.recv(), c.send_count, c.send_type, c.reduction, c.peer,
                        comm, stream);
        case Of::all_gather:
            return with(v.HcclAllGather, o.send(), o.recv(), c.send_count, c.send_type, comm, stream);
        case Of::all_gather_v:
            return with(v.HcclAllGatherV, o.send(), c.send_count, o.recv(), w, w + n, c.send_type, comm,
                        stream);
        case Of::reduce_scatter:
            return with(v.HcclReduceScatter, o.send(), o.recv(), c.recv_count, c.recv_type, c.reduction, comm,
                        stream);
        case Of::reduce_scatter_v:
            return with(v.HcclReduceScatterV, o.send(), w, w + n, o.recv(), c.recv_count, c.recv_type,
                        c.reduction, comm, stream);
        case Of::broadcast:
            return with(v.HcclBroadcast, o.send(), c.send_count, c.send_type, c.peer, comm, stream);
        case Of::scatter:
            return with(v.HcclScatter, o.send(), o.recv(), c.recv_count, c.recv_type, c.peer, comm, stream);
        case Of::all_to_all:
            return with(v.HcclAlltoAll, o.send(), c.send_count, c.send_type, o.recv(), c.recv_count,
                        c.recv_type, comm, stream);
        case Of::all_to_all_v:
            return with(v.HcclAlltoAllV, o.send(), w, w + n, c.send_type, o.recv(), w + 2 * size_t(n),
                        w + 3 * size_t(n), c.recv_type, comm, stream);
        case Of::all_to_all_vc:
            return with(v.HcclAlltoAllVC, o.send(), w, c.send_type, o.recv(), c.recv_type, comm, stream);
        case Of::barrier: return with(v.HcclBarrier, comm, stream);
        case Of::send_one: return with(v.HcclSend, o.send(), c.send_count, c.send_type, c.peer, comm, stream);
        case Of::receive_one:
            return with(v.HcclRecv, o.send(), c.send_count, c.send_type, c.peer, comm, stream);
        case Of::batch:
            return with(v.HcclBatchSendRecv, o.messages.data(), uint32_t(o.messages.size()), comm, stream);
        case Of::count_: break;
    }
    return hccl::E_PARA;
}

// Calls that need the same connections: of one function, with one peer, of one order of size, since the
// vendor chooses its algorithm by that.
uint64_t kind_of(const Operation& o) {
    uint64_t bytes = 0, peers = 0;
    for (const MemoryMap::Span& s : o.spans) bytes = std::max(bytes, s.bytes);
    for (const HcclSendRecvItem& m : o.messages)
        peers = peers * 31 + (uint64_t(m.peer) << 1 | uint64_t(m.type));
    return (uint64_t(o.c.of) << 6 | uint64_t(std::bit_width(bytes))) ^ (uint64_t(o.c.peer) << 16) ^
           (peers << 32) ^ (uint64_t(uint32_t(o.c.reduction)) << 12);
}

}  // namespace

const char* collective_name(uint32_t of) { return kNames[of]; }

bool may_block(const CollectiveItem& c) { return !c.communicator->known.contains(c.connections); }

void CollectiveRecords::collective(Session& s, Payload p) {
    wire::Collective c;
    Payload rest;
    if (!take(p, &c, &rest) || rest.size() != size_t(c.words) * 8 || c.of >= Of::count_) {
        return malformed(s);
    }
    Lane* lane = lane_of(s, c.stream);
    if (!lane) return refuse_later(s, nullptr, acl::RT_INVALID_HANDLE, "");
    const char* name = kNames[c.of];
    auto comm = s.communicators ? s.communicators->find(c.communicator) : nullptr;
    if (!comm)
        return refuse_later(s, lane, acl::RT_INVALID_HANDLE,
                            std::string(name) + ": " + hex(c.communicator) + " is not a communicator");
    auto operation = std::make_shared<Operation>();
    operation->c = c;
    operation->words.resize(c.words);
    if (c.words) std::memcpy(operation->words.data(), rest.data(), rest.size());
    if (!measure(*operation, comm->ranks, comm->rank))
        return refuse_later(s, lane, acl::RT_PARAM_INVALID,
                            std::string(name) + ": an argument is out of range");
    const auto& spans = operation->spans;
    const size_t foreign = s.memory.first_foreign(spans.size(), [&](size_t i) { return spans[i]; });
    if (foreign != spans.size()) {
        return refuse_later(s, lane, acl::RT_PARAM_INVALID,
                            std::string(name) + ": " + hex(spans[foreign].address) + " (" +
                                std::to_string(spans[foreign].bytes) +
                                " bytes) is not in memory of this process");
    }
    auto item = std::make_unique<Item>(CollectiveItem{});
    CollectiveItem& made = item->as<CollectiveItem>();
    made.connections = kind_of(*operation);
    made.of = c.of;
    made.communicator = comm;
    made.call = [this, operation, comm = comm.get(), stream = lane->stream] {
        return perform(vendor_, *operation, comm->handle, comm->ranks, stream);
    };
    push(*lane, std::move(item));
}

}  // namespace flexnpu::daemon
