// A second program beside each of the tracer's probes, for the self-test (probes/selftest/run.py): counts
// hits and adds up argument registers. The cookie says which probe it is.
#include "platform.h"

#include "counters_records.h"

BPF_ARRAY(seen, struct seen, PLACES);

PROBE int on_hit(struct pt_regs* ctx)
{
    int which = attach_cookie(ctx);
    struct seen* s = seen.lookup(&which);
    if (!s)
        return 0;
    u64 first = PT_REGS_PARM1(ctx), second = PT_REGS_PARM2(ctx), third = PT_REGS_PARM3(ctx),
        fourth = PT_REGS_PARM4(ctx);
    __sync_fetch_and_add(&s->hits, 1);
    __sync_fetch_and_add(&s->argument[0], first);
    __sync_fetch_and_add(&s->argument[1], second);
    __sync_fetch_and_add(&s->argument[2], third);
    __sync_fetch_and_add(&s->argument[3], fourth);
    return 0;
}
