"""Asks for more than it may have. Prints JSON.

`threads N`: N threads call at once, twice; how often which error. `host N SIZE`: N pieces of host memory.
"""

import collections
import json
import sys
import threading
from ctypes import byref, c_size_t, c_void_p

from ascendcl import AclError, call, start


def together(count: int) -> dict[str, int]:
    said: collections.Counter[str] = collections.Counter()
    lock = threading.Lock()
    barrier = threading.Barrier(count)

    def work() -> None:
        barrier.wait()
        try:
            call("aclrtSetDevice", 0)
            call("aclrtSynchronizeDevice")
            result = "ok"
        except AclError as error:
            result = f"{error.code} {error.message}"
        with lock:
            said[result] += 1
        barrier.wait()

    threads = [threading.Thread(target=work) for _ in range(count)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return said


def threads(count: int) -> list[dict[str, int]]:
    return [together(count) for _ in range(2)]


def host(count: int, size: int) -> list[str]:
    said = []
    for _ in range(count):
        piece = c_void_p()
        try:
            call("aclrtMallocHost", byref(piece), c_size_t(size))
            call("aclrtFreeHost", piece) if said.count("ok") % 2 else None
            said.append("ok")
        except AclError as error:
            said.append(f"{error.code} {error.message}")
    return said


start()
numbers = [int(argument) for argument in sys.argv[2:]]
print(json.dumps(threads(*numbers) if sys.argv[1] == "threads" else host(*numbers)))
