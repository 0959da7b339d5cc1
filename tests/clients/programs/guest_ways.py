"""What programs do besides calling the device: fork with much pinned memory, spawn, live under seccomp.

guest_ways.py forks | spawns | confined    prints JSON
"""

import ctypes
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from ctypes import byref, c_size_t, c_void_p, memset
from typing import Any

from ascendcl import call, copy_in, copy_out, create_stream, malloc, start

LARGE, SMALL = 1 << 30, 4096


def pin(size: int) -> c_void_p:
    memory = c_void_p()
    call("aclrtMallocHost", byref(memory), c_size_t(size))
    memset(memory, ord("p"), size)
    return memory


def own_mib() -> int:
    """Memory that is this process's alone."""
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Private_Dirty:")) // 1024


def in_child(measure: Callable[[], int]) -> int:
    readable, writable = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.write(writable, str(measure()).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    return int(os.read(readable, 64))


def forks() -> dict[str, Any]:
    before = in_child(own_mib)
    large = pin(LARGE)
    after = in_child(own_mib)
    memory = (ctypes.c_char * LARGE).from_address(large.value or 0)
    return {"more in a child, MiB": after - before, "read there": in_child(lambda: memory[LARGE - 1][0])}


def spawns() -> dict[str, Any]:
    """While another thread launches."""
    stream, memory, over = create_stream(), malloc(1 << 20), threading.Event()

    def launch() -> None:
        call("aclrtSetDevice", 0)
        size = c_size_t(1 << 20)
        while not over.is_set():
            call("aclrtMemsetAsync", memory, size, ctypes.c_int32(0x61), size, stream)
            call("aclrtSynchronizeStream", stream)

    thread = threading.Thread(target=launch)
    thread.start()
    ends = []
    for _ in range(31):
        ends.append(os.waitpid(os.posix_spawn("/bin/true", ["true"], os.environ), 0)[1])
        ends.append(subprocess.run(["true"], check=False, close_fds=False).returncode)  # vfork
    over.set()
    thread.join()
    return {"ends": sorted(set(ends)), "memory": copy_out(memory, 4).decode()}


# What the default profiles of container engines forbid, and what one could think that a client needs.
FORBIDDEN = {
    "memfd_create": 319,
    "eventfd2": 290,
    "pidfd_open": 434,
    "process_vm_readv": 310,
    "userfaultfd": 323,
    "io_uring_setup": 425,
    "bpf": 321,
    "perf_event_open": 298,
    "ptrace": 101,
    "kcmp": 312,
}


def confine(numbers: list[int]) -> None:
    """From here on these system calls fail with EPERM."""
    rows = [struct.pack("=HBBI", 0x20, 0, 0, 0)]
    for number in numbers:
        rows += [struct.pack("=HBBI", 0x15, 0, 1, number), struct.pack("=HBBI", 0x06, 0, 0, 0x00050001)]
    rows.append(struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000))
    filters = ctypes.create_string_buffer(b"".join(rows))
    libc = ctypes.CDLL(None, use_errno=True)
    program = struct.pack("@HP", len(rows), ctypes.addressof(filters))
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, program, 0, 0) == 0, os.strerror(ctypes.get_errno())


def confined() -> dict[str, Any]:
    confine(list(FORBIDDEN.values()))
    start()
    told: list[str] = []

    def work() -> None:
        call("aclrtSetDevice", 0)
        memory, stream = malloc(1 << 20), create_stream()
        copy_in(memory, b"hello")
        pin(SMALL)
        pin(1 << 22)
        call("aclrtSynchronizeStream", stream)
        told.append(copy_out(memory, 5).decode())

    for _ in range(3):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    return {"told": told}


if __name__ == "__main__":
    if sys.argv[1] != "confined":
        start()
    print(json.dumps({"forks": forks, "spawns": spawns, "confined": confined}[sys.argv[1]]()))
