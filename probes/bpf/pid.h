// Which thread runs a program, as the tracer's process namespace names it.
#pragma once

// Offsets in the kernel's structures are told where they are needed. Relocations of an object would cost each
// start the reading of all of the kernel's types, some 3 s of CPU.
#ifdef FLEXNPU_CORE
#define PIDNS_DEV options.pidns_dev
#define PIDNS_INO options.pidns_ino
#define TASK_PID options.task_pid
#define TASK_LEADER options.task_leader
#define PID_LEVEL options.pid_level
#define PID_NUMBERS options.pid_numbers
#define PIDNS_INUM options.pidns_inum
#endif
#define PIDNS_LEVELS 33  // MAX_PID_NS_LEVEL and the first namespace

// struct upid
struct pid_number {
    s32 number;
    u64 ns;
};

// The number that a task has in the tracer's namespace; 0 when it has none there.
static SHARED u32 number_of(u64 task) {
    u64 pid = 0;
    u32 level = 0;
    if (bpf_probe_read_kernel(&pid, sizeof(pid), (void*)(task + TASK_PID)) || !pid ||
        bpf_probe_read_kernel(&level, sizeof(level), (void*)(pid + PID_LEVEL)))
        return 0;
    for (u32 i = 0; i < PIDNS_LEVELS; i++) {
        struct pid_number one = {};
        u32 inum = 0;
        if (i > level) break;
        if (bpf_probe_read_kernel(&one, sizeof(one), (void*)(pid + PID_NUMBERS + i * sizeof(one))) ||
            bpf_probe_read_kernel(&inum, sizeof(inum), (void*)(one.ns + PIDNS_INUM)))
            return 0;
        if (inum == PIDNS_INO) return one.number;
    }
    return 0;
}

// Process and thread; 0 for those that the tracer's namespace does not show: their numbers in another one may
// be those of processes that it does.
static inline u64 pid_tgid(void) {
    if (!PIDNS_INO) return bpf_get_current_pid_tgid();
    // The helper knows the namespace that a task lives in, and no outer one.
    struct bpf_pidns_info ns = {};
    if (bpf_get_ns_current_pid_tgid(PIDNS_DEV, PIDNS_INO, &ns, sizeof(ns)) == 0)
        return ((u64)ns.tgid << 32) | ns.pid;
    if (!PID_NUMBERS) return 0;
    u64 task = bpf_get_current_task(), leader = 0;
    if (bpf_probe_read_kernel(&leader, sizeof(leader), (void*)(task + TASK_LEADER)) || !leader) return 0;
    return ((u64)number_of(leader) << 32) | number_of(task);
}
