"""Sets and resets the device again and again, with work in between, on two threads and in host functions.

Prints JSON: by how many file descriptors and mappings the process has grown between the 10th and the 60th
time, and how often its work was right."""

import json
import os
import threading
import time
from ctypes import CFUNCTYPE, byref, c_int32, c_size_t, c_void_p, string_at

from ascendcl import call, copy_in, copy_out, create_stream, malloc

CYCLES, WARM = 60, 10
SIZE = 1 << 20
ran = 0


@CFUNCTYPE(None, c_void_p)
def host_function(_: c_void_p) -> None:
    global ran
    ran += 1


def held() -> tuple[int, int]:
    with open("/proc/self/maps") as maps:
        return len(os.listdir("/proc/self/fd")), len(maps.readlines())


def settled() -> tuple[int, int]:
    """When the threads that ran host functions have ended."""
    time.sleep(0.5)
    return held()


def work() -> None:
    """Device memory, pinned memory and a host function, of the thread's own stream."""
    global right
    call("aclrtSetDevice", 0)
    stream, memory, pinned = create_stream(), malloc(SIZE), c_void_p()
    call("aclrtMallocHost", byref(pinned), c_size_t(SIZE))
    copy_in(memory, b"in" * (SIZE // 2))
    call("aclrtMemcpyAsync", pinned, c_size_t(SIZE), memory, c_size_t(SIZE), c_int32(2), stream)
    call("aclrtLaunchHostFunc", stream, host_function, None)
    call("aclrtSynchronizeStream", stream)
    right += string_at(pinned, SIZE) == copy_out(memory, SIZE)
    call("aclrtFreeHost", pinned)
    call("aclrtResetDevice", c_int32(0))


class Other(threading.Thread):
    """Lives through all cycles, and works in each."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)

    def run(self) -> None:
        while True:
            self.go.acquire()
            work()
            self.done.release()


right = 0
grown: list[int] = []
other = Other()
other.start()
call("aclInit", None)
for cycle in range(CYCLES):
    work()
    other.go.release()
    other.done.acquire()
    if cycle + 1 == WARM:
        before = settled()
after = settled()
print(
    json.dumps(
        {
            "descriptors": after[0] - before[0],
            "mappings": max(0, after[1] - before[1] - 16),  # an allocator may have taken some more
            "right": right,
            "host functions": ran,
        }
    )
)
