"""Rules for the whole suite: what may be skipped, and that a run leaves nothing behind."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Generator
from typing import Any

import pytest

from flexnpu.cli import leftovers
from flexnpu.control import paths as control_paths

_TAG = uuid.uuid4().hex
_RUN_DIRS = tuple(control_paths.search_dirs())


def _ebpf_required() -> bool:
    return any(os.environ.get(name) for name in ("CI", "FLEXNPU_REQUIRE_EBPF"))


def pytest_sessionstart(session: pytest.Session) -> None:
    os.environ[leftovers.TAG_VARIABLE] = _TAG
    # An emulated machine of this run's own: another run beside it must not share its devices.
    os.environ.setdefault("FLEXNPU_EMU_MACHINE", f"test-{_TAG[:8]}")
    session.config.stash[_BEFORE] = leftovers.survey(None, _RUN_DIRS)


_BEFORE = pytest.StashKey[dict[str, list[str]]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, pytest.TestReport]:
    """A skipped eBPF test is a failure where eBPF must work."""
    report: pytest.TestReport = yield
    expected = hasattr(report, "wasxfail")
    if report.skipped and not expected and _ebpf_required() and item.get_closest_marker("ebpf"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = (
            f"eBPF is required here (CI or FLEXNPU_REQUIRE_EBPF), yet the test was skipped: {reason}"
        )
    return report


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("ebpf") and os.geteuid() != 0:
        pytest.skip("needs root for eBPF: sudo make test")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that left shared memory, sockets, processes or probes behind."""
    before = session.config.stash[_BEFORE]
    deadline = time.monotonic() + 5.0
    while True:
        after = leftovers.survey(_TAG, _RUN_DIRS)
        # What lay there before the run is not the run's.
        new = {kind: [entry for entry in found if entry not in before[kind]] for kind, found in after.items()}
        if not any(new.values()) or time.monotonic() > deadline:
            break
        time.sleep(0.25)
    session.config.stash[_LEFT] = [f"{kind}: {entry}" for kind, found in new.items() for entry in found]
    if session.config.stash[_LEFT] and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


_LEFT = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    left = config.stash.get(_LEFT, [])
    if left:
        terminalreporter.section("left behind by the run", sep="=", red=True)
        for line in left:
            terminalreporter.line(line)
