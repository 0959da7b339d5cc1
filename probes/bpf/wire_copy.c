// Copying a call's bytes: parts of any length, from one buffer, an array of buffers or an array of messages,
// are put together into slices, and each full slice is a record.

// Buffers and slices, and messages, looked at of one call. The kernel allows 1,024 buffers, and as many
// messages. bcc makes one function of all, which the verifier follows turn by turn.
#ifdef FLEXNPU_CORE
#define MAX_PARTS 1152
#define MAX_MESSAGES 1024
#define TURN __attribute__((noinline))
#else
#define MAX_PARTS 96
#define MAX_MESSAGES 32
#define TURN static __always_inline
#endif

static __always_inline void flush(struct record* r, struct walk* w)
{
    u32 fill = w->fill;
    if (!fill)
        return;
    r->offset = w->offset - fill;
    r->span = fill;
    r->length = fill;
    r->first = r->offset == w->start;
    w->told = w->offset;
    w->fill = 0;
    emit(r, fill);
}

static __always_inline int next_buffer(struct walk* w)
{
    if (!w->entries) {
        struct user_mmsg m = {};
        if (!w->messages || bpf_probe_read_user(&m, sizeof(m), (void*)w->message))
            return 0;
        w->message += sizeof(m);
        w->messages--;
        w->vector = m.head.iov;
        w->entries = m.head.iov_len;
        w->message_left = m.len;
        return 1;
    }
    struct user_iovec v = {};
    if (bpf_probe_read_user(&v, sizeof(v), (void*)w->vector))
        return 0;
    w->vector += sizeof(v);
    w->entries--;
    w->at = v.base;
    w->part = v.len < w->message_left ? v.len : w->message_left;
    w->message_left -= w->part;
    if (!w->message_left)
        w->entries = 0;
    return 1;
}

// Takes one part. 0: there is no more.
TURN int copy_part(void)
{
    int zero = 0;
    struct record* r = scratch.lookup(&zero);
    struct walk* w = walks.lookup(&zero);
    if (!r || !w || !w->left)
        return 0;
    if (!w->part && !next_buffer(w))
        return 0;
    u64 n = w->part;
    if (w->skip) {
        if (n > w->skip)
            n = w->skip;
        w->skip -= n;
    } else {
        u64 fill = w->fill;
        if (fill >= SLICE)
            return 0;
        if (n > SLICE - fill)
            n = SLICE - fill;
        if (n > w->room)
            n = w->room;
        if (n > SLICE)
            return 0;
        if (!n)
            return 1;
        if (bpf_probe_read_user(r->data + fill, n, (void*)w->at)) {
            lose(WIRE_UNREADABLE_BYTES, n);
            flush(r, w);
        } else {
            w->fill = fill + n;
        }
        w->room -= n;
    }
    w->at += n;
    w->part -= n;
    w->left -= n;
    w->offset += n;
    if (!w->room) {
        flush(r, w);
        w->room = SLICE;
        if (w->left > SLICE) {
            w->skip = w->left - SLICE;
            lose(WIRE_TRUNCATED_BYTES, w->skip);
        }
    } else if (w->fill >= SLICE) {
        flush(r, w);
    }
    return 1;
}

static __always_inline void emit_data(u64 id, struct call* call, struct connection* c, u64 t, u64 total,
                                      int may_be_short)
{
    int zero = 0;
    struct record* r = scratch.lookup(&zero);
    struct walk* w = walks.lookup(&zero);
    if (!r || !w)
        return;
    u8 direction = call->direction & 1;
    r->t = t;
    r->called = direction == OUT ? call->start : bpf_ktime_get_ns();
    r->connection = c->id;
    r->tgid = id >> 32;
    r->fd = call->fd;
    r->kind = KIND_DATA;
    r->direction = direction;
    r->socket = 0;

#ifdef FLEXNPU_CORE  // bcc's clang leaves the verifier in doubt about the length
    if (may_be_short && call->shape == BUFFER && total <= SLICE) {
        // Most calls: one slice, without the walk.
        u64 n = total & (SCRATCH - 1);
        r->offset = c->offset[direction];
        r->span = total;
        r->length = total;
        r->first = 1;
        c->offset[direction] += total;
        r->sent = c->offset[direction] - call->unsent;
        r->kept = call->kept;
        if (bpf_probe_read_user(r->data, n, (void*)call->addr)) {
            lose(WIRE_UNREADABLE_BYTES, total);
            r->length = 0;
        }
        emit(r, r->length);
        return;
    }
#endif

    w->left = total;
    w->start = c->offset[direction];
    w->offset = w->start;
    w->told = w->start;
    w->at = call->addr;
    w->part = call->shape == BUFFER ? total : 0;
    w->vector = call->addr;
    w->entries = call->shape == VECTOR ? call->count : 0;
    w->message = call->addr;
    w->messages = call->shape == MESSAGES ? call->count : 0;
    w->message_left = total;
    w->room = direction == IN ? MAX_IN_BYTES : MAX_OUT_BYTES;
    w->skip = 0;
    w->fill = 0;
    c->offset[direction] += total;
    r->sent = c->offset[direction] - call->unsent;
    r->kept = call->kept;

    if (call->shape != OPAQUE)
#pragma clang loop unroll(disable)
        for (int i = 0; i < MAX_PARTS; i++)
            if (!copy_part())
                break;
    flush(r, w);
    if (w->left > w->skip)
        lose(call->shape == OPAQUE ? WIRE_KERNEL_BYTES : WIRE_TRUNCATED_BYTES, w->left - w->skip);
    u64 end = c->offset[direction];
    if (w->told != end) {
        // What follows the last slice is a hole. Holes between slices show by their offsets.
        r->offset = w->told;
        r->span = end - w->told;
        r->length = 0;
        r->first = w->told == w->start;
        emit(r, 0);
    }
}
