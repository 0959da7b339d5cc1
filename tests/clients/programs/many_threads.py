"""64 threads on one device, twice over: each works in a stream of its own and in one that all share.

Prints JSON that must be the same directly and interposed; after each wave "over", and waits for a line."""

import json
import sys
import threading
from ctypes import CDLL, byref, c_float, c_int32, c_int64, c_size_t, c_uint64, c_void_p

from ascendcl import AclError, acl, call, create_stream, malloc, start

THREADS, LAUNCHES, LENGTH = 64, 20, 1024
F32 = 0
opapi = CDLL("libopapi.so")
acl.aclCreateTensor.restype = acl.aclCreateScalar.restype = c_void_p


def tensor(memory: c_void_p) -> c_void_p:
    shape, strides = (c_int64 * 1)(LENGTH), (c_int64 * 1)(1)
    arguments = (
        shape,
        c_uint64(1),
        c_int32(F32),
        strides,
        c_int64(0),
        c_int32(2),
        shape,
        c_uint64(1),
        memory,
    )
    return c_void_p(acl.aclCreateTensor(*arguments))


def add_one(this: c_void_p, one: c_void_p, stream: c_void_p) -> None:
    """this += 1, as an operator in `stream`."""
    size, executor = c_uint64(), c_void_p()
    error = opapi.aclnnInplaceAddsGetWorkspaceSize(this, one, one, byref(size), byref(executor))
    error = error or opapi.aclnnInplaceAdds(None, size, executor, stream)
    if error:
        raise AclError("aclnnInplaceAdds", error)


def zeroed() -> c_void_p:
    memory = malloc(LENGTH * 4)
    call("aclrtMemset", memory, c_size_t(LENGTH * 4), c_int32(0), c_size_t(LENGTH * 4))
    return memory


def values(memory: c_void_p) -> set[float]:
    out = (c_float * LENGTH)()
    call("aclrtMemcpy", out, c_size_t(LENGTH * 4), memory, c_size_t(LENGTH * 4), c_int32(2))
    return set(out)


def work(together: c_void_p, shared: c_void_p, own: list[list[float]]) -> None:
    try:
        call("aclrtSetDevice", 0)
        value = c_float(1)
        one = c_void_p(acl.aclCreateScalar(byref(value), c_int32(F32)))
        memory, stream = zeroed(), create_stream()
        mine, all_of_us = tensor(memory), tensor(together)
        for _ in range(LAUNCHES):
            add_one(mine, one, stream)
            add_one(all_of_us, one, shared)
        call("aclrtSynchronizeStream", stream)
        call("aclrtSynchronizeStream", shared)
        own.append(sorted(values(memory)))
        call("aclrtDestroyStream", stream)
        call("aclrtFree", memory)
    except AclError as error:
        own.append([-float(error.code)])


start()
saw = []
for _ in range(2):
    together, shared = zeroed(), create_stream()
    own: list[list[float]] = []
    threads = [threading.Thread(target=work, args=(together, shared, own)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    right = sum(one == [LAUNCHES] for one in own)
    saw.append([right, sorted({v for one in own for v in one}), sorted(values(together))])
    print("over", flush=True)
    sys.stdin.readline()
print(json.dumps(saw))
