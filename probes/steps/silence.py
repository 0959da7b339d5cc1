"""Steps that nothing follows: a lane falls silent, or is detached from, before the next step opens on it."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from probes.placing.plan import Plan
from probes.steps import client_steps
from probes.steps.phases import IDLE_NS, Evidence
from probes.steps.programs import Programs
from probes.steps.publishing import Publisher
from probes.steps.records import BETWEEN, EMBEDDING, GRAPH, PLAIN, TOTALS, Record, evidence_of, of_client
from probes.steps.records import RawTotals as Totals
from probes.steps.targets import Target, Targets

GAP_NS = 1_000_000_000
"""Silence on a lane, without a synchronise, that ends a plain step."""

STALL_NS = 2_000_000_000
"""Like `phases.IDLE_NS`, for a step that has so far come to less than half of the one before it."""


class Silence:
    """Looks at running steps: `sweep` a few times a second, `flush` when a process is detached from."""

    def __init__(self, programs: Programs, targets: Targets, publisher: Publisher, plan: Plan) -> None:
        self._programs = programs
        self._targets = targets
        self._publisher = publisher
        self._plan: Plan = plan

    def sweep(self) -> None:
        """Publish steps that have been over for a while without another one opening on their lane."""
        now = time.monotonic_ns()
        for pid, stream, raw in self._programs.lanes():
            target = self._targets.by_pid.get(pid)
            if target is None or raw.capturing or raw.t_sync_in > raw.t_sync_out:
                continue
            if raw.seq == self._targets.lanes[pid, stream].published:
                continue
            silent = now - max(raw.t_last, raw.t_sync_out)
            if silent > STALL_NS:
                self._give_up_waiting(raw)
            if raw.kind in (EMBEDDING, GRAPH) and raw.cand_at and raw.cand_t:
                if silent > (IDLE_NS if self._looks_whole(target, stream, raw) else STALL_NS):
                    self._publish_running(target, stream, raw, "sync")
            elif raw.kind == BETWEEN and not raw.has_model and raw.t_open and silent > GAP_NS:
                self._publish_running(target, stream, raw, "gap")
        for target in list(self._targets.by_pid.values()):
            for step in self._perhaps_over(target):
                lane = self._targets.lanes[step.pid, step.stream]
                whole = lane.usual and step.launches * 2 >= lane.usual
                if now - step.t_end > (IDLE_NS if whole else STALL_NS):
                    self._publish_perhaps(target, step, "sync")

    def flush(self, target: Target) -> None:
        """Publish whatever the lanes of a process hold."""
        running = [(stream, raw) for owner, stream, raw in self._programs.lanes() if owner == target.pid]
        self._programs.drain()
        for stream, raw in running:
            lane = self._targets.lanes[target.pid, stream]
            if raw.seq <= lane.delivered:
                continue  # it ended between the two lines above, and what followed is after the detaching
            rest = raw.base
            if raw.kind != BETWEEN:
                self._give_up_waiting(raw)
                over = raw.cand_at and raw.cand_t and self._looks_whole(target, stream, raw)
                if not over:
                    raw.cand_at = 0  # in the middle of the step
                if raw.seq != lane.published:
                    self._publish_running(target, stream, raw, "sync" if over else "detach")
                rest = raw.cand if over else raw.now
            elif raw.seq == lane.published:
                rest = raw.now
            counted = raw.now.launches != rest.launches and self._plan == "detail"
            if counted or raw.now.graphs != rest.graphs:
                record = self._record_of(target.pid, stream, raw, rest, raw.now, raw.t_last, "detach")
                self._publisher.publish(target, replace(record, kind=PLAIN, evidence=Evidence()))

    @staticmethod
    def _give_up_waiting(raw: Any) -> None:
        """Nobody has waited for the copy that was to tell whether the step was over before it."""
        if raw.cand_at and not raw.cand_t:
            raw.cand_t = raw.perhaps_t

    def flush_client(self, target: Target) -> None:
        """Publish what FlexNPU's client has not told."""
        for step in self._perhaps_over(target):
            lane = self._targets.lanes[target.pid, step.stream]
            self._publish_perhaps(target, step, "sync" if step.launches * 2 >= lane.usual else "detach")

    # -- FlexNPU's client -----------------------------------------------------------------------------------

    def _perhaps_over(self, target: Target) -> list[client_steps.ClientStep]:
        """Steps of FlexNPU's client that may have ended, and were not published."""
        if target.waiting is None:
            return []
        return [
            step
            for step in target.waiting.read()
            # The table remembers what was told to readers of old.
            if step.t_end >= target.attached
            and step.seq != (lane := self._targets.lanes[target.pid, step.stream]).published
            and step.seq > lane.delivered
        ]

    def _publish_perhaps(self, target: Target, step: client_steps.ClientStep, ended_by: str) -> None:
        self._programs.drain()  # records of earlier steps come first, perhaps that of this one
        if step.seq > self._targets.lanes[step.pid, step.stream].delivered:
            self._publisher.publish_early(target, replace(of_client(step), ended_by=ended_by))

    # -- the vendor's libraries -----------------------------------------------------------------------------

    def _looks_whole(self, target: Target, stream: int, raw: Any) -> bool:
        """Whether a running step (struct lane) has come to half the length of the one before it: in launches
        where all are probed, else in time."""
        if target.is_counted(self._plan):
            lane = self._targets.lanes[target.pid, stream]
            return (int(raw.cand.launches) - int(raw.base.launches)) * 2 >= lane.usual
        return (int(raw.cand_t) - int(raw.t_open)) * 2 >= int(raw.usual)

    def _publish_running(self, target: Target, stream: int, raw: Any, ended_by: str) -> None:
        self._programs.drain()  # records of earlier steps come first, perhaps that of this one
        if raw.seq <= self._targets.lanes[target.pid, stream].delivered:
            return
        over = raw.cand_at and raw.cand_t
        end, t_end = (raw.cand, raw.cand_t) if over else (raw.now, raw.t_last)
        record = self._record_of(target.pid, stream, raw, raw.base, end, t_end, ended_by)
        self._publisher.publish_early(target, record)

    def _record_of(
        self, pid: int, stream: int, raw: Any, start: Any, end: Any, t_end: int, ended_by: str
    ) -> Record:
        kind = int(raw.kind) or PLAIN
        evidence = Evidence()
        work = Totals(*(getattr(end, name) - getattr(start, name) for name in TOTALS))
        if raw.evidence:
            found = self._programs.evidence(raw.evidence)
            if found is not None:
                evidence = evidence_of(kind, found, work)
        elif kind == GRAPH:
            evidence = evidence_of(GRAPH, self._programs.of_graph(pid, raw.model), work)
        if kind == EMBEDDING and not evidence.embedding:
            evidence = Evidence(embedding=True)
        return Record(
            t_start=raw.t_open,
            t_end=t_end,
            t_base=raw.t_base,
            seq=raw.seq,
            pid=pid,
            stream=stream,
            kind=kind,
            ended_by=ended_by,
            launches=work.launches,
            graphs=work.graphs,
            h2d=work.h2d,
            d2h=work.d2h,
            evidence=evidence,
            t_counted=raw.t_counted,
        )
