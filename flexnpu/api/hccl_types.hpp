// Structures and constants of Hccl*, declared from documented facts. Results of Hccl* are HcclResult, not ACL
// errors.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flexnpu::hccl {

enum Result : int32_t {
    SUCCESS = 0,
    E_PARA = 1,
    E_PTR = 2,
    E_MEMORY = 3,
    E_INTERNAL = 4,
    E_NOT_SUPPORT = 5,
    E_NOT_FOUND = 6,
    E_UNAVAIL = 7,
    E_SYSCALL = 8,
    E_TIMEOUT = 9,
    E_TCP_CONNECT = 11,
    E_RUNTIME = 15,
    E_DRV = 16,
    E_NETWORK = 19,
    E_AGAIN = 20,
    E_REMOTE = 21,
    E_SUSPENDING = 22,
};

enum DataType : int32_t {
    INT8 = 0,
    INT16 = 1,
    INT32 = 2,
    FP16 = 3,
    FP32 = 4,
    INT64 = 5,
    UINT64 = 6,
    UINT8 = 7,
    UINT16 = 8,
    UINT32 = 9,
    FP64 = 10,
    BFP16 = 11,
    INT128 = 12,
    HIF8 = 14,
    FP8E4M3 = 15,
    FP8E5M2 = 16,
    FP8E8M0 = 17,
};

// Bytes of one element; 0 for what is no data type.
constexpr uint64_t element_size(int32_t type) {
    switch (type) {
        case INT8:
        case UINT8:
        case HIF8:
        case FP8E4M3:
        case FP8E5M2:
        case FP8E8M0: return 1;
        case INT16:
        case UINT16:
        case FP16:
        case BFP16: return 2;
        case INT32:
        case UINT32:
        case FP32: return 4;
        case INT64:
        case UINT64:
        case FP64: return 8;
        case INT128: return 16;
        default: return 0;
    }
}

enum ReduceOp : int32_t { SUM = 0, PROD = 1, MAX = 2, MIN = 3 };
enum SendRecvType : int32_t { SEND = 0, RECV = 1 };
enum Config : int32_t { DETERMINISTIC = 0 };

inline constexpr size_t kRootInfoBytes = 4108;
inline constexpr size_t kNameBytes = 128;  // of a communicator, its end included
inline constexpr uint32_t kConfigMagic = 0xf0f0f0f0;
inline constexpr uint32_t kNotSet = 0xffffffff;
// Kinds of fields of a communicator's configuration that HcclGetCommConfigCapability counts (up to the shared
// buffer's name).
inline constexpr uint32_t kCapabilities = 12;

// How every communicator configuration begins; later versions have more fields behind it, and `size` tells.
struct ConfigHead {
    size_t size;
    uint32_t magic;
    uint32_t version;
    uint64_t reserved;
    uint32_t buffer_mib;
    uint32_t deterministic;
    char name[kNameBytes];
};
static_assert(sizeof(ConfigHead) == 160);
// From the ninth version on: where the limit of a collective's time (s) stands.
inline constexpr size_t kExecTimeoutOffset = 316;
inline constexpr uint32_t kExecTimeoutVersion = 9;
// No configuration that is known has more bytes than this.
inline constexpr size_t kLargestConfig = 16384;

}  // namespace flexnpu::hccl

struct HcclRootInfo {
    char internal[flexnpu::hccl::kRootInfoBytes];
};

struct HcclCommConfig {
    flexnpu::hccl::ConfigHead head;
};

struct HcclSendRecvItem {
    int32_t type;
    void* buffer;
    uint64_t count;
    int32_t data_type;
    uint32_t peer;
};
static_assert(sizeof(HcclSendRecvItem) == 32);
