from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mockset
import pytest

from probes.host import taskstats
from probes.host.taskstats import HostDelays

SOURCES = pytest.mark.parametrize("source", ["taskstats", "schedstat"])
BURN = "import time; end = time.monotonic() + 120\nwhile time.monotonic() < end: pass"


def scheduled(pid: int, niceness: int, cpus: set[int]) -> None:
    """Let all threads of `pid` run on `cpus`, with `niceness`."""
    for tid in map(int, os.listdir(f"/proc/{pid}/task")):
        os.setpriority(os.PRIO_PROCESS, tid, niceness)
        os.sched_setaffinity(tid, cpus)


@contextlib.contextmanager
def burning() -> Iterator[int]:
    """The id of a process that keeps CPU 0 busy until it is killed, for two minutes at most."""
    child = subprocess.Popen([sys.executable, "-c", BURN], preexec_fn=lambda: os.sched_setaffinity(0, {0}))
    try:
        yield child.pid
    finally:
        child.kill()
        child.wait()


@SOURCES
def test_waits_for_a_cpu_and_time_on_it_are_told_apart(source: str) -> None:
    with burning(), burning() as rival, HostDelays(prefer=source) as delays:
        assert delays.source == source
        assert delays.sample({rival: [rival], os.getpid(): [], 1 << 22: []}) == []
        time.sleep(1.0)
        found = delays.sample({rival: [rival, 1 << 22], os.getpid(): []})
    assert [(event.pid, event.tid) for event in found] == [
        (rival, None),
        (rival, rival),
        (os.getpid(), None),
    ]
    process, thread, own = found
    for event in (process, thread):
        assert event.interval_us > 0.9e6
        assert 0.2 < event.runqueue_us / event.interval_us < 1.0
        assert 0.5 < (event.runqueue_us + event.cpu_us) / event.interval_us < 1.1
    assert own.cpu_us < 0.5 * own.interval_us


def test_what_is_not_counted_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    for counted in (False, True):
        monkeypatch.setattr(taskstats, "accounting", lambda counted=counted: counted)
        with HostDelays() as delays:
            delays.sample({os.getpid(): []})
            (event,) = delays.sample({os.getpid(): []})
        assert (event.blkio_us is not None, event.swapin_us is not None) == (counted, counted)


def test_without_the_right_it_reads_proc_and_says_so() -> None:
    code = (
        "import os; from probes.host.taskstats import *\n"
        "d = HostDelays(); d.sample({os.getpid(): [os.getpid()]}); sum(range(10**6))\n"
        "print(d.source, d.why, len([e for e in d.sample({os.getpid(): [os.getpid()]}) if e.cpu_us > 0]))"
    )
    done = subprocess.run(
        [*mockset.python(), "-c", code], capture_output=True, text=True, timeout=60, user=65534, group=65534
    )
    assert done.stdout.startswith("schedstat "), done.stderr
    assert "not permitted" in done.stdout
    assert done.stdout.endswith(" 2\n")


LAUNCHER = """
import ctypes, sys, time
library = ctypes.CDLL(sys.argv[1])
launch, wait = library.aclrtLaunchKernelWithHostArgs, library.aclrtSynchronizeStream
print("ready", flush=True)
for line in sys.stdin:
    steps, end = 0, time.monotonic() + float(line)
    begun = time.monotonic()
    while time.monotonic() < end:
        for _ in range(2000):
            launch(None, 1, ctypes.c_void_p(16), None, None, 0, None, 0)
        wait(ctypes.c_void_p(16))
        steps += 1
    print((time.monotonic() - begun) / steps * 1e6, steps, flush=True)
"""


def test_a_starved_launcher_is_told_from_a_slow_npu(mock_driver: Path) -> None:
    """Steps become longer, their work does not, and the run queue has the difference."""
    library = mock_driver.parent / "libacl_rt.so"
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, library], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        delays = HostDelays()

        def steps(seconds: float) -> tuple[float, float, float]:
            """Time, CPU time and wait in the run queue, us a step."""
            assert child.stdin is not None
            assert child.stdout is not None
            delays.sample({child.pid: [child.pid]})
            child.stdin.write(f"{seconds}\n")
            child.stdin.flush()
            duration, count = child.stdout.readline().split()
            (_, launcher) = delays.sample({child.pid: [child.pid]})
            return float(duration), launcher.cpu_us / int(count), launcher.runqueue_us / int(count)

        assert child.stdout.readline() == "ready\n"
        # Other programs of this machine must not starve it first, whatever they do.
        scheduled(child.pid, -15, os.sched_getaffinity(0))
        fed = steps(0.5)
        with burning():
            scheduled(child.pid, 5, {0})
            starved = steps(0.8)
        delays.close()
        child.stdin.close()
    print(f"step, CPU, run queue, us a step: fed {fed}, starved {starved}")
    assert starved[0] > 1.5 * fed[0]
    assert starved[1] < 1.5 * fed[1]
    assert starved[2] - fed[2] > 0.6 * (starved[0] - fed[0])
