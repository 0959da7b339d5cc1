// Programs for libllm_datadist, which moves KV caches between engines. Compiled behind common.h.

// By thread, when its transfer began.
LRU_HASH(transfers, u64, u64, 4096);

// adxl::AdxlEngine::TransferSync()
PROBE int on_transfer(struct pt_regs* ctx)
{
    u64 id = pid_tgid(), now = bpf_ktime_get_ns();
    hit(id, HIT_TRANSFER);
    transfers.update(&id, &now);
    return 0;
}

PROBE int on_transfer_return(struct pt_regs* ctx)
{
    u64 id = pid_tgid();
    hit(id, HIT_TRANSFER);
    u64* start = transfers.lookup(&id);
    if (!start)
        return 0;
    struct transfer_record r = {};
    r.tgid = id >> 32 | TRANSFER_MARK;
    r.t_start = *start;
    r.t_end = bpf_ktime_get_ns();
    transfers.delete(&id);
#ifdef EVENTS_RING
    if (events.ringbuf_output(&r, sizeof(r), BPF_RB_NO_WAKEUP))
        count(BEGINS_LOST);
#else
    if (events.perf_submit(ctx, &r, sizeof(r)))
        count(BEGINS_LOST);
#endif
    return 0;
}
