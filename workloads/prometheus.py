"""A real Prometheus for a while: the demo's and the tests'."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from dashboards.promql import duration
from flexnpu.common.ports import free_port

_START_S: Final = 30.0


class PrometheusError(RuntimeError):
    """Prometheus is missing, did not start, or refused a query; the message says which."""


def query_api(url: str, path: str, parameters: Mapping[str, str], timeout_s: float = 10.0) -> Any:
    """The ``data`` of a Prometheus API reply. Raises `PrometheusError`."""
    full = f"{url.rstrip('/')}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    try:
        with urllib.request.urlopen(full, timeout=timeout_s) as reply:
            answer = json.load(reply)
    except urllib.error.HTTPError as error:
        try:
            said = json.load(error).get("error", error.reason)
        except ValueError:
            said = error.reason
        raise PrometheusError(f"{path}: {said}") from None
    except (OSError, ValueError) as error:
        raise PrometheusError(f"{url} does not answer: {error}") from None
    return answer["data"]


class PrometheusServer:
    """Runs Debian's ``prometheus`` on a free loopback port, with its data in a temporary folder.

        with PrometheusServer({"flexnpu": ["127.0.0.1:9464"]}, rules=alerts.rules()) as prometheus:
            prometheus.query("up")

    `targets`: HOST:PORT lists by job. `rules`: the content of a rule file. Ends its own process, by its id,
    and removes the folder. Raises `PrometheusError` when the program is missing or does not start."""

    def __init__(
        self,
        targets: Mapping[str, Sequence[str]],
        *,
        rules: Mapping[str, Any] | None = None,
        scrape_interval_s: float = 1.0,
        program: str = "prometheus",
    ) -> None:
        self._targets = targets
        self._rules = rules
        self._interval = duration(scrape_interval_s)
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self.url = ""

    def __enter__(self) -> Self:
        program = shutil.which(self._program)
        if program is None:
            raise PrometheusError(f"{self._program} is missing. Type: apt-get install prometheus")
        self._folder = tempfile.TemporaryDirectory(prefix="flexnpu-prometheus-")
        try:
            self._start(program, Path(self._folder.name))
        except BaseException:
            self.close()
            raise
        return self

    def _start(self, program: str, folder: Path) -> None:
        config: dict[str, Any] = {
            "global": {
                "scrape_interval": self._interval,
                "scrape_timeout": self._interval,
                "evaluation_interval": self._interval,
            },
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": list(targets)}]}
                for job, targets in self._targets.items()
            ],
        }
        # JSON is YAML.
        if self._rules is not None:
            (folder / "rules.yml").write_text(json.dumps(self._rules))
            config["rule_files"] = ["rules.yml"]
        (folder / "prometheus.yml").write_text(json.dumps(config))
        # Should this process be killed, Prometheus ends too.
        tied = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
        log = folder / "log"
        for _ in range(3):
            port = free_port()
            self.url = f"http://127.0.0.1:{port}"
            with log.open("wb") as output:
                self._process = subprocess.Popen(
                    [
                        *tied,
                        program,
                        f"--config.file={folder / 'prometheus.yml'}",
                        f"--storage.tsdb.path={folder / 'data'}",
                        f"--web.listen-address=127.0.0.1:{port}",
                        "--log.level=warn",
                    ],
                    stdout=output,
                    stderr=output,
                    stdin=subprocess.DEVNULL,
                )
            if self._ready():
                return
            if self._process.poll() is None or b"address already in use" not in log.read_bytes():
                break
        raise PrometheusError(f"{program} did not start:\n{log.read_text(errors='replace')[-2000:]}")

    def _ready(self) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2):
                    return True
            except OSError:
                time.sleep(0.1)
        return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The result of an instant query, now."""
        found: list[dict[str, Any]] = query_api(self.url, "query", {"query": expression})["result"]
        return found

    def value(self, expression: str) -> float | None:
        """The single value of an instant query; None when there is none, or several."""
        result = self.query(expression)
        return float(result[0]["value"][1]) if len(result) == 1 else None

    def firing(self, alert: str) -> list[dict[str, str]]:
        """The labels of each firing instance of an alert."""
        return [
            found["labels"]
            for found in query_api(self.url, "alerts", {})["alerts"]
            if found["state"] == "firing" and found["labels"]["alertname"] == alert
        ]

    def close(self) -> None:
        """End it and delete its data."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(15)
        self._process = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
