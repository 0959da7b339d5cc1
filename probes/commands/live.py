"""Tracing for as long as a command runs: what the commands that trace share."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from flexnpu.common import descriptors
from flexnpu.common.closeable import Closeable
from flexnpu.console.output import say
from probes.commands.common import Stop
from probes.feed.events import Event, Losses, OpenRequests, RequestTiming, Step
from probes.feed.recording import Overhead
from probes.host.callers import Callers
from probes.host.families import ProcessFamilies
from probes.host.finder import Finder
from probes.host.registry import Registry
from probes.host.selection import Selection
from probes.host.taskstats import HostDelays
from probes.placing import symbols
from probes.placing.attach import AttachError
from probes.placing.plan import FUNNELS, Plan
from probes.requests.hops import Hop, Hops
from probes.requests.join import Joiner
from probes.steps.targets import Target
from probes.steps.tracer import Tracer, check, uses_npu

if TYPE_CHECKING:
    from probes.requests.wire import WireTracer

_SPARE_DESCRIPTORS = 64
_POLL_S = 0.05
_OPEN_S = 1.0
"""How often it is told which requests run."""
_FRONTS_S = 5.0
"""How often processes are looked for that serve HTTP for a traced one: they may start after it."""


class Live(Closeable):
    """A tracer on the processes of `selection`, with what comes and goes meanwhile.

    `on_event` gets every event. `only`: the libraries to look into. `wire` times streamed requests too.
    `plan`, `budget_percent`: see `Tracer`. `say` gets what people should know. Raises AttachError when there
    is nothing to attach to and nothing to wait for.
    """

    def __init__(
        self,
        selection: Selection,
        on_event: Callable[[Event], None],
        *,
        only: frozenset[str] | None = None,
        begins: bool = False,
        wire: bool = False,
        say: Callable[[str], None] = say,
        plan: Plan = "default",
        budget_percent: float | None = 1.0,
    ) -> None:
        check()
        descriptors.allow_many()
        self._selection = selection
        self._only = only
        self._say = say
        self._on_event = on_event
        self._since: dict[int, int] = {}
        self._joiner: Joiner | None = None
        self._hops: Hops | None = None
        self._families = ProcessFamilies()
        self._registry = Registry(on_event, self._families)
        self._callers = Callers()
        self._answering: dict[int, str] = {}
        """Names of the watched processes of which it was told that requests run."""
        self._untimed: set[int] = set()
        """Processes of which it was told that their requests are not timed."""
        self._stack = contextlib.ExitStack()
        with self._stack:
            selection.check(symbols.processes())
            self._finder = self._stack.enter_context(Finder(selection, self._uses_npu))
            if self._finder.why_scanning and selection.follows:
                say(
                    f"new processes are looked for every second: {self._finder.why_scanning}. "
                    "An exit is noticed within a second"
                )
            wanted = list(selection.pids) or self._present()
            if not wanted and not selection.follows:
                raise AttachError(
                    "no process uses an NPU: none maps a library that defines any of "
                    f"{', '.join(sorted(FUNNELS))}. Start one, name one with --pid, or wait for one with "
                    "--all."
                )
            self.tracer = self._stack.enter_context(
                Tracer(
                    self._event,
                    begins=begins,
                    only=only,
                    plan=plan,
                    budget_percent=budget_percent,
                    on_note=say,
                )
            )
            self._wire = self._stack.enter_context(self._make_wire()) if wire else None
            if self._wire is not None:
                self._hops = Hops(on_event, self._wire.open_hops)
                self._joiner = self._make_joiner(self._wire, self._hops)
                self.tracer.on_transfer(self._hops.transfer)
            if self._wire is not None and self._wire.dating == "call":
                self._say(
                    "requests are dated by the servers' reads and writes: this kernel does not show when a "
                    "socket's data arrive and leave"
                )
            self.delays = self._stack.enter_context(HostDelays())
            if self.delays.why:
                say(f"run-queue waits are read from /proc: {self.delays.why}")
            for pid in wanted:
                self._attach(pid, required=pid in selection.pids)
            self._stack = self._stack.pop_all()

    def _uses_npu(self, pid: int) -> bool:
        return uses_npu(pid, only=self._only)

    def _present(self) -> list[int]:
        return [pid for pid in symbols.processes() if self._selection.matches(pid) and self._uses_npu(pid)]

    def _event(self, event: Event) -> None:
        if self._joiner is not None and isinstance(event, Step):
            self._joiner.step(event)
        self._on_event(event)

    def _make_joiner(self, wire: WireTracer, hops: Hops) -> Joiner:
        return Joiner(hops.request, families=self._families, open_requests=wire.open_requests)

    def _make_wire(self) -> WireTracer:
        from probes.requests.wire import WireTracer

        def on_request(timing: RequestTiming) -> None:
            assert self._joiner is not None
            self._joiner.request(timing)

        def on_hop(hop: Hop) -> None:
            assert self._hops is not None
            self._hops.ended(hop)

        def on_loss(counts: dict[str, int]) -> None:
            # Again and again, for who has only now subscribed.
            if self._hops is not None:
                counts |= self._hops.counts
            self._on_event(Losses(t_ns=time.monotonic_ns(), source="wire", counts=counts))

        return WireTracer((), on_request=on_request, on_loss=on_loss, on_hop=on_hop)

    def _add_to_wire(self, wire: WireTracer, pid: int) -> None:
        """Watch the sockets of `pid`, and of the processes that may serve HTTP for it."""
        for server in (pid, *self._families.fronts(pid)):
            try:
                wire.add(server)
                self._untimed.discard(server)
            except ProcessLookupError:
                self._untimed.discard(server)  # the finder notices its end
            except OSError as error:
                if server not in self._untimed:
                    self._say(f"requests of process {server} are not timed: {error.strerror}")
                self._untimed.add(server)

    def _add_callers(self, wire: WireTracer) -> None:
        """Watch the sockets of servers that ask the watched ones: proxies."""
        for pid in self._callers.find(wire.strangers()):
            with contextlib.suppress(OSError):  # it has ended, or there are too many
                wire.add(pid)

    def _place(self, pid: int) -> Target:
        """Attach to a process, if that leaves descriptors for the rest. Raises `AttachError`, `OSError`."""
        if (left := descriptors.left()) < _SPARE_DESCRIPTORS:
            raise AttachError(
                f"process {pid} is left out: {left} more files may be opened, and {_SPARE_DESCRIPTORS} are "
                "kept for other work; raise the limit (ulimit -Hn, systemd: LimitNOFILE=)"
            )
        return self.tracer.attach(pid)

    def _attach(self, pid: int, *, required: bool) -> None:
        self._since[pid] = time.monotonic_ns()
        try:
            target = self._place(pid)
        except (AttachError, OSError) as error:
            if required:
                raise AttachError(str(error)) from None
            self._say(str(error))
            self._finder.forget(pid)
            self._registry.failed(pid)
            return
        if self._wire is not None:
            self._add_to_wire(self._wire, pid)
        libraries = sorted({os.path.basename(placed.library) for placed in target.placed})
        kind = "FlexNPU's client" if target.kind == "client" else "CANN"
        where = f"{len(target.placed)} probes in {', '.join(libraries)}"
        self._say(f"attached to {target.comm} ({pid}), {kind}: {where}")

    @property
    def waiting(self) -> bool:
        """Nothing is attached, but something may come."""
        return self._selection.follows and not self.tracer.targets

    def run(
        self,
        stop: Stop,
        *,
        duration: float | None,
        interval: float,
        on_tick: Callable[[Losses, float], None],
        on_poll: Callable[[], bool | None] | None = None,
    ) -> None:
        """Trace until `stop`, for `duration` seconds, or until the last process ended and none may come.

        `on_tick` is called every `interval` seconds with what was lost so far and the time (monotonic);
        `on_poll` many times a second; False from it ends the tracing.
        """
        begun = time.monotonic()
        next_tick = begun + interval
        next_fronts = begun + _FRONTS_S
        next_open = begun
        self._register()
        self._sample()
        while not stop.requested:
            now = time.monotonic()
            if duration is not None and now - begun >= duration:
                return
            if not self._selection.follows and not self.tracer.targets:
                self._say("every process that was attached has ended")
                return
            self.tracer.poll(_POLL_S)
            if self._wire is not None and self._joiner is not None:
                self._wire.poll(0)
                # The poll above took every step that was over when it began, however long it lasted.
                self._joiner.advance(round(now * 1e9))
                if self._hops is not None:
                    self._hops.advance(round(now * 1e9))
                self._tell_gone(self._wire, round(now * 1e9))
                if now >= next_open:
                    next_open = now + _OPEN_S
                    self._tell_open(self._wire, round(now * 1e9))
                if now >= next_fronts:
                    next_fronts = now + _FRONTS_S
                    for target in self.tracer.targets:
                        self._add_to_wire(self._wire, target.pid)
                    self._add_callers(self._wire)
            self._follow()
            self._register()
            if on_poll is not None and on_poll() is False:
                return
            if now >= next_tick:
                next_tick = max(next_tick + interval, now)
                self._sample()
                on_tick(self._losses(), now)

    def _register(self) -> None:
        """Tell of the processes that are watched now."""
        traced = {target.pid: len(target.placed) for target in self.tracer.targets}
        self._registry.poll(traced, () if self._wire is None else self._wire.pids)

    def _tell_open(self, wire: WireTracer, t_ns: int) -> None:
        """Publish the requests that run: of each server that has some, and once when it has none any more."""
        watched = set(wire.pids)
        for event in wire.unanswered(t_ns):
            if event.in_flight or event.pid in self._answering:
                self._on_event(event)
            self._answering.pop(event.pid, None)
            if event.in_flight and event.pid in watched:
                self._answering[event.pid] = event.comm

    def _tell_gone(self, wire: WireTracer, t_ns: int) -> None:
        """Publish that nothing runs any more in servers that are not watched any more: they have ended."""
        for pid in self._answering.keys() - wire.pids:
            self._on_event(OpenRequests(t_ns, pid, self._answering.pop(pid), 0, None, []))

    def _sample(self) -> None:
        """Publish what the host made the processes wait for in the interval."""
        threads = {target.pid: self.tracer.threads(target.pid) for target in self.tracer.targets}
        for event in self.delays.sample(threads):
            self._on_event(event)

    def _follow(self) -> None:
        attached = {target.pid: self._since[target.pid] for target in self.tracer.targets}
        self._since = dict(attached)
        changes = self._finder.poll(attached)
        for pid in changes.ended:
            self._untimed.discard(pid)
            self.tracer.detach(pid)
            if self._wire is not None:
                self._wire.remove(pid)
        for pid in changes.appeared:
            self._attach(pid, required=False)

    def finish(self) -> Losses:
        """Detach from everything, which publishes the steps that run; what was lost in all."""
        self.tracer.close()
        if self._wire is not None and self._joiner is not None:
            self._wire.close()
            self._joiner.flush()
        if self._hops is not None:
            self._hops.finish()
        return self._losses()

    def _losses(self) -> Losses:
        losses = self.tracer.losses()
        own = {"process_events_lost": self._finder.events_lost}
        return dataclasses.replace(losses, counts=losses.counts | own)

    def overhead(self) -> dict[int, Overhead]:
        """What the probes of each process cost, and what it does without for the budget."""
        return {
            target.pid: Overhead(round(target.account.percent, 4), list(target.account.without))
            for target in self.tracer.targets
        }

    def close(self) -> None:
        """Detach from all processes."""
        self._stack.close()
