"""A collector run for tests: its own process between a scripted feed and a scripted daemon."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric as MetricProto
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from flexnpu.control.messages import Reply, Request
from flexnpu.daemon.control_server import ControlServer
from flexnpu.daemon.gate_lease import Requester


@contextlib.contextmanager
def daemon(path: Path, status: Callable[[], Reply]) -> Iterator[None]:
    """A control socket that answers with `status`."""

    def handle(request: Request, requester: Requester) -> Reply:
        return status()

    server = ControlServer(path, handle)
    server.open()
    thread = threading.Thread(target=server.run, args=(lambda: None,))
    thread.start()
    try:
        yield
    finally:
        server.stop()
        thread.join(10)
        server.close()
        path.unlink(missing_ok=True)


@dataclass
class Collector:
    process: subprocess.Popen[str]
    url: str

    @property
    def target(self) -> str:
        """HOST:PORT, for a scrape configuration."""
        return self.url.split("/")[2]

    def scrape(self) -> str:
        with urllib.request.urlopen(self.url, timeout=60) as reply:
            return str(reply.read().decode())

    def wait_for(self, text: str, seconds: float = 60) -> str:
        """The first scrape with `text` in it."""
        deadline = time.monotonic() + seconds
        while True:
            scrape = self.scrape()
            if text in scrape:
                return scrape
            assert time.monotonic() < deadline, f"no {text!r} in\n{scrape}"
            time.sleep(0.1)

    def stop(self) -> tuple[int, str]:
        """Exit status and standard error after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        _, stderr = self.process.communicate(timeout=120)
        return self.process.returncode, stderr


@contextlib.contextmanager
def collector(*arguments: str) -> Iterator[Collector]:
    command = [sys.executable, "-m", "collectors.cli", "--listen", "127.0.0.1:0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://"), process.communicate(timeout=120)
        yield Collector(process, url)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate(timeout=120)


@dataclass
class OtlpReceiver:
    """What arrived over OTLP/HTTP, decoded."""

    endpoint: str = ""
    metrics: dict[str, MetricProto] = field(default_factory=dict)
    """The latest export of each metric."""
    spans: list[Span] = field(default_factory=list)


@contextlib.contextmanager
def otlp_receiver() -> Iterator[OtlpReceiver]:
    got = OtlpReceiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/metrics":
                exported = ExportMetricsServiceRequest.FromString(body)
                for resource in exported.resource_metrics:
                    for scope in resource.scope_metrics:
                        got.metrics |= {metric.name: metric for metric in scope.metrics}
            elif self.path == "/v1/traces":
                traces = ExportTraceServiceRequest.FromString(body)
                for spans in traces.resource_spans:
                    for of in spans.scope_spans:
                        got.spans += of.spans
            self.send_response(200 if self.path.startswith("/v1/") else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    got.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield got
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
