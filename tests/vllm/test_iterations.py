"""Steps of unmodified vLLM-Ascend against its own log, `--enable-logging-iteration-details`.

Runs where the venv of vLLM is (`FLEXNPU_VLLM_HOME`, else ~/.cache/flexnpu/vllm) and the libraries have what
it links. An iteration without tokens launches nothing and is no step. A context request of one token is a
decode step for the device.
"""

from __future__ import annotations

import difflib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.classification import target
from flexnpu import emulator
from flexnpu.client import environment as client
from probes.feed.events import Step
from probes.steps.tracer import Tracer
from workloads import vllm_ascend
from workloads.models import TinyModel, ensure

pytestmark = [pytest.mark.ebpf, pytest.mark.torch_npu, pytest.mark.timeout(900)]

MODES: dict[str, list[str]] = {
    "eager": ["--enforce-eager"],
    "piecewise": ["--compilation-config", '{"cudagraph_mode": "PIECEWISE"}'],
    "full": ["--compilation-config", '{"cudagraph_mode": "FULL_DECODE_ONLY"}'],
    "eager-sync": ["--enforce-eager", "--no-async-scheduling"],
}
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "TVM_FFI_DISABLE_TORCH_C_DLPACK": "1",
    "VLLM_HOST_IP": "127.0.0.1",
}
ITERATION = re.compile(
    r"Iteration\(\d+\): (\d+) context requests, (\d+) context tokens, (\d+) generation requests, "
    r"(\d+) generation tokens"
)
REQUESTS = 24


def vllm() -> str:
    """The command; skips where there is none."""
    try:
        return str(vllm_ascend.find() / "bin" / "vllm")
    except vllm_ascend.VllmError as error:
        pytest.skip(str(error))


@dataclass
class Server:
    """`vllm serve`, ready to answer."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def ask(self, prompt: str, tokens: int) -> None:
        body = {
            "model": "model",
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=300).read()

    def engine(self) -> int:
        """The process that launches."""
        for entry in Path("/proc").glob("[0-9]*"):
            pid = int(entry.name)
            try:
                if os.getsid(pid) == self.process.pid and b"EngineCore" in (entry / "cmdline").read_bytes():
                    return pid
            except OSError:
                continue
        raise AssertionError("no engine among the server's processes")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def serving(mode: str, environment: dict[str, str], log: Path) -> Iterator[Server]:
    model = ensure(TinyModel("qwen2", hidden=256, heads=4, kv_heads=2, intermediate=512))
    port = free_port()
    command = [
        *(vllm(), "serve", str(model), "--host", "127.0.0.1", "--port", str(port)),
        *("--served-model-name", "model", "--dtype", "float16", "--max-model-len", "512"),
        *("--block-size", "128", "--max-num-seqs", "8", "--max-num-batched-tokens", "128"),
        *("--gpu-memory-utilization", "0.1", "--num-gpu-blocks-override", "64"),
        *("--enable-logging-iteration-details", *MODES[mode]),
    ]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=environment | QUIET, stdout=out, stderr=out, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 600
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                alive = process.poll() is None and time.monotonic() < deadline
                assert alive, f"vLLM does not serve:\n{log.read_text()[-3000:]}"
                time.sleep(0.5)
        yield Server(process, port, log)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)


def load(server: Server, seed: int, requests: int) -> None:
    dice = random.Random(seed)
    for _ in range(requests):
        words = [dice.choice(("one", "two", "three", "dog", "cat")) for _ in range(dice.randint(5, 150))]
        server.ask(" ".join(words), dice.randint(8, 40))


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
    vllm()
    for libraries in (emulator.lib_dir(), client.CLIENT_HOME / "lib"):
        if not (libraries / "libatb.so").exists():
            pytest.skip(f"vLLM-Ascend links libatb.so, which is not in {libraries}")
    with target(request.param, mode="time") as variables:
        yield variables


@pytest.mark.parametrize("mode", MODES)
def test_steps_are_vllm_s_iterations(environment: dict[str, str], mode: str, tmp_path: Path) -> None:
    seen: list[Any] = []
    with serving(mode, environment, tmp_path / "server.log") as server:
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
    print(f"{mode}: {len(want)} iterations, {len(told)} steps", file=sys.stderr)
    assert len(want) > 100
    assert not wrong
