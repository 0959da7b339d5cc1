from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path

import mockset
import pytest
from rich.console import Console

from probes.feed.events import Event, HostDelay, Losses, OperatorMix, Phase, RequestTiming, Step
from probes.feed.recording import Overhead
from probes.show.screen import KEYS
from probes.show.table import (
    COLUMNS,
    SORTABLE,
    counts_line,
    lines_below,
    losses_line,
    render,
    request_lines,
    shed_lines,
)
from probes.show.view import Snapshot, View
from tests.collectors import scripted

S1 = "0x20010"
MS = 1_000_000


def step(
    ms: float, phase: Phase = "decode", *, pid: int = 5, launches: int = 7, tokens: int | None = 1
) -> Step:
    fields = {"pid": pid, "comm": "s", "stream": 16, "tokens": tokens, "batch": tokens, "launches": launches}
    return scripted.step(0, int(ms * MS), phase, **fields)


def snapshot(
    *events: Event, seconds: float = 1.0, gated: dict[tuple[int, int], float] | None = None
) -> Snapshot:
    view = View()
    for event in events:
        view.add(event)
    return view.take(seconds, gated or {})


def shown(of: Snapshot, width: int = 200, sort: str | None = None) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(render(of, "title", width, sort=sort))
    return [line.rstrip() for line in capture.get().splitlines()]


def cells(of: Snapshot, name: str, sort: str | None = None) -> list[str]:
    table = render(of, None, 200, sort=sort)
    column = next(column for column in table.columns if str(column.header) == name)
    return [str(cell) for cell in column.cells]


def test_absent_measurements_are_dashes() -> None:
    of = snapshot(step(1, "other", tokens=None))
    row = "s:5 0x10 other 1.00 - - 1.00 1.00 7.00 - - - -".split()  # noqa: SIM905
    assert shown(of)[-1].split() == row


def test_every_column_has_its_number() -> None:
    of = snapshot(
        step(2),
        step(4),
        step(6, tokens=4),
        HostDelay(1, 5, "s", None, 1e6, 9e5, 5e5),
        HostDelay(1, 5, "one", 6, 1e6, 2e5, 1e5),
        HostDelay(1, 5, "two", 7, 1e6, 4e5, 3e5),
        seconds=2.0,
        gated={(5, 16): 500_000.0},
    )
    names = [column.name for column in COLUMNS]
    assert dict(zip(names, shown(of)[-1].split(), strict=True)) == {
        "process": "s:5",
        "stream": "0x10",
        "phase": "decode",
        "steps/s": "1.50",
        "tok/s": "3.00",
        "tok/st": "2.00",
        "p50 ms": "4.00",
        "p99 ms": "6.00",
        "ln/st": "7.00",
        "gated": "25%",
        "runq": "30%",
        "probes": "-",
        "cpu": "40%",
    }


def test_what_belongs_to_a_lane_or_process_is_shown_once() -> None:
    host = HostDelay(1, 5, "s", None, 1e6, 0.0, 1e5)
    of = snapshot(step(1), step(2, "prefill"), host, seconds=2.0, gated={(5, 16): 500_000.0})
    assert (cells(of, "gated"), cells(of, "runq")) == (["25%", "-"], ["10%", "-"])


def test_the_narrower_the_fewer_columns() -> None:
    of = snapshot(step(123456, pid=4_000_000), step(1.5, "prefill", pid=4_000_000))
    before = 0
    for width in range(20, 130):
        lines = shown(of, width)
        assert max(map(len, lines)) <= width
        assert len(lines[1].split()) >= before
        before = len(lines[1].split())
    assert before == len(COLUMNS) + 2  # two names have a unit
    eighty = shown(of, 80)[1]
    for name in ("process", "phase", "p50 ms", "p99 ms", "runq", "gated", "tok/s", "steps/s"):
        assert name in eighty


def test_each_key_sorts_by_its_column() -> None:
    of = snapshot(step(1, pid=1, launches=9), step(3, pid=2, launches=1), step(2, pid=3, launches=5))
    assert cells(of, "process", "5") == ["s:2", "s:3", "s:1"]
    assert cells(of, "process", "o") == ["s:1", "s:3", "s:2"]
    assert cells(of, "process", "c") == cells(of, "process") == ["s:1", "s:2", "s:3"]
    for key in SORTABLE:
        assert sorted(cells(of, "process", key)) == ["s:1", "s:2", "s:3"]
    assert not set(SORTABLE) & set("qfps ?")


def test_requests_have_a_line_a_process() -> None:
    def request(first: int | None, *rest: int, complete: bool = True) -> RequestTiming:
        chunks = [at * MS for at in (first, *rest) if at is not None]
        return RequestTiming(
            *(5, "chat", 3, 0, None if first is None else first * MS, 99 * MS, chunks),
            *("/v1/completions", 200, 9, complete),
        )

    of = snapshot(request(30, 40, 50), request(50, 80), request(None, complete=False))
    assert request_lines(of) == ["chat:5 requests 3  TTFT 30.0/50.0  TPOT 10.0/30.0 ms p50/p99"]
    assert request_lines(snapshot(request(None))) == ["chat:5 requests 1  TTFT -  TPOT - ms p50/p99"]


def test_operators_have_a_line_a_lane() -> None:
    of = snapshot(
        OperatorMix(1, 5, "s", 16, 5e4, {"aclnnAdd": 1, "aclnnMatmul": 3}),
    )
    assert lines_below(of) == [
        "s:5 0x10 operators: Matmul 75%, Add 25%",
    ]


def test_what_the_probes_cost_and_what_the_budget_took_is_shown() -> None:
    view = View()
    view.add(step(1))
    of = view.take(1.0, {}, {5: Overhead(0.456, ["windows", "attention"]), 6: Overhead(0.0, [])})
    assert cells(of, "probes") == ["0.46%"]
    assert shed_lines(of) == ["s:5 over the budget: without windows, attention"]


def test_only_what_was_lost_is_listed() -> None:
    counts = {"steps_lost": 0, "map_full": 3, "steps_sent": 9, "unclassified": 2}
    assert losses_line(Losses(1, "steps", counts)) == "lost: map_full 3; unclassified: 2"
    of = snapshot(
        Losses(1, "steps", {"unclassified": 1, "shed_window": 4}), Losses(1, "wire", {"wire_lost": 2})
    )
    assert counts_line(of.counts) == "lost: wire_lost 2; unclassified: 1; shed: window 4"


class Terminal:
    """`attach` on a terminal of its own."""

    def __init__(self, arguments: list[str], columns: int, rows: int = 24) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
        self._slave = slave
        self.before = termios.tcgetattr(slave)
        self.seen = ""
        self._text = codecs.getincrementaldecoder("utf-8")()
        environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [*mockset.python(), "-m", "probes.cli", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | {"TERM": "xterm-256color"},
        )

    def until(self, done: Callable[[str], bool], seconds: float = 60) -> str:
        """Read until `done` of the last picture."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if select.select([self._master], [], [], 0.05)[0]:
                self.seen += self._text.decode(os.read(self._master, 65536))
            if done(self.picture):
                return self.picture
        raise AssertionError(self.picture)

    @property
    def picture(self) -> str:
        """The last picture that is there to its last line: a terminal is read in pieces."""
        pictures = self.seen.split("\x1b[H")
        whole = next((one for one in reversed(pictures) if KEYS in one), "")
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", whole)

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def restored(self) -> bool:
        return termios.tcgetattr(self._slave) == self.before

    def hang_up(self) -> None:
        """As a terminal window that is closed."""
        os.close(self._slave)
        os.close(self._master)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()
        os.close(self._slave)
        os.close(self._master)


@pytest.mark.ebpf
@pytest.mark.parametrize("columns", [80, 200])
def test_a_terminal_has_the_whole_screen_and_keys(driver: mockset.Driver, columns: int) -> None:
    terminal = Terminal(["attach", "--pid", str(driver.pid), "--interval", "0.3"], columns)
    try:
        terminal.until(lambda picture: KEYS in picture)
        for _ in range(3):
            driver.run(f"step {S1} 1 37 218", *[f"step {S1} 1 1 214"] * 10)
        picture = terminal.until(lambda picture: " decode " in picture)
        assert "\x1b[?1049h" in terminal.seen
        assert all(len(line) <= columns for line in picture.splitlines())
        assert "runq" in picture
        assert columns == 80 or all(column.name in picture for column in COLUMNS)
        terminal.press("f")
        terminal.until(lambda picture: "FROZEN" in picture and " decode " in picture)
        frozen = len(terminal.seen)
        time.sleep(0.8)
        terminal.press("9")
        picture = terminal.until(lambda picture: "by p99 ms" in picture)
        assert " decode " in picture  # though nothing ran for a while
        assert terminal.seen[frozen:].count("\x1b[H") == 1
        terminal.press(" p")
        terminal.until(lambda picture: "PAUSED" in picture and "FROZEN" not in picture)
        terminal.press("?")
        terminal.until(lambda picture: "9 p99 ms" in picture)
        terminal.press("q")
        terminal.until(lambda _: "\x1b[?1049l" in terminal.seen)
        assert terminal.process.wait(120) == 0
        assert terminal.restored()
        assert mockset.probed(driver.pid) == []
    finally:
        terminal.close()


def test_a_job_in_the_background_leaves_the_terminal_alone() -> None:
    """Setting its modes would stop the job (SIGTTOU)."""
    code = (
        "import os, pty, sys\n"
        "from probes.show.screen import Plain, Screen, display\n"
        "master, slave = pty.openpty()\n"
        "os.login_tty(slave)\n"
        "os.environ['TERM'] = 'xterm'\n"
        "shown = display(); print(isinstance(shown, Screen)); shown.close()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os.setpgid(0, 0)\n"
        "    os._exit(0 if isinstance(display(), Plain) else 1)\n"
        "_, status = os.waitpid(child, os.WUNTRACED)\n"
        "sys.stdout.flush()\n"
        "os.write(told, f'{status}'.encode())\n"
    )
    read, write = os.pipe()
    child = subprocess.Popen(
        [*mockset.python(), "-c", code.replace("told", str(write))],
        pass_fds=(write,),
        stdin=subprocess.DEVNULL,
    )
    os.close(write)
    assert os.read(read, 16) == b"0"
    os.close(read)
    child.wait(120)


@pytest.mark.ebpf
def test_a_terminal_that_hangs_up_detaches(driver: mockset.Driver) -> None:
    terminal = Terminal(["attach", "--pid", str(driver.pid)], 80)
    try:
        terminal.until(lambda picture: KEYS in picture)
        terminal.process.send_signal(signal.SIGHUP)
        assert terminal.process.wait(120) == 0
        assert terminal.restored()
        assert mockset.probed(driver.pid) == []
    finally:
        terminal.close()


@pytest.mark.ebpf
def test_replay_shows_the_tables_of_the_run(driver: mockset.Driver, tmp_path: Path) -> None:
    run = tmp_path / "run.jsonl.zst"
    command = [*mockset.python(), "-m", "probes.cli"]
    child = subprocess.Popen(
        [*command, "trace", "--pid", str(driver.pid), "-o", str(run), "--no-wire"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    while "recording to" not in child.stderr.readline():
        assert child.poll() is None
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        driver.run(*[f"step {S1} 1 1 214"] * 10)
    child.terminate()
    child.communicate(timeout=120)
    replayed = []
    for more in ([], ["--speed", "4"]):
        done = subprocess.run(
            [*command, "replay", str(run), *more],
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | {"COLUMNS": "120"},
        )
        assert done.returncode == 0, done.stderr
        shown = re.sub(r"\d\d:\d\d:\d\d  ", "", done.stdout)
        replayed.append([line.rstrip() for line in shown.splitlines()])
    assert replayed[0] == replayed[1]
    rows = [line for line in replayed[0] if " decode " in line]
    assert len(rows) >= 1
    assert f"driver:{driver.pid}" in rows[0]


@pytest.mark.ebpf
def test_a_terminal_that_goes_away_detaches(driver: mockset.Driver) -> None:
    terminal = Terminal(["attach", "--pid", str(driver.pid), "--interval", "0.2"], 80)
    terminal.until(lambda picture: KEYS in picture)
    terminal.hang_up()
    _, complaints = terminal.process.communicate(timeout=120)
    assert "Traceback" not in complaints
    assert mockset.probed(driver.pid) == []
