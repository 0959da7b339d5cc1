"""The programs of this room take numbers by the console's one rule, and say what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("wrong", ["nan", "inf", "-1", "1e400", "", "fast"])
@pytest.mark.parametrize("option", ["--rate", "--duration", "--prompt-scale", "--output-scale", "--skip"])
def test_a_replay_refuses_what_is_no_number_of_its_range(option: str, wrong: str, tmp_path: Path) -> None:
    _refused("workloads.replay", "http://127.0.0.1:9", "--model-dir", str(tmp_path), option, wrong)


@pytest.mark.parametrize("wrong", ["nan", "-8", "0", "1.5", "12"])
def test_a_model_of_no_possible_size_is_refused(wrong: str, tmp_path: Path) -> None:
    _refused("workloads.models", "llama", "--cache", str(tmp_path), "--hidden", wrong)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [None, "", "{}"])
def test_a_replay_says_that_a_folder_has_no_tokenizer(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    done = subprocess.run(
        [sys.executable, "-m", "workloads.replay", "http://127.0.0.1:9", "--model-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{tmp_path}/tokenizer.json" in done.stderr
    assert "--model-dir" in done.stderr
    assert "Traceback" not in done.stderr


def _refused(module: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert arguments[-2] in done.stderr
    assert "Traceback" not in done.stderr
