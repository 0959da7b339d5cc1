// Programs for the vendor's CANN (and its emulated peer): they fold the calls of its functions into steps.
// Compiled behind common.h.

#ifdef HAS_COOKIES
static u64 (*attach_cookie)(void *ctx) = (void *)174;  // BPF_FUNC_get_attach_cookie
#endif

// A program of its own for measuring what a hit costs: it does about what the others do.
int on_calibrate(struct pt_regs *ctx)
{
    u64 id = pid_tgid(), now = bpf_ktime_get_ns();
    hit(id, HIT_SYNC);
    struct thread *t = threads.lookup(&id);
    if (t)
        t->stream = now;
    return 0;
}

// aclrtLaunchKernelWithHostArgs(func, blocks, stream, ...)
int on_kernel_launch(struct pt_regs *ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_LAUNCH);
    struct lane_key key = {.tgid = id >> 32, .stream = PT_REGS_PARM3(ctx)};
    struct lane *lane = this_lane(&key);
    if (lane)
        add_work(ctx, &key, lane, bpf_ktime_get_ns(), 0);
    return 0;
}

#ifdef HAS_COOKIES
// Any operator's second call, aclnnXxx(workspace, size, executor, stream): the cookie says which.
int on_operator(struct pt_regs *ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_OPERATOR);
    struct operator_key key = {.tgid = id >> 32, .stream = PT_REGS_PARM4(ctx), .operator = attach_cookie(ctx)};
    u64 zero = 0, *value = operators.lookup_or_try_init(&key, &zero);
    if (value)
        __sync_fetch_and_add(value, 1);
    else
        count(MAP_FULL);
    return 0;
}
#endif

// aclCreateTensor(const int64_t* dims, uint64_t n, aclDataType, ...)
int on_create_tensor(struct pt_regs *ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_TENSOR);
    struct thread *t = this_thread(id);
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

// Keeps an array of `n` lengths as evidence, unless it is no array of lengths.
static inline int add_array(struct evidence *e, const s64 *values, u64 n, u32 role)
{
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
    a.rising |= role << 8;
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

// The evidence that what this thread passes now belongs to, or 0. A graph's step gets one of its own when the first
// length comes, for a task update: most never do, and making one costs more than all else in the launch.
static inline struct evidence *running_evidence(u64 id, struct thread *t)
{
    u64 eid = t->evidence;
    if (eid)
        return evidences.lookup(&eid);
    if (!t->updates)
        return 0;
    struct lane_key key = {.tgid = id >> 32, .stream = t->graph_stream};
    struct lane *lane = lanes.lookup(&key);
    if (!lane || lane->kind != GRAPH || lane->evidence)
        return 0;
    struct evidence *learned = of_graph(&key, lane);
    struct evidence *e = new_evidence(&eid, learned);
    if (!e)
        return 0;
    tell_graph(e, lane, learned != 0);
    lane->evidence = eid;
    t->evidence = eid;
    return e;
}

// aclCreateIntArray(const int64_t* values, uint64_t n)
int on_create_int_array(struct pt_regs *ctx)
{
    u64 n = PT_REGS_PARM2(ctx);
    const s64 *values = (const s64 *)PT_REGS_PARM1(ctx);
    u64 id = pid_tgid();
    hit(id, HIT_ARRAY);
    if (n == 0)
        return 0;
    struct thread *t = threads.lookup(&id);
    struct evidence *e = t ? running_evidence(id, t) : 0;
    if (!e)
        return 0;
    return add_array(e, values, n, ROLE_NONE);
}

// Reads an aclTensor's dimensions and data type by the learned layout. Non-zero when that fails.
static inline int read_tensor(struct layout *l, u64 object, struct tensor *to)
{
    u64 values = 0;
    u32 n = 0;
    if (find_vector(&l->dims, object, &values, &n) || find_dtype(l, object, &to->dtype))
        return 1;
    to->ndim = n;
    if (n > MAX_DIMS)
        n = MAX_DIMS;
    return n && bpf_probe_read_user(to->dims, n * sizeof(s64), (void *)values);
}

// What the three tensors of an embedding tell. The order is known when they were read from the arguments; tensors
// remembered from their making came in an order that the program's compiler chose: the indices are the integers among
// them, the table is the one with two dimensions, the result has one more than the indices.
static inline void note_embedding(struct evidence *e, struct tensor *made, s64 *out_last, u32 *out_ndim)
{
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
        *out_ndim = made->ndim;
        *out_last = made->dims[(made->ndim - 1) & (MAX_DIMS - 1)];
        // With one-dimensional indices the result has two dimensions as well, and as many rows as indices.
        if (e->ndim == 1 && made->ndim == 2 && e->rows == e->dims[0])
            e->rows = made->dims[0];
    }
}

// aclnnEmbeddingGetWorkspaceSize(weight, indices, out, uint64_t* size, aclOpExecutor** executor)
int on_embedding_first(struct pt_regs *ctx)
{
    u64 id = pid_tgid(), tgid = id >> 32;
    hit(id, HIT_EMBEDDING_FIRST);
    struct thread *t = this_thread(id);
    if (!t)
        return 0;
    u64 eid = 0;
    struct evidence *e = new_evidence(&eid, 0);
    if (!e)
        return 0;
    e->t_first = bpf_ktime_get_ns();
    s64 out_last = 0;
    u32 out_ndim = 0;
    struct layout *l = layouts.lookup(&tgid);
    if (l && l->has_tensor) {
        struct tensor made = {};
        if (read_tensor(l, PT_REGS_PARM1(ctx), &made))
            count(BAD_READS);
        else
            note_embedding(e, &made, &out_last, &out_ndim);
        made.ndim = 0;
        if (read_tensor(l, PT_REGS_PARM2(ctx), &made))
            count(BAD_READS);
        else
            note_embedding(e, &made, &out_last, &out_ndim);
        made.ndim = 0;
        if (read_tensor(l, PT_REGS_PARM3(ctx), &made))
            count(BAD_READS);
        else
            note_embedding(e, &made, &out_last, &out_ndim);
    } else {
        for (u32 i = 1; i <= 3; i++) {
            if (i > t->at)
                break;
            note_embedding(e, &t->tensor[(t->at - i) & (TENSORS - 1)], &out_last, &out_ndim);
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
    hit(id, HIT_EMBEDDING_RETURN);
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
    u64 eid = t->evidence;
    struct evidence *e = eid ? evidences.lookup(&eid) : 0;
    if (PT_REGS_RC(ctx) == 0 && e) {
        struct shape shape = {.evidence = eid, .ndim = e->ndim, .flags = e->flags, .rows = e->rows,
                              .columns = e->columns};
        __builtin_memcpy(shape.dims, e->dims, sizeof(shape.dims));
        executors.update(&key, &shape);
    }
    return 0;
}

// Position and token-type embeddings follow the token embedding within the same step, with smaller tables of their
// own. One soon after the opening, whatever else the model asks about its inputs meanwhile.
static inline int is_second_table(struct lane *lane, s64 rows, s64 columns, u64 now)
{
    if (lane->kind != EMBEDDING || !rows || !lane->rows || (rows == lane->rows && columns == lane->columns))
        return 0;
    return !lane->cand_t || (rows < lane->rows && (now - lane->t_open) * 4 < lane->usual);
}

// aclnnEmbedding(workspace, size, executor, stream)
int on_embedding_second(struct pt_regs *ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_EMBEDDING);
    u64 now = bpf_ktime_get_ns();
    struct handle_key executor = {.tgid = id >> 32, .handle = PT_REGS_PARM3(ctx)};
    struct lane_key key = {.tgid = id >> 32, .stream = PT_REGS_PARM4(ctx)};
    struct lane *lane = this_lane(&key);
    if (!lane)
        return 0;
    struct shape *known = executors.lookup(&executor);
    u64 eid = known ? known->evidence : 0;
    struct evidence *e = eid ? evidences.lookup(&eid) : 0;
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
    close_for_next(ctx, &key, lane, BY_NEXT, t_open);
    open_step(lane, EMBEDDING, t_open, eid);
    lane->rows = rows;
    lane->columns = columns;
    lane->has_model = 1;
    lane->t_last = now;
    if (!lane->capturing)
        send_begin(ctx, &key, lane, now);
    return 0;
}

// Arguments of integer class from the sixth on, at a function's first instruction. Read at once: the verifier allows
// reading the context only at fixed offsets, of which the compiler would make a choice.
struct arguments {
    u64 fifth, sixth, seventh;  // numbers from 0; the last two in registers on aarch64 alone
    u64 stack;
};

static inline void read_arguments(struct pt_regs *ctx, struct arguments *a)
{
    u64 fifth = PT_REGS_PARM6(ctx), stack = PT_REGS_SP(ctx);
    asm volatile("" : "+r"(fifth), "+r"(stack));
    a->fifth = fifth;
#ifdef __TARGET_ARCH_arm64
    u64 sixth = ctx->regs[6], seventh = ctx->regs[7];
    asm volatile("" : "+r"(sixth), "+r"(seventh));
    a->sixth = sixth;
    a->seventh = seventh;
    a->stack = stack - 8 * 8;
#else
    a->stack = stack + 8 - 6 * 8;  // above the return address
#endif
}

static inline u64 argument(struct arguments *a, u32 n)
{
    u64 value = 0;
    if (n == 5)
        return a->fifth;
#ifdef __TARGET_ARCH_arm64
    if (n == 6)
        return a->sixth;
    if (n == 7)
        return a->seventh;
#endif
    if (bpf_probe_read_user(&value, sizeof(value), (void *)(a->stack + (u64)n * 8)))
        count(BAD_READS);
    return value;
}

static inline void add_lengths(struct layout *l, struct evidence *e, u64 object, u32 role)
{
    u64 values = 0;
    u32 n = 0;
    if (!object)
        return;
    if (find_vector(&l->ints, object, &values, &n))
        count(BAD_READS);
    else if (n)
        add_array(e, (const s64 *)values, n, role);
}

// The first call of an attention operator: (query, ...), with arrays of sequence lengths and the name of the query's
// layout where the cookie says: bits 0-7, 8-15 and 16-23 are the arguments' numbers, 0 for none. All but the first
// calls of a step return at once. Where no embedding opened a step, the attention tells that there is one, on the lane
// that its thread waits for next.
int on_attention_first(struct pt_regs *ctx)
{
    u64 id = pid_tgid(), tgid = id >> 32;
    hit(id, HIT_ATTENTION);
    struct thread *t = this_thread(id);
    if (!t)
        return 0;
    struct evidence *e = running_evidence(id, t);
    if (e && e->attentions >= ATTENTIONS)
        return 0;
    if (!e) {
        u64 eid = 0;
        e = new_evidence(&eid, 0);
        if (!e)
            return 0;
        e->t_first = bpf_ktime_get_ns();
        t->evidence = eid;
        t->attention = eid;
    }
    e->attentions += 1;
    struct layout *l = layouts.lookup(&tgid);
    if (!l)
        return 0;
    if (l->has_tensor && !(e->flags & HAS_QUERY)) {
        struct tensor query = {};
        if (read_tensor(l, PT_REGS_PARM1(ctx), &query)) {
            count(BAD_READS);
        } else {
            e->flags |= HAS_QUERY;
            e->query_ndim = query.ndim;
            __builtin_memcpy(e->query, query.dims, sizeof(e->query));
        }
    }
#ifdef HAS_COOKIES
    u64 where = attach_cookie(ctx);
    struct arguments a = {};
    read_arguments(ctx, &a);
    u32 lengths = where & 0xff, keys = where >> 8 & 0xff, name = where >> 16 & 0xff;
    if (name) {
        u64 text = argument(&a, name);
        if (text)
            bpf_probe_read_user_str(e->query_layout, sizeof(e->query_layout), (void *)text);
    }
    if (l->has_int_array) {
        if (lengths)
            add_lengths(l, e, argument(&a, lengths), ROLE_QUERY);
        if (keys)
            add_lengths(l, e, argument(&a, keys), ROLE_KV);
    }
#endif
    return 0;
}

// aclmdlRIExecuteAsync(model, stream)
int on_graph(struct pt_regs *ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_GRAPH);
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
        close_for_next(ctx, &key, lane, BY_GRAPH, now);
        open_step(lane, GRAPH, now, 0);
        lane->model = model.handle;
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
int on_capture_begin(struct pt_regs *ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_CAPTURE);
    struct lane_key key = {.tgid = id >> 32, .stream = PT_REGS_PARM1(ctx)};
    struct lane *lane = this_lane(&key);
    if (!lane)
        return 0;
    close_for_next(ctx, &key, lane, BY_GRAPH, bpf_ktime_get_ns());
    lane->capturing = 1;
    return 0;
}

// aclmdlRICaptureEnd(stream, aclmdlRI* model)
int on_capture_end(struct pt_regs *ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_CAPTURE);
    struct thread *t = this_thread(id);
    if (!t)
        return 0;
    t->capture_stream = PT_REGS_PARM1(ctx);
    t->capture_model = PT_REGS_PARM2(ctx);
    return 0;
}

int on_capture_end_return(struct pt_regs *ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_CAPTURE);
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

static inline int sync_enter(struct pt_regs *ctx, u64 id, u32 kind, u64 stream)
{
    struct thread *t = this_thread(id);
    if (!t)
        return 0;
    t->sync_kind = kind;
    t->sync_stream = stream;
    u64 tgid = id >> 32, now = bpf_ktime_get_ns();
    if (kind == 1) {
        t->stream = stream;
        t->has_stream = 1;
        struct lane_key key = {.tgid = tgid, .stream = stream};
        struct lane *lane = this_lane(&key);
        if (lane)
            lane->t_sync_in = now;
    } else if (kind == 2) {
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

// Whether a synchronise of a step that already looks complete only says that the program was idle: the step has come to
// half its usual length, and since then twice that has passed, and more than it took so far, hardly any in waiting.
static inline int is_idle(struct lane *lane, u64 run, u64 waited)
{
    u64 length = lane->cand_t - lane->t_open;
    return lane->cand_t && lane->usual && length * 2 >= lane->usual && run > length && run > lane->usual * 2 &&
           waited * 8 < run;
}

static inline void sync_model(struct lane *lane, u64 run, u64 now, int idle)
{
    if (!idle && run * 4 >= lane->run_longest) {
        lane->cand = lane->now;
        lane->cand_t = now;
    }
    if (!idle && run > lane->run_longest)
        lane->run_longest = run;
}

// The thread `t` has waited for `stream`.
static inline int sync_lane(struct pt_regs *ctx, u64 tgid, u64 stream, struct thread *t, u64 now)
{
    struct lane_key key = {.tgid = tgid, .stream = stream};
    struct lane *lane = lanes.lookup(&key);
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
        struct evidence *e = evidences.lookup(&eid);
        t->attention = 0;
        t->evidence = 0;
        t->updates = 0;
        if (e) {
            lane->kind = ATTENTION;
            lane->evidence = eid;
            if (!lane->t_open || lane->t_open > e->t_first)
                lane->t_open = e->t_first;
            struct totals end = lane->now;
            close_step(ctx, &key, lane, now, BY_SYNC, &end);
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
        close_step(ctx, &key, lane, now, BY_SYNC, &end);
    } else if (!lane->has_model) {
        if (waited >= PLAIN_WAIT_NS) {
            lane->t_open = lane->t_sync_in;
            struct totals end = lane->now;
            close_step(ctx, &key, lane, now, BY_SYNC, &end);
        } else {
            lane->base = lane->now;  // copies that load a model are no step's
            lane->t_base = now;
        }
    }
    return 0;
}

static inline int sync_leave(struct pt_regs *ctx, u64 id)
{
    struct thread *t = threads.lookup(&id);
    if (!t || !t->sync_kind)
        return 0;
    u32 kind = t->sync_kind;
    t->sync_kind = 0;
    u64 now = bpf_ktime_get_ns(), tgid = id >> 32;
    if (kind != 2) {
        sync_lane(ctx, tgid, t->sync_stream, t, now);
        return 0;
    }
    struct process *p = processes.lookup(&tgid);
    for (u32 i = 0; p && i < PROCESS_LANES; i++) {
        if (i >= p->lanes)
            break;
        sync_lane(ctx, tgid, p->stream[i], t, now);
    }
    return 0;
}

// aclrtSynchronizeStream(stream), ...WithTimeout(stream, ms)
int on_sync_stream(struct pt_regs *ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_SYNC);
    return sync_enter(ctx, id, 1, PT_REGS_PARM1(ctx));
}

// aclrtSynchronizeDevice(), ...WithTimeout(ms)
int on_sync_device(struct pt_regs *ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_SYNC);
    return sync_enter(ctx, id, 2, 0);
}

// aclrtSynchronizeEvent(event), ...WithTimeout(event, ms): where the event was recorded is not known, since recording
// is not probed. It is taken to be on any of the process's streams, as if all were waited for.
int on_sync_event(struct pt_regs *ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_SYNC);
    return sync_enter(ctx, id, 2, 0);
}

int on_sync_return(struct pt_regs *ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_SYNC_RETURN);
    return sync_leave(ctx, id);
}

static inline void add_copy(struct lane *lane, u64 tgid, u64 bytes, u64 kind)
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
static inline int copy_enter(struct pt_regs *ctx, u64 id, u64 bytes, u64 kind)
{
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
    add_copy(lane, tgid, bytes, kind);
    // A copy to the host waits for what was launched before it: for nothing, when a synchronise has ended the step.
    if (kind != D2H)
        return 0;
    if (is_counted(tgid) ? lane->now.launches + lane->now.graphs == lane->run_start
                         : lane->kind == BETWEEN && lane->has_model && !(t && t->attention))
        return 0;
    sync_enter(ctx, id, 3, key.stream);
    lane->t_sync_in = bpf_ktime_get_ns();
    return 1;
}

int on_copy(struct pt_regs *ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_COPY);
    copy_enter(ctx, id, PT_REGS_PARM4(ctx), (u32)PT_REGS_PARM5(ctx));
    return 0;
}

int on_copy_return(struct pt_regs *ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_COPY_RETURN);
    return sync_leave(ctx, id);
}

// Both, as a uprobe session: what it says at the entry decides whether the return is probed, which costs as much again.
// A return is told from an entry by the instruction: it is the caller's.
int on_copy_session(struct pt_regs *ctx)
{
    u64 id = pid_tgid(), at = PT_REGS_IP(ctx);
    struct thread *t = threads.lookup(&id);
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
int on_copy_async(struct pt_regs *ctx)
{
    u64 id = pid_tgid(), kind = (u32)PT_REGS_PARM5(ctx);
    hit(id, HIT_COPY_ASYNC);
    if (kind != H2D && kind != D2H)
        return 0;
    struct lane_key key = {.tgid = id >> 32, .stream = PT_REGS_PARM6(ctx)};
    struct lane *lane = this_lane(&key);
    if (lane)
        add_copy(lane, key.tgid, PT_REGS_PARM4(ctx), kind);
    return 0;
}
