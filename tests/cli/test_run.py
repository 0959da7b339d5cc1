"""What `flexnpu run` says of its libraries before the program starts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from flexnpu.cli import run as cli
from flexnpu.client import environment

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("folder", "there", "remedy"),
    [
        ("plain", True, None),
        ("plain", False, "make build"),
        ("with space", True, "elsewhere"),
        ("with:colon", True, "elsewhere"),
    ],
)
def test_a_guard_that_is_left_out_is_said(
    folder: str, there: bool, remedy: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / folder
    (home / "lib").mkdir(parents=True)
    (home / "lib" / "libascendcl.so").touch()
    guard = home / "lib" / "libflexnpu_guard.so"
    if there:
        guard.touch()
    started: list[Any] = []
    for module in (cli, environment):
        monkeypatch.setattr(module, "CLIENT_HOME", home)
    monkeypatch.setattr(environment, "GUARD", guard)
    monkeypatch.setattr(cli, "find_daemon", lambda device: home / "npu0.sock")
    monkeypatch.setattr(os, "execve", lambda *arguments: started.append(arguments))
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    done = CliRunner().invoke(cli.run, ["true"])
    assert done.exit_code == 0, done.output
    ((_, _, told),) = started
    assert told.get("LD_PRELOAD") == (str(guard) if remedy is None else None)
    if remedy is None:
        assert done.stderr == ""
    else:
        assert str(guard) in done.stderr
        assert remedy in done.stderr
