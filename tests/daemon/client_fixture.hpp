// A program over the data plane: the client library in this process, and objects that end with their scope.
#pragma once

#include <doctest/doctest.h>

#include "acl.gen.h"
#include "plane_fixture.hpp"

namespace flexnpu::test {

// The client library under test, found as a program that loads it finds it.
struct Client {
    void* handle = library(FLEXNPU_CLIENT_LIBRARY);
#define FUNCTIONS(X)                     \
    X(aclInit)                           \
    X(aclrtSetDevice)                    \
    X(aclGetRecentErrMsg)                \
    X(aclrtGetSocName)                   \
    X(aclrtMalloc)                       \
    X(aclrtFree)                         \
    X(aclrtMemcpy)                       \
    X(aclrtMemcpyAsync)                  \
    X(aclrtMemset)                       \
    X(aclrtMemsetAsync)                  \
    X(aclrtMallocHost)                   \
    X(aclrtFreeHost)                     \
    X(aclrtCreateStream)                 \
    X(aclrtDestroyStream)                \
    X(aclrtSynchronizeStream)            \
    X(aclrtSynchronizeDevice)            \
    X(aclrtStreamQuery)                  \
    X(aclrtCreateEventWithFlag)          \
    X(aclrtDestroyEvent)                 \
    X(aclrtRecordEvent)                  \
    X(aclrtStreamWaitEvent)              \
    X(aclrtQueryEventStatus)             \
    X(aclrtSynchronizeEvent)             \
    X(aclrtEventElapsedTime)             \
    X(aclCreateTensor)                   \
    X(aclDestroyTensor)                  \
    X(aclCreateScalar)                   \
    X(aclDestroyScalar)                  \
    X(aclnnAbsGetWorkspaceSize)          \
    X(aclnnAbs)                          \
    X(aclnnNegGetWorkspaceSize)          \
    X(aclnnNeg)                          \
    X(aclnnAddsGetWorkspaceSize)         \
    X(aclnnAdds)                         \
    X(aclSetAclOpExecutorRepeatable)     \
    X(aclSetTensorAddr)                  \
    X(aclDestroyAclOpExecutor)           \
    X(aclrtGetLastError)                 \
    X(aclrtSynchronizeStreamWithTimeout) \
    X(aclsysGetVersionStr)               \
    X(aclGetCompileopt)                  \
    X(aclGetCompileoptSize)              \
    X(aclrtGetMemInfo)                   \
    X(aclmdlRIBuildBegin)                \
    X(aclrtGetRunMode)                   \
    X(aclrtPeekAtLastError)              \
    X(aclrtDestroyStreamForce)           \
    X(aclrtSynchronizeDeviceWithTimeout) \
    X(aclrtStreamAbort)                  \
    X(aclrtDeviceTaskAbort)              \
    X(aclrtCreateEvent)                  \
    X(aclrtResetEvent)                   \
    X(aclrtStreamWaitEventWithTimeout)   \
    X(aclrtSynchronizeEventWithTimeout)  \
    X(aclrtQueryEvent)                   \
    X(aclrtQueryEventWaitStatus)         \
    X(aclrtEventGetTimestamp)            \
    X(aclrtLaunchHostFunc)               \
    X(aclrtLaunchCallback)               \
    X(aclrtSubscribeReport)              \
    X(aclrtUnSubscribeReport)            \
    X(aclrtProcessReport)                \
    X(aclrtSetOpWaitTimeout)             \
    X(aclrtSetOpExecuteTimeOut)          \
    X(aclrtSetOpExecuteTimeOutV2)        \
    X(aclrtSetOpExecuteTimeOutWithMs)    \
    X(aclrtGetOpExecuteTimeout)          \
    X(aclmdlRICaptureBegin)              \
    X(aclmdlRICaptureEnd)                \
    X(aclmdlRICaptureGetInfo)            \
    X(aclmdlRICaptureTaskGrpBegin)       \
    X(aclmdlRICaptureTaskGrpEnd)         \
    X(aclmdlRICaptureTaskUpdateBegin)    \
    X(aclmdlRICaptureTaskUpdateEnd)      \
    X(aclmdlRICaptureThreadExchangeMode) \
    X(aclmdlRIExecuteAsync)              \
    X(aclmdlRIDestroy)                   \
    X(aclmdlRIGetId)                     \
    X(aclmdlRIDebugJsonPrint)            \
    X(aclmdlRIAbort)                     \
    X(aclrtValueWait)                    \
    X(aclrtValueWrite)
#define X(name) decltype(&::name) name = symbol<decltype(::name)>(handle, #name);
    FUNCTIONS(X)
#undef X
#undef FUNCTIONS
};

// One process, one session: the tests of a file share it.
inline Running& running() {
    static Running r;
    return r;
}
inline Client& client() {
    running();
    static Client c;
    // As in any program, each thread says which device it uses.
    static thread_local const bool device_set = c.aclrtSetDevice(0) == 0;
    REQUIRE(device_set);
    return c;
}
inline uint64_t counter(const char* name) { return running().plane.counters().at(name); }

struct Memory {
    void* p = nullptr;
    explicit Memory(size_t n) { REQUIRE(client().aclrtMalloc(&p, n, 0) == 0); }
    ~Memory() {
        if (p) CHECK(client().aclrtFree(p) == 0);
    }
};
struct StreamOf {
    aclrtStream s = nullptr;
    StreamOf() { REQUIRE(client().aclrtCreateStream(&s) == 0); }
    ~StreamOf() { CHECK(client().aclrtDestroyStream(s) == 0); }
};

}  // namespace flexnpu::test
