"""Pinned host memory in a child of fork(): small and large, while the device is set and after its reset.

Prints JSON that must be the same directly and interposed."""

import json
import os
from ctypes import byref, c_int32, c_size_t, c_void_p, memset, string_at
from typing import Any

from ascendcl import call, code, copy_out, malloc, start

SIZES = {"small": 5000, "large": (32 << 20) + 5000}


def pinned(size: int) -> c_void_p:
    memory = c_void_p()
    call("aclrtMallocHost", byref(memory), c_size_t(size))
    memset(memory, ord("p"), size)
    return memory


def ends(memory: c_void_p, size: int) -> str:
    return (string_at(memory, 1) + string_at(memory.value + size - 1, 1)).decode()


def forked(memory: dict[str, c_void_p]) -> dict[str, Any]:
    """What a child sees of the memory, before and after it writes there."""
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            saw: dict[str, Any] = {}
            for name, one in memory.items():
                before = ends(one, SIZES[name])
                memset(one, ord("c"), SIZES[name])
                saw[name] = [before, ends(one, SIZES[name]), code("aclrtFreeHost", one)]
            # A grandchild has it too.
            if os.fork() == 0:
                memset(memory["small"], ord("g"), SIZES["small"])
                os._exit(0)
            os.wait()
            saw["beside the grandchild"] = ends(memory["small"], SIZES["small"])
            os.write(writable, json.dumps(saw).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(writable)
    with open(readable, "rb") as pipe:
        return json.loads(pipe.read())


start()
memory = {name: pinned(size) for name, size in SIZES.items()}
saw: dict[str, Any] = {"child": forked(memory)}
saw["parent"] = [ends(one, SIZES[name]) for name, one in memory.items()]
# It is the device's as before: a copy reads what the parent has there.
device = malloc(SIZES["large"])
size = c_size_t(SIZES["large"])
call("aclrtMemcpyAsync", device, size, memory["large"], size, c_int32(1), None)
call("aclrtSynchronizeStream", None)
saw["copied"] = set(copy_out(device, SIZES["large"])) == {ord("p")}
call("aclrtResetDevice", c_int32(0))
saw["child after the reset"] = forked(memory)
saw["parent after the reset"] = [ends(one, SIZES[name]) for name, one in memory.items()]
saw["freed"] = [code("aclrtFreeHost", one) for one in memory.values()]
descriptors = len(os.listdir("/proc/self/fd"))
call("aclrtSetDevice", 0)
call("aclrtFreeHost", pinned(SIZES["large"]))
call("aclrtResetDevice", c_int32(0))
saw["descriptors"] = len(os.listdir("/proc/self/fd")) - descriptors
print(json.dumps(saw))
