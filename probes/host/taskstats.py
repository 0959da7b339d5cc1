"""What the host made a process wait for: its share of delay that is not the NPU's.

A thread that wants to launch but does not get a CPU makes each step longer exactly as a slow NPU would. The
kernel knows the difference: how long each thread stood runnable in a run queue without running.

    with HostDelays() as delays:
        delays.sample({pid: [tid, ...]})     # the first call only begins the interval
        ...
        events = delays.sample({pid: [tid, ...]})

Sources, the better first: the kernel's task statistics (over netlink; they ask for CAP_NET_ADMIN),
which also know waits for block devices and swap when delay accounting is on (`accounting`; it is off by
default, and this module does not switch it on); else /proc/PID/task/TID/schedstat, run queue and CPU only.

Formula: differences of ``cpu_delay_total``, ``cpu_run_virtual_total``, ``blkio_delay_total`` and
``swapin_delay_total`` of struct taskstats (linux/taskstats.h), ns, between two samples. The run queue's and
the CPU's are kept by the scheduler at all times, the other two only by delay accounting. (Its
``cpu_run_real_total`` counts whole ticks on most kernels: zero for a thread that runs for less at a time.)
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flexnpu.control.closing import Closing
from probes.feed.events import HostDelay
from probes.host import netlink
from probes.host.processes import comm_of

_SWITCH = Path("/proc/sys/kernel/task_delayacct")
_MAX_THREADS = 8

# linux/taskstats.h: the command, the attributes of a request, the attribute of the statistics.
_GET, _ATTR_PID, _ATTR_TGID, _TYPE_STATS = 1, 1, 2, 3
# Of struct taskstats, the same in all its versions: cpu_delay_total, blkio_delay_total, swapin_delay_total,
# cpu_run_virtual_total.
_STATS = struct.Struct("=24x Q 8x Q 8x Q 8x Q")


@dataclass(frozen=True, slots=True)
class Totals:
    """Since a task began, ns. None: not measured."""

    t_ns: int
    cpu: int
    runqueue: int
    blkio: int | None = None
    swapin: int | None = None


def accounting() -> bool:
    """Whether the kernel counts waits for block devices and swap (``sysctl kernel.task_delayacct``)."""
    try:
        return _SWITCH.read_text().strip() == "1"
    except OSError:
        return False


class _TaskStats:
    """The kernel's task statistics over netlink. Raises OSError when they cannot be had."""

    def __init__(self) -> None:
        try:
            self._socket = netlink.Generic("TASKSTATS")
        except OSError as error:
            raise OSError(error.errno, f"the kernel's task statistics: {error.strerror}") from None
        try:
            own = self.process(os.getpid())
        except OSError as error:
            self._socket.close()
            raise OSError(error.errno, f"the kernel's task statistics: {error.strerror}") from None
        if own is None or own.cpu == 0:
            self._socket.close()
            raise OSError(errno.EPROTO, "the kernel's task statistics have a form that is not known here")

    def process(self, pid: int) -> Totals | None:
        """All threads of `pid`, ended ones included; None when it is gone."""
        return self._ask(_ATTR_TGID, pid)

    def thread(self, _pid: int, tid: int) -> Totals | None:
        return self._ask(_ATTR_PID, tid)

    def _ask(self, kind: int, number: int) -> Totals | None:
        now = time.monotonic_ns()
        try:
            answer = self._socket.ask(_GET, netlink.attribute(kind, struct.pack("=I", number)))
        except OSError as error:
            if error.errno == errno.ESRCH:
                return None
            raise
        # One attribute (the task's, or the process's) that holds the id and the statistics.
        for _, aggregate in netlink.attributes(answer):
            stats = dict(netlink.attributes(aggregate)).get(_TYPE_STATS)
            if stats is not None and len(stats) >= _STATS.size:
                runqueue, blkio, swapin, cpu = _STATS.unpack_from(stats)
                counted = accounting()
                return Totals(now, cpu, runqueue, blkio if counted else None, swapin if counted else None)
        return None

    def close(self) -> None:
        self._socket.close()


class _SchedStat:
    """/proc/PID/task/TID/schedstat: CPU time, run-queue wait, both ns. Threads that ended are forgotten."""

    def process(self, pid: int) -> Totals | None:
        try:
            tids = [int(tid) for tid in os.listdir(f"/proc/{pid}/task")]
        except OSError:
            return None
        found = [totals for tid in tids if (totals := self.thread(pid, tid)) is not None]
        if not found:
            return None
        return Totals(found[0].t_ns, sum(t.cpu for t in found), sum(t.runqueue for t in found))

    def thread(self, pid: int, tid: int) -> Totals | None:
        try:
            text = Path(f"/proc/{pid}/task/{tid}/schedstat").read_text()
        except OSError:
            return None
        cpu, runqueue = text.split()[:2]
        return Totals(time.monotonic_ns(), int(cpu), int(runqueue))

    def close(self) -> None:
        pass


class HostDelays(Closing):
    """Samples processes and their launching threads.

    `source` is ``taskstats`` or ``schedstat``, and `why` says why it is not the former.
    """

    def __init__(self, *, prefer: str = "taskstats") -> None:
        self.why: str | None = None
        self.source = "taskstats"
        self._before: dict[tuple[int, int | None], Totals] = {}
        self._reader: _TaskStats | _SchedStat
        if prefer == "taskstats":
            try:
                self._reader = _TaskStats()
                return
            except OSError as error:
                self.why = str(error.strerror or error)
        else:
            self.why = "switched off"
        self.source = "schedstat"
        self._reader = _SchedStat()

    def sample(self, processes: Mapping[int, Iterable[int]]) -> list[HostDelay]:
        """What each process, and each of its threads named (at most 8 of them are read), waited for since
        the last call.

        Processes and threads that are new, or gone, have no event.
        """
        after: dict[tuple[int, int | None], Totals] = {}
        events = []
        for pid, tids in processes.items():
            tasks: list[int | None] = [None, *sorted(set(tids))[:_MAX_THREADS]]
            for tid in tasks:
                key = pid, tid
                now = self._reader.process(pid) if tid is None else self._reader.thread(pid, tid)
                if now is None:
                    continue
                after[key] = now
                before = self._before.get(key)
                if before is not None and now.t_ns > before.t_ns:
                    events.append(self._event(pid, tid, before, now))
        self._before = after
        return events

    def _event(self, pid: int, tid: int | None, before: Totals, now: Totals) -> HostDelay:
        def waited(first: int | None, last: int | None) -> float | None:
            # Threads that ended take what they had with them in schedstat's sums.
            return None if first is None or last is None else max(0.0, (last - first) / 1e3)

        return HostDelay(
            t_ns=now.t_ns,
            pid=pid,
            comm=comm_of(pid, tid),
            tid=tid,
            interval_us=(now.t_ns - before.t_ns) / 1e3,
            cpu_us=max(0.0, (now.cpu - before.cpu) / 1e3),
            runqueue_us=max(0.0, (now.runqueue - before.runqueue) / 1e3),
            blkio_us=waited(before.blkio, now.blkio),
            swapin_us=waited(before.swapin, now.swapin),
        )

    def close(self) -> None:
        self._reader.close()
