"""Engines for vLLM's tests, directly on the emulated NPU or interposed; and what transformers says."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from flexnpu import emulator
from flexnpu.common.ports import free_port
from tests.clients.conftest import Daemon, Machine
from workloads import vllm_ascend
from workloads.models import ensure, small
from workloads.vllm_ascend import Server

WAYS = ("direct", "interposed")

#: The engine computes in float16. A choice between tokens whose logits are nearer than this says nothing.
MARGIN = 0.005
#: Sums are rounded otherwise in each family's operators, and where P computes a prompt and D goes on. Choices
#: that were better by 0.011 have been seen to fall the other way; what follows such a one is not compared.
CLEAR = 0.03
TOKENS = 24

_REFERENCE = Path(__file__).parent / "programs" / "reference.py"

Prompts = tuple[tuple[int, ...], ...]


def prompts(*lengths: int) -> Prompts:
    """One of each length, all different from their first token on."""
    return tuple(tuple((7 * i * (k + 3) + k) % 509 + 3 for i in range(n)) for k, n in enumerate(lengths))


#: Of unequal lengths, one longer than a block of the cache.
PROMPTS = prompts(5, 150, 33, 64)


@functools.cache
def model(family: str) -> Path:
    # The seed of OPT is one with which no two tokens are nearly as good (`MARGIN`).
    return ensure(small(family, seed=2 if family == "opt" else 0))


@dataclass(frozen=True)
class Reference:
    """Of some prompts: the greedy tokens after each, each first token's logits, and by how much each token
    was better than the second best."""

    tokens: list[list[int]]
    logits: list[list[float]]
    margins: list[list[float]]


@functools.cache
def reference(folder: Path, asked: Prompts, tokens: int) -> Reference:
    done = subprocess.run(
        [sys.executable, str(_REFERENCE), str(folder), str(tokens)],
        input=json.dumps(asked),
        # transformers loads torch_npu where it is installed; nothing is put on the device.
        # One thread: several that spin for each other cost minutes beside other tests.
        env=os.environ | emulator.environment() | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout)
    margins = [one["margins"] for one in answers]
    least = min(min(one) for one in margins)
    assert tokens == 1 or least > MARGIN, f"{folder.name}: two tokens are as good as each other: {least}"
    return Reference([one["tokens"] for one in answers], [one["logits"] for one in answers], margins)


def clear(tokens: list[int], margins: list[float]) -> int:
    """How many of the first tokens are clear choices."""
    return next((i for i, margin in enumerate(margins) if margin < CLEAR), len(tokens))


Complete = Callable[[Sequence[int], int], list[int]]


@dataclass(frozen=True)
class Answers:
    """What must be answered to `PROMPTS`: of each as many tokens as are clear choices."""

    expected: list[list[int]]

    @classmethod
    def of(cls, family: str) -> Answers:
        """By transformers."""
        said = reference(model(family), PROMPTS, TOKENS)
        sure = [clear(tokens, margins) for tokens, margins in zip(said.tokens, said.margins, strict=True)]
        assert min(sure) > 0
        expected = [tokens[:n] for tokens, n in zip(said.tokens, sure, strict=True)]
        assert len({token for answer in expected for token in answer}) > 8
        return cls(expected)

    def check(self, complete: Complete) -> None:
        """Asks for some one after the other, and for all of them together."""
        alone = [complete(prompt, TOKENS) for prompt in PROMPTS[:2]]
        assert self._same(alone) == self.expected[:2]
        with ThreadPoolExecutor(len(PROMPTS)) as pool:
            together = list(pool.map(lambda prompt: complete(prompt, TOKENS), PROMPTS))
        assert self._same(together) == self.expected
        assert {len(answer) for answer in alone + together} == {TOKENS}

    def _same(self, answers: list[list[int]]) -> list[list[int]]:
        return [answer[: len(want)] for answer, want in zip(answers, self.expected, strict=False)]


class Host:
    """A machine of emulated devices; engines run on it directly, or through its daemons."""

    def __init__(self, directory: Path, machine: Machine, daemons: Sequence[Daemon]) -> None:
        self.daemons = daemons
        self._directory = directory
        self._machine = machine
        self._started = 0

    @contextmanager
    def serve(
        self,
        venv: Path,
        folder: Path,
        mode: str,
        *options: str,
        blocks: int = 64,
        variables: dict[str, str] | None = None,
    ) -> Iterator[Server]:
        """An engine that starts. The caller waits for it, so that several start at once."""
        self._started += 1
        port = free_port()
        arguments = vllm_ascend.command(venv, folder, port, mode, *options, blocks=blocks)
        log = self._directory / f"vllm-{self._started}.log"
        with Server(arguments, port, {**self.environment, **(variables or {})}, log, self.prefix()) as server:
            yield server

    @property
    def environment(self) -> dict[str, str]:
        """Of a program that runs here."""
        return self._machine.environment if self.daemons else os.environ | self._machine.variables

    def prefix(self, *options: str) -> list[str]:
        """What a program's command begins with; `options` are of `flexnpu run`."""
        if not self.daemons:
            return []
        *command, end = self._machine.prefix
        return [*command, *options, end]

    def check_used(self, launches: int = 1000) -> None:
        """That the engines ran through the daemons, and that their sessions have ended."""
        for daemon in self.daemons:
            status = daemon.wait_for(lambda s: not s.sessions)
            assert status.counters["launches"] > launches


@contextmanager
def host(way: str, directory: Path, devices: int = 1) -> Iterator[Host]:
    """A machine for one test. Interposed, each device has a daemon."""
    machine = Machine(directory, devices)
    with ExitStack() as stack:
        daemons = stack.enter_context(machine.daemons()) if way == "interposed" else ()
        yield Host(directory, machine, daemons)
