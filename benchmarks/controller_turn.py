"""What a controller's turn costs, by the number of lanes.

Events of a scripted load are folded into the controller's state as they come from the feed, and a turn
(status, settling, deciding) is taken as often as a lease is renewed. Time is modelled: the run takes as long
as the work, not as long as the load. Half of the lanes decode, the other half prefill, all at the same rate,
and each step comes with its beginning. Costs are CPU time of this thread; `core_share` is that over the
modelled time. `parse` is the feed's JSON, `status` the daemon's.

With --live, the controller's loop also reads the load from a feed's socket, at the load's own pace, and the
whole thread's CPU time is counted: `live`.

    python -m benchmarks.controller_turn [--lanes N ...] [--rate STEPS] [--seconds S] [--live S]
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import click

from controllers.holder import RENEWALS
from controllers.loop import Loop
from controllers.policies.protect_decode import ProtectDecode
from controllers.state import ControllerState
from flexnpu.console.numbers import Duration, Number, Whole
from flexnpu.control.client import ControlClient
from flexnpu.control.messages import (
    DaemonStatus,
    GateStatus,
    LaneStatus,
    SetGate,
    decode_reply,
    decode_request,
    encode,
)
from probes.feed.events import Event, Phase, Step, StepBegin, from_json
from probes.feed.socket import FeedClient, FeedServer

LEASE_S = 2.0
MS = 1_000_000
S = 1_000 * MS


def lane_status(number: int) -> LaneStatus:
    """Lane `number`: stream 16 of process 1000 + `number`."""
    return LaneStatus(
        lane=number,
        session=number,
        pid=1000 + number,
        comm="python3",
        stream=16,
        phase="unknown",
        queued=3,
        in_flight=1,
        in_flight_us=42.5,
        launched=100_000,
        completed=99_999,
        device_us=1e6,
        gated_us=1e5,
        held_now=False,
    )


def daemon_status(lanes: int) -> DaemonStatus:
    """Status of a daemon with so many lanes."""
    gate = GateStatus(
        policy="transparent",
        window_us=300,
        decode_target_us=None,
        overlap_slowdown=1,
        lease_left_s=0,
        expired_leases=0,
    )
    return DaemonStatus(
        version="0",
        pid=1,
        device=0,
        soc="x",
        uptime_s=1,
        sessions=[],
        lanes=[lane_status(number) for number in range(lanes)],
        gate=gate,
        device_busy_us=None,
        counters={},
    )


def steps_of(number: int, at_ns: int, period_ns: int) -> Iterator[Event]:
    """A step of lane `number` that ends at `at_ns` (CLOCK_MONOTONIC of the model), and its beginning."""
    phase: Phase = "prefill" if number % 2 else "decode"
    length = min(80 * MS, period_ns * 3 // 4) if phase == "prefill" else min(10 * MS, period_ns // 2)
    common: dict[str, Any] = {
        "pid": 1000 + number,
        "comm": "python3",
        "stream": 16,
        "phase": phase,
        "tokens": 512 if phase == "prefill" else 1,
        "batch": 1,
        "evidence": "embedding[1,512]",
        "confidence": 1.0,
    }
    yield StepBegin(t_ns=at_ns - length, **common)
    yield Step(
        t_start_ns=at_ns - length,
        t_end_ns=at_ns,
        launches=None,
        graph_launches=0,
        h2d_bytes=8,
        d2h_bytes=8,
        **common,
    )


def load(lanes: int, rate: float, seconds: float) -> list[tuple[int, str]]:
    """(when, line) of every event of `seconds` s at `rate` steps/s over all lanes, in order."""
    period_ns = int(lanes / rate * S)
    events: list[tuple[int, str]] = []
    for number in range(lanes):
        at = 100 * S + period_ns * number // lanes
        while at < (100 + seconds) * S:
            for event in steps_of(number, at, period_ns):
                events.append((event.t_ns if isinstance(event, StepBegin) else at, event.to_json()))
            at += period_ns
    return sorted(events)


def measure(lanes: int, rate: float, seconds: float) -> dict[str, Any]:
    """Costs of `seconds` s of load, CPU time in ms unless it says otherwise."""
    clock = time.thread_time_ns
    state, policy = ControllerState(), ProtectDecode(lease_s=LEASE_S)
    status = encode(daemon_status(lanes))
    events = load(lanes, rate, seconds)
    turns: list[int] = []
    spent = {"parse": 0, "fold": 0, "status": 0, "turn": 0}
    steps = settings = 0
    at, upto = 100 * S, 0
    while at < (100 + seconds) * S:
        start = clock()
        reply = decode_reply(status)
        assert isinstance(reply, DaemonStatus)
        read = clock()
        state.update(reply.lanes)
        state.settle(at)
        settings += policy.decide(state, at).gate is not None
        end = clock()
        spent["status"] += read - start
        spent["turn"] += end - read
        turns.append(end - read)
        at += int(LEASE_S / RENEWALS * S)
        while upto < len(events) and events[upto][0] <= at:
            start = clock()
            event = from_json(events[upto][1])
            read = clock()
            if isinstance(event, Step):
                state.add(event)
                steps += 1
            elif isinstance(event, StepBegin):
                state.begin(event)
            spent["parse"] += read - start
            spent["fold"] += clock() - read
            upto += 1
    turns.sort()
    return {
        "lanes": lanes,
        "steps_per_s": rate,
        "seconds": seconds,
        "steps": steps,
        "turns": len(turns),
        "turns_that_set_the_gate": settings,
        "turn_ms_median": round(turns[len(turns) // 2] / 1e6, 3),
        "turn_ms_max": round(turns[-1] / 1e6, 3),
        "core_share": {name: round(ns / 1e9 / seconds, 5) for name, ns in spent.items()},
        "core_share_total": round(sum(spent.values()) / 1e9 / seconds, 5),
    }


class _Daemon(ControlClient):
    """Answers at once, from memory, through the messages' JSON."""

    def __init__(self, lanes: int) -> None:
        super().__init__("npu0.ctl")
        self._status = encode(daemon_status(lanes))
        self.set_at: list[float] = []
        """When settings came, s."""

    def status(self) -> DaemonStatus:
        """What the daemon of so many lanes says."""
        reply = decode_reply(self._status)
        assert isinstance(reply, DaemonStatus)
        return reply

    def set_gate(self, request: SetGate) -> GateStatus:
        """Accepts."""
        decode_request(encode(request))
        self.set_at.append(time.monotonic())
        return daemon_status(0).gate


def _publish(path: str, lanes: int, rate: float, seconds: float) -> None:
    """Serve the load at its pace, from when somebody reads it."""
    lines = load(lanes, rate, seconds)
    with contextlib.closing(FeedServer(path)) as server:
        while not server.counts["feed_subscribers"]:
            time.sleep(0.01)
        time.sleep(LEASE_S / RENEWALS)  # for the reader to know the lanes
        shift_ns = time.monotonic_ns() - lines[0][0]
        for at_ns, line in lines:
            if (wait_ns := at_ns + shift_ns - time.monotonic_ns()) > 0:
                time.sleep(wait_ns / 1e9)
            server.publish(_moved(from_json(line), shift_ns))
        server.close(linger_s=30)  # the reader takes what is queued


def measure_live(lanes: int, rate: float, seconds: float) -> dict[str, Any]:
    """CPU time of a controller's loop over a real feed for `seconds` s, and the steps that it used."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/probe.sock"
        daemon = _Daemon(lanes)
        loop = Loop(
            ProtectDecode(lease_s=LEASE_S),
            daemon,
            lambda: FeedClient(path, begins=True),
            LEASE_S,
            out=io.StringIO(),
        )
        publisher = multiprocessing.get_context("spawn").Process(
            target=_publish, args=(path, lanes, rate, seconds)
        )
        publisher.start()

        def stop_then() -> None:
            publisher.join()
            while loop.feed.connected:  # until it has read to the end
                time.sleep(0.05)
            loop.stop()

        watcher = threading.Thread(target=stop_then)
        watcher.start()
        before, start = time.thread_time(), time.monotonic()
        loop.run()
        spent, took = time.thread_time() - before, time.monotonic() - start
        watcher.join()
        return {
            "core_share": round(spent / seconds, 5),
            "seconds": round(took, 1),
            "steps_sent": sum('"type":"step"' in line for _, line in load(lanes, rate, seconds)),
            "steps_used": loop.state.steps,
            "steps_unmapped": loop.state.unmapped,
            "feed_dropped": loop.state.feed_dropped,
            "settings": len(daemon.set_at),
            "longest_gap_s": round(
                max((b - a for a, b in itertools.pairwise(daemon.set_at)), default=0.0), 3
            ),
            "lease_s": LEASE_S,
        }


def _moved(event: Event, shift_ns: int) -> Event:
    """The event at another time."""
    if isinstance(event, Step):
        return dataclasses.replace(
            event, t_start_ns=event.t_start_ns + shift_ns, t_end_ns=event.t_end_ns + shift_ns
        )
    assert isinstance(event, StepBegin)
    return dataclasses.replace(event, t_ns=event.t_ns + shift_ns)


@click.command(help=(__doc__ or "").split("\n\n")[0])
@click.option("--lanes", type=Whole(2, 1024), multiple=True, default=(8, 32, 64), show_default=True)
@click.option(
    "--rate", type=Number(1, 1e5, unit="steps a second"), default=1000.0, show_default=True, help="Steps/s."
)
@click.option("--seconds", type=Duration(1, 600), default=60.0, show_default=True, help="Of load.")
@click.option(
    "--live", type=Duration(0, 600), default=0.0, show_default=True, help="Also so long at its pace."
)
def main(lanes: tuple[int, ...], rate: float, seconds: float, live: float) -> None:
    """Print one JSON object."""
    found = []
    for one in lanes:
        found.append(measure(one, rate, seconds))
        if live > 0:
            found[-1]["live"] = measure_live(one, rate, live)
    print(json.dumps({"controller_turn": found}, indent=2))


if __name__ == "__main__":
    main()
