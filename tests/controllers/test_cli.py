"""flexnpu-controller as a process, before a daemon's control side with a plane that does nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flexnpu.control.client import ControlClient
from flexnpu.control.messages import GateOwner, Reply, Request
from flexnpu.daemon.config import Config
from flexnpu.daemon.control_server import ControlServer
from flexnpu.daemon.gate_lease import Requester
from flexnpu.daemon.service import Service
from probes.feed.socket import FeedServer
from tests.daemon.conftest import PlaneDouble

PATIENCE_S = 60.0


def until(found: Callable[[], Any], what: str) -> Any:
    """What `found` returns, once that is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := found()):
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.05)
    return value


@contextlib.contextmanager
def daemon(folder: Path, before: Callable[[], object] = lambda: None) -> Iterator[ControlClient]:
    """A client of the daemon whose control socket is ``npu0.ctl`` in `folder`. It calls `before` first, for
    each request."""
    path = folder / "npu0.ctl"
    config = Config(device=0, run_dir=folder, vendor_lib=folder, emulated=True)
    service = Service(config, PlaneDouble())

    def handle(request: Request, requester: Requester) -> Reply:
        before()
        return service.handle(request, requester)

    server = ControlServer(path, handle)
    service.server_counters = server.counters
    server.open()
    thread = threading.Thread(target=server.run, args=(service.expire,))
    thread.start()
    try:
        with ControlClient(path, 10) as client:
            yield client
    finally:
        server.stop()
        thread.join(10)
        server.close()
        path.unlink(missing_ok=True)


class Controller:
    """A running flexnpu-controller. Its output is in files of `folder`."""

    count = 0

    def __init__(self, folder: Path, *arguments: str) -> None:
        Controller.count += 1
        self._out, self._err = (folder / f"{Controller.count}.{name}" for name in ("out", "err"))
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from controllers.cli import main; main()", *arguments],
                env={**os.environ, "FLEXNPU_RUN_DIR": str(folder)},
                stdout=out,
                stderr=err,
            )

    @property
    def said(self) -> str:
        return self._err.read_text()

    def events(self, name: str = "") -> list[dict[str, Any]]:
        """The log's lines, or those of one event."""
        lines = [json.loads(line) for line in self._out.read_text().splitlines(keepends=True) if "\n" in line]
        return [line for line in lines if name in ("", line["event"])]

    def wait_for(self, event: str, count: int = 1) -> dict[str, Any]:
        def found() -> Any:
            assert self.process.poll() is None, self.said
            return len(self.events(event)) >= count and self.events(event)[count - 1]

        line = until(found, event)
        assert isinstance(line, dict)
        return line

    def end(self, number: int = signal.SIGTERM) -> int:
        """Its exit status after a signal."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Controller]]:
    started: list[Controller] = []

    def make(*arguments: str) -> Controller:
        started.append(Controller(tmp_path, *arguments))
        return started[-1]

    yield make
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def owner(client: ControlClient) -> GateOwner | None:
    return client.status().gate.owner


def owned_by(client: ControlClient, controller: Controller) -> Callable[[], bool]:
    def found() -> bool:
        one = owner(client)
        return one is not None and one.pid == controller.process.pid

    return found


def test_it_waits_for_a_daemon_and_a_feed_and_says_what_to_do(
    tmp_path: Path, start: Callable[..., Controller]
) -> None:
    controller = start()
    until(lambda: "flexnpud --device 0" in controller.said, "word of the daemon")
    with daemon(tmp_path) as client:
        until(owned_by(client, controller), "owner")
        until(lambda: "flexnpu-probe attach" in controller.said, "word of the feed")
        for count in (1, 2):  # it follows a tracer that restarts
            with FeedServer(tmp_path / "probe.sock"):
                controller.wait_for("feed-connected", count)
        until(lambda: "the tracer has ended" in controller.said, "word of the tracer's end")
        assert controller.end() == 0
        assert owner(client) is None
    lines = controller.said.splitlines()
    assert all(line.startswith("flexnpu-controller: ") for line in lines)
    assert sum("flexnpud --device 0" in line for line in lines) == 1
    assert len(lines) <= 6, "each trouble is told once"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_that_waits_ends_when_told(start: Callable[..., Controller], number: int) -> None:
    controller = start()
    until(lambda: controller.said, "word")
    assert controller.end(number) == 0


def test_a_daemon_that_goes_and_comes_back(tmp_path: Path, start: Callable[..., Controller]) -> None:
    with daemon(tmp_path) as client:
        controller = start("--lease-s", "1")
        until(owned_by(client, controller), "owner")
    trouble = controller.wait_for("daemon-trouble")
    assert "daemon" in trouble["error"]
    with daemon(tmp_path) as client:
        until(owned_by(client, controller), "owner")
        controller.wait_for("daemon-answers")
        assert controller.end() == 0


@pytest.mark.parametrize("how", ["late", "failing"])
def test_a_daemon_that_answers_late_or_with_errors(
    tmp_path: Path, start: Callable[..., Controller], how: str
) -> None:
    answers, fails = threading.Event(), threading.Event()
    answers.set()

    def before() -> None:
        if fails.is_set():
            raise RuntimeError("device lost")
        answers.wait(PATIENCE_S)

    with daemon(tmp_path, before) as client:
        controller = start("--lease-s", "0.4")
        until(owned_by(client, controller), "owner")
        if how == "late":
            answers.clear()
        else:
            fails.set()
        trouble = controller.wait_for("daemon-trouble")
        assert ("no answer" if how == "late" else "device lost") in trouble["error"]
        answers.set()
        fails.clear()
        controller.wait_for("daemon-answers")
        until(owned_by(client, controller), "owner")
        assert len(controller.events("daemon-trouble")) <= 3
        assert controller.end() == 0


def test_a_second_controller_is_refused_waits_or_takes_over(
    tmp_path: Path, start: Callable[..., Controller]
) -> None:
    with daemon(tmp_path) as client:
        first = start()
        until(owned_by(client, first), "owner")
        second = start()
        assert second.process.wait(PATIENCE_S) == 1
        assert f"(pid {first.process.pid}, user {os.getuid()})" in second.said
        assert "--take-over" in second.said
        assert "Traceback" not in second.said

        waiting = start("--wait")
        waiting.wait_for("gate-owned")
        assert owned_by(client, first)()
        third = start("--take-over")
        until(owned_by(client, third), "owner")
        assert first.process.wait(PATIENCE_S) == 1
        assert f"pid {third.process.pid}" in first.said
        assert third.end() == 0
        until(owned_by(client, waiting), "owner")
        assert len(waiting.events("gate-owned")) == 1
        assert waiting.end() == 0


def test_a_stopped_controller_loses_the_gate_and_does_not_fight_for_it(
    tmp_path: Path, start: Callable[..., Controller]
) -> None:
    with daemon(tmp_path) as client:
        first = start("--lease-s", "1")
        until(owned_by(client, first), "owner")
        first.process.send_signal(signal.SIGSTOP)
        until(lambda: owner(client) is None, "end of the lease")
        second = start()
        until(owned_by(client, second), "owner")
        first.process.send_signal(signal.SIGCONT)
        assert first.process.wait(PATIENCE_S) == 1
        assert f"pid {second.process.pid}" in first.said
        assert owned_by(client, second)()
        assert client.status().gate.expired_leases == 1


def test_its_counts_reach_the_daemon(tmp_path: Path, start: Callable[..., Controller]) -> None:
    with daemon(tmp_path) as client:
        controller = start()
        until(owned_by(client, controller), "owner")
        one = owner(client)
        assert one is not None
        assert {"steps", "unmapped", "feed_dropped", "feed_losses", "decisions"} <= set(one.counts)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [(["--policy", "fast"], "no policy 'fast': there are"), (["--policy", "slack"], "--tpot-ms")],
)
def test_a_policy_that_cannot_be_had_is_refused_with_the_remedy(
    arguments: list[str], text: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from controllers.cli import main; main()",
            "--ctl",
            str(tmp_path / "no"),
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr
