"""Steps of unmodified vLLM-Ascend against its own log, `--enable-logging-iteration-details`.

An iteration without tokens launches nothing and is no step. A context request of one token is a
decode step for the device.
"""

from __future__ import annotations

import difflib
import os
import random
import re
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks.classification import target
from flexnpu import emulator
from flexnpu.client import environment as client
from flexnpu.common.ports import free_port
from probes.feed.events import Step
from probes.steps.tracer import Tracer
from workloads.models import TinyModel, ensure
from workloads.vllm_ascend import Server, command

pytestmark = [pytest.mark.ebpf, pytest.mark.torch_npu, pytest.mark.timeout(900)]

#: The engine's mode, and how it schedules.
CASES: dict[str, tuple[str, list[str]]] = {
    "eager": ("eager", []),
    "piecewise": ("piecewise", []),
    "full": ("full", []),
    "eager-sync": ("eager", ["--no-async-scheduling"]),
}
ITERATION = re.compile(
    r"Iteration\(\d+\): (\d+) context requests, (\d+) context tokens, (\d+) generation requests, "
    r"(\d+) generation tokens"
)
REQUESTS = 24


def load(server: Server, seed: int, requests: int) -> None:
    dice = random.Random(seed)
    for _ in range(requests):
        prompt = [dice.randrange(3, 500) for _ in range(dice.randint(5, 150))]
        server.complete(prompt, dice.randint(8, 40))


def iterations(text: str) -> list[tuple[str, int, int]]:
    """Phase, tokens and sequences of each, as a device sees them."""
    found = []
    for match in ITERATION.finditer(text):
        prompts, prompt_tokens, decodes, decode_tokens = map(int, match.groups())
        if prompt_tokens + decode_tokens == 0:
            continue
        one_each = prompt_tokens == prompts
        phase = "decode" if one_each else "mixed" if decodes else "prefill"
        found.append((phase, prompt_tokens + decode_tokens, prompts + decodes))
    return found


@pytest.fixture(params=["cann", "client"])
def environment(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    for libraries in (emulator.lib_dir(), client.CLIENT_HOME / "lib"):
        if not (libraries / "libatb.so").exists():
            pytest.skip(f"vLLM-Ascend links libatb.so, which is not in {libraries}")
    with target(request.param, mode="time") as variables:
        yield variables


@pytest.mark.parametrize("case", CASES)
def test_steps_are_vllm_s_iterations(
    vllm: Path, environment: dict[str, str], case: str, tmp_path: Path
) -> None:
    seen: list[Any] = []
    mode, options = CASES[case]
    model = ensure(TinyModel("qwen2", hidden=256, heads=4, kv_heads=2, intermediate=512))
    options = [*options, "--max-num-batched-tokens", "128", "--enable-logging-iteration-details"]
    port = free_port()
    arguments = command(vllm, model, port, mode, *options)
    with Server(arguments, port, environment, tmp_path / "server.log") as server:
        server.wait()
        load(server, 0, 1)
        time.sleep(1)  # the log of what came before is written
        before = server.log.stat().st_size
        with Tracer(seen.append, budget_percent=None) as tracer:
            tracer.attach(server.engine())
            with ThreadPoolExecutor(4) as clients:
                running = [clients.submit(load, server, seed, REQUESTS // 4) for seed in range(1, 5)]
                while not all(one.done() for one in running):
                    tracer.poll(0.05)
                for one in running:
                    one.result()
            settle = time.monotonic() + 1.5
            while time.monotonic() < settle:
                tracer.poll(0.05)
        text = server.log.read_bytes()[before:].decode(errors="replace")
    steps = sorted((one for one in seen if isinstance(one, Step)), key=lambda one: one.t_start_ns)
    assert [one.evidence for one in steps if one.phase == "other"] == []
    want, told = iterations(text), [(one.phase, one.tokens, one.batch) for one in steps]
    wrong = [
        (what, want[a:b][:3], told[c:d][:3])
        for what, a, b, c, d in difflib.SequenceMatcher(a=want, b=told, autojunk=False).get_opcodes()
        if what != "equal"
    ]
    print(f"{case}: {len(want)} iterations, {len(told)} steps", file=sys.stderr)
    assert len(want) > 100
    assert not wrong
