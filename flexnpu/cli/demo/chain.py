"""The programs of the chain: daemon, servers, probe, collector, Prometheus, controller."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dashboards import alerts
from flexnpu.cli.demo.plan import Plan
from flexnpu.cli.demo.processes import DemoError, Supervisor
from flexnpu.common.ports import free_port
from flexnpu.control import paths
from flexnpu.control.client import ControlClient, ControlError
from flexnpu.control.messages import DaemonStatus
from flexnpu.emulator.clock import Clock
from workloads import models
from workloads.prometheus import PrometheusError, PrometheusServer

DEVICE = 0

#: The emulated device stands for silicon, which does not wait for a CPU of the host.
SILICON = -10

#: Bound on the start of a part; most of it is Python's imports, which a busy host makes ten times as long.
_START_S = 150.0

#: No look-ups outside this machine, and one CPU thread a server: the numerics are the device's, and more
#: threads would only fight for the cores.
SERVER_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def own_program(name: str) -> str:
    """Path of a program of this installation (beside the running interpreter). Raises DemoError."""
    for directory in (Path(sysconfig.get_path("scripts")), Path(sys.executable).parent):
        if (directory / name).exists():
            return str(directory / name)
    found = shutil.which(name)
    if found is None:
        raise DemoError(f"no program {name} beside {sys.executable}: run make setup")
    return found


@dataclass
class Server:
    """A running `transformers serve`."""

    name: str
    model_dir: Path
    url: str
    pid: int


class Chain:
    """Starts each part and waits until it works; ``directory`` holds sockets, logs and Prometheus' data."""

    def __init__(
        self, plan: Plan, directory: Path, supervisor: Supervisor, stack: contextlib.ExitStack
    ) -> None:
        self.plan = plan
        self.directory = directory
        self.run_dir = directory / "run"
        self.run_dir.mkdir(mode=0o700)
        self.supervisor = supervisor
        self.stack = stack
        self.servers: dict[str, Server] = {}
        self.collector_port = 0
        self.prometheus: PrometheusServer | None = None
        self.clock = stack.enter_context(Clock(plan.measuring.slowdown))
        self._environment = {paths.ENV_RUN_DIR: str(self.run_dir)}
        self._control = ControlClient(paths.control_socket(DEVICE, self.run_dir))

    @property
    def feed(self) -> Path:
        """The tracer's socket."""
        return paths.probe_socket(self.run_dir)

    def status(self) -> DaemonStatus | None:
        """The daemon's status; None when it does not answer now."""
        try:
            return self._control.status()
        except ControlError:
            return None

    def new_control(self) -> ControlClient:
        """A client for another thread."""
        return ControlClient(self._control.path)

    def start_daemon(self) -> float:
        """Seconds until flexnpud answers. Raises DemoError."""
        self.supervisor.start(
            "flexnpud",
            [
                own_program("flexnpud"),
                *("--device", str(DEVICE), "--emulated", "--profile", self.plan.profile),
                *("--mode", "compute", "--run-dir", str(self.run_dir)),
            ],
            # An emulated machine of its own: no other program on this one uses the same device.
            {"FLEXNPU_EMU_MACHINE": self.directory.name, "FLEXNPU_EMU_SLOWDOWN": self.clock.path},
            [self.clock.fd],
            nice=SILICON,
        )
        return self.supervisor.wait_until("flexnpud answers", lambda: self.status() is not None, _START_S)

    def start_servers(self) -> float:
        """Both at once: most of it is Python's imports."""
        command = [own_program("flexnpu"), "run", "--device", str(DEVICE), "--"]
        for plan in self.plan.servers:
            directory = models.ensure(plan.model, self.directory / "models")
            port = free_port()
            serve = [own_program("transformers"), "serve", str(directory), "--device", "npu:0"]
            serve += ["--attn-implementation", self.plan.attention]
            serve += ["--host", "127.0.0.1", "--port", str(port)]
            # Its metrics bear this name, whatever control group the demo was started in.
            name = {"OTEL_SERVICE_NAME": plan.name}
            child = self.supervisor.start(
                plan.name, [*command, *serve], {**self._environment, **SERVER_ENVIRONMENT, **name}
            )
            self.servers[plan.name] = Server(plan.name, directory, f"http://127.0.0.1:{port}", child.pid)

        def ready() -> bool:
            return all(_answers(f"{server.url}/health") for server in self.servers.values())

        return self.supervisor.wait_until("both servers answer", ready, 2 * _START_S)

    def start_probe(self, connect: Callable[[], None]) -> float:
        """Attach to the live servers; ``connect`` is called when the feed can be read, before attaching."""
        command = [own_program("flexnpu-probe"), "attach"]
        for server in self.servers.values():
            command += ["--pid", str(server.pid)]
        child = self.supervisor.start(
            "flexnpu-probe",
            [*command, "--feed", "--feed-socket", str(self.feed), "--quiet"],
            self._environment,
        )

        # Listeners first: what the tracers publish when they attach is said once.
        took = self.supervisor.wait_until("the probe serves its feed", self.feed.exists, _START_S)
        connect()

        def publishing() -> bool:
            return "publishing on" in child.tail()

        return took + self.supervisor.wait_until("the probe is attached", publishing, _START_S)

    def start_collector(self) -> float:
        """Seconds until it serves its metrics. Raises DemoError."""
        self.collector_port = free_port()
        self.supervisor.start(
            "flexnpu-collector",
            [
                own_program("flexnpu-collector"),
                *("--feed", str(self.feed), "--ctl", str(self._control.path)),
                *("--listen", f"127.0.0.1:{self.collector_port}"),
                *("--ttft-slo", str(self.plan.ttft_slo_s)),
            ],
            self._environment,
        )
        url = f"http://127.0.0.1:{self.collector_port}/metrics"
        return self.supervisor.wait_until("the collector answers", lambda: _answers(url), _START_S)

    def start_prometheus(self) -> float:
        """A Prometheus of the demo's own, with the shipped alert over windows that fit a demo."""
        start = time.monotonic()
        windows = [window.scaled(self.plan.alert_scale) for window in alerts.WINDOWS[:1]]
        try:
            self.prometheus = self.stack.enter_context(
                PrometheusServer(
                    {"flexnpu": [f"127.0.0.1:{self.collector_port}"]},
                    rules=alerts.rules(windows, interval_s=1.0),
                )
            )
        except PrometheusError as error:
            raise DemoError(str(error)) from error
        return time.monotonic() - start

    def start_controller(self, target_ms: float | None) -> float:
        """``target_ms``: of a decode step; None: the controller's own."""
        child = self.supervisor.start(
            "flexnpu-controller",
            [
                own_program("flexnpu-controller"),
                *("--feed", str(self.feed), "--ctl", str(self._control.path)),
                *("--policy", "protect-decode", "--window-us", str(self.plan.window_us)),
                *("--max-hold-ms", str(self.plan.max_hold_ms), "--idle-ms", str(self.plan.idle_ms)),
                *(("--target-ms", str(target_ms)) if target_ms is not None else ()),
            ],
            self._environment,
        )

        def reading() -> bool:
            return "feed-connected" in child.log.read_text(errors="replace")

        return self.supervisor.wait_until("the controller reads the feed", reading, _START_S)

    def gated(self) -> bool:
        """Whether the daemon's gate is under a policy now."""
        status = self.status()
        return status is not None and status.gate.policy == "protect-decode"

    def stop(self) -> None:
        """End what was started so far."""
        self.supervisor.stop_all()
        self.servers.clear()

    def stop_controller(self) -> None:
        """End it with SIGTERM: it gives the gate back."""
        self.supervisor.stop("flexnpu-controller")

    def interposed(self, pid: int) -> tuple[bool, str]:
        """Whether a process has FlexNPU's client libraries mapped, and not the emulated CANN behind them."""
        maps = Path(f"/proc/{pid}/maps").read_text(errors="replace")
        client = "/flexnpu/client/lib/" in maps
        vendor = "/flexnpu/emulator/lib/" in maps
        return client and not vendor, f"client libraries {'mapped' if client else 'missing'}"


def _answers(url: str) -> bool:
    with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=2) as reply:
        return bool(reply.status == 200)
    return False


def interrupt(number: int, _frame: object) -> None:
    """A handler for signals that end a demo as Ctrl-C does."""
    raise KeyboardInterrupt(f"signal {number}")


def require_folder(report_path: Path) -> None:
    """Or minutes later there would be nowhere to write the figures. Raises DemoError."""
    folder = report_path.resolve().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise DemoError(f"cannot write {report_path}: {folder} is no folder that can be written to")


def require_root() -> None:
    """Say what the demo needs before anything is started."""
    if os.geteuid() != 0:
        raise DemoError("the probes load BPF programs, which needs root: type  sudo make demo")
