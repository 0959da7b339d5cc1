"""Servers that people run, with one program on all: ``python conformance_servers.py SERVER FOLDER``.

A request for ``/SHAPE/...?N`` gets the answer of that shape (`shapes`). For each, a line of JSON is appended
to FOLDER/stamps: ``[N, [when each piece was handed over, ns of CLOCK_MONOTONIC]]``. When it listens,
FOLDER/ready has its port on 127.0.0.1, the one on ::1, and the pid of who answers; FOLDER/sock is a unix
socket.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from shapes import SHAPES, Shape

GAP_S = 0.002
FOLDER = Path(sys.argv[2]) if len(sys.argv) > 2 else Path()


def bodies(shape: Shape) -> list[bytes]:
    pieces = [piece.encode() for piece in shape.pieces]
    if shape.encoding:
        packer = zlib.compressobj(wbits=31)
        pieces = [packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH) for piece in pieces]
        pieces.append(packer.flush())
    return pieces


def wanted(path: str, query: str) -> tuple[Shape, int]:
    return SHAPES[path.split("/")[1]], int(query)


def head_of(shape: Shape) -> dict[str, str]:
    head = {"content-type": shape.kind}
    if shape.encoding:
        head["content-encoding"] = shape.encoding
    if shape.kind == "application/json" and len(shape.pieces) == 1:  # not a stream that is called so
        head["content-length"] = str(sum(map(len, bodies(shape))))
    return head


class Stamps:
    def __init__(self, number: int) -> None:
        self.number, self.times = number, list[int]()

    def take(self) -> None:
        self.times.append(time.monotonic_ns())

    def write(self) -> None:
        with (FOLDER / "stamps").open("a") as file:
            file.write(json.dumps([self.number, self.times]) + "\n")


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return
    shape, number = wanted(scope["path"], scope["query_string"].decode())
    while (await receive()).get("more_body"):
        pass
    stamps = Stamps(number)
    headers = [(name.encode(), value.encode()) for name, value in head_of(shape).items()]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    try:
        for piece in bodies(shape):
            stamps.take()
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(GAP_S)
        await send({"type": "http.response.body", "body": b""})
    finally:
        stamps.write()


def wsgi(environ: dict[str, Any], start: Any) -> Iterator[bytes]:
    shape, number = wanted(environ["PATH_INFO"], environ["QUERY_STRING"])
    while environ["wsgi.input"].read(65536):
        pass
    start("200 OK", list(head_of(shape).items()))
    stamps = Stamps(number)
    try:
        for piece in bodies(shape):
            stamps.take()
            yield piece
            time.sleep(GAP_S)
    finally:
        stamps.write()


def sockets() -> list[socket.socket]:
    four = socket.create_server(("127.0.0.1", 0), backlog=64)
    six = socket.create_server(("::1", 0), family=socket.AF_INET6, backlog=64)
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(FOLDER / "sock"))
    unix.listen(64)
    return [four, six, unix]


def ready(ports: list[int]) -> None:
    (FOLDER / "ready.new").write_text(json.dumps([*ports, os.getpid()]))
    (FOLDER / "ready.new").rename(FOLDER / "ready")


def ports_of(listeners: list[socket.socket]) -> list[int]:
    return [one.getsockname()[1] for one in listeners[:2]]


def starlette() -> Any:
    """What llama-cpp-python's server is made of: Starlette's routes and sse-starlette's responses."""
    from sse_starlette.sse import EventSourceResponse
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response, StreamingResponse
    from starlette.routing import Route

    async def handle(request: Request) -> Response:
        shape, number = wanted(request.url.path, request.url.query)
        await request.body()
        stamps = Stamps(number)

        async def pieces() -> AsyncIterator[bytes]:
            try:
                for piece in bodies(shape):
                    stamps.take()
                    yield piece
                    await asyncio.sleep(GAP_S)
            finally:
                stamps.write()

        events = shape.kind == "text/event-stream"
        return (EventSourceResponse if events else StreamingResponse)(pieces(), headers=head_of(shape))

    return Starlette(routes=[Route("/{path:path}", handle, methods=["GET", "POST"])])


def uvicorn_on(loop: str, http: str, app: Any = asgi) -> None:
    import uvicorn

    listeners = sockets()

    async def run() -> None:
        config = uvicorn.Config(app, log_level="warning", http=http, timeout_keep_alive=60)
        servers = [uvicorn.Server(config) for _ in listeners]
        ready(ports_of(listeners))
        await asyncio.gather(
            *(server.serve(sockets=[one]) for server, one in zip(servers[:2], listeners, strict=False)),
            unix_server(config, listeners[2]),
        )

    async def unix_server(config: uvicorn.Config, listener: socket.socket) -> None:
        if not config.loaded:
            config.load()
        from uvicorn.server import ServerState

        state = ServerState()
        server = await asyncio.get_running_loop().create_unix_server(
            lambda: config.http_protocol_class(config=config, server_state=state, app_state={}),
            sock=listener,
        )
        await server.serve_forever()

    if loop == "uvloop":
        import uvloop

        uvloop.run(run())
    else:
        asyncio.run(run())


def hypercorn() -> None:
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    listeners = sockets()
    config = Config()
    config.bind = [f"fd://{one.fileno()}" for one in listeners]
    config.loglevel = "WARNING"
    ready(ports_of(listeners))
    asyncio.run(serve(asgi, config))  # type: ignore[arg-type]


def aiohttp() -> None:
    from aiohttp import web

    async def handle(request: web.Request) -> web.StreamResponse:
        shape, number = wanted(request.path, request.query_string)
        await request.read()
        stamps = Stamps(number)
        response = web.StreamResponse(headers=head_of(shape))
        await response.prepare(request)
        try:
            for piece in bodies(shape):
                stamps.take()
                await response.write(piece)
                await asyncio.sleep(GAP_S)
            await response.write_eof()
        finally:
            stamps.write()
        return response

    async def run() -> None:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(app)
        await runner.setup()
        listeners = sockets()
        for one in listeners:
            await web.SockSite(runner, one).start()
        ready(ports_of(listeners))
        await asyncio.Event().wait()

    asyncio.run(run())


def gunicorn() -> None:
    from gunicorn.app.base import BaseApplication

    listeners = sockets()
    ports = ports_of(listeners)

    class Program(BaseApplication):  # type: ignore[misc]
        def load_config(self) -> None:
            self.cfg.set("bind", [f"fd://{one.fileno()}" for one in listeners])
            self.cfg.set("worker_class", "gthread")
            self.cfg.set("threads", 8)
            self.cfg.set("workers", 1)
            self.cfg.set("keepalive", 60)
            self.cfg.set("loglevel", "error")
            self.cfg.set("worker_tmp_dir", str(FOLDER))
            self.cfg.set("post_worker_init", lambda worker: ready(ports))

        def load(self) -> Any:
            return wsgi

    Program().run()


def granian() -> None:
    """Rust's hyper, on threads of its own."""
    from granian.constants import Interfaces
    from granian.server.embed import Server

    from flexnpu.common.ports import free_port

    ports = [free_port(), free_port()]
    places: list[dict[str, Any]] = [
        {"address": "127.0.0.1", "port": ports[0]},
        {"address": "::1", "port": ports[1]},
        {"uds": FOLDER / "sock"},
    ]

    async def listening() -> None:
        for address in (("127.0.0.1", ports[0]), ("::1", ports[1])):
            while True:
                try:
                    socket.create_connection(address).close()
                    break
                except ConnectionRefusedError:
                    await asyncio.sleep(0.02)
        while not (FOLDER / "sock").exists():
            await asyncio.sleep(0.02)
        ready(ports)

    async def run() -> None:
        servers = [Server(asgi, interface=Interfaces.ASGI, log_enabled=False, **place) for place in places]
        await asyncio.gather(*(server.serve() for server in servers), listening())

    asyncio.run(run())


NODE = r"""
const fs = require("fs"), http = require("http"), zlib = require("zlib");
const [folder, shapes] = [process.argv[1], JSON.parse(fs.readFileSync(0))];
function answer(request, response) {
  const [path, number] = request.url.split("?"), shape = shapes[path.split("/")[1]];
  request.on("data", () => {});
  request.on("end", () => {
    const times = [], pieces = shape.pieces.map((one) => Buffer.from(one, "latin1"));
    const told = () => JSON.stringify([Number(number), times]) + "\n";
    response.on("close", () => fs.appendFileSync(folder + "/stamps", told()));
    response.on("error", () => {});
    response.writeHead(200, shape.head);
    const next = () => {
      if (response.destroyed) return;
      if (!pieces.length) return response.end();
      times.push(Number(process.hrtime.bigint()));
      response.write(pieces.shift());
      setTimeout(next, 2);
    };
    next();
  });
}
const servers = [[0, "127.0.0.1"], [0, "::1"], [folder + "/sock"]].map(([at, host]) => {
  const server = http.createServer(answer);
  server.keepAliveTimeout = 60000;
  const where = host ? [at, host] : [at];
  return new Promise((done) => server.listen(...where, () => done(server.address().port)));
});
Promise.all(servers).then((ports) => {
  fs.writeFileSync(folder + "/ready.new", JSON.stringify([...ports.slice(0, 2), process.pid]));
  fs.renameSync(folder + "/ready.new", folder + "/ready");
});
"""


def node() -> None:
    """Node's http; the process becomes Node."""
    told = {
        name: {"head": head_of(shape), "pieces": [piece.decode("latin-1") for piece in bodies(shape)]}
        for name, shape in SHAPES.items()
    }
    (FOLDER / "shapes").write_text(json.dumps(told))
    file = os.open(FOLDER / "shapes", os.O_RDONLY)
    os.dup2(file, 0)
    os.execvp("node", ["node", "-e", NODE, str(FOLDER)])


SERVERS = {
    "uvicorn-h11": lambda: uvicorn_on("asyncio", "h11"),
    "uvicorn-uvloop": lambda: uvicorn_on("uvloop", "httptools"),
    "starlette": lambda: uvicorn_on("uvloop", "httptools", starlette()),
    "hypercorn": hypercorn,
    "aiohttp": aiohttp,
    "gunicorn": gunicorn,
    "granian": granian,
    "node": node,
}
NEEDED = {
    "uvicorn-h11": ("uvicorn", "h11"),
    "uvicorn-uvloop": ("uvicorn", "uvloop", "httptools"),
    "starlette": ("uvicorn", "uvloop", "httptools", "starlette", "sse_starlette"),
    "hypercorn": ("hypercorn",),
    "aiohttp": ("aiohttp",),
    "gunicorn": ("gunicorn",),
    "granian": ("granian",),
    "node": (),
}

if __name__ == "__main__":
    SERVERS[sys.argv[1]]()
