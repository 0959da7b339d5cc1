// Programs for what is launched, and opens steps: kernels, embeddings, graphs and their captures.
// Compiled behind shapes.c.

// A program of its own for measuring what a hit costs: it does about what the others do.
PROBE int on_calibrate(struct pt_regs* ctx)
{
    u64 id = pid_tgid(), now = bpf_ktime_get_ns();
    hit(id, HIT_SYNC);
    struct thread* t = threads.lookup(&id);
    if (t)
        t->stream = now;
    return 0;
}

// aclrtLaunchKernelWithHostArgs(func, blocks, stream, ...)
PROBE int on_kernel_launch(struct pt_regs* ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_LAUNCH);
    struct lane_key key = {.tgid = id >> 32, .stream = PT_REGS_PARM3(ctx)};
    struct lane* lane = this_lane(&key);
    if (lane)
        add_work(ctx, &key, lane, bpf_ktime_get_ns(), 0);
    return 0;
}

// Any operator's second call, aclnnXxx(workspace, size, executor, stream): the cookie says which.
PROBE int on_operator(struct pt_regs* ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_OPERATOR);
    struct operator_key key = {
        .tgid = id >> 32, .stream = PT_REGS_PARM4(ctx), .operator = attach_cookie(ctx)};
    u64 zero = 0, *value = operators.lookup_or_try_init(&key, &zero);
    if (value)
        __sync_fetch_and_add(value, 1);
    else
        count(MAP_FULL);
    return 0;
}

// Position and token-type embeddings follow the token embedding within the same step, with smaller tables of
// their own. One soon after the opening, whatever else the model asks about its inputs meanwhile.
static inline int is_second_table(struct lane* lane, s64 rows, s64 columns, u64 now)
{
    if (lane->kind != EMBEDDING || !rows || !lane->rows || (rows == lane->rows && columns == lane->columns))
        return 0;
    return !lane->cand_at || (rows < lane->rows && (now - lane->t_open) * 4 < lane->usual);
}

// aclnnEmbedding(workspace, size, executor, stream)
PROBE int on_embedding_second(struct pt_regs* ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_EMBEDDING);
    u64 now = bpf_ktime_get_ns();
    struct handle_key executor = {.tgid = id >> 32, .handle = PT_REGS_PARM3(ctx)};
    struct lane_key key = {.tgid = id >> 32, .stream = PT_REGS_PARM4(ctx)};
    struct lane* lane = this_lane(&key);
    if (!lane)
        return 0;
    struct shape* known = executors.lookup(&executor);
    u64 eid = known ? known->evidence : 0;
    struct evidence* e = eid ? evidences.lookup(&eid) : 0;
    if (known)
        known->evidence = 0;  // it is this step's, whatever is launched with the executor later
    if (known && !e) {
        // An executor that the program keeps: its first call was left out, its shape is the same as then.
        struct shape shape = *known;
        e = new_evidence(&eid, 0);
        if (e) {
            e->t_first = now;
            e->ndim = shape.ndim;
            e->flags = shape.flags | REMEMBERED;
            e->rows = shape.rows;
            e->columns = shape.columns;
            __builtin_memcpy(e->dims, shape.dims, sizeof(e->dims));
        }
    }
    s64 rows = e ? e->rows : 0, columns = e ? e->columns : 0;
    u64 t_open = e && e->t_first < now ? e->t_first : now;
    if (!e) {
        // Its first call came before the probes: once a lane, that is how tracing begins.
        if (!lane->joined) {
            lane->joined = 1;
            return 0;
        }
        eid = 0;
        count(NO_FIRST_CALL);
    }
    lane->joined = 1;
    if (is_second_table(lane, rows, columns, now))
        return 0;
    close_for_next(ctx, &key, lane, FLEXNPU_STEP_BY_NEXT, t_open);
    open_step(lane, EMBEDDING, t_open, now, eid);
    lane->rows = rows;
    lane->columns = columns;
    lane->has_model = 1;
    lane->t_last = now;
    if (!lane->capturing)
        send_begin(ctx, &key, lane, now);
    return 0;
}

// aclmdlRIExecuteAsync(model, stream)
PROBE int on_graph(struct pt_regs* ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_GRAPH);
    u64 now = bpf_ktime_get_ns();
    struct handle_key model = {.tgid = id >> 32, .handle = PT_REGS_PARM1(ctx)};
    struct lane_key key = {.tgid = id >> 32, .stream = PT_REGS_PARM2(ctx)};
    struct lane* lane = this_lane(&key);
    struct thread* t = this_thread(id);
    if (!lane || !t)
        return 0;
    struct evidence* learned = models.lookup(&model);
    int known = learned && !(learned->flags & PIECE);
    // A graph that holds its own embedding opens a step. Another one is a piece of the step that runs, unless
    // new input has come since that step's result went (of an unknown graph: since a wait that may have ended
    // the step), or it is the one that opened the step.
    int again = lane->kind == GRAPH && lane->pieces && lane->model == model.handle;
    int input = lane->input || (!learned && lane->kind == EMBEDDING && lane->cand_at && lane->cand_t &&
                                lane->now.h2d_copies > lane->cand.h2d_copies);
    if (lane->kind == BETWEEN || known || input || again) {
        u32 pieces = known ? learned->flags & PIECES : 1;
        close_for_next(ctx, &key, lane, FLEXNPU_STEP_BY_GRAPH, now);
        open_step(lane, GRAPH, now, now, 0);
        lane->model = model.handle;
        lane->pieces = pieces;
        lane->has_model = 1;
        t->evidence = 0;
        t->updates = 1;
        t->graph_stream = key.stream;
        add_work(ctx, &key, lane, now, 1);
        send_begin(ctx, &key, lane, now);
    } else {
        add_work(ctx, &key, lane, now, 1);
    }
    t->stream = key.stream;
    t->has_stream = 1;
    return 0;
}

// aclmdlRICaptureBegin(stream, mode)
PROBE int on_capture_begin(struct pt_regs* ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_CAPTURE);
    struct lane_key key = {.tgid = id >> 32, .stream = PT_REGS_PARM1(ctx)};
    struct lane* lane = this_lane(&key);
    if (!lane)
        return 0;
    close_for_next(ctx, &key, lane, FLEXNPU_STEP_BY_GRAPH, bpf_ktime_get_ns());
    lane->capturing = 1;
    return 0;
}

// aclmdlRICaptureEnd(stream, aclmdlRI* model)
PROBE int on_capture_end(struct pt_regs* ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_CAPTURE);
    struct thread* t = this_thread(id);
    if (!t)
        return 0;
    t->capture_stream = PT_REGS_PARM1(ctx);
    t->capture_model = PT_REGS_PARM2(ctx);
    return 0;
}

// A graph was captured, with an embedding that told `e`, or without one. Then it is a piece, and so is the
// last one that had one.
static inline void learn_graph(struct handle_key* model, struct evidence* e)
{
    u64 tgid = model->tgid;
    struct process* p = processes.lookup(&tgid);
    if (e) {
        models.update(model, e);
        if (p)
            p->captured = model->handle;
        return;
    }
    int zero = 0;
    struct evidence* none = no_evidence.lookup(&zero);
    if (none)
        models.update(model, none);
    struct evidence* piece = models.lookup(model);
    if (piece)
        piece->flags |= PIECE;
    struct handle_key before = {.tgid = tgid, .handle = p ? p->captured : 0};
    struct evidence* first = models.lookup(&before);
    if (first)
        first->flags |= PIECES;
}

PROBE int on_capture_end_return(struct pt_regs* ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_CAPTURE);
    struct thread* t = threads.lookup(&id);
    if (!t || !t->capture_model)
        return 0;
    struct handle_key model = {.tgid = id >> 32};
    int failed = bpf_probe_read_user(&model.handle, sizeof(model.handle), (void*)t->capture_model);
    t->capture_model = 0;
    struct lane_key key = {.tgid = id >> 32, .stream = t->capture_stream};
    struct lane* lane = lanes.lookup(&key);
    if (!lane)
        return 0;
    u64 eid = lane->evidence;
    struct evidence* e = eid ? evidences.lookup(&eid) : 0;
    if (failed)
        count(BAD_READS);
    else if (PT_REGS_RC(ctx) == 0)
        learn_graph(&model, e && lane->kind == EMBEDDING ? e : 0);
    // Nothing captured has run: a record of its own, marked as what it is.
    struct totals end = lane->now;
    if (end.launches != lane->base.launches || lane->kind != BETWEEN)
        close_step(ctx, &key, lane, lane->t_last, FLEXNPU_STEP_BY_GRAPH, &end);
    lane->capturing = 0;
    return 0;
}
