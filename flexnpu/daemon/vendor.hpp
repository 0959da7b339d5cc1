// The vendor's libraries (CANN's, or the emulated ones): loaded by directory, called through pointers.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "acl.gen.h"
#include "fn_ids.gen.h"

namespace flexnpu::daemon {

#define FLEXNPU_VENDOR_FUNCTIONS(X)      \
    X(aclInit)                           \
    X(aclFinalize)                       \
    X(aclGetRecentErrMsg)                \
    X(aclrtGetSocName)                   \
    X(aclrtSetDevice)                    \
    X(aclrtGetDeviceCount)               \
    X(aclrtMalloc)                       \
    X(aclrtMallocAlign32)                \
    X(aclrtFree)                         \
    X(aclrtMallocHost)                   \
    X(aclrtFreeHost)                     \
    X(aclrtGetMemInfo)                   \
    X(aclrtMemcpy)                       \
    X(aclrtMemcpyAsync)                  \
    X(aclrtMemset)                       \
    X(aclrtMemsetAsync)                  \
    X(aclrtCreateStreamWithConfig)       \
    X(aclrtDestroyStream)                \
    X(aclrtSynchronizeStream)            \
    X(aclrtSynchronizeStreamWithTimeout) \
    X(aclrtStreamQuery)                  \
    X(aclrtStreamGetId)                  \
    X(aclrtStreamWaitEvent)              \
    X(aclrtCreateEventWithFlag)          \
    X(aclrtCreateEventExWithFlag)        \
    X(aclrtDestroyEvent)                 \
    X(aclrtRecordEvent)                  \
    X(aclrtResetEvent)                   \
    X(aclrtSynchronizeEvent)             \
    X(aclrtSynchronizeEventWithTimeout)  \
    X(aclrtQueryEventStatus)             \
    X(aclrtQueryEventWaitStatus)         \
    X(aclrtEventElapsedTime)             \
    X(aclrtEventGetTimestamp)            \
    X(aclsysGetVersionStr)               \
    X(aclsysGetVersionNum)               \
    X(aclGetCompileopt)                  \
    X(aclGetCompileoptSize)              \
    X(aclCreateTensor)                   \
    X(aclDestroyTensor)                  \
    X(aclSetRawTensorAddr)               \
    X(aclGetViewShape)                   \
    X(aclCreateTensorList)               \
    X(aclDestroyTensorList)              \
    X(aclCreateScalar)                   \
    X(aclDestroyScalar)                  \
    X(aclCreateScalarList)               \
    X(aclDestroyScalarList)              \
    X(aclCreateIntArray)                 \
    X(aclDestroyIntArray)                \
    X(aclCreateFloatArray)               \
    X(aclDestroyFloatArray)              \
    X(aclCreateBoolArray)                \
    X(aclDestroyBoolArray)

// Those that not every CANN has: null where it lacks them.
#define FLEXNPU_VENDOR_OPTIONAL(X)      \
    X(aclrtReserveMemAddress)           \
    X(aclrtReleaseMemAddress)           \
    X(aclrtMallocPhysical)              \
    X(aclrtFreePhysical)                \
    X(aclrtMapMem)                      \
    X(aclrtUnmapMem)                    \
    X(aclrtMemGetAllocationGranularity) \
    X(aclrtHostRegisterV2)              \
    X(aclrtHostUnregister)              \
    X(aclrtBinaryLoadFromData)          \
    X(aclrtBinaryUnLoad)                \
    X(aclrtBinaryGetFunction)           \
    X(aclrtBinaryGetFunctionByEntry)    \
    X(aclrtGetFunctionAddr)             \
    X(aclrtGetHardwareSyncAddr)         \
    X(aclrtLaunchKernel)                \
    X(aclrtLaunchKernelV2)              \
    X(aclrtLaunchKernelWithHostArgs)    \
    X(aclmdlRICaptureBegin)             \
    X(aclmdlRICaptureEnd)               \
    X(aclmdlRICaptureGetInfo)           \
    X(aclmdlRICaptureTaskGrpBegin)      \
    X(aclmdlRICaptureTaskGrpEnd)        \
    X(aclmdlRICaptureTaskUpdateBegin)   \
    X(aclmdlRICaptureTaskUpdateEnd)     \
    X(aclmdlRIDebugJsonPrint)           \
    X(aclmdlRIDebugPrint)               \
    X(aclmdlRIDestroy)                  \
    X(aclmdlRIExecuteAsync)             \
    X(aclmdlRIGetId)                    \
    X(aclmdlRIAbort)                    \
    X(aclmdlRIUpdate)                   \
    X(aclrtValueWait)                   \
    X(aclrtValueWrite)                  \
    X(aclrtStreamAbort)                 \
    X(HcclGetRootInfo)                  \
    X(HcclCommInitRootInfo)             \
    X(HcclCommInitRootInfoConfig)       \
    X(HcclCreateSubCommConfig)          \
    X(HcclCommDestroy)                  \
    X(HcclGetCommName)                  \
    X(HcclGetCommAsyncError)            \
    X(HcclCommResume)                   \
    X(HcclGetCommConfigCapability)      \
    X(HcclAllReduce)                    \
    X(HcclReduce)                       \
    X(HcclAllGather)                    \
    X(HcclAllGatherV)                   \
    X(HcclReduceScatter)                \
    X(HcclReduceScatterV)               \
    X(HcclBroadcast)                    \
    X(HcclScatter)                      \
    X(HcclAlltoAll)                     \
    X(HcclAlltoAllV)                    \
    X(HcclAlltoAllVC)                   \
    X(HcclBarrier)                      \
    X(HcclSend)                         \
    X(HcclRecv)                         \
    X(HcclBatchSendRecv)

class Vendor {
public:
    // Throws std::runtime_error naming the library or function that is missing.
    explicit Vendor(const std::string& directory);
    ~Vendor();
    Vendor(const Vendor&) = delete;
    Vendor& operator=(const Vendor&) = delete;

#define X(name) decltype(&::name) name = nullptr;
    FLEXNPU_VENDOR_FUNCTIONS(X)
    FLEXNPU_VENDOR_OPTIONAL(X)
#undef X

    // Any symbol of the libraries; nullptr if none defines it.
    void* symbol(const char* name) const;
    // The two functions of an operator, looked up at first use; nullptr where this CANN lacks it. One thread
    // only.
    using First = void*;
    using Second = aclnnStatus (*)(void*, uint64_t, aclOpExecutor*, aclrtStream);
    First first(uint32_t op);
    Second second(uint32_t op);
    void* function(api::FnId fn);

    // Makes the calling thread a user of the device.
    void enter(int32_t device) const { aclrtSetDevice(device); }
    // The message of the calling thread's last error, or what the code alone tells.
    std::string message(const char* what, int32_t error) const;
    // Calls one of the optional functions, if it is there.
    template <class F, class... A>
    static int32_t call(F function, A... args) {
        return function ? function(args...) : int32_t(acl::API_NOT_SUPPORTED);
    }

private:
    struct Operator {
        bool known = false;
        bool only_size = false;  // has no second call
        First first = nullptr;
        Second second = nullptr;
    };
    std::vector<void*> libraries_;
    std::vector<Operator> operators_;
    std::vector<void*> functions_;
};

}  // namespace flexnpu::daemon
