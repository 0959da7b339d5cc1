// Communicators of the mock vendor: nobody waits for anybody, no byte moves; what is given wrongly ends the
// program.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "acl.gen.h"
#include "flexnpu/api/hccl_types.hpp"

namespace hccl = flexnpu::hccl;

namespace {

constexpr uint64_t kMagic = 0x6d6d6f63;
struct Comm {
    uint64_t magic = kMagic;
    uint32_t ranks;
};

Comm* live(HcclComm c) {
    auto* comm = static_cast<Comm*>(c);
    if (!comm || comm->magic != kMagic) {
        fprintf(stderr, "mock vendor: %p is not a communicator\n", c);
        abort();
    }
    return comm;
}
int32_t make(uint32_t ranks, HcclComm* out) {
    auto* comm = new Comm;
    comm->ranks = ranks;
    *out = comm;
    return 0;
}
int32_t done(HcclComm c) {
    live(c);
    return 0;
}

}  // namespace

extern "C" {

int32_t HcclGetRootInfo(HcclRootInfo* out) {
    std::memset(out, 7, sizeof(*out));
    return 0;
}
int32_t HcclCommInitRootInfo(uint32_t ranks, const HcclRootInfo*, uint32_t, HcclComm* out) {
    return make(ranks, out);
}
int32_t HcclCommInitRootInfoConfig(uint32_t ranks, const HcclRootInfo*, uint32_t,
                                   const HcclCommConfig* config, HcclComm* out) {
    // A vendor reads as much as the configuration says that it has.
    volatile char sum = 0;
    for (size_t i = 0; i < config->head.size; i++) sum = char(sum + reinterpret_cast<const char*>(config)[i]);
    return make(ranks, out);
}
int32_t HcclCreateSubCommConfig(HcclComm* parent, uint32_t ranks, uint32_t* members, uint64_t, uint32_t,
                                HcclCommConfig*, HcclComm* out) {
    for (uint32_t i = 0; i < ranks; i++) {
        if (members[i] >= live(*parent)->ranks) abort();
    }
    return make(ranks, out);
}
int32_t HcclCommDestroy(HcclComm c) {
    live(c)->magic = 0;
    delete static_cast<Comm*>(c);
    return 0;
}
int32_t HcclGetCommName(HcclComm c, char* name) {
    snprintf(name, hccl::kNameBytes, "mock of %u", live(c)->ranks);
    return 0;
}
int32_t HcclGetCommAsyncError(HcclComm c, int32_t* error) {
    *error = 0;
    return done(c);
}
int32_t HcclCommResume(HcclComm c) { return done(c); }
uint32_t HcclGetCommConfigCapability() { return hccl::kCapabilities; }
int32_t HcclAllReduce(void*, void*, uint64_t, HcclDataType, HcclReduceOp, HcclComm c, aclrtStream) {
    return done(c);
}
int32_t HcclReduce(void*, void*, uint64_t, HcclDataType, HcclReduceOp, uint32_t, HcclComm c, aclrtStream) {
    return done(c);
}
int32_t HcclAllGather(void*, void*, uint64_t, HcclDataType, HcclComm c, aclrtStream) { return done(c); }
int32_t HcclReduceScatter(void*, void*, uint64_t, HcclDataType, HcclReduceOp, HcclComm c, aclrtStream) {
    return done(c);
}
int32_t HcclBroadcast(void*, uint64_t, HcclDataType, uint32_t, HcclComm c, aclrtStream) { return done(c); }
int32_t HcclBarrier(HcclComm c, aclrtStream) { return done(c); }
int32_t HcclSend(void*, uint64_t, HcclDataType, uint32_t, HcclComm c, aclrtStream) { return done(c); }
int32_t HcclRecv(void*, uint64_t, HcclDataType, uint32_t, HcclComm c, aclrtStream) { return done(c); }
// The numbers behind a call are read, as a vendor would: a sanitizer sees what is out of bounds.
int32_t HcclAllGatherV(void*, uint64_t, void*, const void* counts, const void* displacements, HcclDataType,
                       HcclComm c, aclrtStream) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < live(c)->ranks; i++)
        sum += static_cast<const uint64_t*>(counts)[i] + static_cast<const uint64_t*>(displacements)[i];
    return sum == UINT64_MAX;
}
int32_t HcclBatchSendRecv(HcclSendRecvItem* items, uint32_t n, HcclComm c, aclrtStream) {
    for (uint32_t i = 0; i < n; i++) {
        if (items[i].peer >= live(c)->ranks) abort();
    }
    return done(c);
}

}  // extern "C"
