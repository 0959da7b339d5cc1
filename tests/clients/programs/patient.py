"""Pinned and device memory, asked for by two threads at once; copied there and back, and compared.

Prints "ready", waits for a line, works, and prints "right" or what was wrong.
"""

import sys
import threading
from ctypes import byref, c_size_t, c_void_p, memset, string_at

from ascendcl import AclError, call, copy_out, malloc, start

SIZES = {"small": 64 << 10, "large": 64 << 20}
wrong: list[str] = []


def work(name: str) -> None:
    size = SIZES[name]
    try:
        call("aclrtSetDevice", 0)
        host = c_void_p()
        call("aclrtMallocHost", byref(host), c_size_t(size))
        memset(host, ord(name[0]), size)
        device = malloc(size)
        call("aclrtMemcpy", device, c_size_t(size), host, c_size_t(size), 1)
        if copy_out(device, size) != string_at(host, size):
            wrong.append(f"{name}: other bytes came back")
        call("aclrtFreeHost", host)
    except AclError as error:
        wrong.append(f"{name}: {error}")


start()
print("ready", flush=True)
sys.stdin.readline()
threads = [threading.Thread(target=work, args=(name,)) for name in SIZES]
for thread in threads:
    thread.start()
print("asking", flush=True)
for thread in threads:
    thread.join()
print("; ".join(wrong) or "right", flush=True)
