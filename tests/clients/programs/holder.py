"""Takes memory, a stream and events, says so, then works until it is killed or an ACL error ends it.

Prints "ready ADDRESS", and on an error "error CODE SECONDS-THAT-THE-CALL-TOOK MESSAGE".
"""

import ctypes
import time
from ctypes import byref, c_int32, c_size_t, c_void_p

from ascendcl import AclError, call, copy_out, create_stream, malloc, start

SIZE = 32 << 20

start()
memory = malloc(SIZE)
stream = create_stream()
event = c_void_p()
call("aclrtCreateEventWithFlag", byref(event), c_int32(8))
pinned = c_void_p()
call("aclrtMallocHost", byref(pinned), c_size_t(1 << 20))
print("ready", hex(memory.value or 0), flush=True)
while True:
    began = time.monotonic()
    try:
        for _ in range(10):
            call("aclrtMemsetAsync", memory, c_size_t(SIZE), c_int32(1), c_size_t(SIZE), stream)
            call("aclrtRecordEvent", event, stream)
        began = time.monotonic()
        call("aclrtSynchronizeStream", stream)
        began = time.monotonic()
        copy_out(memory, 8)
    except AclError as error:
        print("error", error.code, round(time.monotonic() - began, 3), error.message, flush=True)
        break
ctypes.CDLL(None).fflush(None)
