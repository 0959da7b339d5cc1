"""Calls functions with nothing but zeros: null_calls.py FILE, of lines "NAME KIND", see RESULTS.

Prints "NAME" before and " CODE MESSAGE" behind each call, so that a crash shows whose it was.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

RESULTS = {"code": ctypes.c_int32, "pointer": ctypes.c_void_p, "void": None, "number": ctypes.c_uint64}
ZEROS = [ctypes.c_void_p(None)] * 50

names = ("ascendcl", "acl_op_compiler", "hccl", "opapi", "nnopbase", "acl_tdt_channel", "acl_rt")
libraries = [ctypes.CDLL(f"lib{name}.so") for name in names]
acl = libraries[0]
acl.aclGetRecentErrMsg.restype = ctypes.c_char_p


def find(name: str) -> object:
    for library in libraries:
        try:
            return library[name]
        except AttributeError:
            continue
    return None


def main() -> None:
    for line in Path(sys.argv[1]).read_text().splitlines():
        name, kind = line.split()
        acl.aclInit(None)
        acl.aclrtSetDevice(0)
        acl.aclGetRecentErrMsg()
        function = find(name)
        os.write(1, name.encode())
        if function is None:
            os.write(1, b" absent -\n")
            continue
        function.restype = RESULTS[kind]
        code = function(*ZEROS)
        message = (acl.aclGetRecentErrMsg() or b"").replace(b"\n", b" ")
        os.write(1, b" %s %s\n" % (str(code or 0).encode(), message or b"-"))


main()
os._exit(0)  # what exit handlers do after all this is not the question
