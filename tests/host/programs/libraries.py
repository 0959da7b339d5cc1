"""Calls the host-side libraries by the symbols that kernels link; prints their answers as JSON."""

import ctypes
import json
import os
import threading
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p

import acl

LIBRARIES = [
    "c_sec",
    "mmpa",
    "register",
    "ascendalog",
    "ascend_dump",
    "ascend_protobuf",
    "runtime",
    "profapi",
    "platform",
    "atb",
    "metadef",
    "llm_datadist",
]
NOW = os.RTLD_NOW | os.RTLD_LOCAL

loaded = {name: ctypes.CDLL(f"lib{name}.so", mode=NOW) for name in LIBRARIES}
result: dict[str, object] = {"loaded": sorted(loaded)}

security = loaded["c_sec"]
room = ctypes.create_string_buffer(8)
result["strcpy_s"] = [
    [security.strcpy_s(room, c_size_t(size), text), room.value.decode()]
    for size, text in ((8, b"abc"), (8, b"1234567"), (8, b"12345678"), (0, b"a"), (8, None))
]
result["memcpy_s"] = [
    [security.memcpy_s(room, c_size_t(8), b"abcdefghij", c_size_t(count)), room.raw.decode()]
    for count in (8, 3, 9)
]


class VaList(ctypes.Structure):
    """A va_list of x86-64 whose arguments all lie on the stack."""

    _fields_ = [("general", c_uint32), ("floating", c_uint32), ("stack", c_void_p), ("registers", c_void_p)]


def formatted(size: int, most: int) -> list[object]:
    stack = (c_uint64 * 1)(12345)
    arguments = VaList(48, 304, ctypes.addressof(stack), None)
    room.raw = b"........"
    return [
        security.vsnprintf_s(room, c_size_t(size), c_size_t(most), b"%d", byref(arguments)),
        room.value.decode(),
    ]


result["vsnprintf_s"] = [formatted(8, 7), formatted(4, 100), formatted(8, 2)]

mmpa = loaded["mmpa"]
result["mmGetTid"] = mmpa.mmGetTid() == threading.get_native_id()

runtime = loaded["runtime"]
handles = [c_void_p(), c_void_p()]
binary = ctypes.create_string_buffer(64)
result["registered"] = [
    runtime.rtDevBinaryRegister(binary, byref(handles[0])),
    runtime.rtRegisterAllKernel(binary, byref(handles[1])),
    runtime.rtFunctionRegister(handles[0], binary, b"kernel", None, c_uint32(0)),
    runtime.rtRegStreamStateCallback(b"name", None),
    runtime.rtDevBinaryUnRegister(handles[0]),
]
result["handles differ"] = bool(handles[0].value) and handles[0].value != handles[1].value
result["refused registrations"] = [
    runtime.rtDevBinaryRegister(None, byref(handles[0])),
    runtime.rtFunctionRegister(None, binary, b"kernel", None, c_uint32(0)),
]
runtime.aclGetRecentErrMsg.restype = c_char_p
launches = {}
for name in (
    "rtKernelLaunchWithHandleV2",
    "rtKernelLaunchWithFlagV2",
    "rtVectorCoreKernelLaunchWithHandle",
    "rtMalloc",
):
    code = getattr(runtime, name)()
    launches[name] = [code, (runtime.aclGetRecentErrMsg() or b"").decode()]
result["launches"] = launches

profiler = loaded["profapi"]
profiler.MsprofStr2Id.restype = c_uint64
result["MsprofStr2Id"] = [
    profiler.MsprofStr2Id(text, c_size_t(len(text))) for text in (b"one", b"two", b"one")
]

platform = loaded["platform"]
cores = platform._ZNK2fe13PlatFormInfos10GetCoreNumEv
cores.argtypes = [c_void_p]
result["cores"] = cores(None)
size = c_uint64(7)
platform._ZN2fe13PlatFormInfos15GetLocalMemSizeERKNS_12LocalMemTypeERm(None, byref(c_int(0)), byref(size))
result["local memory"] = size.value

assert runtime.aclInit(None) == 0
assert runtime.aclrtSetDevice(0) == 0
address, error = acl.rt.malloc(16, 0)
source, back = ctypes.create_string_buffer(b"sixteen bytes ..", 16), ctypes.create_string_buffer(16)
result["pyACL"] = [
    error,
    acl.rt.memcpy(address, 16, ctypes.addressof(source), 16, 1),
    acl.rt.memcpy(ctypes.addressof(back), 16, address, 16, 2),
    back.raw.decode(),
    acl.rt.free(address),
]
free, whole, error = acl.rt.get_mem_info(1)
result["pyACL memory"] = [0 < free <= whole, error]
try:
    acl.rt.launch_kernel  # noqa: B018
except AttributeError as missing:
    result["pyACL lacks"] = str(missing)
print(json.dumps(result))
