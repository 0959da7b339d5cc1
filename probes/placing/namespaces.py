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


def options() -> dict[str, int]:
    """What the programs are told: ``pidns_dev`` and ``pidns_ino``; empty in the first namespace."""
    if in_first():
        return {}
    namespace = os.stat("/proc/self/ns/pid")
    return {"pidns_dev": namespace.st_dev, "pidns_ino": namespace.st_ino}


@cache
def macros() -> dict[str, int]:
    """What bcc is told of the kernel's structures, so that processes in namespaces within the tracer's are
    known too. Empty in the first namespace, where the kernel's own number is the right one, and on a kernel
    without BTF."""
    if in_first():
        return {}
    task = member_offsets("task_struct", ("thread_pid", "group_leader"))
    pid = member_offsets("pid", ("level", "numbers"))
    namespace = member_offsets("pid_namespace", ("ns",))
    common = member_offsets("ns_common", ("inum",))
    if not (task and pid and namespace and common):
        return {}
    return {
        "PID_NUMBERS_KNOWN": 1,
        "TASK_PID": task["thread_pid"],
        "TASK_LEADER": task["group_leader"],
        "PID_LEVEL": pid["level"],
        "PID_NUMBERS": pid["numbers"],
        "PIDNS_INUM": namespace["ns"] + common["inum"],
    }
