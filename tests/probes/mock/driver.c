// Drives the mock libraries by a script on standard input, one command a line. Prints "ok" a line.
// First calls are made by the thread that reads, second calls by another one, as torch_npu does.
// clang-format off
//   step STREAM B T LAUNCHES      a forward pass: embedding of [B,T], LAUNCHES operators in all, mask check
//                                 after 5
//   flat STREAM N LAUNCHES LEN... a forward pass over N flattened tokens with cumulative query lengths
//   again STREAM LAUNCHES         a forward pass whose embedding has the last one's executor, without a
//                                 first call
//   attend STREAM B T LAUNCHES    a forward pass of a model whose embedding is no aclnnEmbedding
//   embed STREAM B T              an embedding alone
//   wpe STREAM B T                a second embedding, of positions
//   lengths Q... K...             an attention operator is given new lengths, for a graph that runs
//   launch STREAM N               N operators
//   flood STREAM N EVERY          N operators by this thread alone, synchronised every EVERY of them
//   sync STREAM | syncdev         synchronise a stream, the device
//   h2d STREAM BYTES | h2dsync STREAM BYTES | d2h BYTES   copies
//   capture STREAM B T LAUNCHES   capture a graph of such a forward pass
//   replay STREAM                 runs the last captured one
//   graph STREAM MODEL            replay a graph with a handle of one's own
//   leave                         the calling thread ends, and another one reads on
//   sleep MS | quit
// clang-format on
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

extern void* aclCreateTensor(const int64_t*, uint64_t, int32_t, const int64_t*, int64_t, int32_t,
                             const int64_t*, uint64_t, void*);
extern void* aclCreateIntArray(const int64_t*, uint64_t);
extern int aclDestroyTensor(void*);
extern int aclnnEmbeddingGetWorkspaceSize(void*, void*, void*, uint64_t*, void**);
extern int aclnnEmbedding(void*, uint64_t, void*, void*);
extern int aclnnFusedInferAttentionScoreV2GetWorkspaceSize(void*, void*, void*, void*, void*, void*, void*,
                                                           void*, void*, void*, void*, void*, void*, void*,
                                                           void*, void*, void*, void*, void*, void*, void*,
                                                           void*, void*, void*, int64_t, double, int64_t,
                                                           int64_t, const char*, int64_t, int64_t, int64_t,
                                                           int64_t, int64_t, _Bool, int64_t, int64_t, void*,
                                                           void*, uint64_t*, void**);
extern int aclnnMatmul(void*, uint64_t, void*, void*);
extern int aclrtSynchronizeStream(void*);
extern int aclrtSynchronizeStreamWithTimeout(void*, int32_t);
extern int aclrtSynchronizeDeviceWithTimeout(int32_t);
extern int aclrtMemcpy(void*, size_t, const void*, size_t, int32_t);
extern int aclrtMemcpyAsync(void*, size_t, const void*, size_t, int32_t, void*);
extern int aclmdlRICaptureBegin(void*, int32_t);
extern int aclmdlRICaptureEnd(void*, void**);
extern int aclmdlRIExecuteAsync(void*, void*);

#define VOCABULARY 1000
#define HIDDEN 64

struct task {
    void* executor;
    void* stream;
};
static struct task queue[4096];
static unsigned head, tail;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

// The dequeue thread: makes the second calls.
static void* dequeue(void* unused)
{
    (void)unused;
    for (;;) {
        pthread_mutex_lock(&lock);
        while (head == tail)
            pthread_cond_wait(&changed, &lock);
        struct task t = queue[head % 4096];
        pthread_mutex_unlock(&lock);
        if (t.executor)
            aclnnEmbedding(0, 0, t.executor, t.stream);
        else
            aclnnMatmul(0, 0, 0, t.stream);
        pthread_mutex_lock(&lock);
        head++;
        pthread_cond_broadcast(&changed);
        pthread_mutex_unlock(&lock);
    }
    return 0;
}

static void push(void* executor, void* stream)
{
    pthread_mutex_lock(&lock);
    while (tail - head >= 4096)
        pthread_cond_wait(&changed, &lock);
    queue[tail++ % 4096] = (struct task){executor, stream};
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

static void drain(void)
{
    pthread_mutex_lock(&lock);
    while (head != tail)
        pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
}

static void* tensor(const int64_t* dims, uint64_t n, int32_t type)
{
    return aclCreateTensor(dims, n, type, 0, 0, 2, dims, n, 0);
}

static void* kept;  // executor of the last embedding

static void embed(void* stream, const int64_t* dims, uint64_t n, int64_t rows)
{
    int64_t table[2] = {rows, HIDDEN}, result[4];
    memcpy(result, dims, n * sizeof(*dims));
    result[n] = HIDDEN;
    void *out = tensor(result, n + 1, 1), *indices = tensor(dims, n, 9), *weight = tensor(table, 2, 1);
    uint64_t size;
    void* executor;
    aclnnEmbeddingGetWorkspaceSize(weight, indices, out, &size, &executor);
    aclDestroyTensor(out);
    aclDestroyTensor(indices);
    aclDestroyTensor(weight);
    kept = executor;
    push(executor, stream);
}

// The first call of an attention operator: shape and layout of its query, lengths of queries and keys if any.
static void attention(const int64_t* dims, uint64_t n, const char* layout, const int64_t* lengths,
                      const int64_t* key_lengths, uint64_t sequences)
{
    void *query = tensor(dims, n, 1), *z = 0;
    void* q = lengths ? aclCreateIntArray(lengths, sequences) : 0;
    void* k = key_lengths ? aclCreateIntArray(key_lengths, sequences) : 0;
    uint64_t size;
    void* executor;
    aclnnFusedInferAttentionScoreV2GetWorkspaceSize(query, z, z, z, z, q, k, z, z, z, z, z, z, z, z, z, z, z,
                                                    z, z, z, z, z, z, 8, 0.125, 0, 0, layout, 2, 0, 0, 0, 0,
                                                    0, 0, 0, z, z, &size, &executor);
    free(executor);
    aclDestroyTensor(query);
}

static void launch(void* stream, int n)
{
    int64_t hidden[3] = {1, 1, HIDDEN};
    for (int i = 0; i < n; i++) {
        if (i % 64 == 0)
            aclDestroyTensor(tensor(hidden, 3, 1));
        push(0, stream);
    }
}

static void synchronise(void* stream)
{
    drain();
    aclrtSynchronizeStreamWithTimeout(stream, -1);
}

// A forward pass with a mask check after five operators, then a token copied out and a stop condition looked
// at.
static void step(void* stream, int64_t batch, int64_t length, int launches)
{
    int64_t dims[2] = {batch, length};
    embed(stream, dims, 2, VOCABULARY);
    launch(stream, 4);
    synchronise(stream);
    aclrtMemcpy(0, 1, 0, 1, 2);
    launch(stream, launches - 5);
    synchronise(stream);
    aclrtMemcpy(0, 8 * batch, 0, 8 * batch, 2);
}

static void* model;

static void* commands(void* unused)
{
    static char line[4096];
    (void)unused;
    while (fgets(line, sizeof(line), stdin)) {
        char* word = strtok(line, " \n");
        int64_t a[64] = {0};
        int n = 0;
        if (!word)
            continue;
        for (char* p; n < 64 && (p = strtok(0, " \n"));)
            a[n++] = strtoll(p, 0, 0);
        void* stream = (void*)a[0];
        if (!strcmp(word, "step")) {
            step(stream, a[1], a[2], a[3]);
        } else if (!strcmp(word, "flat")) {
            embed(stream, &a[1], 1, VOCABULARY);
            int64_t query[3] = {a[1], 8, HIDDEN / 8};
            for (int layer = 0; layer < 2; layer++) {
                attention(query, 3, "TND", &a[3], 0, n - 3);
                launch(stream, (a[2] - 1) / 2);
            }
            synchronise(stream);
        } else if (!strcmp(word, "wpe")) {
            embed(stream, &a[1], 2, 128);
        } else if (!strcmp(word, "embed")) {
            embed(stream, &a[1], 2, VOCABULARY);
        } else if (!strcmp(word, "again")) {
            push(kept, stream);
            launch(stream, a[1] - 1);
            synchronise(stream);
        } else if (!strcmp(word, "flood")) {
            for (int64_t i = 0; i < a[1]; i++) {
                aclnnMatmul(0, 0, 0, stream);
                if (i % a[2] == a[2] - 1)
                    aclrtSynchronizeStream(stream);
            }
        } else if (!strcmp(word, "launch")) {
            launch(stream, a[1]);
        } else if (!strcmp(word, "sync")) {
            synchronise(stream);
        } else if (!strcmp(word, "syncdev")) {
            drain();
            aclrtSynchronizeDeviceWithTimeout(-1);
        } else if (!strcmp(word, "h2d")) {
            aclrtMemcpyAsync(0, a[1], 0, a[1], 1, stream);
        } else if (!strcmp(word, "h2dsync")) {
            synchronise(stream);
            aclrtMemcpy(0, a[1], 0, a[1], 1);
        } else if (!strcmp(word, "d2h")) {
            drain();
            aclrtMemcpy(0, a[0], 0, a[0], 2);
        } else if (!strcmp(word, "capture")) {
            aclmdlRICaptureBegin(stream, 0);
            embed(stream, &a[1], 2, VOCABULARY);
            launch(stream, a[3] - 1);
            drain();
            aclmdlRICaptureEnd(stream, &model);
        } else if (!strcmp(word, "replay")) {
            drain();  // a graph is launched by the main thread, and what was queued before goes first
            aclmdlRIExecuteAsync(model, stream);
        } else if (!strcmp(word, "graph")) {
            drain();
            aclmdlRIExecuteAsync((void*)a[1], stream);
        } else if (!strcmp(word, "lengths")) {
            int64_t query[3] = {a[n / 2 - 1], 8, HIDDEN / 8};
            attention(query, 3, "TND", a, a + n / 2, n / 2);
        } else if (!strcmp(word, "attend")) {
            int64_t query[4] = {a[1], 8, a[2], HIDDEN / 8};
            for (int layer = 0; layer < 4; layer++) {
                attention(query, 4, "BNSD", 0, 0, 0);
                launch(stream, a[3] / 4);
            }
            synchronise(stream);
        } else if (!strcmp(word, "sleep")) {
            struct timespec t = {a[0] / 1000, a[0] % 1000 * 1000000};
            nanosleep(&t, 0);
        } else if (!strcmp(word, "leave")) {
            pthread_t next;
            printf("ok\n");
            fflush(stdout);
            pthread_create(&next, 0, commands, 0);
            pthread_exit(0);
        } else if (!strcmp(word, "quit")) {
            break;
        } else {
            fprintf(stderr, "unknown command %s\n", word);
            exit(2);
        }
        printf("ok\n");
        fflush(stdout);
    }
    drain();
    exit(0);
}

int main(void)
{
    pthread_t thread;
    pthread_create(&thread, 0, dequeue, 0);
    printf("%d\n", getpid());
    fflush(stdout);
    commands(0);
}
