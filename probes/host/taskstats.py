"""What the host made a process wait for: its share of delay that is not the NPU's.

A thread that wants to launch but does not get a CPU makes each step longer exactly as a slow NPU would. The
kernel knows the difference: how long each thread stood runnable in a run queue without running.

    with HostDelays() as delays:
        delays.sample({pid: [tid, ...]})     # the first call only begins the interval
        ...
        events = delays.sample({pid: [tid, ...]})

Sources, the better first: the kernel's task statistics (pyroute2's `TaskStats`; asks for CAP_NET_ADMIN),
which also know waits for block devices and swap when delay accounting is on (`accounting`; it is off by
default, and this module does not switch it on); else /proc/PID/task/TID/schedstat, run queue and CPU only.

Formula: differences of ``cpu_delay_total``, ``cpu_run_virtual_total``, ``blkio_delay_total`` and
``swapin_delay_total`` of struct taskstats (linux/taskstats.h), ns, between two samples. The run queue's and
the CPU's are kept by the scheduler at all times, the other two only by delay accounting. (Its
``cpu_run_real_total`` counts whole ticks on most kernels: zero for a thread that runs for less at a time.)
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexnpu.common.closeable import Closeable
from flexnpu.common.processes import comm_of
from probes.feed.events import HostDelay
from probes.host import netlink

_SWITCH = Path("/proc/sys/kernel/task_delayacct")
_MAX_THREADS = 8


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
        netlink.prepare()
        from pyroute2.netlink import NLM_F_REQUEST
        from pyroute2.netlink.exceptions import NetlinkError
        from pyroute2.netlink.taskstats import TASKSTATS_CMD_GET, TaskStats, tcmd

        self._flags, self._get = NLM_F_REQUEST, TASKSTATS_CMD_GET
        self._command: Any = tcmd
        new: Any = TaskStats
        self._socket = new()
        try:
            self._socket.bind()
            own = self.process(os.getpid())
        except NetlinkError as error:
            self._socket.close()
            raise OSError(error.code, f"the kernel's task statistics: {os.strerror(error.code)}") from None
        except Exception as error:  # a kernel without them: pyroute2 has several names for it
            self._socket.close()
            raise OSError(f"the kernel's task statistics: {error}") from None
        if own is None or own.cpu == 0:
            self._socket.close()
            raise OSError("the kernel's task statistics have a form that pyroute2 does not know")

    def process(self, pid: int) -> Totals | None:
        """All threads of `pid`, ended ones included; None when it is gone."""
        return self._ask("TASKSTATS_CMD_ATTR_TGID", pid)

    def thread(self, _pid: int, tid: int) -> Totals | None:
        return self._ask("TASKSTATS_CMD_ATTR_PID", tid)

    def _ask(self, attribute: str, number: int) -> Totals | None:
        from pyroute2.netlink.exceptions import NetlinkError

        message: Any = self._command()
        message["cmd"] = self._get
        message["version"] = 1
        message["attrs"].append([attribute, number])
        now = time.monotonic_ns()
        try:
            (answer,) = self._socket.nlm_request(message, self._socket.prid, msg_flags=self._flags)
        except NetlinkError as error:
            if error.code == 3:  # ESRCH
                return None
            raise
        ((_, aggregate),) = answer["attrs"]
        stats = aggregate.get_attr("TASKSTATS_TYPE_STATS")
        counted = accounting()
        return Totals(
            now,
            stats["cpu_run_virtual_total"],
            stats["cpu_delay_total"],
            stats["blkio_delay_total"] if counted else None,
            stats["swapin_delay_total"] if counted else None,
        )

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


class HostDelays(Closeable):
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
        """Close the kernel's source."""
        self._reader.close()
