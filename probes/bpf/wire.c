// The traffic of HTTP connections of chosen processes, from syscall tracepoints.
//
// A connection is an fd of a target on which a read began with an HTTP method, or which accept returned; all
// other fds cost one or two map look-ups a call and nothing in user space. Of each call a bounded prefix is
// copied to the ring buffer, in slices, each with its offset in the direction's byte stream: whoever reads
// the slices sees every hole, be it a copy limit or a full ring.
#include "wire_options.h"

#include "pid.h"
#include "wire_records.h"

#define MAX_IN_SLICES 16  // slices copied of one call
#define MAX_OUT_SLICES 8
#define HEADER (sizeof(struct record) - SLICE)

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
BPF_PERCPU_ARRAY(losses, u64, N_LOSSES);
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

static __always_inline u64 connection_key(u64 id, u32 fd)
{
    return (id >> 32 << 32) | fd;
}

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
    int zero = 0;
    struct record* r = scratch.lookup(&zero);
    if (!r)
        return;
    r->t = bpf_ktime_get_ns();
    r->connection = c->id;
    r->called = r->t;
    r->offset = 0;
    r->sent = 0;
    r->kept = 0;
    r->tgid = id >> 32;
    r->fd = fd;
    r->span = 0;
    r->length = 0;
    r->kind = kind;
    r->direction = 0;
    emit(r, 0);
}

static __always_inline void emit_data(u64 id, struct call* call, struct connection* c, u64 t, u64 total)
{
    int zero = 0;
    struct record* r = scratch.lookup(&zero);
    struct walk* w = walks.lookup(&zero);
    if (!r || !w)
        return;
    r->t = t;
    r->called = call->direction == OUT ? call->start : bpf_ktime_get_ns();
    r->connection = c->id;
    r->tgid = id >> 32;
    r->fd = call->fd;
    r->kind = KIND_DATA;
    r->direction = call->direction;

    w->left = total;
    w->offset = c->offset[call->direction & 1];
    w->entry = 0;
    w->at = call->addr;
    w->part = call->vector ? 0 : total;
    c->offset[call->direction & 1] += total;
    r->sent = c->offset[call->direction & 1] - call->unsent;
    r->kept = call->kept;

    int slices = call->direction == IN ? MAX_IN_SLICES : MAX_OUT_SLICES;
    for (int i = 0; i < (MAX_IN_SLICES > MAX_OUT_SLICES ? MAX_IN_SLICES : MAX_OUT_SLICES); i++) {
        if (i >= slices || !w->left)
            break;
        if (!w->part) {
            struct user_iovec v = {};
            if (w->entry >= call->count ||
                bpf_probe_read_user(&v, sizeof(v), (void*)(call->addr + w->entry * sizeof(v))))
                break;
            w->entry++;
            w->at = v.base;
            w->part = v.len < w->left ? v.len : w->left;
        }
        u64 n = w->part;
        if (n > SLICE)
            n = SLICE;
        if (!n)
            continue;
        r->offset = w->offset;
        r->span = n;
        if (bpf_probe_read_user(r->data, n, (void*)w->at)) {
            lose(WIRE_UNREADABLE_BYTES, n);
            r->length = 0;
            emit(r, 0);
        } else {
            r->length = n;
            emit(r, n);
        }
        w->at += n;
        w->part -= n;
        w->left -= n;
        w->offset += n;
    }
    if (w->left) {
        lose(WIRE_TRUNCATED_BYTES, w->left);
        r->offset = w->offset;
        r->span = w->left;
        r->length = 0;
        emit(r, 0);
    }
}

// What bytes begin like: 0 an HTTP/1 request, else what they are counted as.
static __always_inline int looks_like(struct call* call, u64 total)
{
    u64 at = call->addr;
    if (call->vector) {
        struct user_iovec v = {};
        if (bpf_probe_read_user(&v, sizeof(v), (void*)at))
            return WIRE_UNSUPPORTED;
        at = v.base;
        if (v.len < total)
            total = v.len;
    }
    char b[4] = {};
    if (total < 4 || bpf_probe_read_user(b, sizeof(b), (void*)at))
        return WIRE_UNSUPPORTED;
    if (b[0] == 0x16 && b[1] == 3)
        return WIRE_TLS;
    if (b[0] == 'P' && b[1] == 'R' && b[2] == 'I' && b[3] == ' ')
        return WIRE_HTTP2;
    int request = (b[0] == 'P' && b[1] == 'O' && b[2] == 'S' && b[3] == 'T') ||
                  (b[0] == 'G' && b[1] == 'E' && b[2] == 'T' && b[3] == ' ') ||
                  (b[0] == 'P' && b[1] == 'U' && b[2] == 'T' && b[3] == ' ') ||
                  (b[0] == 'H' && b[1] == 'E' && b[2] == 'A' && b[3] == 'D') ||
                  (b[0] == 'D' && b[1] == 'E' && b[2] == 'L' && b[3] == 'E') ||
                  (b[0] == 'O' && b[1] == 'P' && b[2] == 'T' && b[3] == 'I') ||
                  (b[0] == 'P' && b[1] == 'A' && b[2] == 'T' && b[3] == 'C');
    return request ? 0 : WIRE_UNSUPPORTED;
}

static __always_inline int enter(struct enter_ctx* ctx, u8 direction, u64 addr, u64 count, u8 vector)
{
    u64 id = pid_tgid();
    if (!is_target(id))
        return 0;
    u64 key = connection_key(id, ctx->args[0]);
    struct connection* c = connections.lookup(&key);
    if (direction == OUT && (!c || c->state != HTTP))
        return 0;
    if (c && c->state == OTHER)
        return 0;
    struct call call = {};
    call.start = bpf_ktime_get_ns();
    call.addr = addr;
    call.count = count;
    call.fd = ctx->args[0];
    call.vector = vector;
    call.direction = direction;
    if (calls.update(&id, &call))
        lose(WIRE_CALLS_LOST, 1);
    return 0;
}

static __always_inline int enter_message(struct enter_ctx* ctx, u8 direction)
{
    if (!is_target(pid_tgid()))
        return 0;
    struct user_msg m = {};
    if (bpf_probe_read_user(&m, sizeof(m), (void*)ctx->args[1]))
        return 0;
    return enter(ctx, direction, m.iov, m.iov_len, 1);
}

SYSCALL int enter_read(struct enter_ctx* ctx)
{
    return enter(ctx, IN, ctx->args[1], ctx->args[2], 0);
}
SYSCALL int enter_readv(struct enter_ctx* ctx)
{
    return enter(ctx, IN, ctx->args[1], ctx->args[2], 1);
}
SYSCALL int enter_recvmsg(struct enter_ctx* ctx)
{
    return enter_message(ctx, IN);
}
SYSCALL int enter_write(struct enter_ctx* ctx)
{
    return enter(ctx, OUT, ctx->args[1], ctx->args[2], 0);
}
SYSCALL int enter_writev(struct enter_ctx* ctx)
{
    return enter(ctx, OUT, ctx->args[1], ctx->args[2], 1);
}
SYSCALL int enter_sendmsg(struct enter_ctx* ctx)
{
    return enter_message(ctx, OUT);
}

SYSCALL int exit_transfer(struct exit_ctx* ctx)
{
    u64 id = pid_tgid();
    struct call* saved = calls.lookup(&id);
    if (!saved)
        return 0;
    struct call call = *saved;
    calls.delete(&id);
    if (ctx->ret <= 0)
        return 0;
    u64 key = connection_key(id, call.fd);
    struct connection* c = connections.lookup(&key);
    if (!c) {
        if (call.direction == OUT || looks_like(&call, ctx->ret))
            return 0;
        struct connection fresh = {};
        fresh.id = bpf_ktime_get_ns();
        fresh.state = HTTP;
        if (connections.update(&key, &fresh)) {
            lose(WIRE_CONNECTIONS_LOST, 1);
            return 0;
        }
        c = connections.lookup(&key);
        if (!c)
            return 0;
        emit_mark(id, call.fd, c, KIND_OPEN);
    } else if (c->state == FRESH) {
        if (call.direction == OUT)
            return 0;
        int what = looks_like(&call, ctx->ret);
        if (what) {
            c->state = OTHER;
            lose(what, 1);
            return 0;
        }
        c->state = HTTP;
        emit_mark(id, call.fd, c, KIND_OPEN);
    }
    // A write is dated by its start, since its data leave during the call.
    u64 t = call.direction == OUT ? call.start : call.arrived ? call.arrived : bpf_ktime_get_ns();
    emit_data(id, &call, c, t, ctx->ret);
    return 0;
}

static __always_inline void forget(u64 id, u32 fd)
{
    u64 key = connection_key(id, fd);
    struct connection* c = connections.lookup(&key);
    if (!c)
        return;
    if (c->state == HTTP)
        emit_mark(id, fd, c, KIND_CLOSE);
    connections.delete(&key);
}

SYSCALL int exit_accept(struct exit_ctx* ctx)
{
    u64 id = pid_tgid();
    if (ctx->ret < 0 || !is_target(id))
        return 0;
    // An fd that is open here was closed in a way that was not seen.
    forget(id, ctx->ret);
    struct connection fresh = {};
    fresh.id = bpf_ktime_get_ns();
    fresh.state = FRESH;
    u64 key = connection_key(id, ctx->ret);
    if (connections.update(&key, &fresh))
        lose(WIRE_CONNECTIONS_LOST, 1);
    return 0;
}

SYSCALL int enter_close(struct enter_ctx* ctx)
{
    u64 id = pid_tgid();
    if (is_target(id))
        forget(id, ctx->args[0]);
    return 0;
}

#include "wire_sockets.c"
