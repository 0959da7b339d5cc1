"""One torch_npu process for all operator tests of a run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flexnpu import emulator
from workloads.json_child import JsonChild

HERE = Path(__file__).resolve().parent


class Worker:
    """A process that evaluates cases on an emulated device."""

    #: Seconds for one case; the first includes the start of torch_npu.
    TIMEOUT = 120.0

    def __init__(self, log: Path) -> None:
        command = [sys.executable, str(HERE / "worker.py")]
        environment = emulator.environment() | {"OMP_NUM_THREADS": "1"}
        self._child = JsonChild(command, environment, log, self.TIMEOUT)
        self.close = self._child.close

    def ask(self, request: dict[str, Any]) -> str:
        """Why the device's result is wrong, or nothing."""
        answer = self._child.ask(request)
        return self._child.last_words(2000) if answer is None else str(answer["why"])


@pytest.fixture(scope="session")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    made = Worker(tmp_path_factory.mktemp("ops") / "worker.log")
    yield made
    made.close()
