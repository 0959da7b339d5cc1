// Programs for what is waited for, and ends steps: synchronises.
// Compiled behind common.h.

// What is on the lane now, and what it waits for itself.
static inline void mark_lane(struct mark* mark, u64 stream, struct lane* lane, u64 now)
{
    mark->stream = stream;
    mark->t = now;
    mark->at = lane->now;
    mark->follows = lane->side && lane->follows_t;
    mark->follows_stream = lane->main;
    mark->follows_t = lane->follows_t;
    mark->follows_at = lane->follows_at;
}

static inline int sync_enter(struct pt_regs* ctx, u64 id, u32 kind, u64 stream)
{
    struct thread* t = this_thread(id);
    if (!t)
        return 0;
    t->sync_kind = kind;
    u64 tgid = id >> 32, now = bpf_ktime_get_ns();
    t->t_wait = now;
    if (kind == 2) {
        struct process* p = processes.lookup(&tgid);
        for (u32 i = 0; p && i < PROCESS_LANES; i++) {
            if (i >= p->lanes)
                break;
            struct lane_key key = {.tgid = tgid, .stream = p->stream[i]};
            struct lane* lane = lanes.lookup(&key);
            if (!lane)
                continue;
            lane->t_sync_in = now;
            lane->t_entered = now;
            lane->entered = lane->now;
        }
        return 0;
    }
    struct lane_key key = {.tgid = tgid, .stream = stream};
    if (kind == 1) {
        t->stream = stream;
        t->has_stream = 1;
    }
    struct lane* lane = this_lane(&key);
    if (!lane)
        return 0;
    lane->t_sync_in = now;
    mark_lane(&t->wait, stream, lane, now);
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

// The step may end at this point of its lane. `over`: it is known to be, now.
static inline void propose(struct lane* lane, u64 t_at, struct totals* at, u64 run, u64 over)
{
    // A run that holds a graph is part of the body, however short it was.
    if (run * 4 >= lane->run_longest || (lane->cand_at && at->graphs > lane->cand.graphs)) {
        // What was launched behind the next step's input is the next step's.
        if (lane->input && t_at > lane->input) {
            lane->later = *at;
            lane->later_at = t_at;
            lane->later_t = over;
        } else {
            lane->cand = *at;
            lane->cand_at = t_at;
            lane->cand_t = over;
            lane->later_at = 0;
        }
    }
    if (run > lane->run_longest)
        lane->run_longest = run;
}

// When it was over that a thread has waited for from `t_wait` to `now`: then, or at `perhaps_t` already.
static inline u64 over_at(u64 perhaps_t, u64 perhaps_run, u64 t_wait, u64 now)
{
    if (perhaps_t && ((now - perhaps_t) * 4 < perhaps_run || now < t_wait + PLAIN_WAIT_NS))
        return perhaps_t;
    return now;
}

static inline void reached_model(struct lane* lane, u64 t_at, struct totals* at, u64 t_wait, u64 now,
                                 int counted)
{
    if (lane->cand_at && !lane->cand_t && t_at >= lane->cand_at)
        lane->cand_t = over_at(lane->perhaps_t, lane->perhaps_run, t_wait, now);
    if (lane->later_at && !lane->later_t && t_at >= lane->later_at)
        lane->later_t = now;
    u64 since = lane->t_point > lane->t_opened ? lane->t_point : lane->t_opened;
    u64 run = now > since ? now - since : 0, waited = t_wait <= now ? now - t_wait : 0;
    if (counted) {
        u64 done = weight(at);
        if (done <= lane->run_start)
            return;  // nothing was waited for: the synchronise that precedes a copy, for one
        run = done - lane->run_start;
        lane->run_start = done;
    } else {
        if (t_at <= lane->cand_at || t_at <= lane->later_at)
            return;
        lane->t_point = now;
        if (is_idle(lane, run, waited))
            return;
    }
    propose(lane, t_at, at, run, now);
}

// All is over, now, that was on the lane at `t_at`, when the thread `t` called what it has waited in.
// `others`: the wait was for other lanes too, and a model's was among them.
static inline int reached(struct pt_regs* ctx, struct lane_key* key, struct lane* lane, u64 t_at,
                          struct totals* at, struct thread* t, u64 now, int others)
{
    int counted = is_counted(key->tgid);
    if (lane->pending_at && t_at >= lane->pending_at)
        settle_pending(ctx, key, lane,
                       over_at(lane->pending_perhaps_t, lane->pending_perhaps_run, t->t_wait, now), now);
    if (lane->t_sync_in <= t->t_wait)
        lane->t_sync_out = now;
    if (lane->capturing) {
        lane->run_start = weight(at);
        return 0;
    }
    struct totals end = *at;
    u64 eid = t->attention, done = weight(at);
    struct evidence* e = 0;
    if (eid && eid == t->evidence && lane->kind == BETWEEN && !lane->side) {
        e = evidences.lookup(&eid);
        t->attention = 0;
        t->evidence = 0;
        t->updates = 0;
    }
    if (e) {
        lane->kind = ATTENTION;
        lane->evidence = eid;
        if (!lane->t_open || lane->t_open > e->t_first)
            lane->t_open = e->t_first;
    } else if (lane->kind != BETWEEN && t_at <= lane->t_opened) {
        return 0;  // a wait for the steps before says nothing of the one that runs
    } else if (lane->kind == EMBEDDING || (lane->kind == GRAPH && lane->pieces)) {
        reached_model(lane, t_at, at, t->t_wait, now, counted);
        return 0;
    } else if (lane->kind == GRAPH) {
        if (lane->cand_at && t_at < lane->cand_at)
            return 0;  // in its middle
        if (lane->cand_at)
            end = lane->cand;
    } else if (lane->side || lane->has_model) {
        lane->run_start = done;
        return 0;
    } else if (counted) {
        if (done <= lane->run_start)
            return 0;
    } else {
        end = lane->now;
        if (others || now < t->t_wait + PLAIN_WAIT_NS) {
            lane->base = end;  // copies that load a model are no step's
            lane->t_base = now;
            lane->t_counted = now;
            lane->run_start = done;
            return 0;
        }
        lane->t_open = t->t_wait;
    }
    lane->run_start = done;
    close_step(ctx, key, lane, now, FLEXNPU_STEP_BY_SYNC, &end);
    return 0;
}

#define REACHED_OWN 0       // what the thread waited for
#define REACHED_FOLLOWED 1  // what that had waited for
#define REACHED_ENTERED 2   // all that was on the lane when the thread began to wait for the device

// The thread `id` has waited, until `now`, for what was on one of its process's lanes. `others`: see reached.
static inline int reached_on(struct pt_regs* ctx, u64 id, u64 stream, u64 what, u64 now, u64 others)
{
    struct thread* t = threads.lookup(&id);
    struct lane_key key = {.tgid = id >> 32, .stream = stream};
    struct lane* lane = lanes.lookup(&key);
    if (!t || !lane)
        return 0;
    u64 t_at = t->wait.t;
    struct totals* at = &t->wait.at;
    if (what == REACHED_ENTERED) {
        t_at = lane->t_entered;
        at = &lane->entered;
    } else if (what == REACHED_FOLLOWED) {
        t_at = t->wait.follows_t;
        at = &t->wait.follows_at;
    }
    return reached(ctx, &key, lane, t_at, at, t, now, others);
}

#ifdef FLEXNPU_CORE
// A function of its own is verified once, and not anew for each of a process's lanes: that took 3 s of CPU at
// each start.
int reached_lane(u64 id, u64 stream, u64 what, u64 now, u64 others)
{
    return reached_on(0, id, stream, what, now, others);
}
#define REACHED(ctx, ...) reached_lane(__VA_ARGS__)
#else
#define REACHED reached_on
#endif

static inline int sync_leave(struct pt_regs* ctx, u64 id)
{
    struct thread* t = threads.lookup(&id);
    if (!t || !t->sync_kind)
        return 0;
    u32 kind = t->sync_kind;
    t->sync_kind = 0;
    u64 now = bpf_ktime_get_ns(), tgid = id >> 32;
    if (kind != 2) {
        REACHED(ctx, id, t->wait.stream, REACHED_OWN, now, 0);
        if (t->wait.follows)
            REACHED(ctx, id, t->wait.follows_stream, REACHED_FOLLOWED, now, 0);
        return 0;
    }
    // A device's synchronise is for all lanes.
    struct process* p = processes.lookup(&tgid);
    if (!p)
        return 0;
    struct lane_key key = {.tgid = tgid};
    u64 others = 0;
#pragma clang loop unroll(disable)
    for (u32 i = 0; i < PROCESS_LANES; i++) {
        if (i >= p->lanes)
            break;
        key.stream = p->stream[i];
        struct lane* lane = lanes.lookup(&key);
        others |= lane && lane->has_model;
    }
#pragma clang loop unroll(disable)
    for (u32 i = 0; i < PROCESS_LANES; i++) {
        if (i >= p->lanes)
            break;
        REACHED(ctx, id, p->stream[i], REACHED_ENTERED, now, others);
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

// aclrtSynchronizeEvent(event), ...WithTimeout(event, ms): waits for what was on the stream of the event when
// it was recorded. It may be recorded anew while it is waited for.
PROBE int on_sync_event(struct pt_regs* ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_SYNC);
    struct handle_key event = {.tgid = id >> 32, .handle = PT_REGS_PARM1(ctx)};
    struct mark* mark = marks.lookup(&event);
    struct thread* t = mark ? this_thread(id) : 0;
    if (!t)
        return 0;  // recorded before the probes came
    t->wait = *mark;
    t->t_wait = bpf_ktime_get_ns();
    t->sync_kind = 4;
    return 0;
}

// aclrtRecordEvent(event, stream)
PROBE int on_record_event(struct pt_regs* ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_EVENT);
    struct lane_key key = {.tgid = id >> 32, .stream = PT_REGS_PARM2(ctx)};
    struct lane* lane = lanes.lookup(&key);
    if (!lane || lane->capturing)
        return 0;
    struct handle_key event = {.tgid = key.tgid, .handle = PT_REGS_PARM1(ctx)};
    struct mark mark = {};
    mark_lane(&mark, key.stream, lane, bpf_ktime_get_ns());
    marks.update(&event, &mark);
    return 0;
}

// aclrtStreamWaitEvent(stream, event), ...WithTimeout(stream, event, ms): who waits for a model's lane is
// beside it.
PROBE int on_wait_event(struct pt_regs* ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_EVENT);
    struct lane_key key = {.tgid = id >> 32, .stream = PT_REGS_PARM1(ctx)};
    struct handle_key event = {.tgid = key.tgid, .handle = PT_REGS_PARM2(ctx)};
    struct mark* mark = marks.lookup(&event);
    if (!mark || mark->stream == key.stream)
        return 0;
    struct lane_key of = {.tgid = key.tgid, .stream = mark->follows ? mark->follows_stream : mark->stream};
    struct lane* main = lanes.lookup(&of);
    if (!main || !main->has_model || of.stream == key.stream)
        return 0;
    struct lane* lane = this_lane(&key);
    if (!lane || lane->has_model || lane->capturing)
        return 0;
    lane->side = 1;
    lane->main = of.stream;
    lane->follows_t = mark->follows ? mark->follows_t : mark->t;
    lane->follows_at = mark->follows ? mark->follows_at : mark->at;
    return 0;
}

PROBE int on_sync_return(struct pt_regs* ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_SYNC_RETURN);
    return sync_leave(ctx, id);
}
