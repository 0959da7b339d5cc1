// Programs for what is waited for, and ends steps: synchronises, and copies, which may wait as well.
// Compiled behind common.h.

static inline int sync_enter(struct pt_regs* ctx, u64 id, u32 kind, u64 stream)
{
    struct thread* t = this_thread(id);
    if (!t)
        return 0;
    t->sync_kind = kind;
    t->sync_stream = stream;
    u64 tgid = id >> 32, now = bpf_ktime_get_ns();
    if (kind == 1) {
        t->stream = stream;
        t->has_stream = 1;
        struct lane_key key = {.tgid = tgid, .stream = stream};
        struct lane* lane = this_lane(&key);
        if (lane)
            lane->t_sync_in = now;
    } else if (kind == 2) {
        struct process* p = processes.lookup(&tgid);
        for (u32 i = 0; p && i < PROCESS_LANES; i++) {
            if (i >= p->lanes)
                break;
            struct lane_key key = {.tgid = tgid, .stream = p->stream[i]};
            struct lane* lane = lanes.lookup(&key);
            if (lane)
                lane->t_sync_in = now;
        }
    }
    return 0;
}

// Whether a synchronise of a step that already looks complete only says that the program was idle: the step
// has come to half its usual length, and since then twice that has passed, and more than it took so far,
// hardly any in waiting.
static inline int is_idle(struct lane* lane, u64 run, u64 waited)
{
    u64 length = lane->cand_t - lane->t_open;
    return lane->cand_t && lane->usual && length * 2 >= lane->usual && run > length &&
           run > lane->usual * 2 && waited * 8 < run;
}

static inline void sync_model(struct lane* lane, u64 run, u64 now, int idle)
{
    if (!idle && run * 4 >= lane->run_longest) {
        lane->cand = lane->now;
        lane->cand_t = now;
    }
    if (!idle && run > lane->run_longest)
        lane->run_longest = run;
}

// The thread `t` has waited for `stream`.
static inline int sync_lane(struct pt_regs* ctx, u64 tgid, u64 stream, struct thread* t, u64 now)
{
    struct lane_key key = {.tgid = tgid, .stream = stream};
    struct lane* lane = lanes.lookup(&key);
    if (!lane)
        return 0;
    u64 since = lane->t_sync_out > lane->t_open ? lane->t_sync_out : lane->t_open;
    u64 waited = lane->t_sync_in <= now ? now - lane->t_sync_in : 0;
    u64 done = lane->now.launches + lane->now.graphs, launched = done - lane->run_start;
    int counted = is_counted(tgid);
    lane->t_sync_out = now;
    lane->run_start = done;
    if (lane->capturing)
        return 0;
    u64 eid = t->attention;
    if (eid && eid == t->evidence && lane->kind == BETWEEN) {
        struct evidence* e = evidences.lookup(&eid);
        t->attention = 0;
        t->evidence = 0;
        t->updates = 0;
        if (e) {
            lane->kind = ATTENTION;
            lane->evidence = eid;
            if (!lane->t_open || lane->t_open > e->t_first)
                lane->t_open = e->t_first;
            struct totals end = lane->now;
            close_step(ctx, &key, lane, now, FLEXNPU_STEP_BY_SYNC, &end);
            return 0;
        }
    }
    if (counted && launched == 0)
        return 0;  // nothing was waited for: the synchronise that precedes a copy, for one
    if (lane->kind == EMBEDDING) {
        u64 run = now - since;
        sync_model(lane, counted ? launched : run, now, !counted && is_idle(lane, run, waited));
    } else if (lane->kind == GRAPH || (counted && !lane->has_model)) {
        struct totals end = lane->now;
        close_step(ctx, &key, lane, now, FLEXNPU_STEP_BY_SYNC, &end);
    } else if (!lane->has_model) {
        if (waited >= PLAIN_WAIT_NS) {
            lane->t_open = lane->t_sync_in;
            struct totals end = lane->now;
            close_step(ctx, &key, lane, now, FLEXNPU_STEP_BY_SYNC, &end);
        } else {
            lane->base = lane->now;  // copies that load a model are no step's
            lane->t_base = now;
        }
    }
    return 0;
}

static inline int sync_leave(struct pt_regs* ctx, u64 id)
{
    struct thread* t = threads.lookup(&id);
    if (!t || !t->sync_kind)
        return 0;
    u32 kind = t->sync_kind;
    t->sync_kind = 0;
    u64 now = bpf_ktime_get_ns(), tgid = id >> 32;
    if (kind != 2) {
        sync_lane(ctx, tgid, t->sync_stream, t, now);
        return 0;
    }
    struct process* p = processes.lookup(&tgid);
    for (u32 i = 0; p && i < PROCESS_LANES; i++) {
        if (i >= p->lanes)
            break;
        sync_lane(ctx, tgid, p->stream[i], t, now);
    }
    return 0;
}

// aclrtSynchronizeStream(stream), ...WithTimeout(stream, ms)
PROBE int on_sync_stream(struct pt_regs* ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_SYNC);
    return sync_enter(ctx, id, 1, PT_REGS_PARM1(ctx));
}

// aclrtSynchronizeDevice(), ...WithTimeout(ms)
PROBE int on_sync_device(struct pt_regs* ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_SYNC);
    return sync_enter(ctx, id, 2, 0);
}

// aclrtSynchronizeEvent(event), ...WithTimeout(event, ms): where the event was recorded is not known, since
// recording is not probed. It is taken to be on any of the process's streams, as if all were waited for.
PROBE int on_sync_event(struct pt_regs* ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_SYNC);
    return sync_enter(ctx, id, 2, 0);
}

PROBE int on_sync_return(struct pt_regs* ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_SYNC_RETURN);
    return sync_leave(ctx, id);
}

static inline void add_copy(struct lane* lane, u64 tgid, u64 bytes, u64 kind)
{
    if (kind == H2D) {
        __sync_fetch_and_add(&lane->now.h2d, bytes);
        __sync_fetch_and_add(&lane->now.h2d_copies, 1);
    } else if (kind == D2H) {
        __sync_fetch_and_add(&lane->now.d2h, bytes);
        // What is copied right after the synchronise that ended a step is its result.
        if (!lane->cand_t || lane->cand.launches != lane->now.launches)
            return;
        if (is_counted(tgid) ? lane->now.launches + lane->now.graphs == lane->run_start
                             : (bpf_ktime_get_ns() - lane->cand_t) * 4 < lane->run_longest)
            lane->cand.d2h += bytes;
    }
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
    add_copy(lane, tgid, bytes, kind);
    // A copy to the host waits for what was launched before it: for nothing, when a synchronise has ended the
    // step.
    if (kind != D2H)
        return 0;
    if (is_counted(tgid) ? lane->now.launches + lane->now.graphs == lane->run_start
                         : lane->kind == BETWEEN && lane->has_model && !(t && t->attention))
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
    if (lane)
        add_copy(lane, key.tgid, PT_REGS_PARM4(ctx), kind);
    return 0;
}
