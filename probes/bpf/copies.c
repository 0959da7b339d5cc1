// Programs for copies, which may wait, and take a step's result to the host. Compiled behind endings.c.

// A copy to the host of what was on the lane at `t_at`. `waits`: the call returns when it is over.
static inline void copied_out(struct lane* lane, u64 tgid, u64 bytes, u64 t_at, struct totals* at, int waits)
{
    u64 now = bpf_ktime_get_ns();
    lane->result = 1;
    // What was copied to the device before was the step's own business.
    if (lane->later_at) {
        lane->cand = lane->later;
        lane->cand_at = lane->later_at;
        lane->cand_t = lane->later_t;
        lane->later_at = 0;
    }
    lane->input = 0;
    lane->t_input = 0;
    int counted = is_counted(tgid);
    u64 since = lane->t_point > lane->t_opened ? lane->t_point : lane->t_opened;
    u64 over = lane->cand_t ? lane->cand_t : lane->perhaps_t;
    if (over && (counted ? lane->cand.launches == at->launches && weight(at) <= lane->run_start
                         : (now - over) * 4 < lane->run_longest)) {
        // What is copied right after the synchronise that ended a step is its result.
        if (counted || waits || !lane->cand_t || t_at <= lane->cand_at) {
            lane->cand.d2h += bytes;
            return;
        }
        // Or that was in the middle, as before a graph, and what came since is not counted. The device takes
        // longer for it than the program: the wait for the copy will say.
        lane->perhaps_t = at->graphs > lane->cand.graphs ? 0 : lane->cand_t;
        lane->perhaps_run = lane->run_longest;
        lane->cand = *at;
        lane->cand_at = t_at;
        lane->cand_t = 0;
        return;
    }
    if (waits || lane->kind == BETWEEN || lane->capturing || t_at <= lane->t_opened)
        return;
    u64 run = counted ? weight(at) - lane->run_start : now - since;
    if (counted && weight(at) <= lane->run_start)
        return;
    lane->run_start = weight(at);
    lane->t_point = now;
    propose(lane, t_at, at, run, 0);
}

static inline void add_copy(struct lane* lane, u64 tgid, u64 bytes, u64 kind, int waits)
{
    u64 now = bpf_ktime_get_ns();
    if (kind == H2D) {
        __sync_fetch_and_add(&lane->now.h2d, bytes);
        __sync_fetch_and_add(&lane->now.h2d_copies, 1);
        if (lane->result && !lane->input)
            lane->input = now;
        if (!lane->t_input || now > lane->t_input_last + INPUT_NS)
            lane->t_input = now;
        lane->t_input_last = now;
    } else if (kind == D2H) {
        __sync_fetch_and_add(&lane->now.d2h, bytes);
        struct totals at = lane->now;
        copied_out(lane, tgid, bytes, now, &at, waits);
    }
}

// On a side lane: the model's step is as far as the copy waits for it.
static inline void add_side_copy(struct lane* side, u64 tgid, u64 bytes, u64 kind, int waits)
{
    struct lane_key key = {.tgid = tgid, .stream = side->main};
    struct lane* lane = lanes.lookup(&key);
    if (!lane)
        return;
    if (kind == H2D) {
        __sync_fetch_and_add(&lane->now.h2d, bytes);
        return;
    }
    __sync_fetch_and_add(&lane->now.d2h, bytes);
    struct totals at = side->follows_at;
    at.d2h += bytes;
    if (side->follows_t > lane->t_opened)
        copied_out(lane, tgid, bytes, side->follows_t, &at, waits);
}

// aclrtMemcpy(dst, max, src, bytes, kind): names no stream; it belongs to the one that the thread used last,
// or to the process's only one. Non-zero when it matters when the copy is over.
static inline int copy_enter(struct pt_regs* ctx, u64 id, u64 bytes, u64 kind)
{
    if (kind != H2D && kind != D2H)
        return 0;
    u64 tgid = id >> 32;
    struct lane_key key = {.tgid = tgid};
    struct thread* t = threads.lookup(&id);
    if (t && t->has_stream) {
        key.stream = t->stream;
    } else {
        struct process* p = processes.lookup(&tgid);
        if (!p || p->lanes != 1)
            return 0;
        key.stream = p->stream[0];
    }
    struct lane* lane = lanes.lookup(&key);
    if (!lane)
        return 0;
    if (lane->side)
        add_side_copy(lane, tgid, bytes, kind, 1);
    else
        add_copy(lane, tgid, bytes, kind, 1);
    // A copy to the host waits for what was launched before it: for nothing, when a synchronise has ended the
    // step.
    if (kind != D2H)
        return 0;
    if (is_counted(tgid) ? weight(&lane->now) == lane->run_start && (lane->cand_t || !lane->cand_at)
                         : (lane->kind == BETWEEN && lane->has_model && !(t && t->attention)) ||
                               (lane->kind == GRAPH && lane->cand_at && lane->cand_t &&
                                lane->now.graphs == lane->cand.graphs))
        return 0;
    sync_enter(ctx, id, 3, key.stream);
    lane->t_sync_in = bpf_ktime_get_ns();
    return 1;
}

PROBE int on_copy(struct pt_regs* ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_COPY);
    copy_enter(ctx, id, PT_REGS_PARM4(ctx), (u32)PT_REGS_PARM5(ctx));
    return 0;
}

PROBE int on_copy_return(struct pt_regs* ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_COPY_RETURN);
    return sync_leave(ctx, id);
}

// Both, as a uprobe session: what it says at the entry decides whether the return is probed, which costs as
// much again. A return is told from an entry by the instruction: it is the caller's.
PROBE int on_copy_session(struct pt_regs* ctx)
{
    u64 id = pid_tgid(), at = PT_REGS_IP(ctx);
    struct thread* t = threads.lookup(&id);
    if (t && t->copying && t->copying != at) {
        t->copying = 0;
        hit(id, HIT_COPY_RETURN);
        sync_leave(ctx, id);
        return 0;
    }
    hit(id, HIT_COPY);
    if (!copy_enter(ctx, id, PT_REGS_PARM4(ctx), (u32)PT_REGS_PARM5(ctx)))
        return 1;
    t = threads.lookup(&id);
    if (!t)
        return 1;
    t->copying = at;
    return 0;
}

// aclrtMemcpyAsync(dst, max, src, bytes, kind, stream)
PROBE int on_copy_async(struct pt_regs* ctx)
{
    u64 id = pid_tgid(), kind = (u32)PT_REGS_PARM5(ctx);
    hit(id, HIT_COPY_ASYNC);
    if (kind != H2D && kind != D2H)
        return 0;
    struct lane_key key = {.tgid = id >> 32, .stream = PT_REGS_PARM6(ctx)};
    struct lane* lane = this_lane(&key);
    if (!lane)
        return 0;
    if (lane->side)
        add_side_copy(lane, key.tgid, PT_REGS_PARM4(ctx), kind, 0);
    else
        add_copy(lane, key.tgid, PT_REGS_PARM4(ctx), kind, 0);
    return 0;
}
