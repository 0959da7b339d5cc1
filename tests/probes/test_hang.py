"""From a server that hangs to its burned budget: tracer and collector as processes, by the service's name."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.collectors.stand import Collector, collector

SERVER = Path(__file__).parent / "programs" / "labelled_server.py"
BODY = json.dumps({"messages": [{"content": "hello"}], "stream": True})
REQUEST = f"POST /1/0 HTTP/1.1\r\nContent-Length: {len(BODY)}\r\n\r\n{BODY}".encode()
WHO = 'service="chat"'


def until(run: Collector, condition: Callable[[list[str]], bool], what: str) -> list[str]:
    deadline = time.monotonic() + 60
    while not condition(lines := run.scrape().splitlines()):
        shown = [line for line in lines if "slo" in line or "process_" in line or "in_flight" in line]
        assert time.monotonic() < deadline, (what, shown)
        time.sleep(0.1)
    return lines


@pytest.mark.ebpf
def test_a_server_that_hangs_burns_its_services_budget(mock_driver: Path, tmp_path: Path) -> None:
    feed = tmp_path / "probe.sock"
    server = subprocess.Popen(
        [sys.executable, str(SERVER), str(mock_driver.parent)],
        env=os.environ | {"OTEL_SERVICE_NAME": "chat"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    port, engine = map(int, server.stdout.readline().split())
    command = [sys.executable, "-m", "probes.cli", "attach", "--feed-socket", str(feed), "--wire", "--quiet"]
    probe = subprocess.Popen([*command, "--pid", str(engine), "--interval", "60"])
    try:
        with collector("--feed", str(feed), "--ctl", str(tmp_path / "x.ctl"), "--ttft-slo", "2") as run:
            total = f"flexnpu_ttft_slo_requests_total{{{WHO}}}"
            until(run, lambda lines: f"{total} 0.0" in lines, "no series at 0 before any traffic")
            pids = {f'pid="{pid}"' for pid in (engine, server.pid)}
            until(
                run,
                lambda lines: (
                    pids <= {pid for pid in pids for line in lines if "_info" in line and pid in line}
                ),
                "engine and server are told of",
            )
            os.kill(engine, signal.SIGSTOP)
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(REQUEST)
                running = f'flexnpu_requests_in_flight{{pid="{server.pid}",{WHO}}} 1.0'
                until(run, lambda lines: running in lines, "in flight")
                lines = until(run, lambda lines: f"{total} 1.0" in lines, "counted while it hangs")
                assert f"flexnpu_ttft_slo_good_requests_total{{{WHO}}} 0.0" in lines
                assert f'flexnpu_ttft_slo_bad_requests_total{{reason="waiting",{WHO}}} 1.0' in lines
                os.kill(engine, signal.SIGCONT)
                seen = b""
                client.settimeout(60)
                while not seen.endswith(b"0\r\n\r\n"):
                    seen += client.recv(65536)
            ended = until(
                run,
                lambda lines: any(
                    "requests_total" in line and 'code="200"' in line and line.endswith(" 1.0")
                    for line in lines
                ),
                "the request's end",
            )
            # Once: its late end adds nothing.
            assert f"{total} 1.0" in ended
            # The tracer is not taken for dead although its interval is a minute.
            (silence,) = [line for line in ended if line.startswith("flexnpu_tracer_silence_seconds")]
            assert float(silence.split()[1]) < 30
    finally:
        os.kill(engine, signal.SIGCONT)
        probe.send_signal(signal.SIGINT)
        probe.wait(60)
        server.kill()
        server.communicate()
