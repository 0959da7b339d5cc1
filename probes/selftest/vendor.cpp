// The libraries of the self-test: functions with the names and argument orders of CANN's that do nothing, in
// the libraries where CANN keeps them (-DRT, -DNNOPBASE, -DOPAPI, -DDATADIST), or FlexNPU's probe point
// (-DCLIENT).
//
// What each was called with is counted by the program that calls them (probes/selftest/program.py); here is
// only code for probes to sit on, and objects whose inside nobody is told.
#include <cstdint>
#include <cstdlib>
#include <cstring>

#define API extern "C" __attribute__((visibility("default"), noinline))
using u64 = uint64_t;

namespace {
volatile u64 sink;  // so that no body is empty and no argument unused
}

#define IGNORE1(name)     \
    API int name(u64 a) { \
        sink = sink + a;  \
        return 0;         \
    }
#define IGNORE2(name)            \
    API int name(u64 a, u64 b) { \
        sink = sink + a + b;     \
        return 0;                \
    }
#define IGNORE3(name)                   \
    API int name(u64 a, u64 b, u64 c) { \
        sink = sink + a + b + c;        \
        return 0;                       \
    }
#define IGNORE4(name)                          \
    API int name(u64 a, u64 b, u64 c, u64 d) { \
        sink = sink + a + b + c + d;           \
        return 0;                              \
    }
#define IGNORE6(name)                                        \
    API int name(u64 a, u64 b, u64 c, u64 d, u64 e, u64 f) { \
        sink = sink + a + b + c + d + e + f;                 \
        return 0;                                            \
    }

#ifdef RT
IGNORE6(aclrtLaunchKernelWithHostArgs)
IGNORE1(aclrtSynchronizeStream)
IGNORE2(aclrtSynchronizeStreamWithTimeout)
IGNORE1(aclrtSynchronizeDevice)
IGNORE1(aclrtSynchronizeDeviceWithTimeout)
IGNORE1(aclrtSynchronizeEvent)
IGNORE2(aclrtSynchronizeEventWithTimeout)
IGNORE2(aclrtRecordEvent)
IGNORE2(aclrtStreamWaitEvent)
IGNORE3(aclrtStreamWaitEventWithTimeout)
IGNORE6(aclrtMemcpy)
IGNORE6(aclrtMemcpyAsync)
IGNORE2(aclmdlRICaptureBegin)
IGNORE2(aclmdlRIExecuteAsync)
API int aclmdlRICaptureEnd(u64 stream, u64* model) {
    sink = sink + stream;
    *model = 0x7100;
    return 0;
}
#endif

#ifdef NNOPBASE
// Two vectors and a data type behind a pointer.
struct Body {
    int64_t *storage, *storage_end, *view, *view_end;
    u64 data;
    int32_t format, dtype;
};
struct Tensor {
    u64 kind;
    Body* body;
};
struct Array {
    u64 kind, n;
    int64_t* values;
};
static int64_t* copy(const int64_t* values, u64 n) {
    auto* p = static_cast<int64_t*>(std::malloc(8 * n + 8));
    if (n) std::memcpy(p, values, 8 * n);
    return p;
}
API Tensor* aclCreateTensor(const int64_t* dims, u64 n, int32_t dtype, const int64_t* strides, int64_t offset,
                            int32_t format, const int64_t* storage, u64 storage_n, u64 data) {
    sink = sink + reinterpret_cast<u64>(strides) + static_cast<u64>(offset);
    auto* body = new Body{copy(storage, storage_n), nullptr, copy(dims, n), nullptr, data, format, dtype};
    body->storage_end = body->storage + storage_n;
    body->view_end = body->view + n;
    return new Tensor{1, body};
}
API int aclDestroyTensor(Tensor* t) {
    std::free(t->body->storage);
    std::free(t->body->view);
    delete t->body;
    delete t;
    return 0;
}
API Array* aclCreateIntArray(const int64_t* values, u64 n) { return new Array{2, n, copy(values, n)}; }
API int aclDestroyIntArray(Array* a) {
    std::free(a->values);
    delete a;
    return 0;
}
#endif

#ifdef OPAPI
API int aclnnEmbeddingGetWorkspaceSize(u64 weight, u64 indices, u64 out, u64* size, u64* executor) {
    static u64 next = 0x5000;
    sink = sink + weight + indices + out;
    *size = 0;
    *executor = next += 16;
    return 0;
}
IGNORE4(aclnnEmbedding)
IGNORE4(aclnnMatmul)
// The callers pass more arguments, on the stack.
#define ATTENTION(name) IGNORE6(name##GetWorkspaceSize) IGNORE4(name)
ATTENTION(aclnnFusedInferAttentionScore)
ATTENTION(aclnnFusedInferAttentionScoreV2)
ATTENTION(aclnnFusedInferAttentionScoreV3)
ATTENTION(aclnnFusedInferAttentionScoreV4)
ATTENTION(aclnnFusedInferAttentionScoreV5)
ATTENTION(aclnnPromptFlashAttention)
ATTENTION(aclnnPromptFlashAttentionV2)
ATTENTION(aclnnPromptFlashAttentionV3)
ATTENTION(aclnnIncreFlashAttention)
ATTENTION(aclnnIncreFlashAttentionV2)
ATTENTION(aclnnIncreFlashAttentionV3)
ATTENTION(aclnnIncreFlashAttentionV4)
ATTENTION(aclnnFlashAttentionVarLenScore)
ATTENTION(aclnnFlashAttentionVarLenScoreV2)
ATTENTION(aclnnFlashAttentionVarLenScoreV3)
ATTENTION(aclnnFlashAttentionVarLenScoreV4)
ATTENTION(aclnnFlashAttentionVarLenScoreV5)
ATTENTION(aclnnFlashAttentionScore)
ATTENTION(aclnnFlashAttentionScoreV2)
ATTENTION(aclnnFlashAttentionScoreV3)
ATTENTION(aclnnFlashAttentionScoreV4)
#endif

#ifdef DATADIST
// adxl::AdxlEngine::TransferSync(), whose arguments have types of the vendor's: only its name is wanted.
API int transfer_sync(u64 engine, u64 remote, u64 operation, u64 descriptions) __asm__(
    "_ZN4adxl10AdxlEngine12TransferSyncERKN2ge12AscendStringENS_10TransferOpERKSt6vectorINS_14Transfer"
    "OpDescESaIS7_EEi");
IGNORE4(transfer_sync)
#endif

#ifdef CLIENT
// Raised by the kernel while somebody listens; the program looks at them. It finds them by their place in the
// file, so they must have one.
#define WORD __attribute__((visibility("default"), section(".data"))) volatile uint16_t
extern "C" {
WORD flexnpu_step_semaphore = 0;
WORD flexnpu_step_begin_semaphore = 0;
WORD flexnpu_operator_semaphore = 0;
}
API void flexnpu_step(const void* record) { sink = sink + reinterpret_cast<u64>(record); }
API void flexnpu_step_begin(const void* record) { sink = sink + reinterpret_cast<u64>(record); }
API void flexnpu_operator(const void* stream, const char* name, const void* executor) {
    sink =
        sink + reinterpret_cast<u64>(stream) + reinterpret_cast<u64>(name) + reinterpret_cast<u64>(executor);
}
#endif
