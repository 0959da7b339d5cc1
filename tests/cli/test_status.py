"""What `flexnpu status` shows of a daemon, told by script."""

from __future__ import annotations

import pytest

from flexnpu.cli.status import show
from flexnpu.console.tables import Console
from tests.collectors import scripted


@pytest.mark.parametrize(
    ("connected", "said"), [(0, "no sessions"), (2, "no session has called yet (2 connected)")]
)
def test_who_is_connected_and_has_not_called_is_counted(
    connected: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = scripted.status()
    silent = [one.model_copy(update={"calls": 0, "memory_bytes": 0}) for one in status.sessions[:connected]]
    assert not any(one.used for one in silent)
    show(status.model_copy(update={"sessions": silent}), Console())
    assert capsys.readouterr().out.splitlines()[-1] == said
