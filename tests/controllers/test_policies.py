"""The policies by name: which there are, how one is added, and what the simple ones decide."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from controllers.policies import Options, PolicyError, found, make
from controllers.policies import __path__ as folder
from controllers.policies.slack import CALM, ENOUGH, LEAST, PERIOD_S, Slack
from controllers.state import MEMORY_S, ControllerState
from flexnpu.control.messages import SetGate
from tests.controllers.test_protect_decode import CHAT, FLOOD, MS, chat, flood, settled, step

OPTIONS = Options(lease_s=2, tpot_us=20_000)

NEW = """
from dataclasses import dataclass
from typing import ClassVar

from controllers.policies import Decision
from flexnpu.control.messages import SetGate


@dataclass
class Mine:
    lease_s: float
    window_us: float = 1.0
    name: ClassVar[str] = "mine"

    def decide(self, state, now_ns):
        return Decision(SetGate(policy=self.name, lease_s=self.lease_s, window_us=self.window_us), "mine")
"""


def shared() -> tuple[ControllerState, int]:
    return settled(*chat(0, 5), *flood(0, 20))


def test_each_module_is_a_policy() -> None:
    files = {path.stem.replace("_", "-") for path in Path(folder[0]).glob("[!_]*.py")}
    assert files <= set(found())
    made, now = shared()
    for name in files:
        policy = make(name, OPTIONS)
        assert policy.name == name
        decision = policy.decide(made, now)
        assert decision.why
        assert decision.gate is None or decision.gate.policy == name
        nobody, then = settled(now_ms=1000)
        assert policy.decide(nobody, then).gate is None


def test_a_policy_is_added_by_one_file_of_another_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_policies.py").write_text(NEW)
    dist = tmp_path / "my_policies-1.dist-info"
    dist.mkdir()
    (dist / "METADATA").write_text("Metadata-Version: 2.1\nName: my-policies\nVersion: 1\n")
    points = (
        "[flexnpu.policies]\nmine = my_policies:Mine\nbroken = my_policies:Missing\nfifo = my_policies:Mine\n"
    )
    (dist / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        assert "mine" in found()
        made, now = shared()
        decision = make("mine", OPTIONS).decide(made, now)
        assert decision.gate == SetGate(policy="mine", lease_s=2, window_us=300)
        with pytest.raises(PolicyError, match="policy broken cannot be loaded"):
            make("broken", OPTIONS)
        assert make("fifo", OPTIONS).decide(made, now).gate is None, "ours is not replaced"
    finally:
        sys.modules.pop("my_policies", None)


def test_an_unknown_policy_is_refused_with_those_there_are() -> None:
    with pytest.raises(PolicyError, match=r"no policy 'fast': there are .*fifo.*slack"):
        make("fast", OPTIONS)


def test_decode_first_leaves_a_step_nothing() -> None:
    made, now = shared()
    gate = make("decode-first", OPTIONS).decide(made, now).gate
    assert gate is not None
    assert gate.decode_target_us == 1.0
    assert gate.lanes == {1: "decode", 2: "prefill"}


# ---- slack ----


def test_slack_needs_an_objective() -> None:
    with pytest.raises(PolicyError, match="--tpot-ms"):
        make("slack", Options(lease_s=2))


class Service:
    """A decode lane whose time between tokens follows the target: `feels` of it, and `host_ms` more."""

    def __init__(self, objective_ms: float, feels: float, host_ms: float) -> None:
        self.policy = Slack(lease_s=2, tpot_us=objective_ms * 1e3)
        self.feels, self.host_ms, self.ms = feels, host_ms, 0.0
        self.state, now = settled(*chat(0, 3, ms=10), *flood(0, 20))
        self.now_ms = now / MS
        self.targets: list[float] = []

    def turn(self) -> None:
        gate = self.policy.decide(self.state, int(self.now_ms * MS)).gate
        assert gate is not None
        assert gate.decode_target_us is not None
        self.targets.append(gate.decode_target_us / 1e3)
        self.ms = self.feels * self.targets[-1] + self.host_ms
        until = self.now_ms + 1250
        while self.now_ms < until:
            self.state.add(step(CHAT, "decode", self.now_ms + self.host_ms, self.ms - self.host_ms))
            self.now_ms += self.ms
        self.state.add(step(FLOOD, "prefill", self.now_ms - 80, 80, 1000))
        self.state.settle(int(self.now_ms * MS))


@pytest.mark.parametrize(("feels", "host_ms"), [(1.0, 3.0), (1.4, 1.0), (0.8, 6.0)])
def test_slack_finds_the_target_that_meets_the_objective(feels: float, host_ms: float) -> None:
    service = Service(40, feels, host_ms)
    for _ in range(40):
        service.turn()
    assert CALM * 40 * 0.9 <= service.ms <= 40
    assert len(set(service.targets[-10:])) == 1, "and stays there"


def test_slack_gives_prefill_no_more_than_the_objective_and_decode_no_less_than_there_is() -> None:
    easy = Service(40, 0.1, 1.0)
    hard = Service(40, 0.5, 60.0)
    for _ in range(40):
        easy.turn()
        hard.turn()
    assert easy.targets[-1] == 40
    assert hard.targets[-1] == pytest.approx(LEAST * 40)


def test_slack_changes_at_most_once_a_period_and_only_on_evidence() -> None:
    made, now = shared()
    policy = Slack(lease_s=2, tpot_us=1_000.0)  # far below what was seen

    def target(at_ns: int) -> float | None:
        gate = policy.decide(made, at_ns).gate
        assert gate is not None
        return gate.decode_target_us

    start = target(now)
    assert target(now + int(0.5 * PERIOD_S * 1e9)) == start
    assert target(now + int(2 * PERIOD_S * 1e9)) == start, "no token since"
    for i in range(ENOUGH):
        made.add(step(CHAT, "decode", now / MS + 20 * i, 10))
    changed = target(now + int(2.1 * PERIOD_S * 1e9))
    assert changed is not None
    assert start is not None
    assert changed < start
    assert target(now + int(2.2 * PERIOD_S * 1e9)) == changed


def test_slack_forgets_what_was_seen_while_nobody_shared() -> None:
    made, now = shared()
    policy = Slack(lease_s=2, tpot_us=20_000.0)
    policy.decide(made, now)
    later = now + int((MEMORY_S + 1) * 1e9)
    made.settle(later)
    assert policy.decide(made, later).gate is None
