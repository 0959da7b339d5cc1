// Whether the first bytes of a connection are a request of HTTP/1.

// The first four bytes of buffers that may each be shorter. 1: they cannot be read.
static __always_inline int gather(char* b, u64 entry, u64 entries)
{
    u64 at = 0, left = 0;
    u32 have = 0;
    for (int i = 0; i < 12 && have < 4; i++) {
        if (!left) {
            struct user_iovec v = {};
            if (!entries || bpf_probe_read_user(&v, sizeof(v), (void*)entry))
                return 1;
            entries--;
            entry += sizeof(v);
            at = v.base;
            left = v.len;
            continue;
        }
        if (bpf_probe_read_user(b + (have & 3), 1, (void*)at))
            return 1;
        have++;
        at++;
        left--;
    }
    return 0;
}

// What bytes begin like: 0 an HTTP/1 request, else what they are counted as.
static __always_inline int looks_like(struct call* call, u64 total)
{
    u64 at = call->addr, left = total, entry = call->addr, entries = call->count;
    if (call->shape == MESSAGES) {
        struct user_msg m = {};
        if (bpf_probe_read_user(&m, sizeof(m), (void*)at))
            return WIRE_UNSUPPORTED;
        entry = m.iov;
        entries = m.iov_len;
    }
    if (call->shape != BUFFER)
        left = 0;
    if (total < 4 || call->shape == OPAQUE)
        return WIRE_UNSUPPORTED;
    char b[4] = {};
    struct user_iovec first = {};
    if (call->shape != BUFFER && entries && !bpf_probe_read_user(&first, sizeof(first), (void*)entry)) {
        at = first.base;
        left = first.len < total ? first.len : total;
    }
    if (left >= sizeof(b)) {
        // Most calls: the bytes stand together.
        if (bpf_probe_read_user(b, sizeof(b), (void*)at))
            return WIRE_UNSUPPORTED;
    } else if (gather(b, entry, entries)) {
        return WIRE_UNSUPPORTED;
    }
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
