"""AscendCL by ctypes, for programs that need no torch: what LD_LIBRARY_PATH names is what they call."""

import ctypes
from ctypes import byref, c_int32, c_size_t, c_uint32, c_void_p
from typing import Any

acl = ctypes.CDLL("libascendcl.so")
acl.aclGetRecentErrMsg.restype = ctypes.c_char_p

HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE = 1, 2, 3


class AclError(Exception):
    def __init__(self, function: str, code: int) -> None:
        self.code = code
        self.message = (acl.aclGetRecentErrMsg() or b"").decode()
        super().__init__(f"{function}: {code}: {self.message}")


def call(function: str, *arguments: Any) -> None:
    code = getattr(acl, function)(*arguments)
    if code != 0:
        raise AclError(function, code)


def attempt(function: str, *arguments: Any) -> tuple[int, str]:
    """The call's error and its message; 0 and nothing when it is served."""
    try:
        call(function, *arguments)
    except AclError as error:
        return error.code, error.message
    return 0, ""


def code(function: str, *arguments: Any) -> int:
    return attempt(function, *arguments)[0]


def start(device: int = 0) -> None:
    call("aclInit", None)
    call("aclrtSetDevice", device)


def malloc(size: int) -> c_void_p:
    pointer = c_void_p()
    call("aclrtMalloc", byref(pointer), c_size_t(size), c_uint32(0))
    return pointer


def create_stream() -> c_void_p:
    stream = c_void_p()
    call("aclrtCreateStream", byref(stream))
    return stream


def copy_in(to: c_void_p, data: bytes) -> None:
    call("aclrtMemcpy", to, c_size_t(len(data)), data, c_size_t(len(data)), c_int32(HOST_TO_DEVICE))


def copy_out(source: c_void_p, size: int) -> bytes:
    buffer = ctypes.create_string_buffer(size)
    call("aclrtMemcpy", buffer, c_size_t(size), source, c_size_t(size), c_int32(DEVICE_TO_HOST))
    return buffer.raw
