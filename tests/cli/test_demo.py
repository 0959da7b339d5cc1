"""The demo as a newcomer runs it, only shorter: the whole chain on real servers, probes and Prometheus.

How much the gate gains is not judged here: on a busy machine that would be a test of the machine. The demo
itself judges it. So the chip's speed is given: the host is measured, but decides nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from flexnpu.cli.demo import command
from flexnpu.cli.demo.command import demo
from flexnpu.cli.demo.host import TooSlowError

#: On a busy host the chain alone may take minutes.
pytestmark = pytest.mark.timeout(900)

TIMED = {
    "the gate protects decode",
    "the device stays busy",
    "the wire's TTFT is the client's",  # the client waits for a core before it reads its clock
    "the TTFT alert fires under the flood and resolves",
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("demo") / "report.json"
    command = [str(Path(sys.executable).with_name("flexnpu")), "demo"]
    done = subprocess.run(
        [*command, "--phase-s", "25", "--slowdown", "1", "--report", str(path)],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert path.exists(), done.stdout[-4000:] + done.stderr[-4000:]
    content: dict[str, Any] = json.loads(path.read_text())
    assert (done.returncode == 0) == content["passed"]
    print(done.stdout[-6000:])
    return content


@pytest.mark.e2e
@pytest.mark.ebpf
@pytest.mark.torch_npu
def test_every_link_of_the_chain_holds(report: dict[str, Any]) -> None:
    failed = {check["name"]: check["detail"] for check in report["checks"] if not check["passed"]}
    assert set(failed) <= TIMED, failed
    assert len(report["checks"]) >= 11


@pytest.mark.e2e
@pytest.mark.ebpf
@pytest.mark.torch_npu
def test_phases_are_told_apart(report: dict[str, Any]) -> None:
    accuracy = report["accuracy"]
    assert accuracy["steps"] >= 500
    assert accuracy["phase_accuracy"] >= 0.99
    assert {"chat", "flood"} <= set(accuracy["servers"])


@pytest.mark.e2e
@pytest.mark.ebpf
@pytest.mark.torch_npu
def test_the_report_says_what_ran(report: dict[str, Any]) -> None:
    assert set(report["phases"]) == {"alone", "transparent", "protect-decode"}
    assert report["versions"]["torch-npu"] == "2.13.0"
    for phase in report["phases"].values():
        assert phase["servers"]["chat"]["decode_step_ms"]["steps"] > 0
        assert phase["device_busy"] > 0
    speed = report["speed"]
    assert speed["factor"] == report["plan"]["slowdown"] == 1.0
    assert all(value > 0 for part in ("host_ms", "device_ms", "wanted") for value in speed[part].values())
    for times in report["profile"]["operator_us"].values():
        assert all(value > 0 for value in times.values())


def test_a_host_that_is_too_slow_has_an_exit_status_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def measured(*_: object) -> int:
        raise TooSlowError("for a decode step the modelled chip would have to be 40.0 times slower")

    monkeypatch.setattr(command, "run", measured)
    result = CliRunner().invoke(demo, ["--report", str(tmp_path / "report.json")])
    assert result.exit_code == 3
    assert "too slow or too busy" in result.output
    assert "40.0 times slower" in result.output
    assert "--phase-s 100" in result.output
    assert not (tmp_path / "report.json").exists()


def test_without_root_it_says_what_to_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result = CliRunner().invoke(demo, ["--report", str(tmp_path / "report.json")])
    assert result.exit_code == 2
    assert "sudo make demo" in result.output
    assert not (tmp_path / "report.json").exists()
