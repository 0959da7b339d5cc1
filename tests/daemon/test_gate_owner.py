"""Who owns the gate, over real control sockets, and what is answered when the data plane is late."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flexnpu.control.client import BusyError, ControlClient, OwnedError
from flexnpu.control.messages import (
    ControllerInfo,
    GateOwner,
    SetGate,
)
from flexnpu.daemon.config import Config
from flexnpu.daemon.control_server import ControlServer
from flexnpu.daemon.gate_lease import Requester
from flexnpu.daemon.service import Service

COMM = Path("/proc/self/comm").read_text().strip()


def setting(instance: str | None = "a", **fields: Any) -> SetGate:
    info = ControllerInfo(instance=instance) if instance is not None else None
    return SetGate(**({"policy": "protect-decode", "lease_s": 30, "controller": info} | fields))


@pytest.fixture
def client(served: ControlServer) -> Iterator[ControlClient]:
    with ControlClient(served.path) as one:
        yield one


@pytest.fixture
def second(served: ControlServer) -> Iterator[ControlClient]:
    with ControlClient(served.path) as one:
        yield one


def owner(client: ControlClient) -> GateOwner:
    found = client.status().gate.owner
    assert found is not None
    return found


def test_who_sets_the_gate_owns_it(client: ControlClient) -> None:
    assert client.status().gate.owner is None
    counted = ControllerInfo(instance="a", counts={"steps": 7})
    client.set_gate(setting(controller=counted))
    found = owner(client)
    assert (found.pid, found.uid, found.comm, found.instance) == (os.getpid(), os.getuid(), COMM, "a")
    assert 29 < found.lease_left_s <= 30
    assert found.counts == {"steps": 7}


def test_a_second_controller_is_refused_and_the_owner_named(
    client: ControlClient, second: ControlClient, plane: Any
) -> None:
    client.set_gate(setting("a", window_us=100))
    for request in (
        setting("b"),
        setting("b", policy="transparent"),
        setting(None),
        setting("b", policy="transparent", keep=True),
    ):
        with pytest.raises(OwnedError) as caught:
            second.set_gate(request)
        assert caught.value.code == "owned"
        for word in (COMM, f"pid {os.getpid()}", f"user {os.getuid()}", " s unless", "--take-over", "--wait"):
            assert word in str(caught.value)
    status = client.status()
    assert (status.gate.window_us, owner(client).instance) == (100, "a")
    assert len(plane.gates) == 1
    assert status.counters["gate_owned_refusals"] == 4
    client.set_gate(setting("a", window_us=200))
    assert client.status().gate.window_us == 200


def test_another_process_is_another_owner(client: ControlClient, served: ControlServer) -> None:
    """Also one that does not say who it is, as controllers of older versions."""
    client.set_gate(setting(None))
    program = (
        "import sys; from flexnpu.control.client import *; from flexnpu.control.messages import SetGate\n"
        "try: ControlClient(sys.argv[1]).set_gate(SetGate(policy='protect-decode', lease_s=1))\n"
        "except OwnedError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(served.path)], capture_output=True, text=True, check=True
    )
    assert f"pid {os.getpid()}" in done.stdout


def test_taking_over(client: ControlClient, second: ControlClient) -> None:
    client.set_gate(setting("a"))
    second.set_gate(setting("b", take_over=True))
    assert owner(client).instance == "b"
    with pytest.raises(OwnedError):
        client.set_gate(setting("a"))
    assert client.status().counters["gate_taken_over"] == 1


def test_a_gate_given_back_is_free(client: ControlClient, second: ControlClient) -> None:
    client.set_gate(setting("a"))
    client.set_gate(setting("a", policy="transparent"))
    assert client.status().gate.owner is None
    second.set_gate(setting("b"))
    assert owner(client).instance == "b"


def test_an_idle_controller_may_keep_the_gate(client: ControlClient, second: ControlClient) -> None:
    client.set_gate(setting("a", policy="transparent", keep=True))
    gate = client.status().gate
    assert (gate.policy, gate.lease_left_s) == ("transparent", 0.0)
    assert owner(client).lease_left_s > 29
    with pytest.raises(OwnedError):
        second.set_gate(setting("b"))


class Clock:
    ns = 10**12

    def __call__(self) -> int:
        return self.ns


def test_a_lease_that_ran_out_frees_the_gate(config: Config, plane: Any) -> None:
    """So a stopped controller does not keep it; when it goes on it is one among others."""
    clock = Clock()
    service = Service(config, plane, clock)
    stopped, other = Requester(1, 0, "one"), Requester(2, 0, "two")
    assert service.handle(setting("a", lease_s=2), stopped).type == "gate_status"
    clock.ns += 1_900_000_000
    assert service.handle(setting("b"), other).type == "error"
    clock.ns += 200_000_000
    assert service.handle(setting("b", lease_s=2), other).type == "gate_status"
    assert service.expired_leases == 1
    assert service.handle(setting("a", lease_s=2), stopped).type == "error"
    clock.ns += 2_000_000_001
    assert service.handle(setting("a", lease_s=2), stopped).type == "gate_status"


def test_a_step_of_the_wall_clock_changes_no_lease(
    client: ControlClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.set_gate(setting("a"))
    monkeypatch.setattr(time, "time", lambda: 4e9)
    monkeypatch.setattr(time, "time_ns", lambda: 4 * 10**18)
    assert 28 < owner(client).lease_left_s <= 30


def test_a_restarted_daemon_has_no_owner(config: Config, plane: Any) -> None:
    service = Service(config, plane)
    service.handle(setting("a"), Requester(1, 0, "one"))
    again = Service(config, plane)
    assert again.handle(setting("b"), Requester(2, 0, "two")).type == "gate_status"


def test_a_late_data_plane_is_no_empty_one(client: ControlClient, plane: Any) -> None:
    client.set_gate(setting("a"))
    plane.late = True
    with pytest.raises(BusyError, match="no answer from the data plane within 1 s") as caught:
        client.status()
    known = caught.value.known
    assert known is not None
    assert (known.pid, known.device, known.soc) == (os.getpid(), 0, "Ascend910B3")
    assert known.gate.policy == "protect-decode"
    assert known.gate.owner is not None
    plane.late = False
    assert client.status().counters["plane_timeouts"] == 1


def test_a_setting_that_did_not_reach_the_data_plane_is_no_success(
    client: ControlClient, second: ControlClient, plane: Any
) -> None:
    client.set_gate(setting("a", window_us=100))
    plane.late = True
    with pytest.raises(BusyError):
        client.set_gate(setting("a", window_us=200))
    with pytest.raises(BusyError):
        second.set_gate(setting("b", take_over=True))
    plane.late = False
    gate = client.status().gate
    assert gate.window_us == 100
    assert owner(client).instance == "a"


def test_only_what_is_known_late_is_left_out(
    client: ControlClient, plane: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate was set, and only what it has learned is not told."""

    def late() -> dict[str, int]:
        raise TimeoutError("late")

    monkeypatch.setattr(plane, "counters", late)
    assert client.set_gate(setting("a")).policy == "protect-decode"
    assert len(plane.gates) == 1


@pytest.fixture
def log(capfd: pytest.CaptureFixture[str]) -> Callable[[], list[dict[str, Any]]]:
    return lambda: [json.loads(line) for line in "".join(capfd.readouterr()).splitlines()]


def test_the_log_names_who_did_it(
    config: Config, plane: Any, log: Callable[[], list[dict[str, Any]]]
) -> None:
    clock = Clock()
    service = Service(config, plane, clock)
    service.handle(setting("a", lease_s=2), Requester(1, 0, "one"))
    service.handle(setting("b", lease_s=2, take_over=True), Requester(2, 0, "two"))
    clock.ns += 3 * 10**9
    service.expire()
    said = [(line["event"], line["pid"]) for line in log()]
    assert said == [("policy", 1), ("gate-taken-over", 2), ("lease-expired", 2)]
