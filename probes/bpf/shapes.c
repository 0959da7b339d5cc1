// Programs that see shapes: where tensors and arrays are made, where embeddings and attention operators are
// asked for. Compiled behind common.h.

// aclCreateTensor(const int64_t* dims, uint64_t n, aclDataType, ...)
PROBE int on_create_tensor(struct pt_regs* ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_TENSOR);
    struct thread* t = this_thread(id);
    if (!t)
        return 0;
    struct tensor* made = &t->tensor[t->at & (TENSORS - 1)];
    u64 n = PT_REGS_PARM2(ctx);
    made->ndim = n;
    made->dtype = PT_REGS_PARM3(ctx);
    t->at += 1;
    if (n > FLEXNPU_STEP_DIMS)
        n = FLEXNPU_STEP_DIMS;
    if (n && bpf_probe_read_user(made->dims, n * sizeof(s64), (void*)PT_REGS_PARM1(ctx))) {
        made->ndim = 0;
        count(BAD_READS);
    }
    return 0;
}

// Keeps an array of `n` lengths as evidence, unless it is no array of lengths.
static inline int add_array(struct evidence* e, const s64* values, u64 n, u32 role)
{
    struct flexnpu_step_array a = {.n = n, .rising = 1};
    s64 before = 0;
    int padded = 0;
    for (u32 i = 0; i < ARRAY_VALUES; i++) {
        s64 value = 0;
        if (i >= n)
            break;
        if (bpf_probe_read_user(&value, sizeof(value), values + i)) {
            count(BAD_READS);
            return 0;
        }
        if (value == 0 && i > 0 && role == FLEXNPU_STEP_KV) {
            padded = 1;
            break;
        }
        if (value <= 0)
            return 0;  // axes, permutations: not lengths
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
    // Sequences that are padding stand at the end. Counted by themselves: the verifier would follow each
    // number of zeros through the loop above.
    u32 zeros = 0;
    for (u32 i = 0; padded && i < ARRAY_VALUES; i++) {
        s64 value = 0;
        if (a.seen + i >= n)
            break;
        if (bpf_probe_read_user(&value, sizeof(value), values + a.seen + i)) {
            count(BAD_READS);
            return 0;
        }
        if (value)
            return 0;
        zeros += 1;
    }
    a.n -= zeros;
    a.rising |= role << 8 | zeros << 16;
    // Every layer passes the same arrays again.
    for (u32 i = 0; i < FLEXNPU_STEP_ARRAYS; i++) {
        struct flexnpu_step_array* old = &e->array[i];
        if (i >= e->arrays)
            break;
        if (old->n == a.n && old->first == a.first && old->last == a.last && old->sum == a.sum)
            return 0;
    }
    u32 at = e->arrays;
    if (at < FLEXNPU_STEP_ARRAYS) {
        e->array[at] = a;
        e->arrays = at + 1;
    }
    return 0;
}

// The evidence that what this thread passes now belongs to, or 0. A graph's step gets one of its own when the
// first length comes, for a task update: most never do, and making one costs more than all else in the
// launch.
static inline struct evidence* running_evidence(u64 id, struct thread* t)
{
    u64 eid = t->evidence;
    if (eid)
        return evidences.lookup(&eid);
    if (!t->updates)
        return 0;
    struct lane_key key = {.tgid = id >> 32, .stream = t->graph_stream};
    struct lane* lane = lanes.lookup(&key);
    if (!lane || lane->kind != GRAPH || lane->evidence)
        return 0;
    struct evidence* learned = of_graph(&key, lane);
    struct evidence* e = new_evidence(&eid, learned);
    if (!e)
        return 0;
    tell_graph(e, lane, learned != 0);
    lane->evidence = eid;
    t->evidence = eid;
    return e;
}

// aclCreateIntArray(const int64_t* values, uint64_t n)
PROBE int on_create_int_array(struct pt_regs* ctx)
{
    u64 n = PT_REGS_PARM2(ctx);
    const s64* values = (const s64*)PT_REGS_PARM1(ctx);
    u64 id = pid_tgid();
    hit(id, HIT_ARRAY);
    if (n == 0)
        return 0;
    struct thread* t = threads.lookup(&id);
    struct evidence* e = t ? running_evidence(id, t) : 0;
    if (!e)
        return 0;
    return add_array(e, values, n, FLEXNPU_STEP_NO_ROLE);
}

// Reads an aclTensor's dimensions and data type by the learned layout. Non-zero when that fails.
static inline int read_tensor(struct layout* l, u64 object, struct tensor* to)
{
    u64 values = 0;
    u32 n = 0;
    if (find_vector(&l->dims, object, &values, &n) || find_dtype(l, object, &to->dtype))
        return 1;
    to->ndim = n;
    if (n > FLEXNPU_STEP_DIMS)
        n = FLEXNPU_STEP_DIMS;
    return n && bpf_probe_read_user(to->dims, n * sizeof(s64), (void*)values);
}

// What the three tensors of an embedding tell. The order is known when they were read from the arguments;
// tensors remembered from their making came in an order that the program's compiler chose: the indices are
// the integers among them, the table is the one with two dimensions, the result has one more than the
// indices.
static inline void note_embedding(struct evidence* e, struct tensor* made, s64* out_last, u32* out_ndim)
{
    if (made->dtype == ACL_INT64 || made->dtype == ACL_INT32) {
        if (!(e->flags & FLEXNPU_STEP_HAS_INDICES)) {
            e->flags |= FLEXNPU_STEP_HAS_INDICES;
            e->ndim = made->ndim;
            __builtin_memcpy(e->dims, made->dims, sizeof(e->dims));
        }
    } else if (made->ndim == 2 && !(e->flags & FLEXNPU_STEP_HAS_TABLE)) {
        e->flags |= FLEXNPU_STEP_HAS_TABLE;
        e->rows = made->dims[0];
        e->columns = made->dims[1];
    } else {
        *out_ndim = made->ndim;
        *out_last = made->dims[(made->ndim - 1) & (FLEXNPU_STEP_DIMS - 1)];
        // With one-dimensional indices the result has two dimensions as well, and as many rows as indices.
        if (e->ndim == 1 && made->ndim == 2 && e->rows == e->dims[0])
            e->rows = made->dims[0];
    }
}

// aclnnEmbeddingGetWorkspaceSize(weight, indices, out, uint64_t* size, aclOpExecutor** executor)
PROBE int on_embedding_first(struct pt_regs* ctx)
{
    u64 id = pid_tgid(), tgid = id >> 32;
    hit(id, HIT_EMBEDDING_FIRST);
    struct thread* t = this_thread(id);
    if (!t)
        return 0;
    u64 eid = 0;
    struct evidence* e = new_evidence(&eid, 0);
    if (!e)
        return 0;
    e->t_first = bpf_ktime_get_ns();
    s64 out_last = 0;
    u32 out_ndim = 0;
    struct layout* l = layouts.lookup(&tgid);
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
        e->flags |= FLEXNPU_STEP_AGREED;
    t->evidence = eid;
    t->first_call = PT_REGS_PARM5(ctx);
    return 0;
}

PROBE int on_embedding_first_return(struct pt_regs* ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_EMBEDDING_RETURN);
    struct thread* t = threads.lookup(&id);
    if (!t || !t->first_call)
        return 0;
    struct handle_key key = {.tgid = id >> 32};
    int failed = bpf_probe_read_user(&key.handle, sizeof(key.handle), (void*)t->first_call);
    t->first_call = 0;
    if (failed) {
        count(BAD_READS);
        return 0;
    }
    u64 eid = t->evidence;
    struct evidence* e = eid ? evidences.lookup(&eid) : 0;
    if (PT_REGS_RC(ctx) == 0 && e) {
        struct shape shape = {
            .evidence = eid, .ndim = e->ndim, .flags = e->flags, .rows = e->rows, .columns = e->columns};
        __builtin_memcpy(shape.dims, e->dims, sizeof(shape.dims));
        executors.update(&key, &shape);
    }
    return 0;
}

// Arguments of integer class from the sixth on, at a function's first instruction. Read at once: the verifier
// allows reading the context only at fixed offsets, of which the compiler would make a choice.
struct arguments {
    u64 fifth, sixth, seventh;  // numbers from 0; the last two in registers on aarch64 alone
    u64 stack;
};

static inline void read_arguments(struct pt_regs* ctx, struct arguments* a)
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

static inline u64 argument(struct arguments* a, u32 n)
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
    if (bpf_probe_read_user(&value, sizeof(value), (void*)(a->stack + (u64)n * 8)))
        count(BAD_READS);
    return value;
}

// The array of lengths `object`, as evidence `eid` of a step of process `tgid`.
static inline int lengths_of(u64 tgid, u64 eid, u64 object, u32 role)
{
    u64 values = 0;
    u32 n = 0;
    struct layout* l = layouts.lookup(&tgid);
    struct evidence* e = evidences.lookup(&eid);
    if (!object || !l || !e)
        return 0;
    if (find_vector(&l->ints, object, &values, &n))
        count(BAD_READS);
    else if (n)
        add_array(e, (const s64*)values, n, role);
    return 0;
}

#ifdef FLEXNPU_CORE
// Verified once: see reached_lane.
int add_lengths(u64 tgid, u64 eid, u64 object, u32 role)
{
    return lengths_of(tgid, eid, object, role);
}
#else
#define add_lengths lengths_of
#endif

// The first call of an attention operator: (query, ...), with arrays of sequence lengths and the name of the
// query's layout where the cookie says: bits 0-7, 8-15 and 16-23 are the arguments' numbers, 0 for none. All
// but the first calls of a step return at once. Where no embedding opened a step, the attention tells that
// there is one, on the lane that its thread waits for next.
PROBE int on_attention_first(struct pt_regs* ctx)
{
    u64 id = pid_tgid(), tgid = id >> 32;
    hit(id, HIT_ATTENTION);
    struct thread* t = this_thread(id);
    if (!t)
        return 0;
    struct evidence* e = running_evidence(id, t);
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
    struct layout* l = layouts.lookup(&tgid);
    if (!l)
        return 0;
    if (l->has_tensor && !(e->flags & FLEXNPU_STEP_HAS_QUERY)) {
        struct tensor query = {};
        if (read_tensor(l, PT_REGS_PARM1(ctx), &query)) {
            count(BAD_READS);
        } else {
            e->flags |= FLEXNPU_STEP_HAS_QUERY;
            e->query_ndim = query.ndim;
            __builtin_memcpy(e->query, query.dims, sizeof(e->query));
        }
    }
    if (!HAS_COOKIES)
        return 0;
    u64 where = attach_cookie(ctx);
    struct arguments a = {};
    read_arguments(ctx, &a);
    u32 lengths = where & 0xff, keys = where >> 8 & 0xff, name = where >> 16 & 0xff;
    if (name) {
        u64 text = argument(&a, name);
        if (text)
            bpf_probe_read_user_str(e->query_layout, sizeof(e->query_layout), (void*)text);
    }
    if (l->has_int_array) {
        if (lengths)
            add_lengths(tgid, t->evidence, argument(&a, lengths), FLEXNPU_STEP_QUERY);
        if (keys)
            add_lengths(tgid, t->evidence, argument(&a, keys), FLEXNPU_STEP_KV);
    }
    return 0;
}
