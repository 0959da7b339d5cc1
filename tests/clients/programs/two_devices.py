"""A program on two devices: memory, copies and streams of both, an event that the other waits for, errors.

Prints JSON that must be the same directly and interposed."""

import json
import threading
from ctypes import byref, c_int32, c_size_t, c_uint32, c_void_p, create_string_buffer
from typing import Any

from ascendcl import DEVICE_TO_DEVICE, call, code, copy_in, copy_out, create_stream, malloc

SIZE = 3 << 20
MEMCPY_DEFAULT = 4


def use(device: int) -> None:
    call("aclrtSetDevice", device)


def device() -> int:
    number = c_int32(-1)
    call("aclrtGetDevice", byref(number))
    return number.value


def copy(to: c_void_p, source: c_void_p, kind: int = DEVICE_TO_DEVICE) -> None:
    call("aclrtMemcpy", to, c_size_t(SIZE), source, c_size_t(SIZE), c_int32(kind))


def fill(memory: c_void_p, value: int, stream: c_void_p) -> None:
    call("aclrtMemsetAsync", memory, c_size_t(SIZE), c_int32(value), c_size_t(SIZE), stream)


def event() -> c_void_p:
    made = c_void_p()
    call("aclrtCreateEventWithFlag", byref(made), c_uint32(1))
    return made


saw: dict[str, Any] = {}
call("aclInit", None)
count = c_uint32()
call("aclrtGetDeviceCount", byref(count))
saw["devices"] = count.value

use(0)
first, first_stream = malloc(SIZE), create_stream()
use(1)
second, second_stream = malloc(SIZE), create_stream()
saw["device"] = device()
saw["handles differ"] = first.value != second.value and first_stream.value != second_stream.value

pattern = bytes(range(256)) * (SIZE // 256)
use(0)
copy_in(first, pattern)
copy(second, first)
use(1)
saw["across"] = copy_out(second, SIZE) == pattern
copy_in(second, pattern[::-1])
copy(first, second, MEMCPY_DEFAULT)
use(0)
saw["and back"] = copy_out(first, SIZE) == pattern[::-1]

# Device 0 fills, and device 1 copies what it filled when its event says so.
ready = event()
for _ in range(20):
    fill(first, 0x11, first_stream)
fill(first, 0x61, first_stream)
call("aclrtRecordEvent", ready, first_stream)
use(1)
call("aclrtStreamWaitEvent", second_stream, ready)
arguments = (c_size_t(SIZE), first, c_size_t(SIZE), c_int32(DEVICE_TO_DEVICE), second_stream)
call("aclrtMemcpyAsync", second, *arguments)
call("aclrtSynchronizeStream", second_stream)
saw["after the other's event"] = copy_out(second, SIZE) == b"a" * SIZE

# Work in a stream of the other device, or with its events, is refused; waiting for its event is not.
mine = event()
call("aclrtRecordEvent", mine, second_stream)
status = c_int32()
in_streams: dict[str, tuple[Any, ...]] = {
    "aclrtMemsetAsync": (second, c_size_t(8), c_int32(0), c_size_t(8), first_stream),
    "aclrtMemcpyAsync": (second, c_size_t(8), second, c_size_t(8), c_int32(DEVICE_TO_DEVICE), first_stream),
    "aclrtRecordEvent": (mine, first_stream),
    "aclrtResetEvent": (mine, first_stream),
    "aclrtStreamWaitEvent": (first_stream, mine),
    "aclrtStreamQuery": (first_stream, byref(status)),
    "aclrtSynchronizeStream": (first_stream,),
    "aclrtSynchronizeStreamWithTimeout": (first_stream, c_int32(1000)),
    "aclrtDestroyStream": (first_stream,),
}
saw["the other's stream"] = {name: code(name, *arguments) for name, arguments in in_streams.items()}
saw["the other's event"] = {
    name: code(name, ready, second_stream) for name in ("aclrtRecordEvent", "aclrtResetEvent")
}
saw["waits for it"] = code("aclrtStreamWaitEvent", second_stream, ready)


def without_device() -> None:
    memory, stream, made = c_void_p(), c_void_p(), c_void_p()
    calls: dict[str, tuple[Any, ...]] = in_streams | {
        "aclrtMalloc": (byref(memory), c_size_t(8), c_uint32(0)),
        "aclrtMemcpy": (second, c_size_t(8), second, c_size_t(8), c_int32(DEVICE_TO_DEVICE)),
        "aclrtMemset": (second, c_size_t(8), c_int32(0), c_size_t(8)),
        "aclrtCreateStream": (byref(stream),),
        "aclrtCreateEvent": (byref(made),),
        "aclrtSynchronizeDevice": (),
    }
    saw["without a device"] = {name: code(name, *arguments) for name, arguments in calls.items()}


thread = threading.Thread(target=without_device)
thread.start()
thread.join()

# A thread has a device of its own.
others: list[int] = []


def work() -> None:
    others.append(code("aclrtSynchronizeDevice"))
    use(0)
    others.append(device())
    fill(first, 0x62, first_stream)
    call("aclrtSynchronizeStream", first_stream)


thread = threading.Thread(target=work)
thread.start()
thread.join()
saw["another thread"] = others
saw["not this one's"] = device()
use(0)
saw["its work"] = copy_out(first, 4).decode()

saw["no such device"] = code("aclrtSetDevice", 2)
pinned = c_void_p()
call("aclrtMallocHost", byref(pinned), c_size_t(SIZE))
arguments = (c_size_t(SIZE), first, c_size_t(SIZE), c_int32(2))
call("aclrtMemcpy", pinned, *arguments)
text = create_string_buffer(4)
call("aclrtMemcpy", text, c_size_t(4), pinned, c_size_t(4), c_int32(0))
saw["pinned"] = text.raw.decode()

# One device ends, the other stays.
for _ in range(10):
    if code("aclrtResetDevice", 1):
        break
saw["after the other's reset"] = copy_out(first, 4).decode()
use(1)
again = malloc(SIZE)
copy_in(again, b"again")
saw["anew"] = copy_out(again, 5).decode()
call("aclFinalize")
print(json.dumps(saw))
