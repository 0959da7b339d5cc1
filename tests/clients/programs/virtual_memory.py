"""Virtual memory calls, right and wrong. Prints JSON that must be the same directly and interposed."""

import json
from collections.abc import Callable
from ctypes import byref, c_int32, c_size_t, c_void_p
from typing import Any

from ascendcl import AclError, call, copy_in, copy_out, create_stream, malloc
from virtual_memory_calls import (
    MIB,
    PIECE,
    PROPERTIES,
    READ,
    READ_WRITE,
    access,
    map_memory,
    physical,
    reserve,
    retain,
    set_access,
    unmap,
)


def code(function: Callable[..., Any], *arguments: Any) -> int:
    try:
        function(*arguments)
    except AclError as error:
        return error.code if error.message else -1
    return 0


def free_memory() -> int:
    free, total = c_size_t(), c_size_t()
    call("aclrtGetMemInfo", c_int32(1), byref(free), byref(total))
    return free.value


# As torch_npu does: whether addresses can be reserved is asked before a device is chosen.
call("aclInit", None)
call("aclrtReleaseMemAddress", c_void_p(reserve(2 * MIB)))
call("aclrtSetDevice", 0)

saw: dict[str, Any] = {}
granularity = c_size_t()
call("aclrtMemGetAllocationGranularity", byref(PROPERTIES), c_int32(0), byref(granularity))
saw["granularity"] = granularity.value
at_start = free_memory()
space = reserve(16 * PIECE)
one, two = physical(), physical()
saw["held"] = at_start - free_memory()
saw["reading what is not mapped"] = code(copy_out, c_void_p(space), 8)

map_memory(space, one)
map_memory(space + PIECE, two)
# Bytes over the border of two pieces.
data = bytes(range(256)) * 64
copy_in(c_void_p(space + PIECE - 8000), data)
saw["over a border"] = copy_out(c_void_p(space + PIECE - 8000), len(data)) == data
stream = create_stream()
call("aclrtMemsetAsync", c_void_p(space), c_size_t(2 * PIECE), c_int32(7), c_size_t(2 * PIECE), stream)
call("aclrtSynchronizeStream", stream)
saw["filled"] = copy_out(c_void_p(space + 2 * PIECE - 4), 4) == b"\x07\x07\x07\x07"
saw["past the end"] = code(copy_out, c_void_p(space + 2 * PIECE - 4), 8)
# The same memory at a second address.
map_memory(space + 4 * PIECE, one)
copy_in(c_void_p(space + 16), b"twice")
saw["at both addresses"] = copy_out(c_void_p(space + 4 * PIECE + 16), 5).decode()
# Its content outlives its address.
unmap(space)
saw["reading what was unmapped"] = code(copy_out, c_void_p(space), 8)
map_memory(space + 8 * PIECE, one, MIB * 2, MIB * 2)
saw["a part"] = copy_out(c_void_p(space + 8 * PIECE), 2) == b"\x07\x07"

saw["mapped twice"] = code(map_memory, space + PIECE, one)
saw["over the end"] = code(map_memory, space + 15 * PIECE, two, 2 * PIECE)
saw["more than there is"] = code(map_memory, space + 10 * PIECE, two, 2 * PIECE)
saw["past its memory"] = code(map_memory, space + 10 * PIECE, two, PIECE, 2 * MIB)
saw["not reserved"] = code(map_memory, space + 64 * PIECE, two)
saw["into an allocation"] = code(
    map_memory, int(malloc(8 * MIB).value or 0) // (2 * MIB) * 2 * MIB + 2 * MIB, two
)
saw["forged handle"] = code(map_memory, space + 10 * PIECE, c_void_p((one.value or 0) ^ (1 << 20)))
saw["no handle"] = code(map_memory, space + 10 * PIECE, c_void_p(0))
saw["free while mapped"] = code(call, "aclrtFreePhysical", one)
saw["release while mapped"] = code(call, "aclrtReleaseMemAddress", c_void_p(space))
saw["aclrtFree of a mapping"] = code(call, "aclrtFree", c_void_p(space + PIECE))
saw["unmap what is not mapped"] = code(unmap, space)
saw["unmap the middle"] = code(unmap, space + PIECE + 2 * MIB)
saw["release what is not reserved"] = code(call, "aclrtReleaseMemAddress", c_void_p(space + PIECE))
saw["an odd size"] = code(physical, MIB + 1)

# What the memory's own device may do with it, and others may not.
set_access(space + PIECE, PIECE, READ_WRITE)
saw["access"] = [access(space + PIECE + 5), access(space + PIECE, 3), access(space + PIECE, 0, 0)]
saw["access for reading only"] = code(set_access, space + PIECE, PIECE, READ)
saw["access of another device"] = code(set_access, space + PIECE, PIECE, READ_WRITE, 3)
saw["access of the host"] = code(set_access, space + PIECE, PIECE, READ_WRITE, 0, 0)
saw["access beyond"] = code(set_access, space + PIECE, PIECE + 1, READ_WRITE)
saw["access to nothing"] = code(set_access, space, PIECE, READ_WRITE)
allocation = int(malloc(2 * MIB).value or 0)
saw["access to an allocation"] = code(set_access, allocation, 64, READ_WRITE)
saw["asked of an allocation"] = code(access, allocation)

# One more handle of what is mapped: the memory lasts as long as any.
saw["a handle of nothing"] = code(retain, space)
saw["a handle of an allocation"] = code(retain, allocation)
call("aclrtFree", c_void_p(allocation))
more = retain(space + PIECE + 5)
call("aclrtFreePhysical", two)
saw["the last handle while mapped"] = code(call, "aclrtFreePhysical", more)
copy_in(c_void_p(space + PIECE), b"still there")
unmap(space + PIECE)
map_memory(space, more)
saw["by another handle"] = copy_out(c_void_p(space), 11).decode()
two = retain(space)
call("aclrtFreePhysical", more)
unmap(space)

for address in (space + 4 * PIECE, space + 8 * PIECE):
    unmap(address)
call("aclrtFreePhysical", one)
saw["freed twice"] = code(call, "aclrtFreePhysical", one)
call("aclrtFreePhysical", two)
call("aclrtReleaseMemAddress", c_void_p(space))
saw["released twice"] = code(call, "aclrtReleaseMemAddress", c_void_p(space))
saw["left"] = at_start - free_memory() - 8 * MIB
print(json.dumps(saw))
