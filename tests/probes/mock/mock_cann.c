// A vendor library set in one file: functions with the ABI of CANN's that do nothing but wait where CANN
// would. Compiled into several libraries with -DRT, -DNNOPBASE or -DOPAPI, so that symbols live where CANN
// keeps them.
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#define API __attribute__((visibility("default"), noinline))

static inline void wait_us(long us)
{
    struct timespec t = {0, us * 1000};
    nanosleep(&t, 0);
}

#ifdef RT
volatile uint64_t sink;
API int aclrtLaunchKernelWithHostArgs(void* func, uint32_t blocks, void* stream, void* config, void* args,
                                      size_t size, void* places, size_t count)
{
    sink += (uint64_t)func + blocks + (uint64_t)stream + (uint64_t)config + (uint64_t)args + size +
            (uint64_t)places + count;
    return 0;
}
API int aclrtSynchronizeStream(void* stream)
{
    sink += (uint64_t)stream;
    wait_us(20);
    return 0;
}
API int aclrtSynchronizeStreamWithTimeout(void* stream, int32_t ms)
{
    sink += ms;
    return aclrtSynchronizeStream(stream);
}
API int aclrtSynchronizeDevice(void)
{
    wait_us(20);
    return 0;
}
API int aclrtSynchronizeDeviceWithTimeout(int32_t ms)
{
    sink += ms;
    return aclrtSynchronizeDevice();
}
API int aclrtMemcpy(void* dst, size_t max, const void* src, size_t n, int32_t kind)
{
    sink += (uint64_t)dst + max + (uint64_t)src + n + kind;
    return 0;
}
API int aclrtMemcpyAsync(void* dst, size_t max, const void* src, size_t n, int32_t kind, void* stream)
{
    sink += (uint64_t)dst + max + (uint64_t)src + n + kind + (uint64_t)stream;
    return 0;
}
API int aclmdlRICaptureBegin(void* stream, int32_t mode)
{
    sink += (uint64_t)stream + mode;
    return 0;
}
API int aclmdlRICaptureEnd(void* stream, void** model)
{
    static uint64_t next = 0x7010;
    sink += (uint64_t)stream;
    *model = (void*)(next += 0x10);
    return 0;
}
API int aclmdlRIExecuteAsync(void* model, void* stream)
{
    sink += (uint64_t)model + (uint64_t)stream;
    return 0;
}
#endif

#ifdef NNOPBASE
#include <string.h>
// Opaque to everybody: a tensor keeps a pointer to what it is, with begin and end pointers to its dimensions.
struct extent {
    int64_t *begin, *end;
};
struct tensor_body {
    struct extent storage, strides, view;
    void* data;
    int64_t offset;
    uint8_t format, dtype;
};
struct tensor {
    uint64_t kind;
    struct tensor_body* body;
};
struct int_array {
    uint32_t kind, n;
    int64_t values[];
};
static struct extent extent(const int64_t* values, uint64_t n)
{
    struct extent e = {malloc(8 * n + 8), 0};
    e.end = e.begin + n;
    if (n)
        memcpy(e.begin, values, 8 * n);
    return e;
}
API void* aclCreateTensor(const int64_t* dims, uint64_t n, int32_t type, const int64_t* strides,
                          int64_t offset, int32_t format, const int64_t* storage, uint64_t storage_n,
                          void* data)
{
    struct tensor* t = malloc(sizeof(*t));
    struct tensor_body* body = malloc(sizeof(*body));
    *body = (struct tensor_body){extent(storage, storage_n),
                                 extent(strides, strides ? n : 0),
                                 extent(dims, n),
                                 data,
                                 offset,
                                 format,
                                 type};
    *t = (struct tensor){7, body};
    return t;
}
API void* aclCreateIntArray(const int64_t* values, uint64_t n)
{
    struct int_array* a = malloc(sizeof(*a) + 8 * n);
    *a = (struct int_array){8, n};
    memcpy(a->values, values, 8 * n);
    return a;
}
API int aclDestroyTensor(struct tensor* t)
{
    free(t->body->storage.begin);
    free(t->body->strides.begin);
    free(t->body->view.begin);
    free(t->body);
    free(t);
    return 0;
}
#endif

#ifdef OPAPI
extern int aclrtLaunchKernelWithHostArgs(void*, uint32_t, void*, void*, void*, size_t, void*, size_t);
API int aclnnEmbeddingGetWorkspaceSize(void* weight, void* indices, void* out, uint64_t* size,
                                       void** executor)
{
    *size = (uint64_t)weight + (uint64_t)indices + (uint64_t)out ? 0 : 1;
    *executor = malloc(16);
    return 0;
}
API int aclnnEmbedding(void* workspace, uint64_t size, void* executor, void* stream)
{
    (void)workspace;
    (void)size;
    (void)executor;  // the program may keep it
    return aclrtLaunchKernelWithHostArgs((void*)1, 1, stream, 0, 0, 0, 0, 0);
}
API int aclnnFusedInferAttentionScoreV2GetWorkspaceSize(
    void* query, void* key, void* value, void* shift, void* mask, void* lengths, void* key_lengths, void* o0,
    void* o1, void* o2, void* o3, void* o4, void* o5, void* o6, void* o7, void* o8, void* o9, void* o10,
    void* o11, void* o12, void* o13, void* o14, void* o15, void* prefix, int64_t heads, double scale,
    int64_t before, int64_t after, const char* layout, int64_t key_heads, int64_t sparse, int64_t inner,
    int64_t block, int64_t antiquant, bool lse, int64_t key_mode, int64_t value_mode, void* out,
    void* lse_out, uint64_t* size, void** executor)
{
    (void)o0, (void)o1, (void)o2, (void)o3, (void)o4, (void)o5, (void)o6, (void)o7, (void)o8, (void)o9,
        (void)o10;
    (void)o11, (void)o12, (void)o13, (void)o14, (void)o15, (void)key, (void)value, (void)shift, (void)mask;
    (void)prefix, (void)heads, (void)scale, (void)before, (void)after, (void)key_heads, (void)sparse,
        (void)inner;
    (void)block, (void)antiquant, (void)lse, (void)key_mode, (void)value_mode, (void)out, (void)lse_out;
    *size = (uint64_t)query + (uint64_t)lengths + (uint64_t)key_lengths + (uint64_t)layout ? 0 : 1;
    *executor = malloc(16);
    return 0;
}
API int aclnnMatmul(void* workspace, uint64_t size, void* executor, void* stream)
{
    (void)workspace;
    (void)size;
    (void)executor;
    return aclrtLaunchKernelWithHostArgs((void*)2, 24, stream, 0, 0, 0, 0, 0);
}
#endif
