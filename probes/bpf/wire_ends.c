// The two ends of sockets: by them the tracer knows that what one target asks another is one connection.
//
// ENDS: the loader knows where a socket has its addresses (wire_options.h).

#ifdef SOCKET_TIME
static __always_inline int is_tcp(u64 sock)
{
    u16 family = 0, protocol = 0;
    if (bpf_probe_read_kernel(&family, sizeof(family), (void*)(sock + SOCK_FAMILY)) ||
        bpf_probe_read_kernel(&protocol, sizeof(protocol), (void*)(sock + SOCK_PROTOCOL)))
        return 0;
    return (family == 2 || family == 10) && protocol == 6;
}
#endif

#ifdef ENDS
// Sockets of targets that were told and that no target accepted, by address.
LRU_HASH(outgoing, u64, u8, 65536);

#define AF_UNIX 1
#define AF_INET 2
#define AF_INET6 10

// Whether it is a socket with another end that may be a target's.
static __always_inline int ends_of(u64 sock, struct ends* e)
{
    u16 port = 0;
    if (bpf_probe_read_kernel(&e->family, sizeof(e->family), (void*)(sock + SOCK_FAMILY)))
        return 0;
    if (e->family == AF_UNIX) {
        if (!EXISTS(unix_sock, peer))
            return 0;
        bpf_probe_read_kernel(&e->peer, sizeof(e->peer), (void*)(sock + OFFSET_OF(unix_sock, peer)));
        return e->peer != 0;
    }
    if (!is_tcp(sock))
        return 0;
    bpf_probe_read_kernel(&e->local_port, 2, (void*)(sock + OFFSET_OF(sock, __sk_common.skc_num)));
    bpf_probe_read_kernel(&port, 2, (void*)(sock + OFFSET_OF(sock, __sk_common.skc_dport)));
    e->remote_port = __builtin_bswap16(port);
    if (e->family == AF_INET) {
        bpf_probe_read_kernel(e->local, 4, (void*)(sock + OFFSET_OF(sock, __sk_common.skc_rcv_saddr)));
        bpf_probe_read_kernel(e->remote, 4, (void*)(sock + OFFSET_OF(sock, __sk_common.skc_daddr)));
    } else if (EXISTS(sock, __sk_common.skc_v6_daddr)) {
        bpf_probe_read_kernel(e->local, 16, (void*)(sock + OFFSET_OF(sock, __sk_common.skc_v6_rcv_saddr)));
        bpf_probe_read_kernel(e->remote, 16, (void*)(sock + OFFSET_OF(sock, __sk_common.skc_v6_daddr)));
    }
    return e->remote_port != 0;
}

// Tells of a socket with its ends. Returns whether it has two.
static __always_inline int emit_ends(u64 id, u32 fd, u64 connection, u8 kind, u64 sock)
{
    struct mark_of_ends m = {};
    int two = ends_of(sock, &m.ends);
    if (!two && kind != KIND_OPEN)
        return 0;
    m.mark.t = bpf_ktime_get_ns();
    m.mark.called = m.mark.t;
    m.mark.connection = connection;
    m.mark.tgid = id >> 32;
    m.mark.fd = fd;
    m.mark.kind = kind;
    m.mark.socket = 1;
    if (records.ringbuf_output(&m, sizeof(m), BPF_RB_NO_WAKEUP))
        lose(WIRE_LOST, 1);
    return two;
}

// A socket that a target uses and did not accept.
static __always_inline void tell_socket(u64 key, u64 sock)
{
    u8 one = 1;
    if (emit_ends(key, (u32)key, sock, KIND_SOCKET, sock))
        outgoing.update(&sock, &one);
}

static __always_inline void tell_gone(u64 sock)
{
    if (!outgoing.lookup(&sock))
        return;
    outgoing.delete(&sock);
    struct mark m = {};
    m.t = bpf_ktime_get_ns();
    m.called = m.t;
    m.connection = sock;
    m.kind = KIND_GONE;
    if (records.ringbuf_output(&m, sizeof(m), BPF_RB_NO_WAKEUP))
        lose(WIRE_LOST, 1);
}
#endif
