from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.host.process_events import ProcessEvent, ProcessEvents, decode

WAIT_S = 5.0


@pytest.fixture
def events() -> Iterator[ProcessEvents]:
    with ProcessEvents() as opened:
        yield opened


def until(events: ProcessEvents, done: Callable[[list[ProcessEvent]], bool]) -> list[ProcessEvent]:
    seen: list[ProcessEvent] = []
    deadline = time.monotonic() + WAIT_S
    while not done(seen):
        assert time.monotonic() < deadline, seen
        seen += events.read()
        time.sleep(0.01)
    return seen


def test_a_process_is_seen_to_begin_become_a_program_and_end(events: ProcessEvents) -> None:
    before = time.monotonic_ns()
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    seen = until(events, lambda seen: any((e.kind, e.pid) == ("exit", child.pid) for e in seen))
    own = [event for event in seen if event.pid == child.pid]
    assert [event.kind for event in own] == ["fork", "exec", "exit"]
    assert own[0].parent == os.getpid()
    times = [before, *[event.t_ns for event in own], time.monotonic_ns()]
    assert times == sorted(times)
    assert events.lost == 0


def test_threads_do_not_wake_it(events: ProcessEvents) -> None:
    for _ in range(20):
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()
    child = subprocess.Popen(["true"])
    child.wait()
    seen = until(events, lambda seen: any((e.kind, e.pid) == ("exit", child.pid) for e in seen))
    assert not [event for event in seen if event.pid == os.getpid()]
    assert [event.pid for event in seen if event.parent == os.getpid()] == [child.pid]


def test_events_that_nobody_reads_are_counted(events: ProcessEvents) -> None:
    import socket

    events._socket.setsockopt(socket.SOL_SOCKET, 33, 2048)  # type: ignore[union-attr]
    for _ in range(30):
        subprocess.run(["true"], check=True)
    deadline = time.monotonic() + WAIT_S
    while not events.lost:
        assert time.monotonic() < deadline
        events.read()
    subprocess.run(["true"], check=True)
    assert until(events, bool)  # and it goes on


@pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces")
@pytest.mark.parametrize(
    ("namespace", "reason"), [("--net", "network namespace"), ("--pid", "process namespace")]
)
def test_in_a_container_it_says_why_not(namespace: str, reason: str) -> None:
    code = (
        "from probes.host.process_events import *\n"
        "try: ProcessEvents()\n"
        "except EventsUnavailable as error: print(error)"
    )
    done = subprocess.run(
        ["unshare", "--fork", namespace, sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert reason in done.stdout, done.stderr


@given(st.binary(max_size=120))
def test_any_datagram_is_an_event_or_none(data: bytes) -> None:
    event = decode(data)
    assert event is None or event.kind in ("fork", "exec", "exit")
