// The collectives of libhccl: they check what they are given, and queue tasks.
#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "flexnpu/emulator/hccl/call.hpp"

using namespace flexnpu::emulator::hccl;
namespace types = flexnpu::hccl;

namespace {

int32_t queue(Check& check, Op op, Part part, aclrtStream stream) {
    return queue_task(make_collective(check.comm(), op, std::move(part)), stream);
}

uint64_t end_of(const std::vector<Part::Piece>& pieces) {
    uint64_t end = 0;
    for (const Part::Piece& p : pieces) {
        end = p.bytes != 0 ? std::max(end, p.offset + p.bytes) : end;
    }
    return end;
}

std::vector<Part::Piece> even(uint32_t ranks, uint64_t bytes) {
    std::vector<Part::Piece> out;
    for (uint32_t r = 0; r < ranks; ++r) {
        out.push_back({r * bytes, bytes});
    }
    return out;
}

int32_t all_to_all(Check& check, const void* send, const void* recv, std::vector<Part::Piece> out,
                   std::vector<Part::Piece> in, aclrtStream stream) {
    if (check.memory(send, end_of(out)).memory(recv, end_of(in)).result()) {
        return check.result();
    }
    Part part;
    part.send = static_cast<const char*>(send);
    part.recv = static_cast<char*>(const_cast<void*>(recv));
    part.out = std::move(out);
    part.in = std::move(in);
    return queue(check, Op::AllToAll, std::move(part), stream);
}

// This rank's `bytes` to all; theirs as `in` says. `count`: of each rank, where all have as many elements.
int32_t all_gather(Check& check, const void* send, uint64_t bytes, void* recv, std::vector<Part::Piece> in,
                   int32_t dtype, uint64_t count, aclrtStream stream) {
    if (check.memory(send, bytes).memory(recv, end_of(in)).result()) {
        return check.result();
    }
    Part part;
    part.dtype = dtype;
    part.count = count;
    part.send = static_cast<const char*>(send);
    part.recv = static_cast<char*>(recv);
    part.out.push_back({0, bytes});
    part.in = std::move(in);
    return queue(check, Op::AllGather, std::move(part), stream);
}

// The other way round: this rank gets `bytes`, reduced over what all have for it.
int32_t reduce_scatter(Check& check, const void* send, std::vector<Part::Piece> out, void* recv,
                       uint64_t bytes, int32_t dtype, int32_t how, uint64_t count, aclrtStream stream) {
    if (check.memory(recv, bytes).memory(send, end_of(out)).result()) {
        return check.result();
    }
    Part part;
    part.dtype = dtype;
    part.reduce = how;
    part.count = count;
    part.send = static_cast<const char*>(send);
    part.recv = static_cast<char*>(recv);
    part.out = std::move(out);
    part.in.assign(check.ranks(), {0, bytes});
    return queue(check, Op::ReduceScatter, std::move(part), stream);
}

int32_t reduction(const char* function, Op op, void* send, void* recv, uint64_t count, int32_t dtype,
                  int32_t how, uint32_t root, HcclComm handle, aclrtStream stream) {
    const uint64_t bytes = count * types::element_size(dtype);
    Check check(function, handle);
    if (check.type(dtype, count).reduction(dtype, how).rank(root).memory(send, bytes).result()) {
        return check.result();
    }
    if (op == Op::AllReduce || root == check.comm()->rank) {
        check.memory(recv, bytes);
    }
    if (check.result()) {
        return check.result();
    }
    Part part;
    part.dtype = dtype;
    part.reduce = how;
    part.root = root;
    part.count = count;
    part.send = static_cast<const char*>(send);
    part.recv = static_cast<char*>(recv);
    return queue(check, op, std::move(part), stream);
}

}  // namespace

extern "C" {

int32_t HcclAllReduce(void* send, void* recv, uint64_t count, HcclDataType type, HcclReduceOp op,
                      HcclComm comm, aclrtStream stream) {
    return reduction("HcclAllReduce", Op::AllReduce, send, recv, count, type, op, 0, comm, stream);
}
int32_t HcclReduce(void* send, void* recv, uint64_t count, HcclDataType type, HcclReduceOp op, uint32_t root,
                   HcclComm comm, aclrtStream stream) {
    return reduction("HcclReduce", Op::Reduce, send, recv, count, type, op, root, comm, stream);
}

int32_t HcclBarrier(HcclComm handle, aclrtStream stream) {
    Check check("HcclBarrier", handle);
    return check.result() ? check.result() : queue(check, Op::Barrier, {}, stream);
}

int32_t HcclBroadcast(void* buffer, uint64_t count, HcclDataType type, uint32_t root, HcclComm handle,
                      aclrtStream stream) {
    const uint64_t bytes = count * types::element_size(type);
    Check check("HcclBroadcast", handle);
    if (check.type(type, count).rank(root).memory(buffer, bytes).result()) {
        return check.result();
    }
    Part part;
    part.dtype = type;
    part.root = root;
    part.count = count;
    part.send = part.recv = static_cast<char*>(buffer);
    part.in.resize(check.ranks());
    part.in[root].bytes = bytes;
    if (root == check.comm()->rank) {
        part.out.push_back({0, bytes});
    }
    return queue(check, Op::Broadcast, std::move(part), stream);
}

int32_t HcclAllGather(void* send, void* recv, uint64_t count, HcclDataType type, HcclComm handle,
                      aclrtStream stream) {
    const uint64_t bytes = count * types::element_size(type);
    Check check("HcclAllGather", handle);
    if (check.type(type, count).result()) {
        return check.result();
    }
    return all_gather(check, send, bytes, recv, even(check.ranks(), bytes), type, count, stream);
}

int32_t HcclAllGatherV(void* send, uint64_t count, void* recv, const void* counts, const void* displacements,
                       HcclDataType type, HcclComm handle, aclrtStream stream) {
    Check check("HcclAllGatherV", handle);
    std::vector<Part::Piece> in;
    if (check.type(type, count).pieces(counts, displacements, type, &in).result()) {
        return check.result();
    }
    return all_gather(check, send, count * types::element_size(type), recv, std::move(in), type, 0, stream);
}

int32_t HcclReduceScatter(void* send, void* recv, uint64_t count, HcclDataType type, HcclReduceOp op,
                          HcclComm handle, aclrtStream stream) {
    const uint64_t bytes = count * types::element_size(type);
    Check check("HcclReduceScatter", handle);
    if (check.type(type, count).reduction(type, op).result()) {
        return check.result();
    }
    return reduce_scatter(check, send, even(check.ranks(), bytes), recv, bytes, type, op, count, stream);
}

int32_t HcclReduceScatterV(void* send, const void* counts, const void* displacements, void* recv,
                           uint64_t count, HcclDataType type, HcclReduceOp op, HcclComm handle,
                           aclrtStream stream) {
    Check check("HcclReduceScatterV", handle);
    std::vector<Part::Piece> out;
    if (check.type(type, count).reduction(type, op).pieces(counts, displacements, type, &out).result()) {
        return check.result();
    }
    return reduce_scatter(check, send, std::move(out), recv, count * types::element_size(type), type, op, 0,
                          stream);
}

int32_t HcclScatter(void* send, void* recv, uint64_t count, HcclDataType type, uint32_t root, HcclComm handle,
                    aclrtStream stream) {
    const uint64_t bytes = count * types::element_size(type);
    Check check("HcclScatter", handle);
    if (check.type(type, count).rank(root).memory(recv, bytes).result()) {
        return check.result();
    }
    Part part;
    part.dtype = type;
    part.root = root;
    part.count = count;
    part.send = static_cast<const char*>(send);
    part.recv = static_cast<char*>(recv);
    part.in.resize(check.ranks());
    part.in[root].bytes = bytes;
    if (root == check.comm()->rank) {
        part.out = even(check.ranks(), bytes);
        if (check.memory(send, bytes * check.ranks()).result()) {
            return check.result();
        }
    }
    return queue(check, Op::Scatter, std::move(part), stream);
}

int32_t HcclAlltoAll(const void* send, uint64_t send_count, HcclDataType send_type, const void* recv,
                     uint64_t recv_count, HcclDataType recv_type, HcclComm handle, aclrtStream stream) {
    Check check("HcclAlltoAll", handle);
    if (check.type(send_type, send_count).type(recv_type, recv_count).result()) {
        return check.result();
    }
    return all_to_all(check, send, recv, even(check.ranks(), send_count * types::element_size(send_type)),
                      even(check.ranks(), recv_count * types::element_size(recv_type)), stream);
}

int32_t HcclAlltoAllV(const void* send, const void* send_counts, const void* send_displacements,
                      HcclDataType send_type, const void* recv, const void* recv_counts,
                      const void* recv_displacements, HcclDataType recv_type, HcclComm handle,
                      aclrtStream stream) {
    Check check("HcclAlltoAllV", handle);
    std::vector<Part::Piece> out, in;
    if (check.type(send_type, 0)
            .type(recv_type, 0)
            .pieces(send_counts, send_displacements, send_type, &out)
            .pieces(recv_counts, recv_displacements, recv_type, &in)
            .result()) {
        return check.result();
    }
    return all_to_all(check, send, recv, std::move(out), std::move(in), stream);
}

// The matrix says how many elements each rank (row) sends to each (column); pieces lie one after the other.
int32_t HcclAlltoAllVC(const void* send, const void* matrix, HcclDataType send_type, const void* recv,
                       HcclDataType recv_type, HcclComm handle, aclrtStream stream) {
    Check check("HcclAlltoAllVC", handle);
    if (check.type(send_type, 0).type(recv_type, 0).given(matrix).result()) {
        return check.result();
    }
    const uint32_t n = check.ranks(), me = check.comm()->rank;
    std::vector<Part::Piece> out, in;
    uint64_t out_end = 0, in_end = 0;
    auto count_of = [&](uint32_t from, uint32_t to) {
        uint64_t count = 0;
        std::memcpy(&count, static_cast<const char*>(matrix) + (uint64_t(from) * n + to) * 8, 8);
        return count;
    };
    for (uint32_t r = 0; r < n; ++r) {
        if (count_of(me, r) > kMostElements || count_of(r, me) > kMostElements) {
            return refuse(types::E_PARA, "HcclAlltoAllVC: a count is too large");
        }
        out.push_back({out_end, count_of(me, r) * types::element_size(send_type)});
        in.push_back({in_end, count_of(r, me) * types::element_size(recv_type)});
        out_end += out.back().bytes;
        in_end += in.back().bytes;
    }
    return all_to_all(check, send, recv, std::move(out), std::move(in), stream);
}
}
