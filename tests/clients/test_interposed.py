"""Unmodified programs through the daemon: the same results as directly, and nobody else harmed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.torch_npu
@pytest.mark.timeout(600)
def test_the_same_tensors_logits_and_tokens_as_directly(daemon: Any, direct: Callable[..., str]) -> None:
    expected = json.loads(direct("models.py"))
    assert json.loads(daemon.run("models.py")) == expected
    assert sum(len(v["tokens"]) - 37 for v in expected.values() if isinstance(v, dict)) == 4 * 64
    status = daemon.wait_for(lambda s: not s.sessions)
    assert status.counters["refused"] == 0
    assert status.counters["launches"] > 10_000


@pytest.mark.torch_npu
@pytest.mark.timeout(600)
def test_two_programs_at_once_do_not_disturb_each_other(daemon: Any, direct: Callable[..., str]) -> None:
    both = [daemon.start("models.py", "16") for _ in range(2)]
    expected = json.loads(direct("models.py", "16"))
    for one in both:
        out, _ = one.communicate(timeout=300)
        assert one.returncode == 0
        assert json.loads(out) == expected


def test_what_another_holds_is_out_of_reach(daemon: Any) -> None:
    holder = daemon.start("holder.py")
    try:
        address = holder.stdout.readline().split()[1]
        errors = json.loads(daemon.run("forger.py", address))
        assert 0 not in errors.values(), errors
        assert errors["read another's memory"] == 107000
        assert errors["free another's memory"] == 107000
        assert errors["forged stream"] == 107017
        assert errors["stale stream"] == 107017
        assert holder.poll() is None
        assert daemon.status().counters["refused"] >= 9
    finally:
        holder.kill()
        holder.communicate()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_client_that_dies_leaves_nothing(daemon: Any, number: int) -> None:
    holder = daemon.start("holder.py")
    holder.stdout.readline()
    status = daemon.wait_for(lambda s: bool(s.sessions))
    assert [s.pid for s in status.sessions] == [holder.pid]
    assert status.sessions[0].memory_bytes == 32 << 20
    assert status.sessions[0].comm.startswith("python")
    fds = len(os.listdir(f"/proc/{daemon.process.pid}/fd"))
    holder.send_signal(number)
    holder.communicate()
    status = daemon.wait_for(lambda s: not s.sessions and not s.lanes)
    daemon.wait_for(lambda s: len(os.listdir(f"/proc/{daemon.process.pid}/fd")) < fds)
    # And the daemon serves on.
    again = daemon.start("holder.py")
    assert again.stdout.readline().startswith("ready")
    again.kill()
    again.communicate()


def test_many_clients_come_and_go_without_a_leak(daemon: Any) -> None:
    def held() -> tuple[int, int]:
        pid = daemon.process.pid
        return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))

    daemon.run("forker.py")
    daemon.wait_for(lambda s: not s.sessions)
    time.sleep(0.5)
    before = held()
    for _ in range(5):
        daemon.run("forker.py")
    daemon.wait_for(lambda s: not s.sessions)
    daemon.wait_for(lambda s: held() <= before)


def test_the_daemons_death_is_an_acl_error_at_once(daemon: Any) -> None:
    holder = daemon.start("holder.py")
    holder.stdout.readline()
    time.sleep(0.3)
    daemon.process.kill()
    line = holder.stdout.readline()
    kind, code, seconds, message = line.split(maxsplit=3)
    assert (kind, code) == ("error", "507000")
    assert float(seconds) < 60  # a hang guard: the message says that nothing was waited for
    assert "is gone" in message
    holder.communicate(timeout=120)


def test_fork_after_init(daemon: Any) -> None:
    daemon.run("forker.py")


def test_without_a_daemon_the_error_names_the_remedy(daemon: Any) -> None:
    daemon.stop()
    result = subprocess.run(
        daemon.command("forker.py"),
        env=daemon.environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode != 0
    assert "flexnpud" in result.stderr


@pytest.mark.torch_npu
def test_training_steps_are_those_of_the_cpu_and_of_the_direct_device(
    daemon: Any, direct: Callable[..., str]
) -> None:
    expected = json.loads(direct("training.py"))
    for name, by_device in expected.items():
        assert by_device["npu"] == pytest.approx(by_device["cpu"], rel=1e-4), name
        assert by_device["npu"][-1] < by_device["npu"][0], name
    assert json.loads(daemon.run("training.py")) == expected
