"""Names what is not its own, by an address given on the command line; prints each try's error, as JSON."""

import ctypes
import json
import sys
from collections.abc import Callable
from ctypes import byref, c_int32, c_size_t, c_void_p

from ascendcl import AclError, call, copy_in, copy_out, create_stream, malloc, start

foreign = c_void_p(int(sys.argv[1], 16))
start()
mine = malloc(4096)
stream = create_stream()
address = mine.value or 0
here = ctypes.create_string_buffer(4096)


def stale_stream() -> None:
    gone = create_stream()
    call("aclrtDestroyStream", gone)
    create_stream()  # takes the slot
    call("aclrtSynchronizeStream", gone)


def later(*arguments: object) -> None:
    call("aclrtMemsetAsync", *arguments, stream)
    call("aclrtSynchronizeStream", stream)


tries: dict[str, Callable[[], object]] = {
    "read another's memory": lambda: copy_out(foreign, 8),
    "write another's memory": lambda: copy_in(foreign, b"x" * 8),
    "write another's memory, large": lambda: copy_in(foreign, b"x" * 300_000),
    "read another's memory, large": lambda: copy_out(foreign, 3 << 20),
    "free another's memory": lambda: call("aclrtFree", foreign),
    "set another's memory": lambda: call("aclrtMemset", foreign, c_size_t(8), c_int32(0), c_size_t(8)),
    "set another's memory, asynchronously": lambda: later(foreign, c_size_t(8), c_int32(0), c_size_t(8)),
    "free the middle": lambda: call("aclrtFree", c_void_p(address + 64)),
    "read over the end": lambda: copy_out(c_void_p(address + 4090), 8),
    "the host's memory as the device's": lambda: copy_out(c_void_p(ctypes.addressof(here)), 8),
    "forged stream": lambda: call("aclrtSynchronizeStream", c_void_p((stream.value or 0) + 1)),
    "stale stream": stale_stream,
    "a stream as an event": lambda: call("aclrtRecordEvent", stream, stream),
    "a pointer as an event": lambda: call("aclrtSynchronizeEvent", byref(here)),
}
errors = {}
for name, attempt in tries.items():
    try:
        attempt()
        errors[name] = 0
    except AclError as error:
        errors[name] = error.code
copy_in(mine, b"still here")
assert copy_out(mine, 10) == b"still here"
print(json.dumps(errors))
