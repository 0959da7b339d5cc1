"""The emulated runtime by ctypes: what the tests of several processes run in their children.

Run as a program it takes a role from its first argument and writes one JSON object a line to stdout.
"""

from __future__ import annotations

import ctypes
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "common"))

import exit_thread


class KernelCost(ctypes.Structure):
    """`flexnpu::emulator::KernelCost`."""

    _fields_ = [
        ("cube_flops", ctypes.c_double),
        ("cube_dtype", ctypes.c_int32),
        ("vector_flops", ctypes.c_double),
        ("bytes", ctypes.c_double),
    ]


class Kernel(ctypes.Structure):
    """`flexnpu::emulator::Kernel`."""

    _fields_ = [
        ("op", ctypes.c_uint32),
        ("name", ctypes.c_char_p),
        ("cost", KernelCost),
        ("has_body", ctypes.c_bool),
        ("run", ctypes.c_void_p),
        ("destroy", ctypes.c_void_p),
        ("self", ctypes.c_void_p),
        ("meet", ctypes.c_void_p),
        ("magic", ctypes.c_uint64),
    ]


class AclError(Exception):
    def __init__(self, function: str, code: int, message: str) -> None:
        super().__init__(f"{function}: {code}: {message}")
        self.code = code


class Runtime:
    """Calls into libacl_rt; a call that fails raises AclError."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libacl_rt.so")
        self._library.aclGetRecentErrMsg.restype = ctypes.c_char_p

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._library, name)

        def call(*args: Any) -> None:
            code = function(*args)
            if code != 0:
                raise AclError(name, code, (self._library.aclGetRecentErrMsg() or b"").decode())

        return call

    def open(self, device: int = 0) -> None:
        self.aclInit(None)
        self.aclrtSetDevice(device)

    def stream(self) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        self.aclrtCreateStream(ctypes.byref(handle))
        return handle

    def malloc(self, size: int) -> ctypes.c_void_p:
        p = ctypes.c_void_p()
        self.aclrtMalloc(ctypes.byref(p), ctypes.c_size_t(size), 0)
        return p

    def free_bytes(self) -> int:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.aclrtGetMemInfo(1, ctypes.byref(free), ctypes.byref(total))
        return free.value

    def launch(self, stream: ctypes.c_void_p, us: float) -> None:
        """A kernel without a body that takes `us` of device time in the unit profile."""
        kernel = Kernel(name=b"aclnnTest", magic=0x666C65786B65726E, has_body=False)
        kernel.cost.bytes = us * 1e6
        size = ctypes.c_size_t(ctypes.sizeof(kernel))
        self.aclrtLaunchKernelWithHostArgs(
            None, 1, stream, None, ctypes.byref(kernel), size, None, ctypes.c_size_t(0)
        )

    def busy_ns(self) -> int:
        value = ctypes.c_uint64()
        self.flexnpu_emu_device_busy_ns(0, ctypes.byref(value))
        return value.value


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def contend(seconds: float, us: float) -> None:
    """Keeps the compute engine asked for `seconds`, from the time on (CLOCK_MONOTONIC) that it is told."""
    runtime = Runtime()
    runtime.open()
    stream = runtime.stream()
    say(ready=True)
    start = float(sys.stdin.readline())
    time.sleep(max(0.0, start - time.monotonic()))
    done = 0
    while time.monotonic() < start + seconds:
        for _ in range(8):
            runtime.launch(stream, us)
        runtime.aclrtSynchronizeStream(stream)
        done += 8
    say(done=done, ended=time.monotonic())


def hold(size: float, launch_us: float) -> None:
    """Takes memory and the engine, and waits to be killed."""
    runtime = Runtime()
    runtime.open()
    runtime.malloc(int(size))
    stream = runtime.stream()
    runtime.launch(stream, launch_us)
    say(held=size)
    time.sleep(60)


def launch(count: float, us: float) -> None:
    """Operators on two streams in turn, and a copy after them."""
    runtime = Runtime()
    runtime.open()
    streams = [runtime.stream(), runtime.stream()]
    for number in range(int(count)):
        runtime.launch(streams[number % 2], us)
    size = ctypes.c_size_t(4096)
    memory, text = runtime.malloc(4096), ctypes.create_string_buffer(4096)
    runtime.aclrtMemcpyAsync(memory, size, text, size, 1, streams[0])
    for stream in streams:
        runtime.aclrtSynchronizeStream(stream)


def leave(size: float, launch_us: float) -> None:
    """As `hold`, in a process whose first thread has ended."""
    threading.Thread(target=hold, args=(size, launch_us)).start()
    exit_thread.leave_process_to_others()


def idle(seconds: float) -> None:
    """Reports what the threads of an open, idle device do: the share of looks that find one of them runnable,
    and how often they wake up.
    """
    runtime = Runtime()
    runtime.open()
    streams = [runtime.stream() for _ in range(8)]
    for stream in streams:
        runtime.launch(stream, 1)
        runtime.aclrtSynchronizeStream(stream)
    tasks = [
        task for task in Path("/proc/self/task").iterdir() if int(task.name) != threading.get_native_id()
    ]
    before, busy, looks = _wakeups(tasks), 0, 50
    for _ in range(looks):
        time.sleep(seconds / looks)
        busy += any((task / "stat").read_text().rpartition(")")[2].split()[0] == "R" for task in tasks)
    say(busy=busy / looks, wakeups=_wakeups(tasks) - before, threads=len(tasks))


def _wakeups(tasks: list[Path]) -> int:
    lines = (line for task in tasks for line in (task / "status").read_text().splitlines())
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches:"))


ROLES: dict[str, Callable[..., None]] = {
    "contend": contend,
    "hold": hold,
    "idle": idle,
    "launch": launch,
    "leave": leave,
}

if __name__ == "__main__":
    ROLES[sys.argv[1]](*map(float, sys.argv[2:]))
