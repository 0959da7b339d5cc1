"""`flexnpu top`: rates from two statuses, the screen, the keys."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flexnpu.cli.rates import between
from flexnpu.cli.top import view
from flexnpu.control.messages import DaemonStatus

BIN = Path(sys.executable).parent


def lane(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "lane": number,
        "session": 1,
        "pid": 100,
        "comm": "python3",
        "stream": 0x10000100000 + number,
        "phase": "decode",
        "queued": 3,
        "in_flight": 1,
        "in_flight_us": 1500.0,
        "launched": 0,
        "completed": 0,
        "device_us": 0.0,
        "gated_us": 0.0,
        "held_now": False,
        **fields,
    }


def status(uptime_s: float, *lanes: dict[str, Any], **fields: Any) -> DaemonStatus:
    session = {
        "session": 1,
        "pid": 100,
        "comm": "[a] long program",
        "uid": 65534,
        "memory_bytes": 61 << 30,
        "memory_quota_bytes": 64 << 30,
        "rings": 1,
        "lanes": len(lanes),
        "calls": int(uptime_s * 1000),
        "refused": 0,
        "ring_full": 0,
    }
    gate = {
        "policy": "protect-decode",
        "window_us": 300.0,
        "decode_target_us": None,
        "overlap_slowdown": 1.25,
        "lease_left_s": 1.5,
        "expired_leases": 2,
    }
    return DaemonStatus.model_validate(
        {
            "version": "1",
            "pid": 4194304,
            "device": 0,
            "soc": "Ascend910B3",
            "uptime_s": uptime_s,
            "sessions": [session],
            "lanes": lanes,
            "gate": gate,
            "device_busy_us": uptime_s * 5e5,
            "counters": {},
            **fields,
        }
    )


def test_rates_are_over_the_daemons_own_time() -> None:
    before = status(10, lane(1, launched=100, device_us=1e6, gated_us=2e5))
    now = status(12, lane(1, launched=300, device_us=2e6, gated_us=3e5, held_now=True), lane(2, launched=9))
    rates = between(before, now)
    first, second = rates.lanes
    assert rates.interval_s == 2
    assert rates.device_busy == pytest.approx(0.5)
    assert first.launches_per_s == pytest.approx(100)
    assert first.device_share == pytest.approx(0.5)
    assert first.held_share == pytest.approx(0.05)
    # What is new has no past, and its rates are absent, not zero.
    assert second.launches_per_s is None
    assert "launches_per_s" not in rates.as_json()["lanes"][1]
    (session,) = rates.sessions
    assert session.queued == 6
    assert session.calls_per_s == pytest.approx(1000)
    assert session.device_share == pytest.approx(0.5)
    assert session.held_share == pytest.approx(0.05)


@pytest.mark.parametrize("before", [None, status(11), status(1, pid=7), status(12)])
def test_no_rates_without_an_earlier_status_of_the_same_daemon(before: DaemonStatus | None) -> None:
    rates = between(before, status(11, lane(1)))
    assert rates.interval_s is None
    assert rates.device_busy is None
    assert rates.lanes[0].device_share is None
    assert "interval_s" not in rates.as_json()


@pytest.mark.parametrize("devices", [1, 2])
def test_the_screen_fits_80_columns(devices: int) -> None:
    before = status(10, lane(1))
    now = status(11, lane(1, launched=123456789, device_us=9e5, held_now=True), lane(2, phase="prefill"))
    all_rates = [between(before, now)] * devices
    console = Console(width=80, height=24, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(view(all_rates, [], "device"), highlight=False)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for part in ("61.0 GiB", "64.0 GiB", "90%", "123M", "held", "prefill", "protect-decode", "[a] lon"):
        assert part in text
    assert ("npu " in text) == (devices == 2)


def test_sorting() -> None:
    now = status(11, lane(1, queued=1), lane(2, queued=9))

    def order(sort: str) -> list[str]:
        console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
        console.print(view([between(None, now)], [], sort))
        return re.findall(r"^ +(\d) +100 1000010", console.export_text(), re.MULTILINE)

    assert order("queue") == ["2", "1"]
    assert order("pid") == ["1", "2"]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Path]:
    """The run directory of a daemon."""
    process = subprocess.Popen(
        [str(BIN / "flexnpud"), "--emulated", "--run-dir", str(tmp_path)], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    assert json.loads(line)["event"] == "serving"
    yield tmp_path
    process.terminate()
    process.communicate(timeout=120)


def run(run_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "flexnpu"), "top", *arguments],
        env={**os.environ, "FLEXNPU_RUN_DIR": str(run_dir)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_once(daemon: Path) -> None:
    shown = run(daemon, "--once", "--interval", "0.2")
    assert shown.returncode == 0
    assert "no sessions" in shown.stdout
    one = json.loads(run(daemon, "--once", "--json", "--interval", "0.2").stdout)
    assert one["device"] == 0
    assert 0.15 < one["interval_s"] < 5
    assert one["device_busy"] == 0


def test_bad_input(daemon: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    nowhere = run(tmp_path_factory.mktemp("empty"))
    assert (nowhere.returncode, "flexnpud --device 0" in nowhere.stderr) == (1, True)
    piped = run(daemon)
    assert (piped.returncode, "--once" in piped.stderr) == (1, True)
    assert run(daemon, "--interval", "0").returncode == 2


class Terminal:
    """`flexnpu top` on a terminal of 24 lines of 80 columns."""

    def __init__(self, run_dir: Path) -> None:
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
        self.settings = termios.tcgetattr(self.slave)
        environment = {**os.environ, "FLEXNPU_RUN_DIR": str(run_dir), "TERM": "xterm"}
        self.process = subprocess.Popen(
            [str(BIN / "flexnpu"), "top", "--interval", "0.2"],
            env=environment,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
        )
        self.output = ""

    def until(self, text: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.output:
            assert select.select([self.master], [], [], deadline - time.monotonic())[0], self.output[-500:]
            self.output += os.read(self.master, 65536).decode(errors="replace")
        self.output = self.output[self.output.index(text) + len(text) :]

    def type(self, key: str) -> None:
        os.write(self.master, key.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal(daemon: Path) -> Iterator[Terminal]:
    one = Terminal(daemon)
    yield one
    one.close()


def test_keys(terminal: Terminal) -> None:
    terminal.until("\x1b[?1049h")  # the other screen
    terminal.until("sort: device")
    terminal.until("no sessions")
    terminal.type("s")
    terminal.until("sort: memory")
    terminal.type("f")
    terminal.until("frozen")
    terminal.type("f")
    terminal.until("up ")
    terminal.type("q")
    terminal.until("\x1b[?1049l")
    assert terminal.process.wait(120) == 0
    assert termios.tcgetattr(terminal.slave) == terminal.settings


def test_ended_by_a_signal_it_restores_the_terminal(terminal: Terminal) -> None:
    terminal.until("no sessions")
    assert termios.tcgetattr(terminal.slave) != terminal.settings
    terminal.process.terminate()
    terminal.until("\x1b[?1049l")
    assert terminal.process.wait(120) != 0
    assert termios.tcgetattr(terminal.slave) == terminal.settings
