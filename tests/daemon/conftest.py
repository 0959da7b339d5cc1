"""A plane without a device, for tests of what is around it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flexnpu.daemon.config import Config
from flexnpu.daemon.control_server import ControlServer
from flexnpu.daemon.service import Service


def _lane(number: int, pid: int = 100, stream: int = 0x1000, phase: str = "unknown") -> dict[str, Any]:
    """A lane's fields, as `Plane.lanes` gives them."""
    return {
        "lane": number,
        "session": 1,
        "pid": pid,
        "comm": "python3",
        "stream": stream,
        "phase": phase,
        "queued": 2,
        "in_flight": 1,
        "in_flight_us": 12.5,
        "launched": 10,
        "completed": 9,
        "device_us": 1000.0,
        "gated_us": 0.0,
        "held_now": False,
    }


class PlaneDouble:
    soc = "Ascend910B3"

    def __init__(self, *lanes: dict[str, Any]) -> None:
        self.lane_dicts = {one["lane"]: one for one in lanes}
        self.gates: list[dict[str, Any]] = []
        self.targets: dict[int, float] = {}
        self.started = self.stopped = 0
        self.late = False
        """Whether no call is answered in time."""
        self.age_s = 0.0

    def prepare(self) -> None:
        """Nothing to do."""

    def start(self) -> None:
        self.started += 1

    def stop(self) -> None:
        self.stopped += 1

    def _answer(self) -> None:
        if self.late:
            raise TimeoutError("no answer from the data plane within 1 s")

    def sessions(self) -> list[dict[str, Any]]:
        self._answer()
        return [
            {
                "session": 1,
                "pid": 100,
                "comm": "python3",
                "uid": 0,
                "memory_bytes": 1 << 20,
                "rings": 2,
                "lanes": len(self.lane_dicts),
                "calls": 5,
                "refused": 0,
                "ring_full": 0,
            }
        ]

    def lanes(self) -> list[dict[str, Any]]:
        self._answer()
        return [dict(one) for one in self.lane_dicts.values()]

    def counters(self) -> dict[str, int]:
        self._answer()
        return {"records": 5, "device_busy_us": 77}

    def snapshot(self, within_s: float = 0.25) -> dict[str, Any]:
        return {
            "sessions": self.sessions(),
            "lanes": self.lanes(),
            "counters": self.counters(),
            "age_s": self.age_s,
        }

    def set_gate(
        self,
        settings: dict[str, Any],
        phases: dict[int, str],
        decode_target_us: float | None,
        targets_us: dict[int, float],
    ) -> list[int]:
        self._answer()
        if unknown := sorted({*phases, *targets_us} - set(self.lane_dicts)):
            return unknown
        for number, phase in phases.items():
            self.lane_dicts[number]["phase"] = phase
            self.targets[number] = 0.0
        for number, one in self.lane_dicts.items():
            if one["phase"] == "decode" and decode_target_us is not None:
                self.targets[number] = decode_target_us
        self.targets |= targets_us
        self.gates.append(settings)
        return []


@pytest.fixture
def lane() -> Callable[..., dict[str, Any]]:
    return _lane


@pytest.fixture
def plane() -> PlaneDouble:
    """A plane with lanes 1 and 2."""
    return PlaneDouble(_lane(1), _lane(2, pid=200))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(device=0, run_dir=tmp_path, vendor_lib=tmp_path, emulated=True)


@pytest.fixture
def served(tmp_path: Path, plane: PlaneDouble, config: Config) -> Iterator[ControlServer]:
    """A control server in a thread, in front of `plane`, at ``tmp_path / "npu0.ctl"``."""
    service = Service(config, plane)
    server = ControlServer(tmp_path / "npu0.ctl", service.handle)
    service.server_counters = server.counters
    server.open()
    thread = threading.Thread(target=server.run, args=(service.expire,))
    thread.start()
    yield server
    server.stop()
    thread.join(60)
    assert not thread.is_alive()
    server.close()
