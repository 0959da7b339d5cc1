"""A client of vLLM-Ascend servers P and D, whose KV caches move layer by layer: MooncakeLayerwiseConnector.

D is asked first. It makes room in its cache and posts where that is to the metaserver that the request names.
With this, P is asked for one token, and writes each layer into D's cache once it is computed. vLLM-Ascend has
a proxy for this among its examples, but not in its wheel; here the client has the metaserver itself.
"""

from __future__ import annotations

import contextlib
import json
import threading
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from workloads.vllm_ascend import Server, completion

_PATH = "/v1/metaserver"


class LayerwiseClient:
    """Asks D for completions, and P for the prompts of these."""

    def __init__(self, prefill: Server, decode: Server) -> None:
        self._prefill = prefill
        self._decode = decode
        self._bodies: dict[str, dict[str, Any]] = {}
        self._prefilled: dict[str, Future[None]] = {}
        self._pool = ThreadPoolExecutor(16)
        client = self

        class Metaserver(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                known = self.path == _PATH and client._ask_prefill(told)
                self.send_response(200 if known else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Metaserver)
        self._thread = threading.Thread(target=self._http.serve_forever, name="metaserver")
        self._thread.start()

    def close(self) -> None:
        """No request may run."""
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
        self._pool.shutdown()

    def complete(self, prompt: Sequence[int], tokens: int, **options: Any) -> list[int]:
        """The token ids that follow `prompt`. Raises VllmError where P or D answers with an error."""
        name = uuid.uuid4().hex
        # D's name for the first prompt of a request.
        told = f"cmpl-{name}-0"
        body = completion(prompt, tokens, **options) | {"request_id": name}
        self._bodies[told] = body
        prefilled = self._prefilled[told] = Future()
        metaserver = f"http://127.0.0.1:{self._http.server_port}{_PATH}"
        where = {"do_remote_prefill": True, "do_remote_decode": False, "metaserver": metaserver}
        decoded = self._pool.submit(self._decode.ask, "/v1/completions", body | {"kv_transfer_params": where})
        try:
            # Without P's part D waits for ever.
            either: set[Future[Any]] = {prefilled, decoded}
            wait(either, return_when=FIRST_COMPLETED)
            if prefilled.done():
                prefilled.result()
            choice = json.loads(decoded.result())["choices"][0]
            return [int(token) for token in choice["token_ids"]]
        finally:
            del self._bodies[told], self._prefilled[told]

    def _ask_prefill(self, where: dict[str, Any]) -> bool:
        """What D posted: whether it is of a request that is known. Returns when P has answered."""
        body = self._bodies.get(where["request_id"])
        if body is None:
            return False
        prefilled = self._prefilled[where["request_id"]]
        try:
            self._prefill.ask("/v1/completions", body | {"max_tokens": 1, "kv_transfer_params": where})
        except Exception as error:
            prefilled.set_exception(error)
        else:
            prefilled.set_result(None)
        return True


@contextlib.contextmanager
def client(prefill: Server, decode: Server) -> Iterator[LayerwiseClient]:
    """A client until the block ends."""
    one = LayerwiseClient(prefill, decode)
    try:
        yield one
    finally:
        one.close()
