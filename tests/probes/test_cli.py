from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import mockset
import pytest
from click.testing import CliRunner

from probes.cli import main
from probes.feed.events import Losses, Step, from_json
from probes.feed.socket import FeedClient
from probes.placing import loader

COMMAND = [*mockset.python(), "-m", "probes.cli", "attach"]
DETAIL = ("--detail", "launches")
S1 = "0x20010"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"COLUMNS": "80"} | environment,
    )


def test_help_is_a_manual() -> None:
    text = CliRunner().invoke(main, ["attach", "--help"]).output
    for part in ("EXAMPLES", "OVERHEAD", "COLUMNS", "EXIT STATUS", "sudo flexnpu-probe attach", "--duration"):
        assert part in text


@pytest.mark.parametrize(
    "arguments", [["--pid", "0"], ["--duration", "-1"], ["--interval", "x"], ["--nonsense"]]
)
def test_wrong_usage_is_named(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, ["attach", *arguments])
    assert result.exit_code == 2
    assert arguments[0] in result.output


@pytest.mark.skipif(os.geteuid() != 0, reason="gives root up")
def test_without_root_it_says_what_to_type() -> None:
    done = subprocess.run(
        [*COMMAND], capture_output=True, text=True, timeout=60, user=65534, group=65534, extra_groups=[]
    )
    assert done.returncode == 1
    assert "sudo flexnpu-probe" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.ebpf
def test_without_bcc_it_says_what_to_type(tmp_path: Path) -> None:
    (tmp_path / "bcc.py").write_text("raise ImportError('no bcc here')")
    own = {"PYTHONPATH": f"{tmp_path}:{os.getcwd()}", loader.ENVIRONMENT: "bcc"}
    done = run("--pid", str(os.getpid()), **own)
    assert done.returncode == 1
    assert "apt-get install python3-bpfcc" in done.stderr


@pytest.mark.ebpf
def test_without_headers_it_says_what_to_type(tmp_path: Path) -> None:
    done = run("--pid", str(os.getpid()), **{"BCC_KERNEL_SOURCE": str(tmp_path), loader.ENVIRONMENT: "bcc"})
    assert done.returncode == 1
    assert "is not a configured kernel header tree" in done.stderr


@pytest.mark.ebpf
def test_without_such_a_process_it_says_so() -> None:
    done = run("--pid", "4194305")
    assert (done.returncode, done.stderr) == (1, "flexnpu-probe: no process 4194305\n")
    done = run("--pid", str(os.getppid()))
    assert done.returncode == 1
    assert "does not use an NPU" in done.stderr


class Steps(threading.Thread):
    """Keeps a driver stepping until it is told to end."""

    def __init__(self, driver: mockset.Driver) -> None:
        super().__init__()
        self._driver = driver
        self._ended = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._ended.is_set():
            self._driver.run(f"step {S1} 1 37 218", *[f"step {S1} 1 1 214"] * 10)

    def end(self) -> None:
        self._ended.set()
        self.join(30)


@pytest.mark.ebpf
def test_the_table_fits_80_columns_and_duration_detaches(driver: mockset.Driver) -> None:
    steps = Steps(driver)
    try:
        done = run("--pid", str(driver.pid), "--duration", "1.5", "--interval", "0.5", *DETAIL)
    finally:
        steps.end()
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert all(len(line.rstrip()) <= 80 for line in lines)
    names = next(line for line in lines if "process" in line).replace(" ms", "").split()
    assert {"process", "phase", "p50", "p99", "runq", "gated", "tok/s"} <= set(names)
    for phase in ("prefill", "decode"):
        row = next(line.split() for line in reversed(lines) if f" {phase} " in line)
        assert row[:3] == [f"driver:{driver.pid}", S1, phase]
        shown = dict(zip(names, row, strict=True))
        assert float(shown["p50"]) <= float(shown["p99"])
        assert shown["gated"] == "-"
    assert "lost: 0; unclassified: 0" in done.stdout
    assert mockset.probed(driver.pid) == []


@pytest.mark.ebpf
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_detach_and_json_has_every_step(driver: mockset.Driver, number: signal.Signals) -> None:
    child = subprocess.Popen(
        [*COMMAND, "--pid", str(driver.pid), "--json", *DETAIL],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    assert "attached to driver" in child.stderr.readline()
    driver.run(f"step {S1} 1 37 218", *[f"step {S1} 1 1 214"] * 10)
    child.send_signal(number)
    printed, _ = child.communicate(timeout=120)
    assert child.returncode == 0
    *steps, losses = [from_json(line) for line in printed.splitlines()]
    assert isinstance(losses, Losses)
    assert losses.counts["steps_lost"] == 0
    assert [step.phase for step in steps if isinstance(step, Step)] == ["prefill"] + ["decode"] * 10
    assert mockset.probed(driver.pid) == []


@pytest.mark.ebpf
def test_it_finds_processes_that_start_later_and_the_feed_has_their_steps(
    mock_driver: Path, tmp_path: Path
) -> None:
    socket = tmp_path / "probe.sock"
    # A name of its own: this machine may run other tests' programs.
    named = mock_driver.with_name(f"d{os.getpid()}")
    shutil.copy(mock_driver, named)
    child = subprocess.Popen(
        [*COMMAND, "--comm", named.name, "--quiet", "--feed-socket", str(socket), "--no-wire", *DETAIL],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not socket.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with mockset.Driver(named) as driver, FeedClient(socket) as feed:
            while not len(mockset.probed(driver.pid)) >= 13:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            time.sleep(0.2)
            driver.run(f"step {S1} 1 37 218", f"step {S1} 1 1 214")
            got = []
            while len(got) < 2:
                event = feed.read(10)
                assert event is not None
                if isinstance(event, Step) and event.pid == driver.pid:
                    got.append((event.phase, event.tokens, event.launches))
            assert got == [("prefill", 37, 218), ("decode", 1, 214)]
    finally:
        child.send_signal(signal.SIGTERM)
        child.communicate(timeout=60)
    assert child.returncode == 0
    assert not socket.exists()


@pytest.mark.ebpf
def test_it_ends_when_its_processes_do(driver: mockset.Driver) -> None:
    child = subprocess.Popen(
        [*COMMAND, "--pid", str(driver.pid)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stderr is not None
    child.stderr.readline()
    driver.stop()
    _, complaints = child.communicate(timeout=120)
    assert child.returncode == 0
    assert "every process that was attached has ended" in complaints


@pytest.mark.ebpf
def test_a_killed_process_is_noticed_at_once_and_its_running_step_is_published(
    driver: mockset.Driver,
) -> None:
    child = subprocess.Popen(
        [*COMMAND, "--pid", str(driver.pid), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    assert child.stdout is not None
    assert "attached to driver" in child.stderr.readline()
    # The second thread makes the embedding's second call, which opens the step, a little later.
    driver.run(f"step {S1} 1 37 218", f"step {S1} 1 1 214", f"embed {S1} 1 1", "sleep 50")
    os.kill(driver.pid, signal.SIGKILL)
    assert "has ended" in child.stderr.readline()
    printed, _ = child.communicate(timeout=120)
    steps = [event for line in printed.splitlines() if isinstance(event := from_json(line), Step)]
    assert [step.ended_by for step in steps][-1] == "detach"
    assert [step.phase for step in steps][:2] == ["prefill", "decode"]


@pytest.mark.ebpf
def test_a_reader_that_goes_away_ends_it_quietly(driver: mockset.Driver) -> None:
    steps = Steps(driver)
    try:
        child = subprocess.Popen(
            [*COMMAND, "--pid", str(driver.pid), "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        assert child.stderr is not None
        json.loads(child.stdout.readline())
        child.stdout.close()
        assert "Traceback" not in child.stderr.read()
        child.wait(120)
    finally:
        steps.end()
