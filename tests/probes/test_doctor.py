"""`flexnpu-probe doctor` and `list`: what they say where tracing works, and where it does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mockset
import nobody
import pytest
from click.testing import CliRunner

from probes.cli import main
from probes.feed.events import Step
from probes.host import inventory
from probes.placing import capabilities, loader
from probes.placing.groups import Placed
from probes.placing.plan import SITES
from probes.placing.symbols import _scan
from probes.selftest import doctor
from probes.selftest.doctor import Status
from probes.selftest.program import LIBRARIES
from probes.selftest.run import _decoded, _fired, available
from tests.collectors import scripted

ebpf = pytest.mark.ebpf

needs_libraries = pytest.mark.skipif(not available(), reason="the native parts are not built")


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, list(arguments))
    return result.exit_code, result.stdout, result.stderr


@ebpf
@needs_libraries
@pytest.mark.usefixtures("each_loader")
def test_doctor_finds_that_tracing_works(driver: mockset.Driver) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    status, out, _ = run("doctor", "--json", "--pid", str(driver.pid))
    report = json.loads(out)
    wrong = [check for check in report["checks"] if check["status"] == "fail"]
    assert (status, report["ok"], wrong) == (0, True, [])
    groups = {check["group"] for check in report["checks"]}
    assert {"kernel", "rights", "software", f"process {driver.pid}"} <= groups
    proved = {check["name"] for check in report["checks"] if check["group"].startswith("self-test")}
    for site in SITES:
        # Objects are only watched where their layout cannot be learned.
        if site.role.value != "object":
            assert site.symbol in proved, site.symbol
    [process] = report["processes"]
    assert {entry["symbol"] for entry in process["entries"]} >= {"aclnnEmbedding", "aclrtMemcpy"}
    assert any("learned from libnnopbase.so" in check["detail"] for check in report["checks"])


def limited(*names: str) -> tuple[int, dict[str, Any]]:
    """`doctor --no-self-test` as nobody with the capabilities `names` alone."""
    done = nobody.python(["-m", "probes.cli", "doctor", "--json", "--no-self-test"], names)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_doctor_without_rights_names_what_is_missing_and_what_to_type() -> None:
    status, report = limited()
    assert status == 1
    failing = {check["name"]: check for check in report["checks"] if check["status"] == "fail"}
    assert {"load programs", "place probes", "read other processes"} <= set(failing)
    assert "CAP_BPF is missing" in failing["load programs"]["detail"]
    assert "sudo flexnpu-probe" in failing["load programs"]["remedy"]
    assert all(check["remedy"] for check in failing.values())


def test_doctor_with_the_rights_that_it_names() -> None:
    if not capabilities.uprobe_multi():
        pytest.skip("this kernel asks for CAP_SYS_ADMIN")
    status, report = limited("bpf", "perfmon", "sys_ptrace")
    assert (status, report["ok"]) == (0, True), report["checks"]
    cost = next(check["detail"] for check in report["checks"] if check["name"] == "place probes")
    assert " us emulated and " in cost
    assert "0.00 us" not in cost


@needs_libraries
def test_the_self_test_has_every_function_of_the_plan() -> None:
    names = tuple(sorted({name for site in SITES for name in (site.symbol, site.semaphore) if name}))
    defined = set()
    for library in LIBRARIES.glob("*.so"):
        identity = (0, library.stat().st_ino, 0, library.stat().st_mtime_ns)
        defined |= {entry[0] for entry in _scan(identity, str(library), names).found}
    assert defined == set(names)


def placed(symbol: str, *, on_return: bool = False) -> Placed:
    return Placed(symbol, "lib", 0, "nop", on_return)


@pytest.mark.parametrize(
    ("hits", "sums", "ok", "detail"),
    [
        (29, [7, 8, 9, 10], True, "29 of 29 calls, 2 arguments"),
        (29, [0, 0, 9, 10], True, "29 of 29 calls, 2 arguments"),  # two that nobody reads
        (28, [7, 8, 9, 10], False, "28 of 29 calls"),
        (58, [7, 8, 9, 10], False, "58 of 29 calls"),
        (29, [7, 8, 8, 10], False, "29 of 29 calls; argument 3 is another one by then"),
        (0, [0, 0, 0, 0], False, "0 of 29 calls"),
    ],
)
def test_a_probe_that_fires_wrongly_fails(hits: int, sums: list[int], ok: bool, detail: str) -> None:
    report = {"calls": {"aclnnEmbedding": 29}, "sums": {"aclnnEmbedding": [7, 8, 9, 10]}}
    [result] = _fired([(placed("aclnnEmbedding"), hits, sums)], report)
    assert (result.ok, result.detail) == (ok, detail)


def test_a_probe_that_nobody_calls_proves_nothing() -> None:
    [result] = _fired([(placed("aclrtMemcpy"), 0, [0] * 4)], {"calls": {}, "sums": {}})
    assert not result.ok


def step(**fields: Any) -> Step:
    return scripted.step(1, 2, **({"phase": "prefill", "tokens": 37, "launches": 14} | fields))


@pytest.mark.parametrize(
    ("steps", "losses", "wrong"),
    [
        ([step(), step()], {}, []),
        ([step()], {}, ["steps and their shapes"]),
        ([step(), step(), step()], {}, ["steps and their shapes"]),
        ([step(), step(tokens=38)], {}, ["steps and their shapes"]),
        ([step(), step(phase="decode")], {}, ["steps and their shapes"]),
        ([step(), step(launches=13)], {}, ["operators a step"]),
        ([step(), step()], {"steps_lost": 1, "steps_sent": 3}, ["nothing is lost"]),
        ([], {}, ["steps and their shapes", "operators a step"]),
    ],
)
def test_a_wrong_step_fails(steps: list[Step], losses: dict[str, int], wrong: list[str]) -> None:
    report = {"steps": {"prefill 37 1": 2}, "semaphores": []}
    results = list(_decoded("vendor", "detail", list(steps), report, losses))
    assert [result.what for result in results if not result.ok] == wrong


def test_list_shows_what_can_be_probed(driver: mockset.Driver) -> None:
    status, out, _ = run("list", "--pid", str(driver.pid), "--json")
    assert status == 0
    found = json.loads(out)
    assert (found["pid"], found["comm"], found["kind"]) == (driver.pid, "driver", "cann")
    entries = {entry["symbol"]: entry for entry in found["entries"]}
    assert entries["aclrtMemcpy"]["library"].endswith("/libacl_rt.so")
    assert entries["aclnnEmbeddingGetWorkspaceSize"]["on_return"] is True
    assert {entry["cost"] for entry in entries.values()} <= {"emulated", "single-step"}
    assert all(entry["reason"] for entry in entries.values())
    assert not any(entry["probed"] for entry in entries.values())
    assert set(found["missing"]).isdisjoint(entries)
    status, table, _ = run("list", "--pid", str(driver.pid))
    assert status == 0
    assert "aclnnEmbeddingGetWorkspaceSize+ret" in table
    assert "qword ptr [" in run("list", "--pid", str(driver.pid), "--why")[1]  # brackets are no markup


@ebpf
def test_list_shows_probes_that_are_there(driver: mockset.Driver, tracing: Any) -> None:
    def probed() -> dict[str, bool | None]:
        return {entry.symbol: entry.probed for entry in inventory.take(driver.pid).entries}

    run_ = tracing(driver.pid)
    there = {one.symbol for one in run_.target.placed}
    assert {name for name, is_probed in probed().items() if is_probed} == there
    run_.finish()
    assert not any(probed().values())


@pytest.fixture
def bystander() -> Iterator[int]:
    """A process that uses no NPU. (Other tests may have loaded AscendCL's mock into this one.)"""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


def test_list_of_a_process_without_ascendcl_fails_and_says_so(bystander: int) -> None:
    status, out, err = run("list", "--pid", str(bystander))
    assert status == 1
    assert "maps no AscendCL library" in err
    assert out == ""
    status, _, err = run("list", "--pid", "999999999")
    assert status == 1
    assert "no process 999999999" in err


@pytest.mark.parametrize("command", ["doctor", "list"])
def test_help_is_a_manual(command: str) -> None:
    status, out, _ = run(command, "--help")
    assert status == 0
    for part in ("EXAMPLES", "OVERHEAD", "EXIT STATUS", f"sudo flexnpu-probe {command}", "--json"):
        assert part in out


def test_bcc_and_headers_are_not_needed_where_the_object_serves(tmp_path: Path, monkeypatch: Any) -> None:
    if os.geteuid() != 0 or not loader.STEPS.object.is_file():
        pytest.skip("needs root, and the BPF objects")
    monkeypatch.setitem(sys.modules, "bcc", None)
    monkeypatch.setenv("BCC_KERNEL_SOURCE", str(tmp_path))
    checks = {check.name: check for check in doctor.software()}
    assert checks["BPF programs"].status is Status.OK
    assert "libbpf, from the compiled object" in checks["BPF programs"].detail
    assert checks["bcc"].status is checks["kernel headers"].status is Status.INFO
    monkeypatch.setenv(loader.ENVIRONMENT, "bcc")
    checks = {check.name: check for check in doctor.software()}
    assert checks["BPF programs"].status is checks["bcc"].status is Status.FAIL
    assert "apt-get install python3-bpfcc" in checks["BPF programs"].remedy + checks["BPF programs"].detail


def test_a_failing_check_has_a_remedy(bystander: int) -> None:
    """Of all that can be made to fail here without breaking the machine."""
    checks = [*doctor.kernel(), *doctor.software(), *doctor.process(bystander)[1]]
    assert any(check.status is Status.FAIL for check in checks)
    for check in checks:
        assert check.detail
        assert check.remedy or check.status in (Status.OK, Status.INFO), check
