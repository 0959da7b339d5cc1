"""Functions that hear of streams. Prints what they were told, one JSON list."""

import ctypes
import json
from ctypes import c_char_p, c_int, c_void_p

from ascendcl import call, code, create_stream, start

told: list[list[object]] = []
Callback = ctypes.CFUNCTYPE(None, c_void_p, c_int, c_void_p)


@Callback
def first(stream: int, state: int, argument: int) -> None:
    told.append(["first", stream, state, argument])


@Callback
def second(stream: int, state: int, argument: int) -> None:
    told.append(["second", stream, state, argument])
    if state == 1:
        call("aclrtRegStreamStateCallback", c_char_p(b"second"), None, None)


start()
call("aclrtRegStreamStateCallback", c_char_p(b"first"), first, c_void_p(7))
call("aclrtRegStreamStateCallback", c_char_p(b"second"), second, c_void_p(8))
streams = [create_stream(), create_stream()]
call("aclrtDestroyStream", streams[0])
call("aclrtRegStreamStateCallback", c_char_p(b"first"), None, None)
call("aclrtDestroyStream", streams[1])
numbers = {stream.value: i for i, stream in enumerate(streams)}
said: list[object] = [[name, numbers.get(stream), state, argument] for name, stream, state, argument in told]
said.append(code("aclrtRegStreamStateCallback", c_char_p(b"first"), None, None))
print(json.dumps(said))
