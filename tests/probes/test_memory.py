"""Reading another process's memory."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from probes.host import memory


def test_what_another_process_has() -> None:
    code = (
        "import ctypes\n"
        "kept = ctypes.create_string_buffer(b'known words')\n"
        "print(ctypes.addressof(kept), flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        at = int(other.stdout.readline())
        assert memory.read(other.pid, at, 11) == b"known words"
        with pytest.raises(OSError, match=f"Bad address: process {other.pid}, 8 bytes at 0x10"):
            memory.read(other.pid, 16, 8)
        other.communicate("\n")
    with pytest.raises(ProcessLookupError):
        memory.read(other.pid, at, 11)


def test_a_span_that_ends_beyond_the_memory_is_refused() -> None:
    page = os.sysconf("SC_PAGESIZE")
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    at = libc.mmap(None, ctypes.c_size_t(2 * page), 3, 0x22, -1, ctypes.c_long(0))
    libc.munmap(ctypes.c_void_p(at + page), ctypes.c_size_t(page))
    try:
        assert memory.read(os.getpid(), at, page) == bytes(page)
        with pytest.raises(OSError, match="Bad address"):
            memory.read(os.getpid(), at + page - 8, 16)
    finally:
        libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(page))
