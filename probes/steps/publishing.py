"""From records of the kernel side to events: a step is published once, whoever noticed that it is over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from probes.feed.events import Event, Step, StepBegin
from probes.placing import budget
from probes.placing.plan import Plan
from probes.steps import client_steps, transfers
from probes.steps.phases import Evidence, Verdict, classify
from probes.steps.records import BEGIN, Record, decode, of_client
from probes.steps.targets import Target, Targets
from probes.steps.windows import Typical

OWN_COUNTERS = (
    "unclassified",
    "reopened",
    "foreign",
    "unreadable",
    "layout_unknown",
    "windows",
    "over_budget",
    *(f"shed_{evidence}" for evidence in budget.ORDER),
    "restored",
)
"""Counted by the tracer: steps without evidence of their phase; steps that went on after they were published
as idle; records of processes that are no longer attached; records of a client of another version; processes
whose objects' layout could not be learned; windows of detail; intervals over the budget with nothing left to
shed; evidence given up for the budget, and taken back."""


class Publisher:
    """Gets records (`take`), and steps that others found to be over (`publish`)."""

    def __init__(
        self, targets: Targets, on_event: Callable[[Event], None], *, plan: Plan, begins: bool
    ) -> None:
        self._targets = targets
        self.on_event = on_event
        self.on_transfer: Callable[[transfers.Transfer], None] = lambda transfer: None
        self._plan: Plan = plan
        self._begins = begins
        self.typical = Typical()
        self.counts = dict.fromkeys(OWN_COUNTERS, 0)
        self.delivered = 0
        """Records of steps that the kernel side closed."""

    def take(self, data: bytes) -> None:
        """A record as it comes from the ring."""
        try:
            if transfers.is_transfer(data):
                self.on_transfer(transfers.decode(data))
            elif client_steps.is_client_record(data):
                self._on_client(client_steps.decode(data))
            else:
                self._on_record(decode(data))
        except client_steps.ClientRecordError:
            self.counts["unreadable"] += 1  # a client of another version must not end the tracing of others

    def _on_client(self, step: client_steps.ClientStep) -> None:
        target = self._targets.by_pid.get(step.pid)
        # It may have opened for another reader, and its lane been silent since: that is no news to this one.
        if target is None or step.kind == "begin" or step.t_end >= target.attached:
            self._on_record(of_client(step))

    def _on_record(self, record: Record) -> None:
        target = self._targets.by_pid.get(record.pid)
        if target is None:
            if record.pid not in self._targets.detached:
                self.counts["foreign"] += 1
            return
        if record.kind == BEGIN:
            if self._begins:
                self.on_event(self._begin(target, record))
            return
        self.delivered += 1
        lane = self._targets.lanes[record.lane]
        lane.delivered = record.seq
        if record.seq == lane.published:
            rest = record.launches - lane.published_launches, record.graphs - lane.published_graphs
            lane.published = -1
            if rest == (0, 0):
                return
            # It went on after it was taken to be over. What came later must not be lost, nor counted twice.
            self.counts["reopened"] += 1
            late = replace(record, launches=rest[0], graphs=rest[1], h2d=0, d2h=0, evidence=Evidence())
            verdict = Verdict("other", None, None, "rest of a step that had fallen silent", 0.0)
            self._publish(target, late, verdict)
            return
        self.publish(target, record)
        if record.evidence.embedding:
            lane.usual = record.launches

    def publish_early(self, target: Target, record: Record) -> None:
        """Publish a step that the kernel side has not closed."""
        lane = self._targets.lanes[record.lane]
        lane.published = record.seq
        lane.published_launches, lane.published_graphs = record.launches, record.graphs
        self.publish(target, record)

    def publish(self, target: Target, record: Record) -> None:
        """Publish a step of a record that is over."""
        self._publish(target, record, classify(record.evidence))

    def _begin(self, target: Target, record: Record) -> StepBegin:
        verdict = classify(record.evidence)
        return StepBegin(
            t_ns=record.t_start,
            pid=record.pid,
            comm=target.comm,
            stream=record.stream,
            phase=verdict.phase,
            tokens=verdict.tokens,
            batch=verdict.batch,
            evidence=verdict.evidence,
            confidence=verdict.confidence,
        )

    def _publish(self, target: Target, record: Record, verdict: Verdict) -> None:
        if verdict.unclassified:
            self.counts["unclassified"] += 1
        launches = record.launches if self._sees_launches(target, record) else None
        at = (record.pid, record.stream, verdict.phase)
        if launches is not None and verdict.phase != "other":
            self.typical.add(*at, launches)
            if target.window is not None:
                target.window.steps += 1
        # Launched while the step before still ran, it began when that one was over.
        t_end = max(record.t_end, record.t_start)
        t_start = min(max(record.t_start, record.t_base), t_end)
        target.account.steps_ns += t_end - t_start
        self.on_event(
            Step(
                t_start_ns=t_start,
                t_end_ns=t_end,
                pid=record.pid,
                comm=target.comm,
                stream=record.stream,
                phase=verdict.phase,
                tokens=verdict.tokens,
                batch=verdict.batch,
                launches=launches,
                graph_launches=record.graphs,
                h2d_bytes=record.h2d,
                d2h_bytes=record.d2h,
                evidence=verdict.evidence,
                confidence=verdict.confidence,
                kv_len=verdict.kv_len,
                ended_by=record.ended_by,
                gated_us=None if record.gated_ns is None else record.gated_ns / 1e3,
                launches_typical=self.typical.get(*at),
                padded=verdict.padded,
                since_last_us=(t_end - record.t_base) / 1e3 if 0 < record.t_base <= t_end else None,
            )
        )

    def _sees_launches(self, target: Target, record: Record) -> bool:
        """Whether every launch of the step was probed: of that in `record`, from where its counting began."""
        if target.kind == "client" or target.is_counted(self._plan):
            return True
        start = min(record.t_start, record.t_counted or record.t_start)
        return target.window is not None and target.window.covers(start, record.t_end)
