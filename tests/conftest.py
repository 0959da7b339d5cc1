"""Rules for the whole suite: what may be skipped, what runs beside what, what may be left behind (nothing).

With pytest-xdist (`make test`) the tests of one group run one after another in one worker, and groups beside
each other. A group is what may share something: a file, or all that looks at the whole machine (`tracing`).
"""

from __future__ import annotations

import os
import re
import tempfile
import time
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from flexnpu.cli import leftovers
from flexnpu.control import paths as control_paths

_TESTS = Path(__file__).parent
_RUN_DIRS = tuple(control_paths.search_dirs())
_BEFORE = pytest.StashKey[dict[str, list[str]]]()
_LEFT = pytest.StashKey[list[str]]()
_CRASHED = pytest.StashKey[list[str]]()
_TAG = pytest.StashKey[str]()

# What a machine on which everything is required may still lack: skips that say so are skips there too.
_MAY_LACK = re.compile(
    r"this kernel|control groups|uprobe_multi|cross compiler|x86-64|systemd-analyze|unshare|the test before"
    r"|node is not installed"
)
# Of gigabytes, made by `make vllm`: no machine must have it.
_OPTIONAL = re.compile(r"no vLLM")
# Tests of these run programs on an emulated device, or trace programs.
_MACHINE = ("clients/", "emulator/", "chaos/", "test_native.py")
_MACHINE_FIXTURES = {"daemon", "driver", "mock_driver", "tracing"}


def _required() -> bool:
    return any(os.environ.get(name) for name in ("CI", "FLEXNPU_REQUIRE_EBPF"))


# --- workers ---


def _worker(config: pytest.Config) -> str | None:
    """The name of this xdist worker; None in the process that was started by hand."""
    workerinput: dict[str, Any] | None = getattr(config, "workerinput", None)
    return None if workerinput is None else str(workerinput["workerid"])


def _group(item: pytest.Item) -> str | None:
    """Tests of one group never run beside each other. None: beside everything, its own file included."""
    file = item.path.relative_to(_TESTS).as_posix()
    if item.get_closest_marker("ebpf") or item.get_closest_marker("e2e") or file.startswith("probes/"):
        return "tracing"  # uprobes in files that all programs share, processes of the whole machine
    return None if file == "test_native.py" else file


def _is_unit(item: pytest.Item) -> bool:
    """Whether a test needs neither root, torch, a device nor long: those of `make check`."""
    file = item.path.relative_to(_TESTS).as_posix()
    if any(item.get_closest_marker(name) for name in ("ebpf", "e2e", "torch_npu", "slow")):
        return False
    return not file.startswith(_MACHINE) and not _MACHINE_FIXTURES & set(getattr(item, "fixturenames", ()))


@pytest.hookimpl(tryfirst=True)  # before marks are read, by -m and by xdist
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if _is_unit(item):
            item.add_marker(pytest.mark.unit)
    if _worker(config) is None:
        return
    for item in items:
        if group := _group(item):
            item.add_marker(pytest.mark.xdist_group(group))
    # What takes longest begins first, so that the workers end together.
    items.sort(
        key=lambda item: 0 if _group(item) == "tracing" else 1 if item.get_closest_marker("torch_npu") else 2
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """pytest-xdist knows groups by what it appends to names. Without that they run beside each other."""
    if _worker(session.config) is None:
        return
    for item in session.items:
        if (group := _group(item)) and not item.nodeid.endswith(f"@{group}"):
            raise pytest.UsageError(
                f"{item.nodeid} is not in its group {group}: pytest and pytest-xdist disagree"
            )


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["flexnpu_tag"] = node.config.stash[_TAG]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    if error:
        node.config.stash[_CRASHED].append(f"{node.gateway.id}: {error}")


# --- what may be skipped ---


def _fail_skip(report: Any, marked: bool) -> None:
    """Turns a skip into a failure where what it lacks is required."""
    reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
    if _required() and not _OPTIONAL.search(reason) and (marked or not _MAY_LACK.search(reason)):
        report.outcome = "failed"
        report.longrepr = f"required here (CI or FLEXNPU_REQUIRE_EBPF), yet skipped: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, pytest.TestReport]:
    """Where all is required, a skipped eBPF test is a failure; so is one that lacks a program or a module."""
    report: pytest.TestReport = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        _fail_skip(report, item.get_closest_marker("ebpf") is not None)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, pytest.CollectReport]:
    """The same for a whole file, which `pytest.importorskip` skips."""
    report: pytest.CollectReport = yield
    if report.skipped:
        _fail_skip(report, False)
    return report


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("ebpf") and os.geteuid() != 0:
        pytest.skip("needs root for eBPF: sudo make test")


# --- folders ---


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that every user may look into. pytest's own may be entered by its user only."""
    with tempfile.TemporaryDirectory(prefix="flexnpu-test-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


# --- what is left behind ---


def pytest_sessionstart(session: pytest.Session) -> None:
    config = session.config
    worker = _worker(config)
    if worker is None:
        config.stash[_TAG] = uuid.uuid4().hex
        config.stash[_CRASHED] = []
        config.stash[_BEFORE] = leftovers.survey(None, _RUN_DIRS)
    else:
        config.stash[_TAG] = config.workerinput["flexnpu_tag"]  # type: ignore[attr-defined]
    # xdist's workers are no leftovers: who starts them bears no tag, and they take it when they have started.
    if not config.pluginmanager.hasplugin("dsession"):
        os.environ[leftovers.TAG_VARIABLE] = config.stash[_TAG]
    # An emulated machine of this process's own: another run beside it must not share its devices.
    machine = f"test-{config.stash[_TAG][:8]}" + (f"-{worker}" if worker else "")
    os.environ.setdefault("FLEXNPU_EMU_MACHINE", machine)


@pytest.hookimpl(trylast=True)  # when xdist has ended its workers
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that left shared memory, sockets, processes or probes behind, or that lost a worker."""
    config = session.config
    if _worker(config) is not None:
        return
    before = config.stash[_BEFORE]
    deadline = time.monotonic() + 30.0
    while True:
        after = leftovers.survey(config.stash[_TAG], _RUN_DIRS)
        # What lay there before the run is not the run's.
        new = {kind: [entry for entry in found if entry not in before[kind]] for kind, found in after.items()}
        if not any(new.values()) or time.monotonic() > deadline:
            break
        time.sleep(0.25)
    config.stash[_LEFT] = [f"{kind}: {entry}" for kind, found in new.items() for entry in found]
    if (config.stash[_LEFT] or config.stash[_CRASHED]) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for title, lines in (
        ("left behind by the run", config.stash.get(_LEFT, [])),
        ("workers lost", config.stash.get(_CRASHED, [])),
    ):
        if lines:
            terminalreporter.section(title, sep="=", red=True)
            for line in lines:
                terminalreporter.line(line)
