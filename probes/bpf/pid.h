// Which thread runs a program, as the tracer's process namespace names it.
#pragma once

static inline u64 pid_tgid(void) {
    if (PIDNS_INO) {
        struct bpf_pidns_info ns = {};
        if (bpf_get_ns_current_pid_tgid(PIDNS_DEV, PIDNS_INO, &ns, sizeof(ns)) == 0)
            return ((u64)ns.tgid << 32) | ns.pid;
    }
    return bpf_get_current_pid_tgid();
}
