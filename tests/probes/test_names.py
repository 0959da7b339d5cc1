"""A process named with terminal escapes, as each command that looks at it shows it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import mockset
import pytest

from probes.feed.events import Step, from_json

pytestmark = pytest.mark.ebpf

NAME = b"\x1b[31m\xff\xc2\x9b\n[red]"
SHOWN = "\\x1b[31m"
S1 = "0x20010"


@pytest.fixture
def nasty(mock_driver: Path) -> Iterator[mockset.Driver]:
    program = os.fsencode(mock_driver.parent) + b"/" + NAME
    shutil.copy(mock_driver, program)
    with mockset.Driver(Path(os.fsdecode(program))) as driver:
        assert Path(f"/proc/{driver.pid}/comm").read_bytes() == NAME + b"\n"
        yield driver


class Steps(threading.Thread):
    """Keeps the process stepping."""

    def __init__(self, driver: mockset.Driver) -> None:
        super().__init__()
        self._driver, self._ended = driver, threading.Event()
        self.start()

    def run(self) -> None:
        while not self._ended.is_set():
            self._driver.run(*[f"step {S1} 1 1 214"] * 10)

    def end(self) -> None:
        self._ended.set()
        self.join(30)


def run(*words: str) -> tuple[bytes, bytes]:
    done = subprocess.run(
        [sys.executable, "-m", "probes.cli", *words],
        capture_output=True,
        timeout=120,
        env=os.environ | {"COLUMNS": "160"},
    )
    assert done.returncode == 0, done.stderr
    for text in (done.stdout, done.stderr):
        text.decode()  # valid UTF-8
        assert not any(raw in text for raw in (b"\x1b", b"\xc2\x9b", b"\xff"))
    return done.stdout, done.stderr


def test_list(nasty: mockset.Driver) -> None:
    shown, _ = run("list", "--pid", str(nasty.pid))
    assert shown.decode().startswith(SHOWN)


@pytest.mark.parametrize("form", ["table", "json"])
def test_attach(nasty: mockset.Driver, form: str) -> None:
    steps = Steps(nasty)
    words = ["--json"] if form == "json" else ["--interval", "0.5"]
    try:
        shown, told = run("attach", "--pid", str(nasty.pid), "--duration", "1.5", *words)
    finally:
        steps.end()
    assert f"attached to {SHOWN}" in told.decode()
    if form == "json":
        found = [event for line in shown.splitlines() if isinstance(event := from_json(line), Step)]
        assert found[0].comm == NAME.decode(errors="replace")
    else:
        assert any(line.lstrip().startswith(SHOWN) for line in shown.decode().splitlines())
