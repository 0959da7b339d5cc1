"""Kernels of the program's own: loads a binary of the emulated device, launches what is in it in every way,
replays it from a graph, and tells what is refused. Prints one JSON object.

The binary's form: flexnpu/emulator/runtime/own_kernels.hpp.
"""

from __future__ import annotations

import ctypes
import json
import struct
import tempfile
from ctypes import byref, c_char_p, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path

from ascendcl import attempt, call, code, copy_in, copy_out, create_stream, malloc, start

N = 1000
BINARY = b"flexnpu-emu-kernels 1\nhalve_or_double scale\nadd_up sum\n"


class PlaceHolder(ctypes.Structure):
    _fields_ = (("address", c_uint32), ("data", c_uint32))


def floats(values: list[float]) -> bytes:
    return struct.pack(f"{len(values)}f", *values)


def device(data: bytes) -> int:
    memory = malloc(len(data))
    copy_in(memory, data)
    assert memory.value
    return memory.value


def read(address: int) -> list[float]:
    return list(struct.unpack(f"{N}f", copy_out(c_void_p(address), 4 * N)))


def launch(
    function: c_void_p, words: bytes, stream: c_void_p, holders: tuple[tuple[int, int], ...] = ()
) -> int:
    array = (PlaceHolder * max(1, len(holders)))(*[PlaceHolder(*h) for h in holders])
    return code(
        "aclrtLaunchKernelWithHostArgs", function, c_uint32(4), stream, None, words, c_size_t(len(words)),
        array if holders else None, c_size_t(len(holders)),
    )  # fmt: skip


def main() -> None:
    start()
    said: dict[str, object] = {}
    binary, by_name, by_entry = c_void_p(), c_void_p(), c_void_p()
    # Larger than one piece of what travels at once.
    padded = BINARY + b"".join(b"more_%06d scale\n" % i for i in range(20_000))
    first = attempt("aclrtBinaryLoadFromData", padded, c_size_t(len(padded)), None, byref(binary))
    if first[0]:
        print(json.dumps({"refused": first}))
        return
    refusals = [code("aclrtBinaryLoadFromData", b"ELF?", c_size_t(4), None, byref(c_void_p()))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernels.o")
        path.write_bytes(BINARY)
        other = c_void_p()
        call("aclrtBinaryLoadFromFile", c_char_p(str(path).encode()), None, byref(other))
        call("aclrtBinaryUnLoad", other)
        refusals.append(code("aclrtBinaryUnLoad", other))
    said["binary"] = refusals
    call("aclrtBinaryGetFunction", binary, c_char_p(b"halve_or_double"), byref(by_name))
    call("aclrtBinaryGetFunctionByEntry", binary, c_uint64(1), byref(by_entry))
    said["no function"] = code("aclrtBinaryGetFunction", binary, c_char_p(b"another"), byref(c_void_p()))
    stream = create_stream()

    values = [float(i) for i in range(N)]
    source, out, total = device(floats(values)), device(bytes(4 * N)), device(bytes(4 * N))
    double = struct.pack("QQQfxxxx", out, source, N, 2.0)
    assert launch(by_name, double, stream) == 0
    # The list of addresses stands behind the arguments; a place holder says where.
    add = struct.pack("QQQQQQ", total, 0, 2, N, source, out)
    assert launch(by_entry, add, stream, ((8, 32),)) == 0
    call("aclrtSynchronizeStream", stream)
    said["host arguments"] = read(out) == [2 * v for v in values] and read(total) == [3 * v for v in values]
    # Arguments in device memory.
    halve = device(struct.pack("QQQfxxxx", out, source, N, 0.5))
    call("aclrtLaunchKernel", by_name, c_uint32(1), c_void_p(halve), c_size_t(32), stream)
    call("aclrtSynchronizeStream", stream)
    said["device arguments"] = read(out) == [v / 2 for v in values]
    # A graph keeps its arguments.
    graph = c_void_p()
    call("aclmdlRICaptureBegin", stream, 2)
    assert launch(by_name, double, stream) == 0
    call("aclmdlRICaptureEnd", stream, byref(graph))
    said["captured"] = read(out) == [v / 2 for v in values]
    call("aclmdlRIExecuteAsync", graph, stream)
    call("aclrtSynchronizeStream", stream)
    said["captured"] = said["captured"] and read(out) == [2 * v for v in values]
    call("aclmdlRIDestroy", graph)

    bad = {
        "no function": launch(c_void_p(0x123), double, stream) or code("aclrtSynchronizeStream", stream),
        "place holder": launch(by_entry, add, stream, ((44, 32),)) or code("aclrtSynchronizeStream", stream),
        "no blocks": code("aclrtLaunchKernel", by_name, c_uint32(0), c_void_p(halve), c_size_t(32), stream),
    }
    call("aclrtBinaryUnLoad", binary)
    bad["unloaded"] = launch(by_name, double, stream) or code("aclrtSynchronizeStream", stream)
    for address in (source, out, total, halve):
        call("aclrtFree", c_void_p(address))
    # What no daemon can check: the device finds it.
    call("aclrtBinaryLoadFromData", BINARY, c_size_t(len(BINARY)), None, byref(binary))
    call("aclrtBinaryGetFunction", binary, c_char_p(b"halve_or_double"), byref(by_name))
    assert launch(by_name, struct.pack("QQQQ", 0x1000, 0x1000, N, 0), stream) == 0
    bad["address"] = code("aclrtSynchronizeStream", stream)
    print(json.dumps(said | {"bad": bad}))


main()
