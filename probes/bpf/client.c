// Programs for FlexNPU's client. Compiled behind common.h.

// flexnpu_launch(stream, op, executor)
int on_client_launch(struct pt_regs *ctx)
{
    return add_work(ctx, pid_tgid(), PT_REGS_PARM1(ctx), 0);
}
