"""Events seen before their record, of very many, while the gate holds operators back: there must be none.

Recording streams put slow and quick work before each event; other streams wait for it, other threads query
it and synchronise with it, and each looks whether the work is there (native/events.cpp). Meanwhile the lanes'
phases and the gate's window change every few milliseconds, so that the gate holds now these lanes back, now
those, now none. Prints one JSON object.

    python -m benchmarks.events [--events N] [--direct]
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import click

from benchmarks.pairs import REPOSITORY, Daemon, Peer
from flexnpu import emulator
from flexnpu.client.environment import CLIENT_HOME, environment
from flexnpu.console.numbers import COUNT, Whole
from flexnpu.control import paths
from flexnpu.control.client import ControlClient
from flexnpu.control.messages import SetGate

EVENTS = REPOSITORY / "build" / "benchmarks" / "events"
#: Events of each kind of error that `measure` counts: all must be zero.
EARLY = ("early_waits", "early_queries", "early_synchronises")


class Shaker(threading.Thread):
    """Changes the gate until stopped. Whoever records is most often prefill, and held."""

    def __init__(self, client: ControlClient, peer: dict[str, list[int]], seed: int) -> None:
        super().__init__(daemon=True)
        self._client = client
        lanes = {lane.stream: lane.lane for lane in client.status().lanes}
        self._lanes = {kind: [lanes[stream] for stream in streams] for kind, streams in peer.items()}
        self._random = random.Random(seed)
        self._over = threading.Event()
        self.changes = 0

    def run(self) -> None:
        """The thread: a change every 2 to 50 ms."""
        while not self._over.wait(self._random.uniform(0.002, 0.05)):
            held = self._random.random() < 0.8
            phases = {lane: "decode" for lane in self._lanes["busy"]}
            for kind, share in (("recording", 0.8), ("waiting", 0.3)):
                for lane in self._lanes[kind]:
                    phases[lane] = "prefill" if self._random.random() < share else "unknown"
            self._client.set_gate(
                SetGate.model_validate(
                    {
                        "policy": "protect-decode" if held else "transparent",
                        "window_us": self._random.choice([1.0, 50.0, 300.0, 2000.0]),
                        "decode_target_us": 1.0,
                        "lease_s": 5.0,
                        "lanes": phases,
                    }
                )
            )
            self.changes += 1

    def stop(self) -> None:
        """End the changes and wait for the thread."""
        self._over.set()
        self.join()


def measure(
    events: int, *, recorders: int = 3, waiters: int = 3, askers: int = 2, seed: int = 1, direct: bool = False
) -> dict[str, Any]:
    """Counts of one run. Raises BenchmarkError when the program or the daemon fails."""
    command = [str(EVENTS), *map(str, (events, recorders, waiters, askers))]
    machine = f"events-{uuid.uuid4().hex[:8]}"
    if direct:
        peer = Peer(command, os.environ | emulator.environment(machine=machine))
        try:
            return {"interposed": False, **peer.ask("go")}
        finally:
            peer.close()
    with tempfile.TemporaryDirectory() as name:
        daemon = Daemon(Path(name), machine, "compute")
        try:
            peer = Peer(
                command, environment(CLIENT_HOME, [paths.data_socket(0, daemon.directory)], os.environ)
            )
            try:
                with ControlClient(paths.control_socket(0, daemon.directory)) as client:
                    shaker = Shaker(client, peer.ready, seed)
                    shaker.start()
                    cpu = daemon.cpu_seconds()
                    began = time.monotonic()
                    counts = peer.ask("go")
                    share = (daemon.cpu_seconds() - cpu) / (time.monotonic() - began)
                    shaker.stop()
                counters = daemon.counters()
            finally:
                peer.close()
        finally:
            daemon.stop()
    return {
        "interposed": True,
        **counts,
        "gate_changes": shaker.changes,
        "gate_held": counters["gate_held"],
        "gate_forced": counters["gate_forced"],
        "refused": counters["refused"],
        "vendor_errors": counters["vendor_errors"],
        "daemon_cpu_share": round(share, 3),
    }


@click.command()
@click.option(
    "--events",
    type=COUNT,
    default=1_000_000,
    show_default=True,
    help="Events to record, by all recorders.",
)
@click.option("--seed", type=Whole(0, 2**32 - 1), default=1, show_default=True, help="Of the gate's changes.")
@click.option("--direct", is_flag=True, help="Without the daemon and its gate.")
def main(events: int, seed: int, direct: bool) -> None:
    """Record EVENTS events and count those seen before their record."""
    result = measure(events, seed=seed, direct=direct)
    print(json.dumps(result, indent=2))
    if any(result[kind] for kind in EARLY) or not result["counters_exact"]:
        raise SystemExit("an event was seen before its record")


if __name__ == "__main__":
    main()
