"""Works on the NPU until a line "end" arrives or an ACL error ends it; prints a digest a round.

Round i depends on i modulo `PERIOD` alone, so every worker of the same seed prints the same digests, directly
and through a daemon, whatever happens around it. Lines: "ready", "round I DIGEST", and at an error
"error CODE MESSAGE" with exit status 3.
"""

import hashlib
import random
import select
import sys
from ctypes import CDLL, byref, c_float, c_int32, c_int64, c_size_t, c_uint64, c_void_p, memmove, string_at

from ascendcl import AclError, acl, call, copy_in, copy_out, create_stream, malloc, start

PERIOD = 16
LENGTH = 4096
BYTES = LENGTH * 4
F32 = 0
opapi = CDLL("libopapi.so")
acl.aclCreateTensor.restype = acl.aclCreateScalar.restype = c_void_p


def tensor(memory: c_void_p) -> c_void_p:
    shape, strides = (c_int64 * 1)(LENGTH), (c_int64 * 1)(1)
    return c_void_p(
        acl.aclCreateTensor(
            shape, c_uint64(1), c_int32(F32), strides, c_int64(0), c_int32(2), shape, c_uint64(1), memory
        )
    )


def scalar(value: float) -> c_void_p:
    held = c_float(value)
    return c_void_p(acl.aclCreateScalar(byref(held), c_int32(F32)))


def operator(name: str, *arguments: c_void_p, stream: c_void_p) -> None:
    size, executor = c_uint64(), c_void_p()
    error = getattr(opapi, f"{name}GetWorkspaceSize")(*arguments, byref(size), byref(executor))
    error = error or getattr(opapi, name)(None, size, executor, stream)
    if error:
        raise AclError(name, error)


def one_round(generator: random.Random, first: c_void_p, second: c_void_p, one: c_void_p) -> bytes:
    """Copies of each kind, operators in two streams that wait for each other, memory taken and given back."""
    a, b, event, pinned = malloc(BYTES), malloc(BYTES), c_void_p(), c_void_p()
    call("aclrtMallocHost", byref(pinned), c_size_t(BYTES))
    call("aclrtCreateEventWithFlag", byref(event), c_int32(8))
    data = (c_float * LENGTH)(*[generator.randrange(1000) for _ in range(LENGTH)])
    copy_in(a, bytes(data))
    memmove(pinned, bytes(data), BYTES)
    call("aclrtMemcpyAsync", b, c_size_t(BYTES), pinned, c_size_t(BYTES), c_int32(1), first)
    ta, tb = tensor(a), tensor(b)
    for _ in range(generator.randrange(1, 40)):
        operator("aclnnInplaceAdds", tb, one, one, stream=first)
    call("aclrtRecordEvent", event, first)
    call("aclrtStreamWaitEvent", second, event)
    operator("aclnnInplaceAdd", ta, tb, one, stream=second)
    for _ in range(generator.randrange(1, 40)):
        operator("aclnnInplaceAdds", ta, one, one, stream=second)
    call("aclrtMemcpyAsync", pinned, c_size_t(BYTES), a, c_size_t(BYTES), c_int32(2), second)
    call("aclrtSynchronizeStream", second)
    out = string_at(pinned, BYTES) + copy_out(b, BYTES)
    for made in (ta, tb):
        acl.aclDestroyTensor(made)
    call("aclrtDestroyEvent", event)
    call("aclrtFreeHost", pinned)
    call("aclrtFree", a)
    call("aclrtFree", b)
    return out


def main() -> int:
    seed, rounds = int(sys.argv[1]), int(sys.argv[2])
    start()
    first, second, one = create_stream(), create_stream(), scalar(1.0)
    print("ready", flush=True)
    at = 0
    while rounds == 0 or at < rounds:
        out = one_round(random.Random(seed * PERIOD + at % PERIOD), first, second, one)
        print("round", at, hashlib.sha256(out).hexdigest(), flush=True)
        at += 1
        if rounds == 0 and select.select([sys.stdin], [], [], 0)[0]:
            break
    call("aclrtDestroyStream", first)
    call("aclrtDestroyStream", second)
    call("aclrtResetDevice", 0)
    call("aclFinalize")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AclError as failure:
        print("error", failure.code, failure.message.replace("\n", " "), flush=True)
        sys.exit(3)
