// Raw tracepoints of TCP sockets, which date what the calls of wire.c read and wrote: a read by when its
// first byte reached the socket rather than by when the program came round to it, and what a write left
// unsent (Nagle's algorithm, a full window) by the acknowledgement that let it go.
//
// SOCKET_TIME: the tracepoints of `_SOCKET_TIME` in wire.py exist, and SOCK_FAMILY, SOCK_PROTOCOL,
// TCP_WRITE_SEQ and TCP_SND_NXT are offsets in this kernel's struct tcp_sock.

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
LRU_HASH(holdings, u64, struct holding, 16384);

BPF_PERCPU_ARRAY(marks, struct mark, 1);

// When the oldest unread data of a socket arrived, by the socket's address. Sockets of all processes are in
// it, since data may arrive before anyone has read from the socket and thereby shown whose it is.
LRU_HASH(ready, u64, u64, 16384);

// These run in interrupts, amid the programs above too. A program on a plain tracepoint is passed over while
// another one runs on the CPU; one on a raw tracepoint is not, but is given nothing except the socket.
RAW int on_sk_data_ready(struct bpf_raw_tracepoint_args* ctx)
{
    u64 sock = ctx->args[0];
    if (is_tcp(sock) && !ready.lookup(&sock)) {
        u64 now = bpf_ktime_get_ns();
        ready.update(&sock, &now);
    }
    return 0;
}

// Bytes of a connection that no followed call moves: io_uring's, or a process's that is not watched. The
// stream goes on behind them.
static __always_inline void unseen(u64 id, struct call* call, struct connection* c, u32 bytes, u8 direction)
{
    lose(call && call->shape == URING ? WIRE_IO_URING_BYTES : WIRE_UNSEEN_BYTES, bytes);
    struct mark m = {};
    m.t = bpf_ktime_get_ns();
    m.called = m.t;
    m.connection = c->id;
    m.offset = c->offset[direction & 1];
    m.sent = m.offset + bytes;
    m.tgid = id >> 32;
    m.fd = ~0U;  // not known
    m.span = bytes;
    m.kind = KIND_DATA;
    m.direction = direction;
    m.first = 1;
    c->offset[direction & 1] += bytes;
    if (records.ringbuf_output(&m, sizeof(m), BPF_RB_NO_WAKEUP))
        lose(WIRE_LOST, 1);
}

static __always_inline int is_uring_used(void)
{
    int zero = 0;
    u32* used = uring_used.lookup(&zero);
    return used && *used;
}

// Whether the call moves bytes of the socket. Without FILES that is not known, and taken for granted.
static __always_inline int moves(struct call* call, u64 sock, u8 direction)
{
    if (!call || call->shape == URING || call->direction != direction)
        return 0;
#ifdef FILES
    return call->connection == sock;
#else
    return 1;
#endif
}

RAW int on_sock_recv_length(struct bpf_raw_tracepoint_args* ctx)
{
    u64 sock = ctx->args[0];
    int bytes = ctx->args[1];
    if (bytes <= 0 || ctx->args[2] & (MSG_PEEK | MSG_OOB | MSG_ERRQUEUE))
        return 0;
    u64* oldest = ready.lookup(&sock);
    u64 arrived = oldest ? *oldest : 0;
#ifdef FILES
    struct connection* c = connections.lookup(&sock);
    if (!c && !arrived && !is_uring_used())
        return 0;
#else
    if (!arrived)
        return 0;
#endif
    u64 id = pid_tgid();
    struct call* call = call_of(id);
    if (moves(call, sock, IN)) {
        if (!call->arrived)
            call->arrived = arrived;
#ifdef FILES
    } else if (c && c->state == HTTP) {
        unseen(id, call, c, bytes, IN);
    } else if (call && call->shape == URING) {
        lose(WIRE_IO_URING_BYTES, bytes);
#endif
    }
    if (arrived)
        ready.delete(&sock);
    return 0;
}

RAW int on_tcp_destroy_sock(struct bpf_raw_tracepoint_args* ctx)
{
    u64 sock = ctx->args[0];
    ready.delete(&sock);
    holdings.delete(&sock);
#ifdef ENDS
    tell_gone(sock);
#endif
#ifdef FILES
    // Whoever closed it last was not seen doing so.
    struct connection* c = connections.lookup(&sock);
    if (!c)
        return 0;
    if (c->state == HTTP)
        emit_mark((u64)c->tgid << 32, 0, c, KIND_CLOSE);
    connections.delete(&sock);
#endif
    return 0;
}

RAW int on_sock_send_length(struct bpf_raw_tracepoint_args* ctx)
{
    u32 written = 0, next = 0;
    u64 sock = ctx->args[0];
    int bytes = ctx->args[1];
    if (bytes <= 0)
        return 0;
#ifdef FILES
    struct connection* c = connections.lookup(&sock);
    if (!c && !is_uring_used())
        return 0;
#endif
    u64 id = pid_tgid();
    struct call* call = call_of(id);
    if (!moves(call, sock, OUT)) {
#ifdef FILES
        if (c && c->state == HTTP)
            unseen(id, call, c, bytes, OUT);
        else if (call && call->shape == URING)
            lose(WIRE_IO_URING_BYTES, bytes);
#endif
        return 0;
    }
    call->moved += bytes;
    if (!is_tcp(sock))
        return 0;
    if (bpf_probe_read_kernel(&written, sizeof(written), (void*)(sock + TCP_WRITE_SEQ)) ||
        bpf_probe_read_kernel(&next, sizeof(next), (void*)(sock + TCP_SND_NXT)))
        return 0;
    call->unsent = 0;
    if (written == next) {
        holdings.delete(&sock);
        return 0;
    }
#ifndef FILES
    struct connection* c = connections.lookup(&call->connection);
#endif
    if (!c)
        return 0;
    struct holding h = {};
    h.connection = c->id;
    h.offset = c->offset[OUT] + call->moved;
    h.seq = written;
    h.tgid = id >> 32;
    h.fd = call->fd;
    holdings.update(&sock, &h);
    // Look again: an acknowledgement that came before the entry was there has shown itself to nobody.
    call->kept = bpf_ktime_get_ns();
    if (bpf_probe_read_kernel(&next, sizeof(next), (void*)(sock + TCP_SND_NXT)))
        return 0;
    call->unsent = written - next;
    return 0;
}

// A segment of the peer's has come and is about to be processed. What is unsent now goes with it or later.
RAW int on_tcp_probe(struct bpf_raw_tracepoint_args* ctx)
{
    u64 sock = ctx->args[0];
    u32 next = 0;
    struct holding* h = holdings.lookup(&sock);
    if (!h)
        return 0;
    int zero = 0;
    struct mark* m = marks.lookup(&zero);
    if (!m)
        return 0;
    if (bpf_probe_read_kernel(&next, sizeof(next), (void*)(sock + TCP_SND_NXT)))
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
        lose(WIRE_LOST, 1);
    return 0;
}
#endif
