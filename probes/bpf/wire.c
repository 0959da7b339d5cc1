// The traffic of HTTP connections of chosen processes, from syscall tracepoints.
//
// A connection is an fd of a target on which a read began with an HTTP method, or which accept returned; all other
// fds cost one or two map look-ups a call and nothing in user space. Of each call a bounded prefix is copied to the
// ring buffer, in slices, each with its offset in the direction's byte stream: whoever reads the slices sees every
// hole, be it a copy limit or a full ring.
//
// Compiled by bcc. -DMAX_IN_SLICES, -DMAX_OUT_SLICES: slices copied of one call. -DSOCKET_TIME: the tracepoints of
// `_SOCKET_TIME` in wire.py exist, and SOCK_FAMILY, SOCK_PROTOCOL, TCP_WRITE_SEQ and TCP_SND_NXT are offsets in this
// kernel's struct tcp_sock: so a read can be dated by when its first byte reached the socket rather than by when the
// program came round to it, and what a write left unsent (Nagle's algorithm, a full window) by the acknowledgement that
// let it go.
// -DTARGET_PIDNS_DEV, _INO: the tracer does not run in the first pid namespace.
//
// The argument block of a syscall tracepoint is the same on every architecture with 64-bit longs.

struct enter_ctx { u64 common; long nr; u64 args[6]; };
struct exit_ctx { u64 common; long nr; long ret; };

struct user_iovec { u64 base; u64 len; };
struct user_msg { u64 name; u32 name_len; u32 pad; u64 iov; u64 iov_len; };

#define SLICE 4096
#define IN 0
#define OUT 1

enum { KIND_OPEN = 1, KIND_DATA, KIND_CLOSE, KIND_SENT };
enum { FRESH, HTTP, OTHER };
// Keep in step with wire.py.
enum { LOST_RECORDS, LOST_CALLS, LOST_CONNECTIONS, UNREADABLE_BYTES, TRUNCATED_BYTES, UNSUPPORTED, TLS, HTTP2, N_LOSSES };

struct call {
    u64 start;
    u64 addr;     // the buffer, or the iovec array
    u64 count;    // its bytes, or entries
    u64 arrived;  // when the socket's data arrived, or 0
    u64 kept;     // when bytes were seen unsent although the write was through, or 0
    u32 unsent;   // how many
    u32 fd;
    u8 vector;
    u8 direction;
};

struct connection {
    u64 id;
    u64 offset[2];
    u32 state;
};

struct record {
    u64 t;       // data: when they arrived, or the start of the write
    u64 called;  // data: when the read returned, or the start of the write
    u64 connection;
    u64 offset;
    u64 sent;    // of a write's stream, the bytes that had been sent when the write was through
    u64 kept;    // when that was seen, if some had not
    u32 tgid;
    u32 fd;
    u32 span;    // bytes of the stream that this record stands for
    u32 length;  // bytes copied, the first of the span
    u8 kind;
    u8 direction;
    u8 pad[6];
    char data[SLICE];
};
#ifdef SOCKET_TIME
// The head of a record, for the program that may interrupt the one which fills a record.
struct mark {
    u64 t, called, connection, offset, sent, kept;
    u32 tgid, fd, span, length;
    u8 kind, direction;
    u8 pad[6];
};
#endif
// Where a copy stands. It is kept in a map because the verifier would otherwise follow every value that it can take.
struct walk {
    u64 left;    // bytes of the call
    u64 part;    // bytes of the present buffer
    u64 at;
    u64 entry;   // the next buffer
    u64 offset;  // in the stream
};

#define HEADER (sizeof(struct record) - SLICE)

BPF_HASH(targets, u32, u8, 4096);
BPF_HASH(calls, u64, struct call, 16384);
BPF_HASH(connections, u64, struct connection, 65536);
BPF_PERCPU_ARRAY(losses, u64, N_LOSSES);
BPF_PERCPU_ARRAY(scratch, struct record, 1);
BPF_PERCPU_ARRAY(walks, struct walk, 1);
BPF_PERCPU_ARRAY(bursts, u64, 1);  // bytes recorded since the last wake-up
BPF_RINGBUF_OUTPUT(records, RING_PAGES);
#ifdef SOCKET_TIME
BPF_PERCPU_ARRAY(marks, struct mark, 1);
#endif

static __always_inline void lose(int what, u64 n)
{
    u64 *count = losses.lookup(&what);
    if (count)
        *count += n;
}

static __always_inline u64 pid_tgid(void)
{
#ifdef TARGET_PIDNS_INO
    struct bpf_pidns_info ns = {};
    if (bpf_get_ns_current_pid_tgid(TARGET_PIDNS_DEV, TARGET_PIDNS_INO, &ns, sizeof(ns)) == 0)
        return ((u64)ns.tgid << 32) | ns.pid;
#endif
    return bpf_get_current_pid_tgid();
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

static __always_inline void emit(struct record *r, u32 length)
{
    // The reader drains on a timer. A wake-up for each record would cost more than the record, so only bursts that
    // could fill the ring wake it.
    int zero = 0;
    u64 *burst = bursts.lookup(&zero);
    u64 flags = BPF_RB_NO_WAKEUP;
    if (length > SLICE)
        length = SLICE;
    if (burst) {
        *burst += HEADER + length;
        if (*burst > RING_PAGES * 4096ull / 16) {
            *burst = 0;
            flags = BPF_RB_FORCE_WAKEUP;
        }
    }
    if (records.ringbuf_output(r, HEADER + length, flags))
        lose(LOST_RECORDS, 1);
}

static __always_inline void emit_mark(u64 id, u32 fd, struct connection *c, u8 kind)
{
    int zero = 0;
    struct record *r = scratch.lookup(&zero);
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

#ifdef SOCKET_TIME
// Sockets that have unsent bytes of a traced connection, by address.
struct holding {
    u64 connection;
    u64 offset;  // the stream's end when its last write was through
    u32 seq;     // the sequence number there
    u32 tgid;
    u32 fd;
    u32 pad;
};
BPF_TABLE("lru_hash", u64, struct holding, holdings, 16384);
#endif

static __always_inline void emit_data(u64 id, struct call *call, struct connection *c, u64 t, u64 total)
{
    int zero = 0;
    struct record *r = scratch.lookup(&zero);
    struct walk *w = walks.lookup(&zero);
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
            if (w->entry >= call->count || bpf_probe_read_user(&v, sizeof(v), (void *)(call->addr + w->entry * sizeof(v))))
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
        if (bpf_probe_read_user(r->data, n, (void *)w->at)) {
            lose(UNREADABLE_BYTES, n);
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
        lose(TRUNCATED_BYTES, w->left);
        r->offset = w->offset;
        r->span = w->left;
        r->length = 0;
        emit(r, 0);
    }
}

// What bytes begin like: 0 an HTTP/1 request, else what they are counted as.
static __always_inline int looks_like(struct call *call, u64 total)
{
    u64 at = call->addr;
    if (call->vector) {
        struct user_iovec v = {};
        if (bpf_probe_read_user(&v, sizeof(v), (void *)at))
            return UNSUPPORTED;
        at = v.base;
        if (v.len < total)
            total = v.len;
    }
    char b[4] = {};
    if (total < 4 || bpf_probe_read_user(b, sizeof(b), (void *)at))
        return UNSUPPORTED;
    if (b[0] == 0x16 && b[1] == 3)
        return TLS;
    if (b[0] == 'P' && b[1] == 'R' && b[2] == 'I' && b[3] == ' ')
        return HTTP2;
    int request = (b[0] == 'P' && b[1] == 'O' && b[2] == 'S' && b[3] == 'T') || (b[0] == 'G' && b[1] == 'E' && b[2] == 'T' && b[3] == ' ') ||
           (b[0] == 'P' && b[1] == 'U' && b[2] == 'T' && b[3] == ' ') || (b[0] == 'H' && b[1] == 'E' && b[2] == 'A' && b[3] == 'D') ||
           (b[0] == 'D' && b[1] == 'E' && b[2] == 'L' && b[3] == 'E') || (b[0] == 'O' && b[1] == 'P' && b[2] == 'T' && b[3] == 'I') ||
           (b[0] == 'P' && b[1] == 'A' && b[2] == 'T' && b[3] == 'C');
    return request ? 0 : UNSUPPORTED;
}

static __always_inline int enter(struct enter_ctx *ctx, u8 direction, u64 addr, u64 count, u8 vector)
{
    u64 id = pid_tgid();
    if (!is_target(id))
        return 0;
    u64 key = connection_key(id, ctx->args[0]);
    struct connection *c = connections.lookup(&key);
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
        lose(LOST_CALLS, 1);
    return 0;
}

static __always_inline int enter_message(struct enter_ctx *ctx, u8 direction)
{
    if (!is_target(pid_tgid()))
        return 0;
    struct user_msg m = {};
    if (bpf_probe_read_user(&m, sizeof(m), (void *)ctx->args[1]))
        return 0;
    return enter(ctx, direction, m.iov, m.iov_len, 1);
}

int enter_read(struct enter_ctx *ctx) { return enter(ctx, IN, ctx->args[1], ctx->args[2], 0); }
int enter_readv(struct enter_ctx *ctx) { return enter(ctx, IN, ctx->args[1], ctx->args[2], 1); }
int enter_recvmsg(struct enter_ctx *ctx) { return enter_message(ctx, IN); }
int enter_write(struct enter_ctx *ctx) { return enter(ctx, OUT, ctx->args[1], ctx->args[2], 0); }
int enter_writev(struct enter_ctx *ctx) { return enter(ctx, OUT, ctx->args[1], ctx->args[2], 1); }
int enter_sendmsg(struct enter_ctx *ctx) { return enter_message(ctx, OUT); }

int exit_transfer(struct exit_ctx *ctx)
{
    u64 id = pid_tgid();
    struct call *saved = calls.lookup(&id);
    if (!saved)
        return 0;
    struct call call = *saved;
    calls.delete(&id);
    if (ctx->ret <= 0)
        return 0;
    u64 key = connection_key(id, call.fd);
    struct connection *c = connections.lookup(&key);
    if (!c) {
        if (call.direction == OUT || looks_like(&call, ctx->ret))
            return 0;
        struct connection fresh = {};
        fresh.id = bpf_ktime_get_ns();
        fresh.state = HTTP;
        if (connections.update(&key, &fresh)) {
            lose(LOST_CONNECTIONS, 1);
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
    struct connection *c = connections.lookup(&key);
    if (!c)
        return;
    if (c->state == HTTP)
        emit_mark(id, fd, c, KIND_CLOSE);
    connections.delete(&key);
}

int exit_accept(struct exit_ctx *ctx)
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
        lose(LOST_CONNECTIONS, 1);
    return 0;
}

int enter_close(struct enter_ctx *ctx)
{
    u64 id = pid_tgid();
    if (is_target(id))
        forget(id, ctx->args[0]);
    return 0;
}

#ifdef SOCKET_TIME
// When the oldest unread data of a socket arrived, by the socket's address. Sockets of all processes are in it, since
// data may arrive before anyone has read from the socket and thereby shown whose it is.
BPF_TABLE("lru_hash", u64, u64, ready, 16384);

// These run in interrupts, amid the programs above too. A program on a plain tracepoint is passed over while another
// one runs on the CPU; one on a raw tracepoint is not, but is given nothing except the socket.
static __always_inline int is_tcp(u64 sock)
{
    u16 family = 0, protocol = 0;
    if (bpf_probe_read_kernel(&family, sizeof(family), (void *)(sock + SOCK_FAMILY)) ||
        bpf_probe_read_kernel(&protocol, sizeof(protocol), (void *)(sock + SOCK_PROTOCOL)))
        return 0;
    return (family == 2 || family == 10) && protocol == 6;
}

RAW_TRACEPOINT_PROBE(sk_data_ready)
{
    u64 sock = ctx->args[0];
    if (is_tcp(sock) && !ready.lookup(&sock)) {
        u64 now = bpf_ktime_get_ns();
        ready.update(&sock, &now);
    }
    return 0;
}

RAW_TRACEPOINT_PROBE(sock_recv_length)
{
    u64 sock = ctx->args[0];
    if ((int)ctx->args[1] <= 0 || ctx->args[2] & 2 /* MSG_PEEK */)
        return 0;
    u64 *arrived = ready.lookup(&sock);
    if (!arrived)
        return 0;
    u64 id = pid_tgid();
    struct call *call = calls.lookup(&id);
    if (call && call->direction == IN)
        call->arrived = *arrived;
    ready.delete(&sock);
    return 0;
}

RAW_TRACEPOINT_PROBE(tcp_destroy_sock)
{
    u64 sock = ctx->args[0];
    ready.delete(&sock);
    holdings.delete(&sock);
    return 0;
}

RAW_TRACEPOINT_PROBE(sock_send_length)
{
    u64 id = pid_tgid();
    struct call *call = calls.lookup(&id);
    if (!call || call->direction != OUT)
        return 0;
    u32 written = 0, next = 0;
    u64 sock = ctx->args[0];
    int bytes = ctx->args[1];
    if (bytes <= 0 || !is_tcp(sock))
        return 0;
    if (bpf_probe_read_kernel(&written, sizeof(written), (void *)(sock + TCP_WRITE_SEQ)) ||
        bpf_probe_read_kernel(&next, sizeof(next), (void *)(sock + TCP_SND_NXT)))
        return 0;
    if (written == next) {
        holdings.delete(&sock);
        return 0;
    }
    u64 key = connection_key(id, call->fd);
    struct connection *c = connections.lookup(&key);
    if (!c)
        return 0;
    struct holding h = {};
    h.connection = c->id;
    h.offset = c->offset[OUT] + bytes;
    h.seq = written;
    h.tgid = id >> 32;
    h.fd = call->fd;
    holdings.update(&sock, &h);
    // Look again: an acknowledgement that came before the entry was there has shown itself to nobody.
    call->kept = bpf_ktime_get_ns();
    if (bpf_probe_read_kernel(&next, sizeof(next), (void *)(sock + TCP_SND_NXT)))
        return 0;
    call->unsent = written - next;
    return 0;
}

// A segment of the peer's has come and is about to be processed. What is unsent now goes with it or later.
RAW_TRACEPOINT_PROBE(tcp_probe)
{
    u64 sock = ctx->args[0];
    u32 next = 0;
    struct holding *h = holdings.lookup(&sock);
    if (!h)
        return 0;
    int zero = 0;
    struct mark *m = marks.lookup(&zero);
    if (!m)
        return 0;
    if (bpf_probe_read_kernel(&next, sizeof(next), (void *)(sock + TCP_SND_NXT)))
        return 0;
    s32 left = h->seq - next;
    m->t = bpf_ktime_get_ns();
    m->called = m->t;
    m->connection = h->connection;
    m->offset = 0;
    m->sent = h->offset - (s64)left;
    m->kept = 0;
    m->tgid = h->tgid;
    m->fd = h->fd;
    m->span = 0;
    m->length = 0;
    m->kind = KIND_SENT;
    m->direction = OUT;
    if (left <= 0)
        holdings.delete(&sock);
    if (records.ringbuf_output(m, sizeof(*m), BPF_RB_NO_WAKEUP))
        lose(LOST_RECORDS, 1);
    return 0;
}
#endif
