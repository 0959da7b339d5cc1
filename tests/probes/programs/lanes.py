"""Operators on two streams, at the word of a test: what FlexNPU's client makes of known calls.

Prints its streams, then reads commands, a line each, and prints ``ok`` behind each:

embed S B T        a token embedding of B sequences of T tokens on stream S
launch S N [SIZE]  N multiplications of square matrices (SIZE 16) on stream S
sync S             synchronises stream S
sleep MS
loop S N K         N times on a thread of its own: an embedding of one token, K launches, a synchronise
join               waits for the loops
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from ctypes import c_int8, c_int64, c_uint64, c_void_p
from typing import Any

acl = ctypes.CDLL("libascendcl.so")
acl.aclGetRecentErrMsg.restype = ctypes.c_char_p
acl.aclCreateTensor.restype = c_void_p
FLOAT16, INT64, ND = 1, 9, 2


def call(function: str, *arguments: Any) -> None:
    code = getattr(acl, function)(*arguments)
    if code:
        raise SystemExit(f"{function}: {code}: {(acl.aclGetRecentErrMsg() or b'').decode()}")


def start() -> tuple[list[c_void_p], c_void_p]:
    call("aclInit", None)
    call("aclrtSetDevice", 0)
    made = []
    for _ in range(2):
        stream = c_void_p()
        call("aclrtCreateStream", ctypes.byref(stream))
        made.append(stream)
    room = c_void_p()
    call("aclrtMalloc", ctypes.byref(room), ctypes.c_size_t(1 << 27), ctypes.c_uint32(0))
    return made, room


streams, memory = start()


def tensor(dims: list[int], dtype: int = FLOAT16) -> c_void_p:
    shape = (c_int64 * len(dims))(*dims)
    strides = (c_int64 * len(dims))()
    step = 1
    for i in reversed(range(len(dims))):
        strides[i] = step
        step *= dims[i]
    n = c_uint64(len(dims))
    made = acl.aclCreateTensor(shape, n, dtype, strides, c_int64(0), ND, shape, n, memory)
    return c_void_p(made)


def operator(name: str, stream: int, *arguments: Any) -> None:
    size, executor = c_uint64(), c_void_p()
    call(f"{name}GetWorkspaceSize", *arguments, ctypes.byref(size), ctypes.byref(executor))
    call(name, None, c_uint64(0), executor, streams[stream])


def embed(stream: int, batch: int, length: int) -> None:
    arguments = [tensor([1000, 64]), tensor([batch, length], INT64), tensor([batch, length, 64])]
    operator("aclnnEmbedding", stream, *arguments)
    for one in arguments:
        acl.aclDestroyTensor(one)


def launch(stream: int, count: int, size: int = 16) -> None:
    a = tensor([size, size])
    for _ in range(count):
        operator("aclnnMatmul", stream, a, a, a, c_int8(0))
    acl.aclDestroyTensor(a)


def sync(stream: int) -> None:
    call("aclrtSynchronizeStream", streams[stream])


def steps(stream: int, count: int, launches: int) -> None:
    call("aclrtSetDevice", 0)
    for _ in range(count):
        embed(stream, 1, 1)
        launch(stream, launches)
        sync(stream)


loops: list[threading.Thread] = []
print(*(stream.value for stream in streams), flush=True)
for line in sys.stdin:
    what, *rest = line.split()
    numbers = [int(word) for word in rest]
    match what:
        case "embed":
            embed(*numbers)
        case "launch":
            launch(*numbers)
        case "sync":
            sync(*numbers)
        case "sleep":
            time.sleep(numbers[0] / 1e3)
        case "loop":
            loops.append(threading.Thread(target=steps, args=numbers))
            loops[-1].start()
        case "join":
            while loops:
                loops.pop().join()
        case _:
            raise SystemExit(f"unknown command {line!r}")
    print("ok", flush=True)
