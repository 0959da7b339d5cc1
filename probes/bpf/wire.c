// The traffic of HTTP connections of chosen processes, from syscall tracepoints.
//
// A connection is a socket that a target accepted, or on which a read of a target began with an HTTP method.
// It is known by the kernel's socket, whichever descriptor of whichever target it is used by. Files and pipes
// cost two map look-ups a call. So do other sockets, and each of their reads a look at its first bytes as
// well. Nothing of them comes to user space. Of each call a bounded part is copied to the ring buffer, in
// slices, each with its offset in the direction's byte stream: whoever reads the slices sees every hole, be
// it a copy limit, a full ring, or bytes that the program never had in its hands.
#include "wire_options.h"

#include "pid.h"
#include "wire_records.h"

#define HEADER (sizeof(struct record) - SCRATCH)

#define MSG_OOB 1
#define MSG_PEEK 2
#define MSG_TRUNC 0x20
#define MSG_ERRQUEUE 0x2000
#define CLOSE_RANGE_CLOEXEC 4

// The argument block of a syscall tracepoint, the same on every architecture with 64-bit longs.
struct enter_ctx {
    u64 common;
    long nr;
    u64 args[6];
};
struct exit_ctx {
    u64 common;
    long nr;
    long ret;
};

BPF_HASH(targets, u32, u8, 4096);
BPF_HASH(calls, u64, struct call, 16384);
BPF_HASH(connections, u64, struct connection, 65536);
// By process and descriptor. One that was dropped is looked up in the kernel's table again.
LRU_HASH(descriptors, u64, struct descriptor, 65536);
BPF_PERCPU_ARRAY(losses, u64, N_LOSSES);
BPF_ARRAY(uring_used, u32, 1);  // whether a target was seen to use io_uring
BPF_PERCPU_ARRAY(scratch, struct record, 1);
BPF_PERCPU_ARRAY(walks, struct walk, 1);
BPF_PERCPU_ARRAY(bursts, u64, 1);  // bytes recorded since the last wake-up
BPF_RINGBUF_OUTPUT(records, RING_PAGES);

static __always_inline void lose(int what, u64 n)
{
    u64* count = losses.lookup(&what);
    if (count)
        *count += n;
}

static __always_inline int is_target(u64 id)
{
    u32 tgid = id >> 32;
    return targets.lookup(&tgid) != 0;
}

static __always_inline u64 descriptor_key(u64 id, u32 fd)
{
    return (id >> 32 << 32) | fd;
}

#include "wire_files.c"

static __always_inline void emit(struct record* r, u32 length)
{
    // The reader drains on a timer. A wake-up for each record would cost more than the record, so only bursts
    // that could fill the ring wake it.
    int zero = 0;
    u64* burst = bursts.lookup(&zero);
    u64 flags = BPF_RB_NO_WAKEUP;
    if (length > SLICE)
        length = SLICE;
    if (burst) {
        *burst += HEADER + length;
        if (*burst > RING_PAGES * 4096 / 16) {
            *burst = 0;
            flags = BPF_RB_FORCE_WAKEUP;
        }
    }
    if (records.ringbuf_output(r, HEADER + length, flags))
        lose(WIRE_LOST, 1);
}

static __always_inline void emit_mark(u64 id, u32 fd, struct connection* c, u8 kind)
{
    struct mark m = {};
    m.t = bpf_ktime_get_ns();
    m.called = m.t;
    m.connection = c->id;
    m.tgid = id >> 32;
    m.fd = fd;
    m.kind = kind;
#ifdef FILES
    m.socket = 1;
#endif
    if (records.ringbuf_output(&m, sizeof(m), BPF_RB_NO_WAKEUP))
        lose(WIRE_LOST, 1);
}

#include "wire_ends.c"

#include "wire_copy.c"

#include "wire_first.c"

// A descriptor that is used for the first time, or for the first time in long.
static __always_inline struct descriptor* know(u64 key)
{
    struct descriptor fresh = {};
#ifdef FILES
    fresh.connection = socket_of(file_of((u32)key));
    fresh.state = fresh.connection ? SOCKET : NOT_FOLLOWED;
#else
    fresh.connection = key;
    fresh.state = SOCKET;
#endif
    struct connection* c = connections.lookup(&fresh.connection);
    if (c && c->state == HTTP)
        fresh.state = LIVE;
#ifdef ENDS
    if (!c && fresh.connection)
        tell_socket(key, fresh.connection);
#endif
    descriptors.update(&key, &fresh);
    return descriptors.lookup(&key);
}

// A thread keeps its entry: writing into it costs less than adding and removing one for each call.
static __always_inline void begin(u64 id, struct call* call)
{
    struct call* kept = calls.lookup(&id);
    if (kept)
        *kept = *call;
    else if (calls.update(&id, call))
        lose(WIRE_CALLS_LOST, 1);
}

// The call that the thread is in, or 0.
static __always_inline struct call* call_of(u64 id)
{
    struct call* call = calls.lookup(&id);
    return call && call->shape != NO_CALL ? call : 0;
}

static __always_inline int enter(struct enter_ctx* ctx, u32 fd, u8 direction, u8 shape, u64 addr, u64 count)
{
    u64 id = pid_tgid();
    if (!is_target(id))
        return 0;
    u64 key = descriptor_key(id, fd);
    struct descriptor* d = descriptors.lookup(&key);
    if (!d)
        d = know(key);
    if (!d || d->state == NOT_FOLLOWED || (d->state != LIVE && direction == OUT))
        return 0;
    struct call call = {};
    call.start = bpf_ktime_get_ns();
    call.addr = addr;
    call.count = count;
    call.connection = d->connection;
    call.live = d->state == LIVE;
    call.fd = fd;
    call.shape = shape;
    call.direction = direction;
    begin(id, &call);
    return 1;
}

static __always_inline int enter_message(struct enter_ctx* ctx, u8 direction)
{
    if (!is_target(pid_tgid()))
        return 0;
    struct user_msg m = {};
    if (bpf_probe_read_user(&m, sizeof(m), (void*)ctx->args[1]))
        return 0;
    enter(ctx, ctx->args[0], direction, VECTOR, m.iov, m.iov_len);
    return 0;
}

// A look without taking, and what comes beside the stream (urgent data, the queue of errors), are not
// followed. MSG_TRUNC throws the bytes away.
#define BESIDE(flags) ((flags) & (MSG_PEEK | MSG_OOB | MSG_ERRQUEUE))
#define TAKEN(flags, shape) ((flags) & MSG_TRUNC ? OPAQUE : (shape))

SYSCALL int enter_read(struct enter_ctx* ctx)
{
    enter(ctx, ctx->args[0], IN, BUFFER, ctx->args[1], ctx->args[2]);
    return 0;
}
SYSCALL int enter_readv(struct enter_ctx* ctx)
{
    enter(ctx, ctx->args[0], IN, VECTOR, ctx->args[1], ctx->args[2]);
    return 0;
}
SYSCALL int enter_recvfrom(struct enter_ctx* ctx)
{
    u64 flags = ctx->args[3];
    if (!BESIDE(flags))
        enter(ctx, ctx->args[0], IN, TAKEN(flags, BUFFER), ctx->args[1], ctx->args[2]);
    return 0;
}
SYSCALL int enter_recvmsg(struct enter_ctx* ctx)
{
    u64 flags = ctx->args[2];
    if (BESIDE(flags))
        return 0;
    if (flags & MSG_TRUNC) {
        enter(ctx, ctx->args[0], IN, OPAQUE, 0, 0);
        return 0;
    }
    return enter_message(ctx, IN);
}
SYSCALL int enter_recvmmsg(struct enter_ctx* ctx)
{
    u64 flags = ctx->args[3];
    if (!BESIDE(flags))
        enter(ctx, ctx->args[0], IN, TAKEN(flags, MESSAGES), ctx->args[1], 0);
    return 0;
}
SYSCALL int enter_write(struct enter_ctx* ctx)
{
    enter(ctx, ctx->args[0], OUT, BUFFER, ctx->args[1], ctx->args[2]);
    return 0;
}
SYSCALL int enter_writev(struct enter_ctx* ctx)
{
    enter(ctx, ctx->args[0], OUT, VECTOR, ctx->args[1], ctx->args[2]);
    return 0;
}
SYSCALL int enter_sendmsg(struct enter_ctx* ctx)
{
    return enter_message(ctx, OUT);
}
SYSCALL int enter_sendmmsg(struct enter_ctx* ctx)
{
    enter(ctx, ctx->args[0], OUT, MESSAGES, ctx->args[1], 0);
    return 0;
}
// From a file or a pipe to a socket, or from a socket to a pipe, without passing through the program.
SYSCALL int enter_sendfile(struct enter_ctx* ctx)
{
    enter(ctx, ctx->args[0], OUT, OPAQUE, 0, 0);
    return 0;
}
SYSCALL int enter_splice(struct enter_ctx* ctx)
{
    if (!enter(ctx, ctx->args[2], OUT, OPAQUE, 0, 0))
        enter(ctx, ctx->args[0], IN, OPAQUE, 0, 0);
    return 0;
}

static __always_inline struct connection* open_connection(u64 id, struct call* call)
{
    struct connection* c = connections.lookup(&call->connection);
    if (!c) {
        struct connection fresh = {};
        fresh.id = bpf_ktime_get_ns();
        fresh.tgid = id >> 32;
        if (connections.update(&call->connection, &fresh)) {
            lose(WIRE_CONNECTIONS_LOST, 1);
            return 0;
        }
        c = connections.lookup(&call->connection);
        if (!c)
            return 0;
    }
    c->state = HTTP;
#ifdef ENDS
    emit_ends(id, call->fd, c->id, KIND_OPEN, call->connection);
#else
    emit_mark(id, call->fd, c, KIND_OPEN);
#endif
    return c;
}

static __always_inline void set_descriptor(u64 id, struct call* call, u32 state)
{
    u64 key = descriptor_key(id, call->fd);
    struct descriptor* d = descriptors.lookup(&key);
    if (d)
        d->state = state;
}

static __always_inline int finish(u64 id, struct call* call, u64 total, int may_be_short)
{
    struct connection* c = connections.lookup(&call->connection);
    if (!c || c->state == FRESH) {
        if (call->direction == OUT)
            return 0;
        int what = looks_like(call, total);
        if (what) {
            if (c) {
                lose(what, 1);
                connections.delete(&call->connection);
                // Too short to tell: it may yet begin with a request.
                if (total >= 4)
                    set_descriptor(id, call, NOT_FOLLOWED);
            }
            return 0;
        }
        c = open_connection(id, call);
        if (!c)
            return 0;
    }
    if (!call->live)
        set_descriptor(id, call, LIVE);
    // A write is dated by its start, since its data leave during the call.
    u64 t = call->direction == OUT ? call->start : call->arrived ? call->arrived : bpf_ktime_get_ns();
    emit_data(id, call, c, t, total, may_be_short);
    return 0;
}

SYSCALL int exit_transfer(struct exit_ctx* ctx)
{
    u64 id = pid_tgid();
    struct call* saved = call_of(id);
    if (!saved)
        return 0;
    struct call call = *saved;
    saved->shape = NO_CALL;
    if (ctx->ret <= 0)
        return 0;
    return finish(id, &call, ctx->ret, 1);
}

SYSCALL int exit_messages(struct exit_ctx* ctx)
{
    u64 id = pid_tgid();
    struct call* saved = call_of(id);
    if (!saved)
        return 0;
    struct call call = *saved;
    saved->shape = NO_CALL;
    u64 total = 0;
    struct user_mmsg* messages = (struct user_mmsg*)call.addr;
    if (ctx->ret <= 0)
        return 0;
    if (ctx->ret > MAX_MESSAGES)
        lose(WIRE_CALLS_LOST, 1);
#pragma clang loop unroll(disable)
    for (int i = 0; i < MAX_MESSAGES; i++) {
        u32 length = 0;
        if (i >= ctx->ret || bpf_probe_read_user(&length, sizeof(length), &messages[i].len))
            break;
        total += length;
    }
    call.count = ctx->ret;
    return total ? finish(id, &call, total, 0) : 0;
}

// A thread that lets io_uring work: what moves meanwhile is counted (wire_sockets.c).
SYSCALL int enter_uring(struct enter_ctx* ctx)
{
    u64 id = pid_tgid();
    if (!is_target(id))
        return 0;
    int zero = 0;
    u32* used = uring_used.lookup(&zero);
    if (used)
        *used = 1;
    struct call call = {};
    call.shape = URING;
    begin(id, &call);
    return 0;
}
SYSCALL int exit_uring(struct exit_ctx* ctx)
{
    u64 id = pid_tgid();
    struct call* call = calls.lookup(&id);
    if (call && call->shape == URING)
        call->shape = NO_CALL;
    return 0;
}

// A thread ends. One that is killed leaves its entry until its process ends.
SYSCALL int enter_exit(struct enter_ctx* ctx)
{
    u64 id = pid_tgid();
    if (is_target(id))
        calls.delete(&id);
    return 0;
}

static __always_inline void forget(u64 id, u32 fd)
{
    u64 key = descriptor_key(id, fd);
    struct descriptor* d = descriptors.lookup(&key);
#ifdef FILES
    if (!d)
        return;
    u64 at = d->connection;
    descriptors.delete(&key);
    if (!at)
        return;
#else
    u64 at = key;
    if (d)
        descriptors.delete(&key);
#endif
    struct connection* c = connections.lookup(&at);
#ifdef ENDS
    if (!c && !is_shared(fd))
        tell_gone(at);
#endif
    if (!c)
        return;
#ifdef FILES
    if (is_shared(fd))
        return;
#endif
    if (c->state == HTTP)
        emit_mark(id, fd, c, KIND_CLOSE);
    connections.delete(&at);
}

SYSCALL int exit_accept(struct exit_ctx* ctx)
{
    u64 id = pid_tgid();
    if (ctx->ret < 0 || !is_target(id))
        return 0;
    u32 fd = ctx->ret;
    // An fd that is open here was closed in a way that was not seen.
    forget(id, fd);
    u64 key = descriptor_key(id, fd);
    struct descriptor d = {};
    d.state = SOCKET;
#ifdef FILES
    d.connection = socket_of(file_of(fd));
    if (!d.connection)
        return 0;
    struct connection* old = connections.lookup(&d.connection);
    if (old && old->state == HTTP)
        emit_mark(id, fd, old, KIND_CLOSE);  // the kernel has used the memory again
#else
    d.connection = key;
#endif
    struct connection fresh = {};
    fresh.id = bpf_ktime_get_ns();
    fresh.tgid = id >> 32;
    if (connections.update(&d.connection, &fresh))
        lose(WIRE_CONNECTIONS_LOST, 1);
    descriptors.update(&key, &d);
    return 0;
}

SYSCALL int enter_close(struct enter_ctx* ctx)
{
    u64 id = pid_tgid();
    if (is_target(id))
        forget(id, ctx->args[0]);
    return 0;
}

// Closes the descriptor that it gives another meaning.
SYSCALL int enter_dup2(struct enter_ctx* ctx)
{
    u64 id = pid_tgid();
    if (is_target(id) && (u32)ctx->args[0] != (u32)ctx->args[1])
        forget(id, ctx->args[1]);
    return 0;
}

// The tracer goes through the descriptors: their number is not bounded.
SYSCALL int enter_close_range(struct enter_ctx* ctx)
{
    u64 id = pid_tgid();
    if (!is_target(id) || ctx->args[2] & CLOSE_RANGE_CLOEXEC)
        return 0;
    struct mark m = {};
    m.t = bpf_ktime_get_ns();
    m.tgid = id >> 32;
    m.kind = KIND_CLOSED_RANGE;
    m.offset = (u32)ctx->args[0];
    m.span = ctx->args[1];
    if (records.ringbuf_output(&m, sizeof(m), BPF_RB_NO_WAKEUP))
        lose(WIRE_LOST, 1);
    return 0;
}

#include "wire_sockets.c"
