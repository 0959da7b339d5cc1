// Objects of many makes, one a VARIANT: what a vendor's aclTensor and aclIntArray might look like inside, and
// what the learning program must not be fooled or harmed by. `tests/probes/test_layouts.py` says what is
// expected.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))
#define TENSOR                                                                                            \
    API void* aclCreateTensor(const int64_t* dims, uint64_t n, int32_t type, const int64_t* strides,      \
                              int64_t offset, int32_t format, const int64_t* storage, uint64_t storage_n, \
                              void* data)
#define ARRAY API void* aclCreateIntArray(const int64_t* values, uint64_t n)
#define UNUSED (void)strides, (void)offset, (void)format, (void)storage, (void)storage_n, (void)data

// What copies do to uninitialised memory is what programs do: nothing is cleared here on purpose.
static void* made(size_t size)
{
    return malloc(size);
}
static int64_t* copy(const int64_t* values, uint64_t n)
{
    int64_t* p = made(8 * n + 8);
    if (n)
        memcpy(p, values, 8 * n);
    return p;
}

#if VARIANT == 1  // inline, counts of 8 bytes; storage first
struct shape {
    uint64_t n;
    int64_t d[25];
};
struct t {
    int32_t type;
    struct shape storage, view;
};
TENSOR
{
    UNUSED;
    struct t* t = made(sizeof(*t));
    t->type = type;
    t->storage.n = storage_n;
    memcpy(t->storage.d, storage, 8 * storage_n);
    t->view.n = n;
    memcpy(t->view.d, dims, 8 * n);
    return t;
}
#elif VARIANT == 2  // vectors with begin, end and capacity
struct vector {
    int64_t *begin, *end, *capacity;
};
struct t {
    void* vtable;
    struct vector storage, strides, view;
    int32_t format, type;
};
static struct vector vector(const int64_t* v, uint64_t n)
{
    int64_t* p = n ? copy(v, n) : 0;
    return (struct vector){p, p + n, p + n};
}
TENSOR
{
    UNUSED;
    struct t* t = made(sizeof(*t));
    *t = (struct t){
        &stdout, vector(storage, storage_n), vector(strides, strides ? n : 0), vector(dims, n), format, type};
    return t;
}
#elif VARIANT == 3  // pointer and a count of 4 bytes, rubbish in the padding, a type of 2 bytes
struct t {
    int64_t* view;
    int32_t n;
    int32_t rubbish;
    uint16_t type;
    uint16_t more[3];
};
TENSOR
{
    UNUSED;
    struct t* t = made(sizeof(*t));
    t->view = copy(dims, n);
    t->n = n;
    t->type = type;
    return t;
}
#elif VARIANT == 4  // small vector: up to two inline, else in the same place a pointer; a count of 1 byte
struct t {
    uint8_t n, type, rubbish[6];
    union {
        int64_t few[2];
        int64_t* many;
    } d;
};
TENSOR
{
    UNUSED;
    struct t* t = made(sizeof(*t));
    t->n = n;
    t->type = type;
    if (n <= 2)
        memcpy(t->d.few, dims, 8 * n);
    else
        t->d.many = copy(dims, n);
    return t;
}
#elif VARIANT == 5  // an original shape that equals the view, strides that are often its dimensions, two hops
struct body {
    int64_t *strides, *original, *view;
    uint64_t strides_n, original_n, view_n;
};
struct t {
    uint64_t a, b;
    struct body* body;
    uint32_t flags, type;
};
TENSOR
{
    UNUSED;
    struct t* t = made(sizeof(*t));
    t->a = n;
    t->type = type;
    t->body = made(sizeof(*t->body));
    *t->body = (struct body){copy(strides ? strides : dims, n), copy(dims, n), copy(dims, n), n, n, n};
    return t;
}
#elif VARIANT == \
    6  // the dimensions stand right behind the object, to which nothing leads; the pointer is disguised
struct t {
    int32_t type, n;
    uint64_t disguised;
};
TENSOR
{
    UNUSED;
    struct t* t = made(sizeof(*t));
    t->type = type;
    t->n = n;
    t->disguised = ~(uint64_t)copy(dims, n);
    return t;
}
#elif VARIANT == 7   // dimensions of 4 bytes
struct t {
    int32_t type, n, d[16];
};
TENSOR
{
    UNUSED;
    struct t* t = made(sizeof(*t));
    t->type = type;
    t->n = n;
    for (uint64_t i = 0; i < n; i++)
        t->d[i] = dims[i];
    return t;
}
#elif VARIANT == 8   // crashes
TENSOR
{
    UNUSED, (void)dims, (void)n, (void)type;
    puts("about to crash");
    fflush(stdout);
    *(volatile int*)8 = 1;
    return 0;
}
#elif VARIANT == 9   // hangs
TENSOR
{
    UNUSED, (void)dims, (void)n, (void)type;
    sleep(60);
    return 0;
}
#elif VARIANT == 10  // refuses
TENSOR
{
    UNUSED, (void)dims, (void)n, (void)type;
    return 0;
}
#elif VARIANT == \
    11  // hostile: uses whatever right it finds, and keeps the dimensions of the first tensor of a length
struct t {
    int64_t type, n, d[8];
};
__attribute__((constructor)) static void greedy(void)
{
    FILE* out = fopen(getenv("PATH") ? "/proc/self/status" : "/dev/null", "r");
    char line[256];
    if (geteuid() == 0 && access("/proc/self/exe", F_OK) == 0 && getenv("LD_LIBRARY_PATH") &&
        strstr(getenv("LD_LIBRARY_PATH"), "flexnpu-learn"))
        _exit(71);
    if (!getenv("LD_LIBRARY_PATH"))
        return;  // in the traced process itself
    while (out && fgets(line, sizeof(line), out))
        if (!strncmp(line, "CapEff:", 7) && strtoull(line + 7, 0, 16))
            _exit(72);
    if (setuid(0) == 0)
        _exit(73);
    puts("{\"tensor\": null}");  // no answer of ours
    fflush(stdout);
}
TENSOR
{
    UNUSED;
    struct t* t = made(sizeof(*t));
    t->type = type;
    t->n = n;
    memcpy(t->d, dims, 8 * n);
    return t;
}
#elif VARIANT == 12  // right for as long as a learner with few samples would look, then not
struct t {
    int64_t type, n, d[16];
};
TENSOR
{
    UNUSED;
    static int calls;
    struct t* t = made(sizeof(*t));
    int shift = calls++ > 40;
    t->type = type;
    t->n = n;
    memcpy(t->d + shift, dims, 8 * n);
    return t;
}
#elif VARIANT == 13  // particular: plain formats of few types and dimensions
struct t {
    int64_t n, d[5];
    int32_t type;
};
TENSOR
{
    UNUSED;
    if (format != 2 || n > 5 || (type != 0 && type != 1 && type != 9))
        return 0;
    struct t* t = made(sizeof(*t));
    t->type = type;
    t->n = n;
    memcpy(t->d, dims, 8 * n);
    return t;
}
#endif

#if VARIANT == 4  // an array that is its pointer and a count of 8 bytes behind a hop
struct body {
    uint64_t n;
    int64_t* v;
};
struct a {
    struct body* body;
};
ARRAY
{
    struct a* a = made(sizeof(*a));
    a->body = made(sizeof(*a->body));
    *a->body = (struct body){n, copy(values, n)};
    return a;
}
#elif VARIANT == 5  // a small vector: four inline
struct a {
    uint64_t n;
    int64_t few[4];
    int64_t* many;
};
ARRAY
{
    struct a* a = made(sizeof(*a));
    a->n = n;
    if (n <= 4)
        memcpy(a->few, values, 8 * n);
    else
        a->many = copy(values, n);
    return a;
}
#elif VARIANT == 6  // an array that is not there
#else
struct a {
    int64_t *begin, *end, *capacity;
};
ARRAY
{
    struct a* a = made(sizeof(*a));
    a->begin = copy(values, n);
    a->end = a->begin + n;
    a->capacity = a->end + 1;
    return a;
}
#endif
