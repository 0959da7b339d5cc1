"""A server that hangs, by the wire tracer: its request is told while it waits."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time

import pytest

from probes.feed.events import OpenRequests, RequestTiming
from probes.requests.wire import WireTracer

SERVER = r"""
import socket
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
while True:
    connection, _ = listener.accept()
    connection.recv(65536)
    input()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    connection.sendall(head + b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n')
    input()
    connection.close()
"""


@pytest.mark.ebpf
def test_a_request_to_a_server_that_hangs_is_told() -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    ended: list[RequestTiming] = []
    try:
        assert server.stdout is not None
        assert server.stdin is not None
        port = int(server.stdout.readline())
        with WireTracer([server.pid], on_request=ended.append) as tracer:

            def until(in_flight: int, waiting: int) -> OpenRequests:
                deadline = time.monotonic() + 60
                while True:
                    now = time.monotonic_ns()
                    tracer.poll(20)
                    (seen,) = tracer.unanswered(now)
                    if (seen.in_flight, len(seen.waiting)) == (in_flight, waiting):
                        return seen
                    assert time.monotonic() < deadline, seen

            until(0, 0)
            body = json.dumps({"messages": [{"content": "hello"}], "stream": True})
            with socket.create_connection(("127.0.0.1", port)) as client:
                sent = time.monotonic_ns()
                head = f"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
                client.sendall((head + body).encode())
                seen = until(1, 1)
                ((fd, arrival),) = seen.waiting
                assert seen.pid == server.pid
                assert sent <= arrival <= seen.t_ns
                server.stdin.write("\n")
                until(1, 0)
                server.stdin.write("\n")
                until(0, 0)
            deadline = time.monotonic() + 60
            while not ended:
                tracer.poll(20)
                assert time.monotonic() < deadline
            # By these two the collector knows it again.
            assert (ended[0].fd, ended[0].t_arrival_ns) == (fd, arrival)
    finally:
        server.kill()
        server.communicate()
