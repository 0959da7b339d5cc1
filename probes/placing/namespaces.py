"""By which numbers the BPF programs know processes: those of the tracer's own PID namespace (bpf/pid.h)."""

from __future__ import annotations

import os
from functools import cache
from typing import Final

from probes.placing.btf import member_offsets

FIRST: Final = 0xEFFFFFFC
"""The inode of the machine's first PID namespace (PROC_PID_INIT_INO of the kernel)."""


def in_first() -> bool:
    """Whether this process lives in the machine's first PID namespace."""
    return os.stat("/proc/self/ns/pid").st_ino == FIRST


@cache
def options() -> dict[str, int]:
    """What the programs are told; nothing in the first namespace, where the kernel's own number is the right
    one. On a kernel without BTF processes in namespaces within the tracer's are not known."""
    if in_first():
        return {}
    own = os.stat("/proc/self/ns/pid")
    told = {"pidns_dev": own.st_dev, "pidns_ino": own.st_ino}
    task = member_offsets("task_struct", ("thread_pid", "group_leader"))
    pid = member_offsets("pid", ("level", "numbers"))
    namespace = member_offsets("pid_namespace", ("ns",))
    common = member_offsets("ns_common", ("inum",))
    if task and pid and namespace and common:
        told |= {
            "task_pid": task["thread_pid"],
            "task_leader": task["group_leader"],
            "pid_level": pid["level"],
            "pid_numbers": pid["numbers"],
            "pidns_inum": namespace["ns"] + common["inum"],
        }
    return told
