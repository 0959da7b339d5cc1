"""What is exported of a daemon, also while only a part of it answers."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from collectors import metrics
from collectors.daemons import Daemons, samples_of
from collectors.series import FORGET_S
from flexnpu.control.messages import ErrorReply, KnownStatus, Reply
from tests.collectors.scripted import status
from tests.collectors.stand import daemon

BUSY = ErrorReply(
    code="busy",
    message="busy: no answer from the data plane within 1 s",
    known=KnownStatus.model_validate(status(3.0).model_dump()),
)


def test_a_busy_data_plane_is_no_dead_daemon(tmp_path: Path) -> None:
    path = tmp_path / "npu0.ctl"
    answers: list[Reply] = [status(2.0)]
    troubles: list[str] = []
    daemons = Daemons(lambda: [path], on_trouble=troubles.append)
    with daemon(path, lambda: answers[0]):
        daemons.poll()
        assert daemons.device_of(1) == 0
        answers[0] = BUSY
        for _ in range(3):
            daemons.poll()
        found = {sample.metric: sample.value for sample in daemons.snapshot()}
        assert (found[metrics.daemon.UP], found[metrics.daemon.DATA_PLANE_UP]) == (1, 0)
        assert found[metrics.gate.LEASE] == 1.5
        assert found[metrics.gate.OWNER] == 1
        assert metrics.lanes.QUEUED not in found
        assert metrics.daemon.DEVICE_BUSY not in found
        assert daemons.device_of(1) == 0
        assert troubles == [BUSY.message]
        answers[0] = status(4.0)
        daemons.poll()
        found = {sample.metric: sample.value for sample in daemons.snapshot()}
        assert found[metrics.daemon.DATA_PLANE_UP] == 1
    daemons.poll()
    found = {sample.metric: sample.value for sample in daemons.snapshot()}
    assert found == {metrics.daemon.UP: 0}
    assert daemons.device_of(1) is None


def test_a_daemon_whose_socket_is_gone_is_down_and_then_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that crashed removes its socket too: who watches must hear of it."""
    path, again = tmp_path / "npu0.ctl", tmp_path / "other" / "npu0.ctl"
    again.parent.mkdir()
    present = [path]
    daemons = Daemons(lambda: list(present))
    with daemon(path, lambda: status(2.0)):
        daemons.poll()
    present.clear()

    def up() -> list[float]:
        daemons.poll()
        assert {sample.metric for sample in daemons.snapshot()} <= {metrics.daemon.UP}
        return [sample.value for sample in daemons.snapshot()]

    assert up() == [0]
    now = time.monotonic()
    monkeypatch.setattr("collectors.daemons.time.monotonic", lambda: now + FORGET_S - 60)
    assert up() == [0]
    # A new one of the device is not both up and down.
    present.append(again)
    with daemon(again, lambda: status(3.0)):
        daemons.poll()
        found = [sample for sample in daemons.snapshot() if sample.metric is metrics.daemon.UP]
        assert [(sample.labels, sample.value) for sample in found] == [(("0",), 1)]
    present.clear()
    monkeypatch.setattr("collectors.daemons.time.monotonic", lambda: now + 3 * FORGET_S)
    assert up() == []
    assert not daemons._devices
    assert not daemons._clients


def test_figures_that_are_old_are_told_from_those_of_now() -> None:
    old = status().model_copy(update={"age_s": 3.0})
    found = {sample.metric: sample.value for sample in samples_of(old)}
    assert found[metrics.daemon.DATA_PLANE_UP] == 0
    assert metrics.lanes.QUEUED in found


def test_what_the_controller_counts_is_exported() -> None:
    counts = {
        sample.labels: sample.value
        for sample in samples_of(status(1.0))
        if sample.metric is metrics.controller.EVENTS
    }
    assert counts == {("0", "steps"): 40, ("0", "unmapped"): 0}


def test_a_round_that_fails_tells_and_claims_nothing(tmp_path: Path) -> None:
    """A thread that died of it would show the last figures for ever, as if they were those of now."""
    path = tmp_path / "npu0.ctl"
    fails = False
    troubles: list[str] = []

    def find() -> list[Path]:
        if fails:
            raise PermissionError("run directory closed")
        return [path]

    def up(value: float) -> bool:
        return any(one.metric is metrics.daemon.UP and one.value == value for one in daemons.snapshot())

    def until(value: float) -> None:
        deadline = time.monotonic() + 60
        while not up(value):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    daemons = Daemons(find, interval_s=0.01, on_trouble=troubles.append)
    with daemon(path, lambda: status(2.0)), daemons:
        until(1)
        fails = True
        until(0)
        assert "run directory closed" in troubles[0]
        fails = False
        until(1)
