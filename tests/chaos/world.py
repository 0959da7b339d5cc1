"""The processes that the chaos run harms, and what must hold of them whatever was done.

A *stop* is SIGSTOP and, later, SIGCONT: nobody may take it for a death, and nobody's result may change by it.
A *kill* is SIGKILL: who depended on the dead one is told so, everybody else goes on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flexnpu import emulator
from flexnpu.control import paths
from flexnpu.control.client import ControlClient, ControlError
from flexnpu.control.messages import DaemonStatus

BIN = Path(sys.executable).parent
WORKER = Path(__file__).parent / "programs" / "worker.py"
CLIENT_PROGRAMS = Path(__file__).parents[1] / "clients" / "programs"
PERIOD = 16
"""Rounds after which a worker repeats itself (`programs/worker.py`)."""
HANG_S = 180.0
"""Nothing takes so long on any machine: what does, hangs."""


class Broken(AssertionError):
    """An invariant that does not hold; the text says which, and of whom."""


def wait_until(what: str, holds: Callable[[], bool]) -> None:
    """Raises Broken when `holds` does not become true before `HANG_S` are over."""
    deadline = time.monotonic() + HANG_S
    while not holds():
        if time.monotonic() > deadline:
            raise Broken(f"not within {HANG_S:.0f} s: {what}")
        time.sleep(0.05)


def is_stopped(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"
    return False


class Actor:
    """A process that can be killed, stopped and started again."""

    def __init__(self, name: str, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        self.name, self.command, self.environment, self.log = name, command, environment, log
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def start(self) -> None:
        self.starts += 1
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def send(self, number: int) -> None:
        if self.alive:
            os.kill(self.pid, number)

    def wait(self) -> int:
        """The exit status. Raises Broken when it does not end."""
        assert self.process is not None
        try:
            return self.process.wait(HANG_S)
        except subprocess.TimeoutExpired:
            raise Broken(f"{self.name} (pid {self.pid}) does not end; its log: {self.tail()}") from None

    def end(self) -> None:
        """In order. What had been stopped goes on first."""
        if self.alive:
            self.send(signal.SIGCONT)
            self.send(signal.SIGTERM)
            self.wait()

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""


class Worker(Actor):
    """A client: its rounds are read as they come and compared with those of a direct run."""

    def __init__(self, seed: int, environment: Mapping[str, str], log: Path, expected: list[str]) -> None:
        command = [str(BIN / "flexnpu"), "run", "--", sys.executable, str(WORKER), str(seed), "0"]
        super().__init__(f"worker-{seed}", command, environment, log)
        self.expected = expected
        self.rounds = 0
        self.wrong: list[str] = []
        self.error = ""
        self.daemon_start = 0
        """The daemon's number of starts when this client began."""

    def start(self) -> None:
        self.starts += 1
        self.rounds, self.error = 0, ""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        self._reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self._reader.start()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            words = line.decode(errors="replace").split()
            if words[:1] == ["round"] and len(words) == 3:
                if words[2] != self.expected[int(words[1]) % PERIOD]:
                    self.wrong.append(f"{self.name}, start {self.starts}: {line!r}")
                self.rounds += 1
            elif words[:1] == ["error"]:
                self.error = line.decode(errors="replace").strip()

    def finish(self) -> None:
        """Asks it to end after its round; that must succeed."""
        assert self.process is not None
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(b"end\n")
            self.process.stdin.close()
        status = self.wait()
        self._reader.join()
        if status != 0:
            raise Broken(f"{self.name} ended with {status} for no reason: {self.error} {self.tail()}")


@dataclass
class Counts:
    """What was done and seen, for the report."""

    actions: dict[str, int] = field(default_factory=dict)
    rounds: int = 0
    checks: int = 0
    told_of_a_dead_daemon: int = 0

    def note(self, action: str) -> None:
        self.actions[action] = self.actions.get(action, 0) + 1


class World:
    """A daemon of one emulated NPU with its clients, tracer, collector and controller."""

    def __init__(self, directory: Path, workers: int, *, traced: bool) -> None:
        self.directory, self.run_dir = directory, directory / "run"
        self.counts = Counts()
        machine = f"chaos-{os.getpid()}"
        self.emulated = emulator.environment(machine=machine)
        base = os.environ | {"FLEXNPU_RUN_DIR": str(self.run_dir), "PYTHONUNBUFFERED": "1"}
        base["PYTHONPATH"] = os.pathsep.join([str(CLIENT_PROGRAMS), base.get("PYTHONPATH", "")]).rstrip(":")
        self.environment = base
        self.daemon = self._actor(
            "flexnpud", ["--emulated", "--run-dir", str(self.run_dir)], {"FLEXNPU_EMU_MACHINE": machine}
        )
        self.workers = [
            Worker(seed, base, directory / f"worker-{seed}.log", self._direct(seed))
            for seed in range(1, workers + 1)
        ]
        feed = self.run_dir / "probe.sock"
        self.helpers = [
            self._actor("flexnpu-collector", ["--listen", "127.0.0.1:0"]),
            self._actor("flexnpu-controller", ["--wait", "--lease-s", "2"]),
        ]
        if traced:
            attach = ["attach", "--all", "--feed", "--feed-socket", str(feed), "--quiet", "--no-wire"]
            self.helpers.append(self._actor("flexnpu-probe", attach))

    def _actor(self, command: str, options: list[str], more: Mapping[str, str] | None = None) -> Actor:
        environment = self.environment | dict(more or {})
        return Actor(command, [str(BIN / command), *options], environment, self.directory / f"{command}.log")

    def _direct(self, seed: int) -> list[str]:
        """The digests of a run straight on the emulated device."""
        environment = self.environment | self.emulated | {"FLEXNPU_EMU_MACHINE": f"direct-{os.getpid()}"}
        environment["PYTHONPATH"] = os.pathsep.join([str(CLIENT_PROGRAMS), self.emulated["PYTHONPATH"]])
        command = [sys.executable, str(WORKER), str(seed), str(PERIOD)]
        out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        return [line.split()[2] for line in out.splitlines() if line.startswith("round")]

    # ---- starting and ending ----

    def start(self) -> None:
        self.start_daemon()
        for actor in (*self.helpers, *self.workers):
            self.start_actor(actor)

    def start_daemon(self) -> None:
        self.daemon.start()
        wait_until(f"flexnpud is ready: {self.daemon.tail()}", self._answers)

    def start_actor(self, actor: Actor) -> None:
        if isinstance(actor, Worker):
            actor.daemon_start = self.daemon.starts
        actor.start()

    def _answers(self) -> bool:
        try:
            self.status()
        except (ControlError, OSError):
            if not self.daemon.alive:
                raise Broken(f"flexnpud ended with {self.daemon.wait()}: {self.daemon.tail()}") from None
            return False
        return True

    def status(self) -> DaemonStatus:
        with ControlClient(paths.control_socket(0, self.run_dir), timeout_s=HANG_S) as client:
            return client.status()

    def end(self) -> None:
        for worker in self.workers:
            worker.send(signal.SIGCONT)
            if worker.alive:
                worker.finish()
                self.counts.rounds += worker.rounds
        for actor in (*self.helpers, self.daemon):
            actor.end()

    def kill_all(self) -> None:
        """For a run that failed: nothing stays behind."""
        for actor in (*self.workers, *self.helpers, self.daemon):
            if actor.alive:
                actor.send(signal.SIGKILL)
                assert actor.process is not None
                actor.process.wait()

    # ---- invariants ----

    def check(self) -> None:
        """All of them; raises Broken. Nobody is stopped when this is called."""
        self.counts.checks += 1
        self._daemon_lives()
        for worker in self.workers:
            if worker.wrong:
                raise Broken(f"results differ from a direct run: {worker.wrong[:3]}")
            if worker.daemon_start != self.daemon.starts:
                self._was_told(worker)
        self._everybody_moves()
        self._accounts_balance()
        for helper in self.helpers:
            if not helper.alive:
                raise Broken(f"{helper.name} ended with {helper.wait()}: {helper.tail()}")

    def _daemon_lives(self) -> None:
        if not self.daemon.alive:
            raise Broken(f"flexnpud ended with {self.daemon.wait()}: {self.daemon.tail()}")

    def _was_told(self, worker: Worker) -> None:
        """A client of a dead daemon gets an ACL error; then it is started anew."""
        status = worker.wait()
        worker._reader.join()
        if status != 3 or not worker.error:
            raise Broken(f"{worker.name} lost its daemon and ended with {status}, {worker.error!r}")
        self.counts.told_of_a_dead_daemon += 1
        self.counts.rounds += worker.rounds
        self.start_actor(worker)

    def _everybody_moves(self) -> None:
        before = {worker.name: worker.rounds for worker in self.workers}

        def moved(worker: Worker) -> bool:
            if not worker.alive:
                worker._reader.join()
                text = f"{worker.error} {worker.tail()}"
                raise Broken(f"{worker.name} ended with {worker.wait()} unharmed: {text}")
            return worker.rounds > before[worker.name]

        wait_until(
            "every client has done one more round", lambda: all(moved(worker) for worker in self.workers)
        )

    def _accounts_balance(self) -> None:
        """Sessions are those of the live clients, and lanes are theirs; what a dead one had is given back."""
        clients = {worker.pid for worker in self.workers}

        def balanced() -> bool:
            status = self.status()
            sessions = {session.session for session in status.sessions}
            return (
                status.age_s == 0
                and {session.pid for session in status.sessions} == clients
                and {lane.session for lane in status.lanes} <= sessions
            )

        wait_until(f"sessions are those of {sorted(clients)}: {self.status().sessions}", balanced)
