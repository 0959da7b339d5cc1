"""What a session, a user and all together may have of the daemon."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import Any

import pytest


@pytest.mark.parametrize("daemon", [("--max-sessions-per-user", "2")], indirect=True)
def test_sessions_of_a_user(daemon: Any) -> None:
    holders = [daemon.start("holder.py") for _ in range(2)]
    try:
        for one in holders:
            assert one.stdout.readline().startswith("ready")
        third = subprocess.run(
            daemon.command("forker.py"), env=daemon.environment, capture_output=True, text=True, check=False
        )
        assert third.returncode != 0
        assert "507000" in third.stderr
        assert "has 2 sessions open" in third.stderr
        assert "--max-sessions-per-user" in third.stderr
        assert daemon.status().counters["limited_sessions"] == 1
    finally:
        for one in holders:
            one.send_signal(signal.SIGKILL)
            one.communicate()
    daemon.wait_for(lambda s: not s.sessions)
    one = daemon.start("holder.py")
    assert one.stdout.readline().startswith("ready")
    one.kill()
    one.communicate()


@pytest.mark.parametrize("daemon", [("--max-rings-per-session", "8")], indirect=True)
def test_more_threads_than_rings(daemon: Any) -> None:
    # A thread has a ring from its first call to its end; the main thread has called nothing that needs one.
    for said in json.loads(daemon.run("limits.py", "threads", "20")):
        assert said.pop("ok") == 8
        ((why, count),) = said.items()
        assert why.startswith("507000")
        assert "--max-rings-per-session" in why
        assert count == 12
    assert daemon.status().counters["limited_rings"] == 24


@pytest.mark.parametrize("daemon", [("--max-host-bytes-per-user", "60MiB")], indirect=True)
def test_host_memory_of_a_user(daemon: Any) -> None:
    # 32 MiB are the session's own; every second piece is freed.
    said = json.loads(daemon.run("limits.py", "host", "6", str(12 << 20)))
    assert said[:3] == ["ok", "ok", "ok"]
    assert all(one.startswith("207001") and "--max-host-bytes-per-user" in one for one in said[3:])
    # Two sessions fit, a third does not.
    holders = [daemon.start("holder.py") for _ in range(2)]
    lines = [one.stdout.readline() for one in holders]
    for one in holders:
        one.kill()
        one.communicate()
    assert sum(line.startswith("ready") for line in lines) == 1  # a holder pins 1 MiB more
    assert daemon.status().counters["limited_host_memory"] >= 4
