"""What a process is named, a client asks for or a page says cannot act on a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexnpu.control.messages import DaemonStatus, ErrorReply, Reply, Request, StatusRequest
from flexnpu.daemon.control_server import ControlServer
from tests.cli.test_top import lane, status
from tests.console.conftest import NASTY
from tests.console.programs import BIN

RAW = ("\x1b[31m\x9b", "\x9b", "\u202e", "\udc9b", "\x07", "\x1b]", "\x7f")
TITLE = "\x1b]0;mine\x07\x7f\u202e\x9b[red]"


def harmless(text: str) -> None:
    """No character of `NASTY` or `TITLE` is left that a terminal would act on."""
    for raw in RAW:
        assert raw not in text, repr(text)


def nasty_status(uptime_s: float = 10) -> DaemonStatus:
    found = status(uptime_s, lane(1, comm=NASTY), soc=TITLE, version=TITLE)
    session = found.sessions[0].model_copy(update={"comm": NASTY})
    return found.model_copy(update={"sessions": [session]})


class Answering(threading.Thread):
    """A control socket that answers every request with `reply`."""

    def __init__(self, path: Path, reply: Reply) -> None:
        super().__init__()
        path.parent.mkdir(exist_ok=True)
        self._begun = time.monotonic()
        self._reply = reply
        self.server = ControlServer(path, self._answer)
        self.server.open()
        self.start()

    def _answer(self, request: Request, _peer: object) -> Reply:
        if isinstance(self._reply, DaemonStatus) and isinstance(request, StatusRequest):
            return self._reply.model_copy(update={"uptime_s": time.monotonic() - self._begun + 1})
        return self._reply

    def run(self) -> None:
        self.server.run(lambda: None)

    def end(self) -> None:
        self.server.stop()
        self.join(10)
        self.server.close()
        self.server.path.unlink(missing_ok=True)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def nasty_daemon(run_dir: Path) -> Iterator[Answering]:
    answering = Answering(run_dir / "npu0.ctl", nasty_status())
    yield answering
    answering.end()


def call(*words: str | Path, run_dir: Path | None = None) -> subprocess.CompletedProcess[str]:
    name, *rest = map(str, words)
    return subprocess.run(
        [str(BIN / name), *rest],
        env=os.environ | ({"FLEXNPU_RUN_DIR": str(run_dir)} if run_dir else {}),
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=60,
        check=False,
    )


def on_a_terminal(*words: str | Path, keys: str = "", seconds: float = 60, **environment: str) -> str:
    """What a program writes to a terminal of 160 columns until it ends; `keys` are typed after a second."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update({"TERM": "xterm", "COLUMNS": "160", "LINES": "40"} | environment)
        os.execv(BIN / str(words[0]), list(map(str, words)))
    got = b""
    deadline, typed = time.monotonic() + seconds, not keys
    begun = time.monotonic()
    while time.monotonic() < deadline:
        if not typed and time.monotonic() > begun + 3:
            os.write(terminal, keys.encode())
            typed = True
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                data = os.read(terminal, 1 << 16)
            except OSError:
                break
            if not data:
                break
            got += data
    else:
        os.kill(child, signal.SIGKILL)
    os.close(terminal)
    os.waitpid(child, 0)
    return got.decode("utf-8", "surrogateescape")


def test_replay(nasty_recording: Path) -> None:
    done = call("flexnpu-probe", "replay", nasty_recording)
    assert done.returncode == 0, done.stderr
    harmless(done.stdout)
    rows = [line for line in done.stdout.splitlines() if "decode" in line]
    assert len(rows) == 2, "a name with a line break makes no line of its own"
    assert all(row.lstrip().startswith("\\x1b[31m\\x9b") for row in rows)


def test_replay_on_a_terminal(nasty_recording: Path) -> None:
    shown = on_a_terminal("flexnpu-probe", "replay", nasty_recording, "--speed", "2", keys="q")
    harmless(shown)
    assert "\\x1b[31m" in shown


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_hist(nasty_recording: Path, form: list[str]) -> None:
    done = call("flexnpu-probe", "hist", "--from", nasty_recording, *form)
    assert done.returncode == 0, done.stderr
    harmless(done.stdout)
    if form:
        assert {json.loads(line)["comm"] for line in done.stdout.splitlines()} == {NASTY}
    else:
        assert "\\x1b[31m\\x9b2J\\u202e[red]\\nx:4242" in done.stdout


def test_a_recording_and_its_errors(tmp_path: Path, nasty_recording: Path) -> None:
    nasty = tmp_path / "\x1b[31m\x9b\n.zst"
    for words in (["replay", nasty], ["hist", "--from", nasty], ["export", nasty, "-o", tmp_path / "out"]):
        done = call("flexnpu-probe", *words)
        assert done.returncode == 1
        harmless(done.stderr)
        first, *more = done.stderr.splitlines()
        assert first.startswith("flexnpu-probe: ")
        assert all(line.startswith("  ") for line in more), "nothing looks like a message of its own"
    nasty.write_bytes(nasty_recording.read_bytes()[:-20])  # without its end
    done = call("flexnpu-probe", "export", nasty, "-o", tmp_path / "\x1b]0;mine\x07")
    assert done.returncode == 3, done.stderr
    harmless(done.stderr)
    json.loads((tmp_path / "\x1b]0;mine\x07").read_text())


@pytest.mark.parametrize(
    "words", [["status"], ["status", "--json"], ["top", "--once", "--interval", "0.1"]], ids=" ".join
)
def test_status_and_top(run_dir: Path, nasty_daemon: Answering, words: list[str]) -> None:
    done = call("flexnpu", *words, run_dir=run_dir)
    assert done.returncode == 0, done.stderr
    harmless(done.stdout)
    if "--json" in words:
        assert json.loads(done.stdout)[0]["sessions"][0]["comm"] == NASTY
    else:
        assert "\\x1b[31m" in done.stdout
        assert "\\x1b]0;mine\\x07" in done.stdout


def test_status_and_top_on_a_terminal(run_dir: Path, nasty_daemon: Answering) -> None:
    for words, keys in ((["status"], ""), (["top"], "q")):
        shown = on_a_terminal("flexnpu", *words, keys=keys, FLEXNPU_RUN_DIR=str(run_dir))
        harmless(shown.replace("\x1b]8;;\x1b\\", ""))
        assert "\\x1b[31m" in shown


@pytest.mark.parametrize(
    "words",
    [["flexnpu", "status"], ["flexnpu", "top", "--once"], ["flexnpu-controller"]],
    ids=" ".join,
)
def test_what_a_daemon_says_went_wrong(run_dir: Path, words: list[str]) -> None:
    answering = Answering(run_dir / "npu0.ctl", ErrorReply(code="failed", message=TITLE + NASTY))
    try:
        done = call(*words, run_dir=run_dir)
    finally:
        answering.end()
    assert done.returncode == 1
    harmless(done.stdout + done.stderr)
    assert "\\x1b]0;mine\\x07" in done.stderr


def test_the_collectors_log(run_dir: Path) -> None:
    answering = Answering(run_dir / "npu0.ctl", ErrorReply(code="failed", message=TITLE + NASTY))
    try:
        done = call("flexnpu-collector", "--listen", "127.0.0.1:0", "--duration", "1", run_dir=run_dir)
    finally:
        answering.end()
    assert done.returncode == 0, done.stderr
    harmless(done.stdout + done.stderr)
    assert "\\x1b]0;mine\\x07" in done.stderr


@pytest.mark.parametrize("name", ["flexnpu", "flexnpu-probe", "flexnpud", "flexnpu-collector"])
def test_what_is_typed_wrongly(name: str) -> None:
    for words in ([TITLE], [f"--{TITLE}"]):
        done = call(name, *words)
        assert done.returncode == 2
        harmless(done.stderr)
