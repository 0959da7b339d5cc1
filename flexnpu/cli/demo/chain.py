"""The programs of the chain: daemon, servers, probe, collector, Prometheus, controller."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import dashboards
from benchmarks import models
from flexnpu.cli.demo.plan import Plan, ServerPlan
from flexnpu.cli.demo.processes import DemoError, Supervisor, free_port
from flexnpu.control import paths
from flexnpu.control.client import ControlClient, ControlError
from flexnpu.control.messages import DaemonStatus

DEVICE = 0

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


def system_program(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise DemoError(f"no program {name}: apt-get install {package}, or make setup")
    return found


def alert_rules() -> list[Path]:
    """The alert rules that are shipped."""
    return sorted((Path(dashboards.__file__).parent / "alerts").glob("*.y*ml"))


@dataclass
class Server:
    """A running `transformers serve`."""

    plan: ServerPlan
    model_dir: Path
    url: str
    pid: int


class Chain:
    """Starts each part and waits until it works; ``directory`` holds sockets, logs and Prometheus' data."""

    def __init__(self, plan: Plan, directory: Path, supervisor: Supervisor) -> None:
        self.plan = plan
        self.directory = directory
        self.run_dir = directory / "run"
        self.run_dir.mkdir(mode=0o700)
        self.supervisor = supervisor
        self.servers: dict[str, Server] = {}
        self.collector_port = 0
        self.prometheus_port = 0
        self._environment = {paths.ENV_RUN_DIR: str(self.run_dir)}
        self._control = ControlClient(paths.control_socket(DEVICE, self.run_dir))

    @property
    def feed(self) -> Path:
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
        self.supervisor.start(
            "flexnpud",
            [
                own_program("flexnpud"),
                *("--device", str(DEVICE), "--emulated", "--profile", self.plan.profile),
                *("--mode", "compute", "--run-dir", str(self.run_dir)),
            ],
            # An emulated machine of its own: no other program on this one uses the same device.
            {"FLEXNPU_EMU_MACHINE": self.directory.name},
        )
        return self.supervisor.wait_until("flexnpud answers", lambda: self.status() is not None, 30)

    def start_servers(self) -> float:
        """Both at once: most of it is Python's imports."""
        command = [own_program("flexnpu"), "run", "--device", str(DEVICE), "--"]
        for plan in self.plan.servers:
            directory = models.ensure(plan.model)
            port = free_port()
            serve = [own_program("transformers"), "serve", str(directory), "--device", "npu:0"]
            serve += ["--host", "127.0.0.1", "--port", str(port)]
            child = self.supervisor.start(
                plan.name, [*command, *serve], {**self._environment, **SERVER_ENVIRONMENT}
            )
            self.servers[plan.name] = Server(plan, directory, f"http://127.0.0.1:{port}", child.pid)

        def ready() -> bool:
            return all(_answers(f"{server.url}/health") for server in self.servers.values())

        return self.supervisor.wait_until("both servers answer", ready, 120)

    def start_probe(self) -> float:
        command = [own_program("flexnpu-probe"), "attach"]
        for server in self.servers.values():
            command += ["--pid", str(server.pid)]
        child = self.supervisor.start(
            "flexnpu-probe",
            [*command, "--feed", "--feed-socket", str(self.feed), "--quiet"],
            self._environment,
        )

        def publishing() -> bool:
            return "publishing on" in child.tail()

        return self.supervisor.wait_until("the probe publishes its feed", publishing, 60)

    def start_collector(self) -> float:
        self.collector_port = free_port()
        self.supervisor.start(
            "flexnpu-collector",
            [
                own_program("flexnpu-collector"),
                *("--feed", str(self.feed), "--ctl", str(self._control.path)),
                *("--listen", f"127.0.0.1:{self.collector_port}"),
            ],
            self._environment,
        )
        url = f"http://127.0.0.1:{self.collector_port}/metrics"
        return self.supervisor.wait_until("the collector answers", lambda: _answers(url), 30)

    def start_prometheus(self) -> float:
        """A Prometheus of the demo's own: its port, its data and its end are the demo's."""
        self.prometheus_port = free_port()
        config = self.directory / "prometheus.yml"
        config.write_text(
            json.dumps(
                {
                    "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                    "rule_files": [str(path) for path in alert_rules()],
                    "scrape_configs": [
                        {
                            "job_name": "flexnpu",
                            "static_configs": [{"targets": [f"127.0.0.1:{self.collector_port}"]}],
                        }
                    ],
                }
            ),
            encoding="utf-8",
        )
        self.supervisor.start(
            "prometheus",
            [
                system_program("prometheus", "prometheus"),
                f"--config.file={config}",
                f"--storage.tsdb.path={self.directory / 'prometheus'}",
                f"--web.listen-address=127.0.0.1:{self.prometheus_port}",
            ],
        )
        url = f"http://127.0.0.1:{self.prometheus_port}/-/ready"
        return self.supervisor.wait_until("Prometheus is ready", lambda: _answers(url), 30)

    def start_controller(self) -> float:
        self.supervisor.start(
            "flexnpu-controller",
            [
                own_program("flexnpu-controller"),
                *("--feed", str(self.feed), "--ctl", str(self._control.path)),
                *("--policy", "protect-decode", "--window-us", str(self.plan.window_us)),
            ],
            self._environment,
        )

        def gated() -> bool:
            status = self.status()
            return status is not None and status.gate.policy == "protect-decode"

        return self.supervisor.wait_until("the controller sets the gate", gated, 30)

    def stop_controller(self) -> None:
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


def require_root() -> None:
    """Say what the demo needs before anything is started."""
    if os.geteuid() != 0:
        raise DemoError("the probes load BPF programs, which needs root: type  sudo make demo")


def now_ns() -> int:
    return time.monotonic_ns()
