"""Takes device memory until it is refused, gives it back, and takes it again. Prints what it saw as JSON."""

import json
from ctypes import byref, c_int32, c_int64, c_size_t, c_uint32, c_void_p

from ascendcl import AclError, call, malloc, start

MIB = 1 << 20


def memory(attribute: int = 1) -> list[int]:
    free, total = c_size_t(), c_size_t()
    call("aclrtGetMemInfo", c_int32(attribute), byref(free), byref(total))
    return [free.value, total.value]


start()
saw: dict[str, object] = {"at the start": memory(), "DDR": memory(0), "huge": memory(4)}
held = []
try:
    while True:
        held.append(malloc(8 * MIB))
except AclError as error:
    saw["refused with"] = [error.code, error.message]
saw["pieces"] = len(held)
saw["when full"] = memory()
call("aclrtFree", held.pop())
saw["after a free"] = memory()
held.append(malloc(8 * MIB))
for piece in held:
    call("aclrtFree", piece)
saw["at the end"] = memory()
size = c_int64()
call("aclrtGetDeviceInfo", c_uint32(0), c_int32(301), byref(size))
saw["device's size"] = size.value
reserved = c_void_p()
print(json.dumps(saw))
