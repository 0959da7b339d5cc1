"""The venv that `make vllm` makes is found if it is finished and of this checkout's versions."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from workloads import vllm_ascend

pytestmark = pytest.mark.unit

REQUIREMENTS = Path(__file__).resolve().parents[2] / "packaging" / "vllm" / "requirements.txt"


@pytest.mark.parametrize("stamp", [None, "", "of other versions"])
def test_a_venv_that_is_not_finished_or_of_other_versions_is_none(
    stamp: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEXNPU_VLLM_HOME", str(tmp_path))
    (tmp_path / "venv").mkdir()
    if stamp is not None:
        (tmp_path / "venv" / ".flexnpu").write_text(stamp)
    why = f"{'no finished venv' if stamp is None else 'other versions'} in {tmp_path}/venv: make vllm"
    with pytest.raises(vllm_ascend.VllmError, match=f"^{why}$"):
        vllm_ascend.find()


def test_a_finished_venv_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXNPU_VLLM_HOME", str(tmp_path))
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / ".flexnpu").write_text(hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest())
    assert vllm_ascend.find() == tmp_path / "venv"
