// Programs for FlexNPU's client, which folds its steps itself (flexnpu/client/probe_point.hpp). Compiled
// behind common.h. A later version of its record is longer, and begins like the one that is known here.
//
// The client calls flexnpu_step() only while a probe is on it: the kernel then raises a word of the client's.
// A step costs a hit when it is known to be over, and one when it opens, where the tracer wants that too.

// Names of operators, by the address at which the client keeps each; counted in `operators` by that address.
BPF_HASH(client_names, struct handle_key, struct client_name, 4096);

#ifndef EVENTS_RING
BPF_PERCPU_ARRAY(client_scratch, struct client_record, 1);
#endif

// flexnpu_step(const struct flexnpu_step_record*), flexnpu_step_begin(the same)
PROBE int on_client_step(struct pt_regs* ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_CLIENT);
    this_thread(id);  // it launches: the tracer asks the scheduler about it
    const void* told = (void*)PT_REGS_PARM1(ctx);
#ifdef EVENTS_RING
    struct client_record* r = events.ringbuf_reserve(sizeof(*r));
    if (!r) {
        u32 kind = 0;
        bpf_probe_read_user(&kind, sizeof(kind), &((struct flexnpu_step_record*)told)->kind);
        count(kind == FLEXNPU_STEP_BEGIN ? BEGINS_LOST : STEPS_LOST);
        return 0;
    }
    if (bpf_probe_read_user(&r->step, sizeof(r->step), told)) {
        events.ringbuf_discard(r, BPF_RB_NO_WAKEUP);
        count(BAD_READS);
        return 0;
    }
    r->tgid = id >> 32 | CLIENT_MARK;
    u32 kind = r->step.kind;
    events.ringbuf_submit(r, wake_for(kind == FLEXNPU_STEP_BEGIN, sizeof(*r)));
    if (kind == FLEXNPU_STEP_DONE)
        count(STEPS_SENT);
#else
    int zero = 0;
    struct client_record* r = client_scratch.lookup(&zero);
    if (!r)
        return 0;
    if (bpf_probe_read_user(&r->step, sizeof(r->step), told)) {
        count(BAD_READS);
        return 0;
    }
    r->tgid = id >> 32 | CLIENT_MARK;
    u32 kind = r->step.kind;
    if (events.perf_submit(ctx, r, sizeof(*r)))
        count(kind == FLEXNPU_STEP_DONE ? STEPS_LOST : BEGINS_LOST);
    else if (kind == FLEXNPU_STEP_DONE)
        count(STEPS_SENT);
#endif
    return 0;
}

// flexnpu_operator(stream, name, executor)
PROBE int on_client_operator(struct pt_regs* ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_OPERATOR);
    struct operator_key key = {
        .tgid = id >> 32, .stream = PT_REGS_PARM1(ctx), .operator = PT_REGS_PARM2(ctx)};
    u64* seen = operators.lookup(&key);
    if (seen) {
        __sync_fetch_and_add(seen, 1);
        return 0;
    }
    struct handle_key at = {.tgid = id >> 32, .handle = key.operator};
    if (!client_names.lookup(&at)) {
        struct client_name name = {};
        if (bpf_probe_read_user_str(&name.text, sizeof(name.text), (void*)key.operator) < 0)
            count(BAD_READS);
        client_names.update(&at, &name);
    }
    u64 zero = 0;
    seen = operators.lookup_or_try_init(&key, &zero);
    if (seen)
        __sync_fetch_and_add(seen, 1);
    else
        count(MAP_FULL);
    return 0;
}
