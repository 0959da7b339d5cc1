// Constants and plain structures of the AscendCL API, declared from measured and documented facts.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flexnpu::acl {

// Error codes. The names follow the vendor's documentation without its prefix.
enum Error : int32_t {
    SUCCESS = 0,
    INVALID_PARAM = 100000,
    UNINITIALIZED = 100001,
    REPEAT_INITIALIZE = 100002,
    INVALID_FILE = 100003,
    REPEAT_FINALIZE = 100037,
    OP_NOT_FOUND = 100024,
    KERNEL_NOT_FOUND = 100029,
    RT_PARAM_INVALID = 107000,
    RT_INVALID_DEVICE = 107001,
    RT_CONTEXT_NULL = 107002,
    RT_STREAM_CONTEXT = 107003,
    RT_EVENT_TIMESTAMP_INVALID = 107006,
    RT_THREAD_SUBSCRIBE = 107012,
    RT_STREAM_NO_CALLBACK = 107015,
    RT_INVALID_HANDLE = 107017,
    RT_WAIT_TIMEOUT = 107019,
    RT_STREAM_ABORT = 107023,
    RT_CAPTURE_DEPENDENCY = 107024,
    RT_STREAM_UNJOINED = 107025,
    RT_MODEL_CAPTURED = 107026,
    RT_STREAM_CAPTURED = 107027,
    RT_EVENT_CAPTURED = 107028,
    RT_STREAM_NOT_CAPTURED = 107029,
    RT_CAPTURE_MODE_NOT_SUPPORT = 107030,
    RT_CAPTURE_IMPLICIT = 107031,  // of the default stream
    RT_CAPTURE_CONFLICT = 107032,
    RT_TASK_GROUP_STATUS = 107033,
    RT_TASK_GROUP_INTERRUPTED = 107034,
    RT_CAPTURE_UNMATCHED = 107036,
    RT_CAPTURE_WRONG_THREAD = 107038,
    API_NOT_SUPPORTED = 200001,
    RT_MEMORY_ALLOCATION = 207001,
    RT_NO_STREAM_RESOURCE = 207008,
    RT_OUT_OF_MEMORY = 207018,
    RT_INTERNAL = 507000,
    RT_REPORT_TIMEOUT = 507012,
    RT_AICORE_TIMEOUT = 507014,
    RT_AICORE_EXCEPTION = 507015,
    RT_CAPTURE_INVALIDATED = 507903,
};

enum DataType : int32_t {
    DT_UNDEFINED = -1,
    FLOAT = 0,
    FLOAT16 = 1,
    INT8 = 2,
    INT32 = 3,
    UINT8 = 4,
    INT16 = 6,
    UINT16 = 7,
    UINT32 = 8,
    INT64 = 9,
    UINT64 = 10,
    DOUBLE = 11,
    BOOL = 12,
    STRING = 13,
    COMPLEX64 = 16,
    COMPLEX128 = 17,
    BF16 = 27,
    INT4 = 29,
    UINT1 = 30,
    COMPLEX32 = 33,
    HIFLOAT8 = 34,
    FLOAT8_E5M2 = 35,
    FLOAT8_E4M3FN = 36,
};

// Bytes of one element; 0 for types without a whole-byte size (INT4, UINT1) and unknown ones.
constexpr size_t element_size(int32_t dtype) {
    switch (dtype) {
        case INT8:
        case UINT8:
        case BOOL:
        case HIFLOAT8:
        case FLOAT8_E5M2:
        case FLOAT8_E4M3FN: return 1;
        case FLOAT16:
        case INT16:
        case UINT16:
        case BF16: return 2;
        case FLOAT:
        case INT32:
        case UINT32:
        case COMPLEX32: return 4;
        case INT64:
        case UINT64:
        case DOUBLE:
        case COMPLEX64: return 8;
        case COMPLEX128: return 16;
        default: return 0;
    }
}

enum Format : int32_t {
    FORMAT_UNDEFINED = -1,
    NCHW = 0,
    NHWC = 1,
    ND = 2,
    NC1HWC0 = 3,
    FRACTAL_Z = 4,
    HWCN = 16,
    NDHWC = 27,
    FRACTAL_NZ = 29,
    NCDHW = 30,
    NDC1HWC0 = 32,
    NC = 35,
    NCL = 47,
};

enum MemcpyKind : int32_t {
    HOST_TO_HOST = 0,
    HOST_TO_DEVICE = 1,
    DEVICE_TO_HOST = 2,
    DEVICE_TO_DEVICE = 3,
    MEMCPY_DEFAULT = 4,
    HOST_TO_BUF_TO_DEVICE = 5,
    INNER_DEVICE_TO_DEVICE = 6,
    INTER_DEVICE_TO_DEVICE = 7,
};

enum : int32_t { STREAM_COMPLETE = 0, STREAM_NOT_READY = 1 };
enum : int32_t { EVENT_COMPLETE = 0, EVENT_NOT_READY = 1 };
enum : int32_t { EVENT_RECORDED_NOT_READY = 0, EVENT_RECORDED_COMPLETE = 1 };  // the other way round
enum : int32_t { EVENT_WAIT_COMPLETE = 0, EVENT_WAIT_NOT_READY = 1 };
enum : int32_t { CAPTURE_GLOBAL = 0, CAPTURE_THREAD_LOCAL = 1, CAPTURE_RELAXED = 2 };
enum : int32_t { CAPTURE_NONE = 0, CAPTURE_ACTIVE = 1, CAPTURE_INVALIDATED = 2 };

enum EventFlag : uint32_t {
    EVENT_SYNC = 1,
    EVENT_CAPTURE_STREAM_PROGRESS = 2,
    EVENT_TIME_LINE = 8,
    EVENT_DEVICE_USE_ONLY = 0x10,
    EVENT_EXTERNAL = 0x20,
    EVENT_IPC = 0x40,
};
enum HostRegister : uint32_t {
    HOST_REG_MAPPED = 0x2,
    HOST_REG_PINNED = 0x10000000
};  // of aclrtHostRegisterV2
enum StreamFlag : uint32_t { FAST_LAUNCH = 1, FAST_SYNC = 2, PERSISTENT = 4, HUGE_STREAM = 8 };

enum DeviceInfo : int32_t { INFO_AI_CORE_NUM = 0, INFO_VECTOR_CORE_NUM = 1, INFO_L2_SIZE = 2 };
enum DeviceAttr : int32_t {
    ATTR_AICORE_CORE_NUM = 101,
    ATTR_CUBE_CORE_NUM = 102,
    ATTR_VECTOR_CORE_NUM = 201,
    ATTR_TOTAL_GLOBAL_MEM_SIZE = 301,
    ATTR_L2_CACHE_SIZE = 302,
    ATTR_IS_VIRTUAL = 501,
};
enum MemLocation : int32_t { LOCATION_HOST = 0, LOCATION_DEVICE = 1, LOCATION_UNREGISTERED = 2 };
enum MemGranularity : int32_t { GRANULARITY_MINIMUM = 0, GRANULARITY_RECOMMENDED = 1 };
enum MemHandleType : int32_t { HANDLE_NONE = 0, HANDLE_POSIX = 2 };
enum MemAccess : int32_t { ACCESS_NONE = 0, ACCESS_READ = 1, ACCESS_READ_WRITE = 3 };
enum MemSharedHandleType : int32_t { SHARE_DEFAULT = 1, SHARE_FABRIC = 2 };
enum MemExportFlag : uint64_t {
    EXPORT_ANY_PID = 1
};  // aclrtIpcMemGetExportKey, aclrtMemExportToShareableHandle
enum MemAttr : int32_t {
    MEM_DDR = 0,
    MEM_HBM = 1,
    MEM_DDR_HUGE = 2,
    MEM_DDR_NORMAL = 3,
    MEM_HBM_HUGE = 4,
    MEM_HBM_NORMAL = 5
};

}  // namespace flexnpu::acl

struct aclrtMemLocation {
    uint32_t id;
    int32_t type;
};

// What physical memory is asked for.
struct aclrtPhysicalMemProp {
    int32_t handle_type;
    int32_t allocation_type;
    int32_t memory;  // aclrtMemAttr
    aclrtMemLocation location;
    uint64_t reserved;
};

// What a device or the host may do with mapped memory.
struct aclrtMemAccessDesc {
    int32_t access;  // flexnpu::acl::MemAccess
    aclrtMemLocation location;
    uint8_t reserved[12];
};

struct aclrtIpcEventHandle {
    char bytes[64];
};

// A handle of physical memory for processes of other hosts.
struct aclrtMemFabricHandle {
    uint8_t bytes[128];
};

struct aclrtUuid {
    char bytes[16];
};

// A package's version as text and in parts.
struct aclCANNPackageVersion {
    char version[128];
    char major_version[64];
    char minor_version[64];
    char release_version[64];
    char patch_version[64];
    char reserved[128];
};

// Percentages; the extension pointer is left as the caller set it.
struct aclrtUtilizationInfo {
    int32_t cube;
    int32_t vector;
    int32_t aicpu;
    int32_t memory;
    void* extend;
};
