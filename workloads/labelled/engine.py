"""Iterations of a serving engine, issued as vLLM-Ascend 0.18 issues them, each with a word of what it was.

    python -m workloads.labelled.engine CONFIGURATION --steps N

speaks as `workloads.labelled.steps` does. A configuration is how the model runs (``eager``, ``pieces``,
``full``), with ``-sync`` where scheduling is not asynchronous:

- inputs are copied from pinned memory without waiting, and prepared by some operators;
- ``eager``: where the sequences are others than before, the first layer copies a number from memory that is
  not pinned, and so waits for the stream;
- ``pieces``: layers + 1 graphs with eager attention between them, padded to the sizes that were captured;
  before each replay the stream is synchronised, as vLLM-Ascend's wrapper does;
- ``full``: pure decode iterations are one padded graph, whose attention takes the lengths by task updates on
  another stream; the others are eager;
- the chosen tokens stay on the device for the next iteration. They are copied back on a stream of their own,
  and another thread waits for that copy's event. The next iteration is issued meanwhile; the one after it
  is not before the copy has arrived. With ``-sync`` the same thread waits for an event of the same stream.

A label's ``device_us`` is the device's own time from before the iteration's first operator to behind its last
one, between two events of the stream. ``padded`` is how many tokens the device computes on top.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import sys
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from workloads.labelled.names import ENGINES
from workloads.labelled.serving import BLOCKS_A_SEQUENCE, HIDDEN, ROOM, VOCABULARY, Model

# torch_npu adds to torch what its types do not know.
torch: Any = importlib.import_module("torch")
npu: Any = importlib.import_module("torch_npu").npu
Tensor = Any

LAYERS, SEQUENCES, TOKENS = 3, 16, 64
SIZES = (1, 2, 4, 8, 16, 32, 64)


@dataclass
class Issued:
    """An iteration that was issued, and may still run."""

    label: dict[str, Any]
    events: tuple[Any, Any]
    over: Future[None] | None


class Engine:
    """One model, its sequences, and what an iteration is issued with."""

    def __init__(self, mode: str, *, overlapped: bool) -> None:
        self.mode, self.overlapped = mode, overlapped
        self.model = Model(LAYERS, SEQUENCES)
        self.copies = npu.Stream()
        self.outputs = ThreadPoolExecutor(1, initializer=npu.set_device, initargs=(0,))
        self.prepared = npu.Event() if overlapped else None
        self.ids = torch.zeros(TOKENS, dtype=torch.int64).npu()
        self.tables = torch.zeros(SEQUENCES, BLOCKS_A_SEQUENCE, dtype=torch.int32).npu()
        self.before = torch.zeros(SEQUENCES, dtype=torch.int64).npu()
        self.host_ids = torch.zeros(TOKENS, dtype=torch.int64).pin_memory()
        self.host_tables = self.model.tables.cpu().pin_memory()
        self.host_last = torch.zeros(SEQUENCES, dtype=torch.int64).pin_memory()
        self.host_tokens = torch.zeros(SEQUENCES, dtype=torch.int64).pin_memory()
        self.pieces: dict[int, list[tuple[Any, Any]]] = {}
        self.graphs: dict[int, tuple[Any, Tensor]] = {}
        self.made = {size: torch.zeros(size, HIDDEN, dtype=torch.float16).npu() for size in SIZES}
        self.issued: deque[Issued] = deque()
        self.sequences = 0
        if mode == "pieces":
            for size in SIZES:
                self._capture_pieces(size)
        if mode == "full":
            for size in SIZES:
                if size <= SEQUENCES:
                    self._capture_whole(size)

    # -- graphs ---------------------------------------------------------------------------------------------

    def _piece(self, size: int, layer: int, x: Tensor) -> Any:
        """What stands between the attention of two layers."""
        if layer == 0:
            x = self.model.embed(self.ids[:size])
        else:
            x = self.model.after_attention(x, self.made[size], layer - 1)
        if layer == LAYERS:
            return x, None
        return x, self.model.before_attention(x, layer)[0]

    def _capture_pieces(self, size: int) -> None:
        captured: list[tuple[Any, Any]] = []
        x: Tensor = None
        for layer in range(LAYERS + 1):
            self._piece(size, layer, x)
            npu.synchronize()
            graph = npu.NPUGraph()
            with npu.graph(graph):
                result = self._piece(size, layer, x)
            captured.append((graph, result))
            x = result[0]
        self.pieces[size] = captured

    def _capture_whole(self, size: int) -> None:
        ends, keys = list(range(1, size + 1)), [5] * size
        self._eager(size, ends, keys, size)
        npu.synchronize()
        graph = npu.NPUGraph()
        with npu.graph(graph, auto_dispatch_capture=True):
            result = self._eager(size, ends, keys, size)
        self.graphs[size] = graph, result

    # -- one iteration --------------------------------------------------------------------------------------

    def _eager(self, size: int, ends: list[int], keys: list[int], sequences: int) -> Tensor:
        x = self.model.embed(self.ids[:size])
        for layer in range(LAYERS):
            q, _, _ = self.model.before_attention(x, layer)
            if self.mode == "eager" and sequences != self.sequences:
                self.sequences = sequences
                torch.tensor([sequences]).npu()
            made = self.model.attention(q, layer, self.tables[:sequences], ends, keys)
            x = self.model.after_attention(x, made, layer)
        return x

    def _in_pieces(self, size: int, ends: list[int], keys: list[int]) -> Tensor:
        tokens = ends[-1]
        for layer, (graph, (_, q)) in enumerate(self.pieces[size]):
            npu.current_stream().synchronize()
            graph.replay()
            if layer < LAYERS:
                made = self.model.attention(q[:tokens], layer, self.tables[: len(keys)], ends, keys)
                self.made[size][:tokens].copy_(made.reshape(tokens, HIDDEN))
        return self.pieces[size][-1][1][0]

    def _whole(self, size: int, keys: list[int]) -> Tensor:
        graph, x = self.graphs[size]
        npu.current_stream().synchronize()
        graph.replay()
        graph.update([{"actual_seq_lengths_kv": keys + [0] * (size - len(keys))}])
        return x

    def _prepare(self, tokens: int, sequences: int, last: list[int]) -> Tensor:
        if self.prepared is not None:
            self.prepared.synchronize()  # the last iteration has read what is written now
        self.host_ids[:tokens] = torch.randint(3, VOCABULARY - 1, (tokens,))
        self.host_last[:sequences] = torch.tensor(last)
        self.tables.copy_(self.host_tables, non_blocking=True)
        self.ids[:tokens].copy_(self.host_ids[:tokens], non_blocking=True)
        rows = self.host_last[:sequences].npu(non_blocking=True)
        # The tokens of the iteration before, which the host may not know yet.
        self.ids.index_copy_(0, rows[:1], self.before[:1] % (VOCABULARY - 3))
        rows = rows + 0
        if self.prepared is not None:
            self.prepared.record()
        return rows

    def iterate(self, queries: list[int], keys: list[int]) -> None:
        """One iteration: `queries[i]` new tokens of sequence i, which then has `keys[i]` keys."""
        first, last = npu.Event(enable_timing=True), npu.Event(enable_timing=True)
        ends = [sum(queries[: i + 1]) for i in range(len(queries))]
        tokens, sequences = ends[-1], len(queries)
        t0 = time.monotonic_ns()
        first.record()
        rows = self._prepare(tokens, sequences, [end - 1 for end in ends])
        size = next(size for size in SIZES if size >= tokens)
        decode = tokens == sequences
        if self.mode == "pieces":
            x = self._in_pieces(size, ends, keys)
        elif self.mode == "full" and decode:
            x = self._whole(size, keys)
        else:
            size = tokens
            x = self._eager(size, ends, keys, sequences)
        chosen = self.model.choose(x.index_select(0, rows))
        self.before[:sequences].copy_(chosen)
        last.record()
        over: Future[None] | None = None
        if self.overlapped:
            arrived = npu.Event()
            with npu.stream(self.copies):
                self.copies.wait_stream(npu.default_stream())
                host = chosen.to("cpu", non_blocking=True)
                arrived.record()
            over = self.outputs.submit(lambda: (arrived.synchronize(), host.tolist())[0])
        else:
            arrived = npu.Event()
            self.host_tokens[:sequences].copy_(chosen, non_blocking=True)
            arrived.record()
            arrived.synchronize()
        phase = "decode" if decode else "prefill" if min(queries) > 1 else "mixed"
        label = {
            "stream": npu.default_stream().npu_stream,
            "t0": t0,
            "t1": time.monotonic_ns(),
            "phase": phase,
            "tokens": tokens,
            "batch": sequences,
            "kv_len": max(keys),
            "padded": size - tokens,
            "graphs": LAYERS + 1 if self.mode == "pieces" else int(self.mode == "full" and decode),
        }
        self.issued.append(Issued(label, (first, last), over))
        if self.overlapped and len(self.issued) > 1:
            self._await(self.issued[-2])

    @staticmethod
    def _await(issued: Issued) -> None:
        if issued.over is not None:
            issued.over.result()

    def labels(self) -> list[dict[str, Any]]:
        """Of all iterations so far, when the last one is over."""
        for issued in self.issued:
            self._await(issued)
        npu.synchronize()
        result = [
            issued.label | {"device_us": issued.events[0].elapsed_time(issued.events[1]) * 1e3}
            for issued in self.issued
        ]
        self.issued.clear()
        return result


def batch(dice: random.Random) -> tuple[list[int], list[int]]:
    """Queries and keys of an iteration: decode mostly, prompts in chunks, and both."""
    kind = dice.choice(("decode", "decode", "decode", "prefill", "mixed"))
    if kind == "decode":
        queries = [1] * dice.randint(1, SEQUENCES)
    elif kind == "prefill":
        queries = [dice.randint(2, 30) for _ in range(dice.randint(1, 2))]
    else:
        queries = [1] * dice.randint(1, SEQUENCES - 2) + [dice.randint(2, 30)]
    return queries, [query + dice.randint(1, ROOM - 31) for query in queries]


def main() -> None:
    """Runs one configuration and prints a label for each iteration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("configuration", choices=ENGINES)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    dice = random.Random(options.seed)
    npu.set_device(0)
    mode = options.configuration.removesuffix("-sync")
    with torch.no_grad():
        engine = Engine(mode, overlapped=mode == options.configuration)
        for _ in range(3):
            engine.iterate(*batch(dice))
        engine.labels()
        print("ready", flush=True)
        sys.stdin.readline()
        for _ in range(options.steps):
            engine.iterate(*batch(dice))
        labels = engine.labels()
    print("\n".join(map(json.dumps, labels)))
    print("end", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
