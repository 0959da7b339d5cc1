"""Output that fails: an error that names it and an exit status, never a traceback, never half a file."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexnpu.console.output import OutputError, whole_file
from tests.console.programs import BIN, PROGRAMS
from tests.console.test_escapes import Answering, nasty_status

FULL = Path("/dev/full")


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    run_dir = tmp_path / "run"
    answering = Answering(run_dir / "npu0.ctl", nasty_status())
    yield run_dir
    answering.end()


PRINTING = [
    *(f"{name} --help" for name in PROGRAMS),
    *(f"{name} --version" for name in ("flexnpu", "flexnpud", "flexnpu-probe", "flexnpu-controller")),
    "flexnpu status",
    "flexnpu status --json",
    "flexnpu top --once --interval 0.1",
    "flexnpu top --json --interval 0.1",
    "flexnpu coverage --client ggml-cann",
    "flexnpu coverage --client ggml-cann --json",
    "flexnpu bench --help",
    "flexnpu-probe attach --help",
    "flexnpu-probe replay RECORDING",
    "flexnpu-probe replay RECORDING --speed 1000",
    "flexnpu-probe hist --from RECORDING",
    "flexnpu-probe hist --from RECORDING --json",
    "flexnpu-probe doctor --no-self-test",
    "flexnpu-probe doctor --no-self-test --json",
    "flexnpu-collector --listen 127.0.0.1:0",
]


@pytest.fixture(params=PRINTING)
def command(request: pytest.FixtureRequest, recording: Path, run_dir: Path) -> list[str]:
    name, *words = (str(recording) if word == "RECORDING" else word for word in request.param.split())
    return ["env", f"FLEXNPU_RUN_DIR={run_dir}", str(BIN / name), *words]


def test_a_full_disk(command: list[str]) -> None:
    with FULL.open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    name = Path(command[2]).name
    assert done.stderr == f"{name}: cannot write standard output: No space left on device\n"
    assert done.returncode == 1


def test_a_closed_output(command: list[str]) -> None:
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *command], stderr=subprocess.PIPE, text=True, timeout=60
    )
    assert done.stderr == f"{Path(command[2]).name}: cannot write standard output: it is closed\n"
    assert done.returncode == 1


def test_a_reader_that_went_away(command: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_log_that_cannot_be_written_ends_nothing(run_dir: Path) -> None:
    command = [str(BIN / "flexnpu-collector"), "--listen", "127.0.0.1:0", "--duration", "1"]
    with FULL.open("w") as full:
        done = subprocess.run(
            command,
            env=os.environ | {"FLEXNPU_RUN_DIR": str(run_dir)},
            stdout=subprocess.PIPE,
            stderr=full,
            timeout=60,
        )
    assert done.returncode == 0
    assert done.stdout.startswith(b"http://127.0.0.1:")


def test_a_controller_goes_on_and_ends_with_an_error(run_dir: Path) -> None:
    with FULL.open("w") as full:
        child = subprocess.Popen(
            [str(BIN / "flexnpu-controller")],
            env=os.environ | {"FLEXNPU_RUN_DIR": str(run_dir)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stderr is not None
        told = ""
        while "goes on without it" not in told:
            line = child.stderr.readline()
            assert line, told
            told += line
        assert child.poll() is None, "decode is protected all the same"
        child.terminate()
        child.communicate(timeout=60)
    assert "flexnpu-controller: cannot write standard output: No space left on device; " in told
    assert child.returncode == 1


@pytest.mark.parametrize("output", [FULL, Path("/proc/nowhere/out.json"), Path("/")])
def test_an_export_that_cannot_be_written(recording: Path, output: Path) -> None:
    command = [str(BIN / "flexnpu-probe"), "export", str(recording), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode in (1, 2)
    assert str(output) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_damaged_recording_replaces_no_export(recording: Path, tmp_path: Path) -> None:
    output = tmp_path / "run.json"
    output.write_text("before")
    recording.write_bytes(b"no recording")
    command = [str(BIN / "flexnpu-probe"), "export", str(recording), "-o", str(output)]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 1
    assert output.read_text() == "before"
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", recording.name}


def test_a_whole_file_is_there_at_once_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with whole_file(path) as file:
        file.write("first")
        assert not path.exists()
    assert path.read_text() == "first"
    path.chmod(0o640)
    with pytest.raises(RuntimeError), whole_file(path) as file:  # noqa: PT012
        file.write("second")
        file.flush()
        raise RuntimeError
    assert path.read_text() == "first"
    link = tmp_path / "link.json"
    link.symlink_to(path)
    with whole_file(link) as file:
        file.write("third")
    assert link.is_symlink()
    assert path.read_text() == "third"
    assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link.json", "report.json"]


def test_a_whole_file_on_a_full_disk_names_itself() -> None:
    with pytest.raises(OutputError, match="cannot write /dev/full: No space left"), whole_file(FULL) as file:
        file.write("x" * 100_000)
