"""The program that the self-test traces: known calls of a library set, counted by the caller itself.

    python -m probes.selftest.program vendor|client

Prints ``ready``, waits for a line on standard input, makes its calls, prints as one line of JSON what it did
(see `Report`), and waits for its input to end. The numbers of calls are primes, so that a count which is off
by a factor, or mixed up with another one, does not fit.

Only whole numbers are passed, and only in the order in which CANN's functions take them: what a probe finds
in the first argument registers is what this program summed up.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

LIBRARIES = Path(__file__).parent / "lib"

ARGUMENTS = 4
"""Arguments that are summed up, each by itself, modulo 2^64."""

STREAM = 0x20010
PROMPT, BATCH, HIDDEN, VOCABULARY = 37, 3, 64, 32003
PREFILLS, DECODES, CAPTURES, REPLAYS = 7, 19, 3, 11
CLIENT_STEPS = 29
"""A prime number of them: each of the client's two step points is called as often."""
TRANSFERS = 5
LAUNCHES = 13
"""Operators of a step, the embedding aside."""
LAYERS = 2

_INT64, _FLOAT16 = 9, 1
_H2D, _D2H = 1, 2
_MASK = (1 << 64) - 1


@dataclass
class Report:
    """What the program did. `sums` are those of the first `ARGUMENTS` arguments, for functions that have
    them."""

    calls: dict[str, int] = field(default_factory=dict)
    sums: dict[str, list[int]] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    """How many steps of a kind there were: ``phase tokens batch``."""
    semaphores: list[int] = field(default_factory=list)
    """The client's semaphores while it made its calls."""


class Caller:
    """Calls functions of the libraries and counts."""

    def __init__(self, *names: str) -> None:
        self.report = Report()
        self._libraries = [ctypes.CDLL(str(LIBRARIES / f"lib{name}.so")) for name in names]
        self._functions: dict[str, Any] = {}

    def symbol(self, name: str) -> Any:
        """The function `name`, which takes and returns 64-bit numbers."""
        if name not in self._functions:
            library = next(library for library in self._libraries if hasattr(library, name))
            function = library[name]
            function.restype = ctypes.c_uint64
            self._functions[name] = function
        return self._functions[name]

    def word(self, name: str) -> int:
        """The two bytes at a symbol: a probe point's semaphore."""
        return next(
            int(ctypes.c_uint16.in_dll(library, name).value)
            for library in self._libraries
            if hasattr(library, name)
        )

    def __call__(self, name: str, *arguments: int) -> int:
        """Call the function `name` with 64-bit numbers, and count; what it returned."""
        self.report.calls[name] = self.report.calls.get(name, 0) + 1
        kept = arguments[:ARGUMENTS]
        before = self.report.sums.setdefault(name, [0] * len(kept))
        self.report.sums[name] = [(a + b) & _MASK for a, b in zip(before, kept, strict=True)]
        return int(self.symbol(name)(*[ctypes.c_uint64(argument & _MASK) for argument in arguments]))


def _words(values: list[int]) -> Any:
    return (ctypes.c_int64 * len(values))(*values)


class Vendor:
    """Plays torch_npu on the vendor's functions."""

    def __init__(self) -> None:
        self._call = Caller("acl_rt", "nnopbase", "opapi", "llm_datadist")
        self._waits = 0
        self._layout = ctypes.create_string_buffer(b"TND")

    def _tensor(self, dims: list[int], dtype: int) -> int:
        view = _words(dims)
        address = ctypes.addressof(view)
        return self._call("aclCreateTensor", address, len(dims), dtype, 0, 0, 2, address, len(dims), 0)

    def _embed(self, dims: list[int]) -> None:
        tensors = [
            self._tensor([VOCABULARY, HIDDEN], _FLOAT16),
            self._tensor(dims, _INT64),
            self._tensor([*dims, HIDDEN], _FLOAT16),
        ]
        size, executor = ctypes.c_uint64(), ctypes.c_uint64()
        outputs = ctypes.addressof(size), ctypes.addressof(executor)
        self._call("aclnnEmbeddingGetWorkspaceSize", *tensors, *outputs)
        self._call("aclnnEmbedding", 0, 0, executor.value, STREAM)
        self._call("aclrtLaunchKernelWithHostArgs", 1, 24, STREAM, 0, 0, 0)

    def _attend(self, dims: list[int], operator: str) -> None:
        """An attention operator's two calls, with the lengths of all sequences."""
        batch, length = dims
        query = self._tensor([batch * length, 8, HIDDEN], _FLOAT16)
        lengths, past = _words([length * (n + 1) for n in range(batch)]), _words([length + 99] * batch)
        arrays = [self._call("aclCreateIntArray", ctypes.addressof(a), batch) for a in (lengths, past)]
        # query, keys, values, two more, lengths, lengths of keys and values, 20 more, name of the layout, ...
        name = ctypes.addressof(self._layout)
        self._call(f"{operator}GetWorkspaceSize", query, 0, 0, 0, 0, *arrays, *[0] * 20, name, *[0] * 10)
        self._call(operator, 0, 0, 0, STREAM)
        self._call("aclrtLaunchKernelWithHostArgs", 2, 24, STREAM, 0, 0, 0)

    def _wait(self) -> None:
        """Every kind of synchronise in turn, in different numbers."""
        kinds: list[tuple[str, list[int]]] = [
            ("aclrtSynchronizeStreamWithTimeout", [STREAM, 30000]),
            ("aclrtSynchronizeStream", [STREAM]),
            ("aclrtSynchronizeDeviceWithTimeout", [30000]),
            ("aclrtSynchronizeStreamWithTimeout", [STREAM, 30000]),
            ("aclrtSynchronizeDevice", []),
            ("aclrtSynchronizeEvent", [0x6000]),
            ("aclrtSynchronizeEventWithTimeout", [0x6000, 30000]),
        ]
        name, arguments = kinds[self._waits % len(kinds)]
        self._waits += 1
        self._call("aclrtRecordEvent", 0x6000, STREAM)
        time.sleep(0.001)  # what a step takes; a synchronise that waits for nothing ends none
        self._call(name, *arguments)

    def _step(self, dims: list[int]) -> None:
        self._call("aclrtMemcpyAsync", 0, 8 * dims[0], 0, 8 * dims[0], _H2D, STREAM)
        self._embed(dims)
        for _ in range(LAYERS):
            self._attend(dims, "aclnnFusedInferAttentionScoreV2")
        for _ in range(LAUNCHES - LAYERS):
            self._call("aclnnMatmul", 0, 0, 0, STREAM)
            self._call("aclrtLaunchKernelWithHostArgs", 3, 24, STREAM, 0, 0, 0)
        self._wait()
        self._call("aclrtMemcpy", 0, 8 * dims[0], 0, 8 * dims[0], _D2H)
        kind = "prefill" if dims[1] > 1 else "decode"
        self._count(f"{kind} {dims[0] * dims[1]} {dims[0]}")

    def _count(self, kind: str) -> None:
        self._call.report.steps[kind] = self._call.report.steps.get(kind, 0) + 1

    def _count_of(self, name: str) -> int:
        return self._call.report.calls.get(name, 0)

    def run(self, others: list[str]) -> Report:
        """Steps and replays, then each of `others` until it was called a prime number of times."""
        model = ctypes.c_uint64()
        for _ in range(PREFILLS):
            self._step([1, PROMPT])
        for _ in range(DECODES):
            self._step([BATCH, 1])
        for _ in range(CAPTURES):
            self._call("aclmdlRICaptureBegin", STREAM, 0)
            self._embed([BATCH, 1])
            self._call("aclmdlRICaptureEnd", STREAM, ctypes.addressof(model))
        for _ in range(REPLAYS):
            self._call("aclrtMemcpy", 0, 8 * BATCH, 0, 8 * BATCH, _H2D)
            self._call("aclmdlRIExecuteAsync", model.value, STREAM)
            time.sleep(0.001)
            self._call("aclrtSynchronizeStream", STREAM)
            self._count(f"decode {BATCH} {BATCH}")
        more, query = _words([1, 2, 3]), self._tensor([BATCH, 8, HIDDEN], _FLOAT16)
        for name in others:
            first = name.endswith("GetWorkspaceSize")
            while self._count_of(name) < 5 or not _is_prime(self._count_of(name)):
                # None of these is a step's: no stream, nothing to copy, no lengths.
                arguments = [query if first else 0, self._count_of(name), 0, 0, *([0] * 44 if first else [])]
                if name == "aclCreateIntArray":
                    arguments = [ctypes.addressof(more), 3]
                known = len(self._call.report.sums.get(name, arguments))
                self._call(name, *(arguments if first else arguments[:known]))
        return self._call.report


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % n for n in range(2, int(number**0.5) + 1))


class Client:
    """Plays FlexNPU's client: calls its probe points."""

    def __init__(self) -> None:
        self._call = Caller("flexnpu_client", "llm_datadist")

    def run(self) -> Report:
        """Play `CLIENT_STEPS` steps and moves of a KV cache; what was called."""
        from probes.placing.plan import SITES, Role
        from probes.steps import client_steps as c

        now = time.monotonic_ns
        report = self._call.report
        for number in range(CLIENT_STEPS):
            prefill = number < PREFILLS
            dims = [1, PROMPT] if prefill else [BATCH, 1]
            raw = c.RawStep()
            raw.version, raw.size, raw.stream, raw.seq = c.VERSION, ctypes.sizeof(raw), STREAM, number
            raw.opening, raw.t_start, raw.gated_ns = 1, now(), 0
            raw.evidence.flags = 1 | 2 | 4  # indices, table, and that they agree
            raw.evidence.ndim = 2
            raw.evidence.dims[0], raw.evidence.dims[1] = dims
            raw.evidence.rows, raw.evidence.columns = VOCABULARY, HIDDEN
            for kind in (1, 3):
                raw.kind = kind
                raw.ended_by = 4 if kind == 1 else 0
                raw.launches = raw.lane_work = 0 if kind == 1 else LAUNCHES
                raw.t_last = raw.t_end = 0 if kind == 1 else now()
                self._call("flexnpu_step_begin" if kind == 1 else "flexnpu_step", ctypes.addressof(raw))
                time.sleep(0.0005)
            kind_of_step = f"{'prefill' if prefill else 'decode'} {dims[0] * dims[1]} {dims[0]}"
            report.steps[kind_of_step] = report.steps.get(kind_of_step, 0) + 1
        name = ctypes.create_string_buffer(b"aclnnMatmul")
        for n in range(LAUNCHES):
            self._call("flexnpu_operator", STREAM, ctypes.addressof(name), n)
        for site in SITES:
            for n in range(TRANSFERS if site.role is Role.TRANSFER else 0):
                self._call(site.symbol, 1, n, 3, 4)
        report.semaphores = [
            self._call.word("flexnpu_step_semaphore"),
            self._call.word("flexnpu_operator_semaphore"),
        ]
        return report


def main() -> None:
    """Makes the known calls after a line on stdin, reports them as JSON, waits for the end of stdin."""
    kind = sys.argv[1]
    program = Client() if kind == "client" else Vendor()
    os.set_blocking(sys.stdin.fileno(), True)
    print("ready", flush=True)
    others = sys.stdin.readline().split()
    report = program.run(others) if isinstance(program, Vendor) else program.run()
    print(json.dumps(asdict(report)), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
