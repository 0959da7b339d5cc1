"""One torch_npu process for all operator tests of a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flexnpu import emulator

HERE = Path(__file__).resolve().parent


class Worker:
    """A process that evaluates cases on an emulated device; started anew after a crash."""

    #: Seconds for one case; the first includes the start of torch_npu.
    TIMEOUT = 120.0

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def _start(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "worker.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log.open("a"),
                text=True,
                env=os.environ | emulator.environment() | {"OMP_NUM_THREADS": "1"},
            )
        return self._process

    def ask(self, request: dict[str, Any]) -> str:
        """Why the device's result is wrong, or nothing."""
        process = self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        watchdog = threading.Timer(self.TIMEOUT, process.kill)
        watchdog.start()
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            watchdog.cancel()
        if not answer:
            tail = self._log.read_text(errors="replace")[-2000:]
            return f"the process ended with {process.wait()}\n{tail}"
        return str(json.loads(answer)["why"])

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


@pytest.fixture(scope="session")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    made = Worker(tmp_path_factory.mktemp("ops") / "worker.log")
    yield made
    made.close()
