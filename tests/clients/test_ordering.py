"""Calls keep their order within streams and across events, however the gate delays them: random programs
against the model in ordering_model.py, directly on the emulated device and through a data plane whose gate
holds lanes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ordering_model import EVENTS, STREAMS, THREADS, Clock, Outcome, Step, check, programs

from flexnpu import emulator
from flexnpu.client.environment import CLIENT_HOME, EMULATOR_HOME, environment

HERE = Path(__file__).parent
DRIVER = HERE.parent.parent / "build" / "programs" / "ordering"
#: An operator takes 100 us: what is not held back by an event or the gate is seen to overtake.
PROFILE = (HERE.parent / "emulator" / "unit.toml").read_text().replace("vector = 0.0", "vector = 100.0")
LIMIT_S = 30.0


class Lines:
    """A child that answers lines with lines, in time."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert self.process.stdout
        self._rest = b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.process.stdout, selectors.EVENT_READ)

    def write(self, text: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(text.encode())

    def read(self) -> str:
        deadline = time.monotonic() + LIMIT_S
        assert self.process.stdout
        while b"\n" not in self._rest:
            if not self._selector.select(max(0.0, deadline - time.monotonic())):
                raise AssertionError("nothing happens any more")
            more = os.read(self.process.stdout.fileno(), 1 << 16)
            if not more:
                raise AssertionError(f"the child ended: {self.process.wait()}")
            self._rest += more
        line, self._rest = self._rest.split(b"\n", 1)
        return line.decode()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self._selector.close()


class Driver(Lines):
    def __init__(self, env: dict[str, str]) -> None:
        super().__init__([str(DRIVER), str(STREAMS), str(THREADS), str(EVENTS)], env)
        self.streams = [int(word) for word in self.read().split()]

    def run(self, steps: list[Step]) -> tuple[list[Outcome], Clock]:
        self.write("".join(step.line() + "\n" for step in steps) + "run\n")
        outcomes = []
        while True:
            words = self.read().split()
            if words[0] == "end":
                last = _seen(words[1])
                assert last is not None
                return outcomes, last
            outcomes.append(Outcome(int(words[1]), words[2], _seen(words[3]), _seen(words[4])))


def _seen(word: str) -> Clock | None:
    return None if word == "-" else tuple(map(int, word.split(",")))


class Plane(Lines):
    def __init__(self, env: dict[str, str], path: Path) -> None:
        program = HERE / "programs" / "plane_server.py"
        super().__init__([sys.executable, str(program), str(EMULATOR_HOME / "lib"), str(path)], env)
        assert json.loads(self.read()) == "ready"

    def ask(self, request: dict[str, Any]) -> Any:
        self.write(json.dumps(request) + "\n")
        return json.loads(self.read())


def _direct(env: dict[str, str]) -> dict[str, str]:
    return emulator.environment(
        profile=env["FLEXNPU_EMU_PROFILE"], machine=env["FLEXNPU_EMU_MACHINE"] + "-direct"
    )


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    profile = tmp_path_factory.mktemp("ordering") / "slow.toml"
    profile.write_text(PROFILE)
    machine = os.environ.get("FLEXNPU_EMU_MACHINE", "test") + "-order"
    return os.environ | {"FLEXNPU_EMU_PROFILE": str(profile), "FLEXNPU_EMU_MACHINE": machine[-32:]}


class World:
    """A driver, and between it and the device perhaps a data plane. After a failure both are started anew."""

    def __init__(self, env: dict[str, str], socket: Path | None) -> None:
        self.env, self.socket = env, socket
        self.plane: Plane | None = None
        self.driver: Driver | None = None
        self.lanes: dict[int, int] = {}

    def start(self) -> None:
        if self.socket is None:
            self.driver = Driver(self.env | _direct(self.env))
            return
        self.socket.unlink(missing_ok=True)
        self.plane = Plane(self.env, self.socket)
        self.driver = Driver(environment(CLIENT_HOME, [self.socket], self.env))
        by_stream = {stream: lane for lane, stream in self.plane.ask({"lanes": True})}
        self.lanes = {i: by_stream[stream] for i, stream in enumerate(self.driver.streams)}

    def stop(self) -> None:
        for child in (self.driver, self.plane):
            if child is not None:
                child.close()
        self.driver = self.plane = None

    def run(self, steps: list[Step], gate: Gate | None = None) -> list[str]:
        if self.driver is None:
            self.start()
        assert self.driver is not None
        if self.plane is not None and gate is not None:
            phases = {str(self.lanes[i]): [phase, 1.0] for i, phase in enumerate((*gate.phases, "decode"))}
            self.plane.ask({"gate": gate.settings(), "phases": phases})
        try:
            outcomes, last = self.driver.run(steps)
        except AssertionError as error:
            self.stop()
            return [str(error)]
        return check(steps, outcomes, last)


@dataclasses.dataclass(frozen=True)
class Gate:
    """Which lanes are prefill and held back, and for how long. There is always a busy decode lane, whose
    target is out of reach.
    """

    phases: tuple[str, ...]
    window_us: float
    max_hold_us: float

    def settings(self) -> dict[str, Any]:
        return {
            "enabled": True,
            "window_us": self.window_us,
            "max_hold_us": self.max_hold_us,
            "lease_until_ns": time.monotonic_ns() + 60_000_000_000,
        }


gates = st.builds(
    Gate,
    phases=st.tuples(*[st.sampled_from(["prefill", "prefill", "unknown", "decode"])] * STREAMS),
    window_us=st.sampled_from([1.0, 50.0, 300.0]),
    max_hold_us=st.sampled_from([200.0, 1000.0, 4000.0]),
)


@pytest.fixture(scope="module")
def direct(emulated: dict[str, str]) -> Iterator[World]:
    world = World(emulated, None)
    yield world
    world.stop()


@pytest.fixture(scope="module")
def interposed(emulated: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(emulated, tmp_path_factory.mktemp("plane") / "npu0.sock")
    yield world
    world.stop()


examples = int(os.environ.get("FLEXNPU_ORDER_EXAMPLES", "500"))
ours = settings(
    max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@ours
@given(steps=programs())
def test_the_model_holds_on_the_device(direct: World, steps: list[Step]) -> None:
    assert direct.run(steps) == []


@ours
@given(steps=programs(), gate=gates)
def test_the_model_holds_however_the_gate_delays(interposed: World, steps: list[Step], gate: Gate) -> None:
    assert interposed.run(steps, gate) == []


def test_the_gate_has_held_lanes(interposed: World) -> None:
    """What the test above shows would be little if the gate had held nothing."""
    if interposed.plane is None:
        pytest.skip("the test before this one did not run")
    counters = interposed.plane.ask({"counters": True})
    assert counters["gate_held"] > 100
    assert counters["host_functions"] > 10
    assert counters["refused"] == 0


# ---- the model itself: it can tell ----

_PROGRAM = [
    Step(0, "new", (0, 0)),
    Step(0, "add", (0,)),
    Step(0, "record", (0, 0)),
    Step(0, "wait", (0, 1)),
    Step(0, "copy", (1,)),
    Step(0, "add", (0,)),
]
_NOTHING = Outcome(0, "-", None, None)


@pytest.mark.parametrize(
    ("seen", "admissible"), [((0, 0, 0, 0), False), ((1, 0, 0, 0), True), ((2, 0, 0, 0), True)]
)
def test_a_wait_that_overtakes_its_record_is_told(seen: Clock, admissible: bool) -> None:
    outcomes = [_NOTHING] * 4 + [Outcome(0, "-", seen, None), _NOTHING]
    assert (check(_PROGRAM, outcomes, (2, 0, 0, 0)) == []) is admissible


def test_an_effect_before_its_time_is_told() -> None:
    steps = [
        Step(0, "new", (0, 0)),
        Step(0, "copy", (1,)),
        Step(0, "record", (0, 1)),
        Step(0, "wait", (0, 0)),
        Step(0, "add", (0,)),
    ]
    for seen, admissible in (((0, 0, 0, 0), True), ((1, 0, 0, 0), False)):
        outcomes = [_NOTHING, Outcome(0, "-", seen, None), *[_NOTHING] * 3]
        assert (check(steps, outcomes, (1, 0, 0, 0)) == []) is admissible


@pytest.mark.parametrize(("status", "admissible"), [("1", False), ("0", True)])
def test_a_query_that_is_early_is_told(status: str, admissible: bool) -> None:
    steps = [*_PROGRAM[:3], Step(1, "query", (0,))]
    outcomes = [*[_NOTHING] * 3, Outcome(0, status, (0, 0, 0, 0), None)]
    assert (check(steps, outcomes, (1, 0, 0, 0)) == []) is admissible
