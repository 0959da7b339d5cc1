from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for mockset, which is a helper and no test

import mockset

from probes.feed.events import Event, Losses, Step
from probes.placing import loader, store
from probes.placing.plan import Plan
from probes.steps.tracer import Tracer


@pytest.fixture(scope="session")
def mock_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver program on freshly built mock libraries."""
    return mockset.build(tmp_path_factory.mktemp("mock"))


@pytest.fixture
def driver(mock_driver: Path) -> Iterator[mockset.Driver]:
    with mockset.Driver(mock_driver) as running:
        yield running


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found out is found out anew: `store`'s own tests keep it in folders of their own."""
    monkeypatch.setenv(store.OFF, "1")


@pytest.fixture(params=loader.NAMES)
def each_loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test runs with programs from the compiled object, and again with those that bcc compiles."""
    if request.param == "core" and not loader.STEPS.object.is_file():
        pytest.skip("the BPF objects are not built")
    monkeypatch.setenv(loader.ENVIRONMENT, request.param)
    return str(request.param)


class Tracing:
    """A tracer attached to one process, with what it delivered."""

    def __init__(self, pid: int, *, begins: bool = False, plan: Plan = "detail", **options: Any) -> None:
        self.events: list[Event] = []
        self.notes: list[str] = []
        # The mock's calls do nothing, so that any probe is over any budget.
        options.setdefault("budget_percent", None)
        options.setdefault("on_note", self.notes.append)
        self.tracer = Tracer(self.events.append, begins=begins, plan=plan, **options)
        self.target = self.tracer.attach(pid)
        self.pid = pid

    def poll(self, seconds: float = 0.05) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.tracer.poll(0.01)

    def finish(self) -> list[Step]:
        """Detach; all steps that were delivered."""
        self.tracer.close()
        return self.steps

    @property
    def steps(self) -> list[Step]:
        return [event for event in self.events if isinstance(event, Step)]

    @property
    def losses(self) -> Losses:
        return self.tracer.losses()


@pytest.fixture
def tracing() -> Iterator[Callable[..., Tracing]]:
    """Makes `Tracing`s, and ends them."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    made: list[Tracing] = []

    def make(pid: int, **options: Any) -> Tracing:
        made.append(Tracing(pid, **options))
        return made[-1]

    yield make
    for one in made:
        one.tracer.close()
