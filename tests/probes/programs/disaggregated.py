"""A proxy, a prefill and a decode instance that say when each part of a request's first token happened.

    python disaggregated.py prefill LIBRARIES
    python disaggregated.py decode LIBRARIES LIBLLM_DATADIST
    python disaggregated.py proxy PREFILL_PORT DECODE_PORT

An instance's model runs in a child process (as vLLM's engine core does), as steps on the mock vendor
libraries in the folder LIBRARIES. Each prints its port and the engine's process id (the proxy: its own), then
a JSON object for each request: ``number`` (of the prompt), and pairs of times in ns of CLOCK_MONOTONIC
between which each event was, read before and after it by the program itself.

The proxy is aiohttp's, with pooled connections. It asks as vLLM's do: one token of P, then D's stream. The
request's header ``mode`` says how the three can be joined:

    answer      ids that the proxy makes for P and D; the answer's id passes through, and is called JSON
    id          X-Request-Id passes through, and each server makes ids of its own for its answers
    trace       traceparent passes through, with a span id of the proxy's
    prompt      nothing passes through but the prompt
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import multiprocessing
import sys
import time
import uuid
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from labelled_server import Engine

PREFILL_S, DECODE_S, PAUSE_S, TRANSFER_S, QUEUE_S, SEND_S = 0.03, 0.004, 0.006, 0.012, 0.008, 0.01
TOKENS, CHUNK = 4, 32
Pair = tuple[int, int]
now = time.monotonic_ns


TRANSFER_SYNC = (
    "_ZN4adxl10AdxlEngine12TransferSyncERKN2ge12AscendStringENS_10TransferOpE"
    "RKSt6vectorINS_14TransferOpDescESaIS7_EEi"
)


class Model(Engine):
    """Tells of each step two pairs: when it began, when it ended."""

    def __init__(self, folder: Path, moves: Path | None) -> None:
        super().__init__(folder)
        self._move = None if moves is None else getattr(ctypes.CDLL(str(moves)), TRANSFER_SYNC)

    def told_transfer(self, seconds: float) -> tuple[Pair, Pair]:
        """The KV cache comes, in two calls; when the first began, when the last was over."""
        assert self._move is not None
        marks = []
        for _ in range(2):
            marks.append(now())
            self._move(ctypes.c_long(round(seconds / 2 * 1e6)))
            marks.append(now())
        return (marks[0], marks[1]), (marks[2], marks[3])

    def told_step(self, length: int, seconds: float) -> tuple[Pair, Pair]:
        """A forward pass over `length` tokens that takes `seconds`."""
        marks: list[int] = []
        whole = self.step(length, seconds, marks)
        return (whole[0], marks[0]), (marks[1], whole[1])


def engine(folder: Path, moves: Path | None, pipe: Connection, front: Connection) -> None:
    front.close()  # else it would not notice the server's death
    model = Model(folder, moves)
    model.step(8, 0.001)
    pipe.send("ready")
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            length, seconds = pipe.recv()
            pipe.send(model.told_step(length, seconds) if length else model.told_transfer(seconds))


class Instance:
    """Serves one request at a time, in the order in which they came."""

    def __init__(self, role: str, folder: Path, moves: Path | None) -> None:
        self.role = role
        context = multiprocessing.get_context("fork")
        self.pipe, other = context.Pipe()
        self.child = context.Process(target=engine, args=(folder, moves, other, self.pipe), daemon=True)
        self.child.start()
        other.close()
        self.pipe.recv()
        self.turn = asyncio.Lock()

    async def forward(self, length: int, seconds: float) -> Any:
        self.pipe.send((length, seconds))
        return await asyncio.to_thread(self.pipe.recv)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.split("content-length:")[1].split("\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                given = head.partition("x-request-id:")[2].partition("\r\n")[0].strip()
                told = {"number": body["number"], "role": self.role, "read": now()}
                async with self.turn:
                    await (self.prefill if self.role == "prefill" else self.decode)(body, given, told, writer)
                print(json.dumps(told), flush=True)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def prefill(
        self, body: dict[str, Any], _: str, told: dict[str, Any], writer: asyncio.StreamWriter
    ) -> None:
        told["steps"] = []
        for _ in range(body["chunks"]):
            await asyncio.sleep(PAUSE_S)
            told["steps"].append(await self.forward(CHUNK, PREFILL_S))
        await asyncio.sleep(SEND_S)
        answer = {
            "choices": [{"index": 0, "text": "a"}],
            "usage": {"prompt_tokens": CHUNK * body["chunks"], "completion_tokens": 1},
            "kv_transfer_params": {"do_remote_prefill": True},
        }
        if body["mode"] != "prompt":
            answer["id"] = f"cmpl-{uuid.uuid4()}"
        data = json.dumps(answer).encode()
        before = now()
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(data)
            + data
        )
        told["answered"] = before, now()

    async def decode(
        self, body: dict[str, Any], given: str, told: dict[str, Any], writer: asyncio.StreamWriter
    ) -> None:
        told["transfer"] = await self.forward(0, TRANSFER_S)
        await asyncio.sleep(QUEUE_S)
        told["steps"] = [await self.forward(1, DECODE_S)]
        await asyncio.sleep(SEND_S)
        answer = (
            {}
            if body["mode"] == "prompt"
            else {"id": f"cmpl-{given if body['mode'] == 'answer' else uuid.uuid4()}"}
        )
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        before = now()
        writer.write(self.event(answer, "tok0"))
        told["first"] = before, now()
        for i in range(1, TOKENS):
            await self.forward(1, DECODE_S)
            writer.write(self.event(answer, f"tok{i}"))
        writer.write(b"0\r\n\r\n")

    @staticmethod
    def event(answer: dict[str, str], text: str) -> bytes:
        data = b"data: " + json.dumps(answer | {"choices": [{"index": 0, "text": text}]}).encode() + b"\n\n"
        return b"%x\r\n" % len(data) + data + b"\r\n"

    async def run(self) -> None:
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], self.child.pid, flush=True)
        await server.serve_forever()


async def proxy(prefill: int, decode: int) -> None:
    import os

    from aiohttp import ClientSession, web

    async def handle(request: web.Request) -> web.StreamResponse:
        told: dict[str, Any] = {"role": "proxy", "read": now()}
        mode = request.headers["mode"]
        body = await request.json() | {"mode": mode}
        told["number"] = body["number"]
        headers = {}
        if mode == "answer":
            headers["X-Request-Id"] = str(uuid.uuid4())
        elif mode == "id":
            headers["X-Request-Id"] = request.headers["X-Request-Id"]
        elif mode == "trace":
            version, trace, _, flags = request.headers["traceparent"].split("-")
            headers["traceparent"] = f"{version}-{trace}-{uuid.uuid4().hex[:16]}-{flags}"
        first = {**body, "stream": False, "max_tokens": 1, "kv_transfer_params": {"do_remote_decode": True}}
        told["asks_prefill"] = now()
        async with session.post(
            f"http://127.0.0.1:{prefill}{request.path}", json=first, headers=headers
        ) as got:
            transfer = (await got.json())["kv_transfer_params"]
        told["has_prefill"] = now()
        last = {**body, "kv_transfer_params": transfer}
        told["asks_decode"] = now()
        async with session.post(
            f"http://127.0.0.1:{decode}{request.path}", json=last, headers=headers
        ) as got:
            kind = "application/json" if mode == "answer" else "text/event-stream"
            answer = web.StreamResponse(headers={"Content-Type": kind})
            await answer.prepare(request)
            async for piece in got.content.iter_any():
                if "has_first" not in told:
                    told["has_first"] = before = now()
                    await answer.write(piece)
                    told["first"] = before, now()
                else:
                    await answer.write(piece)
            await answer.write_eof()
        print(json.dumps(told), flush=True)
        return answer

    async with ClientSession() as session:
        application = web.Application()
        application.router.add_post("/{path:.*}", handle)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        print(runner.addresses[0][1], os.getpid(), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    if sys.argv[1] == "proxy":
        asyncio.run(proxy(int(sys.argv[2]), int(sys.argv[3])))
    else:
        moves = Path(sys.argv[3]) if len(sys.argv) > 3 else None
        asyncio.run(Instance(sys.argv[1], Path(sys.argv[2]), moves).run())
