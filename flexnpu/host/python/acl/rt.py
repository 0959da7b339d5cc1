"""acl.rt: device memory. Addresses are integers; a function returns an ACL error, or a value and an error."""

from __future__ import annotations

import ctypes
from functools import cache


@cache
def _library() -> ctypes.CDLL:
    """AscendCL, as the loader finds it: FlexNPU's client or the emulated CANN."""
    library = ctypes.CDLL("libascendcl.so")
    library.aclrtMemcpy.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
    ]
    library.aclrtMalloc.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_int]
    library.aclrtFree.argtypes = [ctypes.c_void_p]
    library.aclrtGetMemInfo.argtypes = [
        ctypes.c_int,
        ctypes.POINTER(ctypes.c_size_t),
        ctypes.POINTER(ctypes.c_size_t),
    ]
    return library


def memcpy(dst: int, dest_max: int, src: int, count: int, direction: int) -> int:
    """Copies `count` bytes from address `src` to `dst`, which has room for `dest_max`. Returns an ACL error.

    direction: 0 host to host, 1 host to device, 2 device to host, 3 device to device.
    """
    return int(_library().aclrtMemcpy(dst, dest_max, src, count, direction))


def malloc(size: int, policy: int) -> tuple[int, int]:
    """(address of `size` bytes of device memory, ACL error). policy: aclrtMemMallocPolicy."""
    address = ctypes.c_void_p()
    error = _library().aclrtMalloc(ctypes.byref(address), size, policy)
    return address.value or 0, int(error)


def free(address: int) -> int:
    """Gives device memory back. Returns an ACL error."""
    return int(_library().aclrtFree(address))


def get_mem_info(attribute: int) -> tuple[int, int, int]:
    """(free bytes, all bytes, ACL error) of the current device. attribute: aclrtMemAttr."""
    available, whole = ctypes.c_size_t(), ctypes.c_size_t()
    error = _library().aclrtGetMemInfo(attribute, ctypes.byref(available), ctypes.byref(whole))
    return available.value, whole.value, int(error)


def __getattr__(name: str) -> object:
    raise AttributeError(
        f"acl.rt.{name} is not in FlexNPU's pyACL, which has memcpy, malloc, free, get_mem_info"
    )
