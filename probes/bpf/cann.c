// Programs for the vendor's CANN (and its emulated peer): they fold the calls of its functions into steps.
// Compiled behind common.h.

// aclrtLaunchKernelWithHostArgs(func, blocks, stream, ...)
int on_kernel_launch(struct pt_regs *ctx)
{
    return add_work(ctx, pid_tgid(), PT_REGS_PARM3(ctx), 0);
}

// aclCreateTensor(const int64_t* dims, uint64_t n, aclDataType, ...)
int on_create_tensor(struct pt_regs *ctx)
{
    struct thread *t = this_thread(pid_tgid());
    if (!t)
        return 0;
    struct tensor *made = &t->tensor[t->at & (TENSORS - 1)];
    u64 n = PT_REGS_PARM2(ctx);
    made->ndim = n;
    made->dtype = PT_REGS_PARM3(ctx);
    t->at += 1;
    if (n > MAX_DIMS)
        n = MAX_DIMS;
    if (n && bpf_probe_read_user(made->dims, n * sizeof(s64), (void *)PT_REGS_PARM1(ctx))) {
        made->ndim = 0;
        count(BAD_READS);
    }
    return 0;
}

// aclCreateIntArray(const int64_t* values, uint64_t n)
int on_create_int_array(struct pt_regs *ctx)
{
    u64 n = PT_REGS_PARM2(ctx);
    const s64 *values = (const s64 *)PT_REGS_PARM1(ctx);
    if (n == 0)
        return 0;
    u64 id = pid_tgid();
    struct thread *t = threads.lookup(&id);
    if (!t || !t->evidence)
        return 0;
    u64 eid = t->evidence;
    struct evidence *e = evidences.lookup(&eid);
    if (!e)
        return 0;
    struct array a = {.n = n, .rising = 1};
    s64 before = 0;
    for (u32 i = 0; i < ARRAY_VALUES; i++) {
        s64 value = 0;
        if (i >= n)
            break;
        if (bpf_probe_read_user(&value, sizeof(value), values + i)) {
            count(BAD_READS);
            return 0;
        }
        if (value <= 0)
            return 0;  // axes, permutations, paddings: not lengths
        if (i == 0)
            a.first = value;
        if (value - before == 1)
            a.ones += 1;
        if (value <= before)
            a.rising = 0;
        if (value > a.max)
            a.max = value;
        a.sum += value;
        a.last = value;
        before = value;
        a.seen += 1;
    }
    // Every layer passes the same arrays again.
    for (u32 i = 0; i < ARRAYS; i++) {
        struct array *old = &e->array[i];
        if (i >= e->arrays)
            break;
        if (old->n == a.n && old->first == a.first && old->last == a.last && old->sum == a.sum)
            return 0;
    }
    u32 at = e->arrays;
    if (at < ARRAYS) {
        e->array[at] = a;
        e->arrays = at + 1;
    }
    return 0;
}

// aclnnEmbeddingGetWorkspaceSize(weight, indices, out, uint64_t* size, aclOpExecutor** executor)
int on_embedding_first(struct pt_regs *ctx)
{
    struct thread *t = this_thread(pid_tgid());
    if (!t)
        return 0;
    u64 eid = 0;
    struct evidence *e = new_evidence(&eid, 0);
    if (!e)
        return 0;
    e->t_first = bpf_ktime_get_ns();
    s64 out_last = 0;
    u32 out_ndim = 0;
    // The three tensors were made just before, in an order that the program's compiler chose: the indices are the
    // integers among them, the table is the one with two dimensions, the result has one more than the indices.
    for (u32 i = 1; i <= 3; i++) {
        struct tensor *made = &t->tensor[(t->at - i) & (TENSORS - 1)];
        if (i > t->at)
            break;
        if (made->dtype == ACL_INT64 || made->dtype == ACL_INT32) {
            if (!(e->flags & HAS_INDICES)) {
                e->flags |= HAS_INDICES;
                e->ndim = made->ndim;
                __builtin_memcpy(e->dims, made->dims, sizeof(e->dims));
            }
        } else if (made->ndim == 2 && !(e->flags & HAS_TABLE)) {
            e->flags |= HAS_TABLE;
            e->rows = made->dims[0];
            e->columns = made->dims[1];
        } else {
            out_ndim = made->ndim;
            out_last = made->dims[(made->ndim - 1) & (MAX_DIMS - 1)];
            // With one-dimensional indices the result has two dimensions as well, and as many rows as indices.
            if (e->ndim == 1 && made->ndim == 2 && e->rows == e->dims[0])
                e->rows = made->dims[0];
        }
    }
    if (out_ndim == e->ndim + 1 && out_last == e->columns)
        e->flags |= HAS_OUTPUT;
    t->evidence = eid;
    t->first_call = PT_REGS_PARM5(ctx);
    return 0;
}

int on_embedding_first_return(struct pt_regs *ctx)
{
    u64 id = pid_tgid();
    struct thread *t = threads.lookup(&id);
    if (!t || !t->first_call)
        return 0;
    struct handle_key key = {.tgid = id >> 32};
    int failed = bpf_probe_read_user(&key.handle, sizeof(key.handle), (void *)t->first_call);
    t->first_call = 0;
    if (failed) {
        count(BAD_READS);
        return 0;
    }
    if (PT_REGS_RC(ctx) == 0 && t->evidence) {
        u64 eid = t->evidence;
        executors.update(&key, &eid);
    }
    return 0;
}

// aclnnEmbedding(workspace, size, executor, stream)
int on_embedding_second(struct pt_regs *ctx)
{
    u64 id = pid_tgid();
    u64 now = bpf_ktime_get_ns();
    struct handle_key executor = {.tgid = id >> 32, .handle = PT_REGS_PARM3(ctx)};
    struct lane_key key = {.tgid = id >> 32, .stream = PT_REGS_PARM4(ctx)};
    struct lane *lane = this_lane(&key);
    if (!lane)
        return 0;
    u64 *known = executors.lookup(&executor);
    u64 eid = known ? *known : 0;
    struct evidence *e = eid ? evidences.lookup(&eid) : 0;
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
    // Position and token-type embeddings follow the token embedding within the same step, with tables of their own.
    if (lane->kind == EMBEDDING && rows && lane->rows && (rows != lane->rows || columns != lane->columns) &&
        lane->now.launches - lane->opened_at < TABLE_WINDOW)
        return 0;
    close_for_next(ctx, &key, lane, BY_NEXT);
    open_step(lane, EMBEDDING, t_open, eid);
    lane->rows = rows;
    lane->columns = columns;
    lane->has_model = 1;
    lane->t_last = now;
    if (!lane->capturing)
        send(ctx, &key, lane, BEGIN, now, BY_NONE, &lane->base);
    return 0;
}

// aclmdlRIExecuteAsync(model, stream)
int on_graph(struct pt_regs *ctx)
{
    u64 id = pid_tgid();
    u64 now = bpf_ktime_get_ns();
    struct handle_key model = {.tgid = id >> 32, .handle = PT_REGS_PARM1(ctx)};
    struct lane_key key = {.tgid = id >> 32, .stream = PT_REGS_PARM2(ctx)};
    struct lane *lane = this_lane(&key);
    struct thread *t = this_thread(id);
    if (!lane || !t)
        return 0;
    struct evidence *learned = models.lookup(&model);
    // A graph that holds its own embedding is a whole step. Of an unknown one, new input since the last synchronise
    // says so; else it is a piece of the step that runs.
    int whole = learned != 0;
    if (lane->kind == EMBEDDING && lane->cand_t && lane->now.h2d_copies > lane->cand.h2d_copies)
        whole = 1;
    if (lane->kind == BETWEEN || whole) {
        close_for_next(ctx, &key, lane, BY_GRAPH);
        u64 eid = 0;
        struct evidence *e = new_evidence(&eid, learned);
        if (e) {
            e->flags |= learned ? FROM_CAPTURE : 0;
            e->t_first = now;
            e->model = model.handle;
            e->arrays = 0;
        }
        open_step(lane, GRAPH, now, eid);
        lane->has_model = 1;
        t->evidence = eid;  // lengths that this thread now passes to task updates are this step's
        add_work(ctx, id, key.stream, 1);
        send(ctx, &key, lane, BEGIN, now, BY_NONE, &lane->base);
    } else {
        add_work(ctx, id, key.stream, 1);
    }
    t->stream = key.stream;
    t->has_stream = 1;
    return 0;
}

// aclmdlRICaptureBegin(stream, mode)
int on_capture_begin(struct pt_regs *ctx)
{
    struct lane_key key = {.tgid = pid_tgid() >> 32, .stream = PT_REGS_PARM1(ctx)};
    struct lane *lane = this_lane(&key);
    if (!lane)
        return 0;
    close_for_next(ctx, &key, lane, BY_GRAPH);
    lane->capturing = 1;
    return 0;
}

// aclmdlRICaptureEnd(stream, aclmdlRI* model)
int on_capture_end(struct pt_regs *ctx)
{
    struct thread *t = this_thread(pid_tgid());
    if (!t)
        return 0;
    t->capture_stream = PT_REGS_PARM1(ctx);
    t->capture_model = PT_REGS_PARM2(ctx);
    return 0;
}

int on_capture_end_return(struct pt_regs *ctx)
{
    u64 id = pid_tgid();
    struct thread *t = threads.lookup(&id);
    if (!t || !t->capture_model)
        return 0;
    struct handle_key model = {.tgid = id >> 32};
    int failed = bpf_probe_read_user(&model.handle, sizeof(model.handle), (void *)t->capture_model);
    t->capture_model = 0;
    struct lane_key key = {.tgid = id >> 32, .stream = t->capture_stream};
    struct lane *lane = lanes.lookup(&key);
    if (!lane)
        return 0;
    u64 eid = lane->evidence;
    struct evidence *e = eid ? evidences.lookup(&eid) : 0;
    if (failed)
        count(BAD_READS);
    else if (PT_REGS_RC(ctx) == 0 && e && lane->kind == EMBEDDING)
        models.update(&model, e);
    // Nothing captured has run: a record of its own, marked as what it is.
    struct totals end = lane->now;
    if (end.launches != lane->base.launches || lane->kind != BETWEEN)
        close_step(ctx, &key, lane, lane->t_last, BY_GRAPH, &end);
    lane->capturing = 0;
    return 0;
}

static inline int sync_enter(struct pt_regs *ctx, u32 kind, u64 stream)
{
    u64 id = pid_tgid();
    struct thread *t = this_thread(id);
    if (!t)
        return 0;
    t->sync_kind = kind;
    t->sync_stream = stream;
    if (kind == 1) {
        t->stream = stream;
        t->has_stream = 1;
        struct lane_key key = {.tgid = id >> 32, .stream = stream};
        struct lane *lane = lanes.lookup(&key);
        if (lane)
            lane->t_sync_in = bpf_ktime_get_ns();
    } else if (kind == 2) {
        u64 tgid = id >> 32, now = bpf_ktime_get_ns();
        struct process *p = processes.lookup(&tgid);
        for (u32 i = 0; p && i < PROCESS_LANES; i++) {
            if (i >= p->lanes)
                break;
            struct lane_key key = {.tgid = tgid, .stream = p->stream[i]};
            struct lane *lane = lanes.lookup(&key);
            if (lane)
                lane->t_sync_in = now;
        }
    }
    return 0;
}

static inline int sync_lane(struct pt_regs *ctx, u64 tgid, u64 stream, u64 now)
{
    struct lane_key key = {.tgid = tgid, .stream = stream};
    struct lane *lane = lanes.lookup(&key);
    if (!lane)
        return 0;
    lane->t_sync_out = now;
    u64 done = lane->now.launches + lane->now.graphs;
    u64 run = done - lane->run_start;
    if (run == 0)
        return 0;  // nothing was waited for: the synchronise that precedes a copy, for one
    lane->run_start = done;
    if (lane->capturing)
        return 0;
    if (lane->kind == EMBEDDING) {
        if (run * 4 >= lane->run_longest) {
            lane->cand = lane->now;
            lane->cand_t = now;
        }
        if (run > lane->run_longest)
            lane->run_longest = run;
    } else if (lane->kind == GRAPH || !lane->has_model) {
        struct totals end = lane->now;
        close_step(ctx, &key, lane, now, BY_SYNC, &end);
    }
    return 0;
}

static inline int sync_leave(struct pt_regs *ctx)
{
    u64 id = pid_tgid();
    struct thread *t = threads.lookup(&id);
    if (!t || !t->sync_kind)
        return 0;
    u32 kind = t->sync_kind;
    t->sync_kind = 0;
    u64 now = bpf_ktime_get_ns(), tgid = id >> 32;
    if (kind != 2) {
        sync_lane(ctx, tgid, t->sync_stream, now);
        return 0;
    }
    struct process *p = processes.lookup(&tgid);
    for (u32 i = 0; p && i < PROCESS_LANES; i++) {
        if (i >= p->lanes)
            break;
        sync_lane(ctx, tgid, p->stream[i], now);
    }
    return 0;
}

// aclrtSynchronizeStream(stream), ...WithTimeout(stream, ms)
int on_sync_stream(struct pt_regs *ctx)
{
    return sync_enter(ctx, 1, PT_REGS_PARM1(ctx));
}

// aclrtSynchronizeDevice(), ...WithTimeout(ms)
int on_sync_device(struct pt_regs *ctx)
{
    return sync_enter(ctx, 2, 0);
}

int on_sync_return(struct pt_regs *ctx)
{
    return sync_leave(ctx);
}

static inline void add_copy(struct lane *lane, u64 bytes, u64 kind)
{
    if (kind == H2D) {
        __sync_fetch_and_add(&lane->now.h2d, bytes);
        __sync_fetch_and_add(&lane->now.h2d_copies, 1);
    } else if (kind == D2H) {
        __sync_fetch_and_add(&lane->now.d2h, bytes);
        // What is copied right after the synchronise that ended a step is its result.
        if (lane->cand_t && lane->now.launches + lane->now.graphs == lane->run_start &&
            lane->cand.launches == lane->now.launches)
            lane->cand.d2h += bytes;
    }
}

// aclrtMemcpy(dst, max, src, bytes, kind): names no stream; it belongs to the one that the thread used last,
// or to the process's only one.
int on_copy(struct pt_regs *ctx)
{
    u64 id = pid_tgid(), kind = (u32)PT_REGS_PARM5(ctx);
    if (kind != H2D && kind != D2H)
        return 0;
    u64 tgid = id >> 32;
    struct lane_key key = {.tgid = tgid};
    struct thread *t = threads.lookup(&id);
    if (t && t->has_stream) {
        key.stream = t->stream;
    } else {
        struct process *p = processes.lookup(&tgid);
        if (!p || p->lanes != 1)
            return 0;
        key.stream = p->stream[0];
    }
    struct lane *lane = lanes.lookup(&key);
    if (!lane)
        return 0;
    add_copy(lane, PT_REGS_PARM4(ctx), kind);
    // A copy to the host waits for what was launched before it.
    if (kind == D2H && lane->now.launches + lane->now.graphs != lane->run_start)
        sync_enter(ctx, 3, key.stream);
    return 0;
}

int on_copy_return(struct pt_regs *ctx)
{
    return sync_leave(ctx);
}

// aclrtMemcpyAsync(dst, max, src, bytes, kind, stream)
int on_copy_async(struct pt_regs *ctx)
{
    u64 kind = (u32)PT_REGS_PARM5(ctx);
    if (kind != H2D && kind != D2H)
        return 0;
    struct lane_key key = {.tgid = pid_tgid() >> 32, .stream = PT_REGS_PARM6(ctx)};
    struct lane *lane = this_lane(&key);
    if (lane)
        add_copy(lane, PT_REGS_PARM4(ctx), kind);
    return 0;
}
