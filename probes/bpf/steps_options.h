// What the loader tells the step programs. In an object these are constants that it fills in, so that the
// kernel leaves out what they rule out; bcc is given macros of the same names (-DGAP_NS=...).
#pragma once

#include "platform.h"

#ifdef FLEXNPU_CORE
struct options {
    u64 gap_ns;      // silence that ends a plain step
    u64 ring_pages;  // size of the ring
    u64 pidns_dev;   // the tracer's process namespace, 0 where it is the first one
    u64 pidns_ino;
    // Offsets of task_struct's thread_pid and group_leader, of struct pid's level and numbers, and of a
    // namespace's inode; 0 where they are not needed or not known.
    u64 task_pid, task_leader, pid_level, pid_numbers, pidns_inum;
    u32 begins;       // steps that open are told, too
    u32 has_cookies;  // the kernel has bpf_get_attach_cookie for these probes
};
volatile const struct options options SEC(".rodata.options");
#define GAP_NS options.gap_ns
#define RING_PAGES options.ring_pages
#define BEGINS options.begins
#define HAS_COOKIES options.has_cookies
#define EVENTS_RING  // a kernel without ring buffers is bcc's
#endif

#define RING_BYTES (RING_PAGES * 4096)
#define TARGETS 256  // processes that may be attached to at once
