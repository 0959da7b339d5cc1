"""Faults of some kernels in placing probes, found by trying: no version is asked.

- `hides_threads`: a uprobe_multi link for a process sees only its first thread (Linux 6.6 to 6.9).
  torch_npu launches operators on another one.
- `ends_confined_programs`: a probed return is a system call, which a seccomp filter that does not know it
  answers by ending the process (Linux 6.11 to 6.13 on x86-64).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from functools import cache

from probes.placing import attach, capabilities, cost
from probes.placing.attach import TRACE_UPROBE_MULTI, Point

_CALLS = 31
_CHILD_S = 10
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2
_KILL_PROCESS, _ALLOW = 0x80000000, 0x7FFF0000
_URETPROBE = 335
"""The system call's number on x86-64, the one machine that has it."""


@cache
def hides_threads() -> bool:
    """Whether links leave out a process's other threads. False where it cannot be tried."""
    return _seen_from_a_thread(os.getpid()) == 0


def links_work() -> bool:
    """Whether probes are to be placed by uprobe_multi links: the kernel has them, and they see all threads or
    there is no other way."""
    if not capabilities.uprobe_multi():
        return False
    other_way = attach.supported() and "CAP_SYS_ADMIN" in capabilities.held()
    return not (other_way and hides_threads())


@cache
def ends_confined_programs() -> bool:
    """Whether a probed return ends a process under seccomp. False where it cannot be tried."""
    return not _survives(_URETPROBE)


def is_confined(pid: int) -> bool:
    """Whether a seccomp filter decides what a process may ask of the kernel."""
    # As bytes: the file also has the process's name, which may be anything.
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", "rb") as status:
        return any(line.split() == [b"Seccomp:", b"2"] for line in status)
    return False


@contextlib.contextmanager
def _probed(pid: int, code: cost.Code, *, on_return: bool) -> Iterator[int]:
    """A program that does nothing on `code` in process `pid`; its descriptor. Raises `AttachError`."""
    multi = capabilities.uprobe_multi()
    program = capabilities.load_nothing(TRACE_UPROBE_MULTI if multi else 0)
    if program < 0:
        raise attach.AttachError("the kernel loads no BPF program")
    try:
        path, points = f"/proc/self/fd/{code.fd}", [Point(cost.BODY)]
        probes = attach.place(program, path, points, pid, multi=multi, on_return=on_return)
        try:
            yield program
        finally:
            # Each removal takes the kernel a grace period.
            threading.Thread(target=attach.remove, args=(probes,), name="trial's end", daemon=True).start()
    finally:
        os.close(program)


def _code() -> cost.Code | None:
    machine = platform.machine()
    if machine not in cost.INSTRUCTIONS:
        return None
    return cost.Code(machine, cost.INSTRUCTIONS[machine][cost.CHEAP[machine]][0])


def _seen_from_a_thread(pid: int) -> int | None:
    """How many of `_CALLS` calls by another thread a link for process `pid` sees; None if nobody can tell."""
    if not capabilities.uprobe_multi() or (code := _code()) is None:
        return None
    counting = attach.enable_run_times()
    try:
        if counting < 0:
            return None
        with _probed(pid, code, on_return=False) as program:
            thread = threading.Thread(target=code.call, args=(_CALLS,), name="calls")
            thread.start()
            thread.join()
            count = attach.told_of(program).get("run_cnt")
            return None if count is None else int(count)
    except attach.AttachError:
        return None
    finally:
        code.close()
        if counting >= 0:
            os.close(counting)


def _survives(number: int, act: Callable[[cost.Code], object] = lambda code: code.call(1)) -> bool:
    """Whether a child that system call `number` ends comes through a call with a probed return."""
    if platform.machine() != "x86_64" or (code := _code()) is None:
        return True
    told, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            # Should it need a lock that another thread had when it was forked, it ends all the same.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(_CHILD_S)
            os.close(go[1])
            _confine(number)
            os.write(told[1], b".")
            os.read(go[0], 1)
            act(code)
            os._exit(0)
        finally:
            os._exit(1)
    try:
        os.close(told[1])
        os.close(go[0])
        if os.read(told[0], 1):
            with contextlib.suppress(attach.AttachError), _probed(child, code, on_return=True):
                os.write(go[1], b".")
                return _ended_by(child) != signal.SIGSYS
        return True
    finally:
        code.close()
        os.close(told[0])
        os.close(go[1])
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


def _ended_by(child: int) -> int:
    """The signal that ended a child, 0 for none."""
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def _confine(number: int) -> None:
    """From here on, system call `number` ends this process. Raises `OSError`."""
    filters = b"".join(
        (
            struct.pack("=HBBI", 0x20, 0, 0, 0),  # load the number
            struct.pack("=HBBI", 0x15, 0, 1, number),  # if it is this one
            struct.pack("=HBBI", 0x06, 0, 0, _KILL_PROCESS),
            struct.pack("=HBBI", 0x06, 0, 0, _ALLOW),
        )
    )
    kept = ctypes.create_string_buffer(filters, len(filters))
    program = struct.pack("@HP", 4, ctypes.addressof(kept))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_PR_SET_SECCOMP, _FILTER, program, 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")
