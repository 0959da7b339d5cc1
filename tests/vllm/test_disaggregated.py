"""Unmodified vLLM-Ascend, prefill and decode in two servers on one emulated NPU, serves the right tokens."""

from __future__ import annotations

import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flexnpu import emulator
from flexnpu.common.ports import free_port
from tests.clients.conftest import Daemon
from tests.vllm.conftest import EVERYTHING
from tests.vllm.test_serving import PROMPTS, TOKENS, model, reference
from workloads import disaggregated, vllm_ascend

pytestmark = [pytest.mark.torch_npu, pytest.mark.timeout(1800)]

GIB = 1 << 30
RUN = [str(Path(sys.executable).with_name("flexnpu")), "run", "--quota", "20GiB", "--"]
#: (family, mode, way). The first one runs wherever vLLM is there, the others with FLEXNPU_VLLM=1.
SOME = [("qwen2", "eager", "interposed")]
ALL = [
    *SOME,
    ("llama", "full", "interposed"),
    ("qwen3", "piecewise", "interposed"),
    ("qwen2", "eager", "direct"),
]


@pytest.mark.parametrize(("family", "mode", "way"), ALL if EVERYTHING else SOME)
def test_greedy_tokens_are_those_of_transformers(
    vllm: Path, request: pytest.FixtureRequest, tmp_path: Path, family: str, mode: str, way: str
) -> None:
    expected = reference(family)
    ports = {role: free_port() for role in disaggregated.ROLES}
    commands = {
        role: vllm_ascend.command(vllm, model(family), ports[role], mode, *disaggregated.options(role))
        for role in disaggregated.ROLES
    }
    daemon: Daemon | None = request.getfixturevalue("daemon") if way == "interposed" else None
    environment = daemon.environment if daemon else os.environ | emulator.environment()
    prefix = RUN if daemon else []
    # With a quota each, P and D see nothing of each other's memory, so they may start at once.
    with disaggregated.serving(
        commands, ports, vllm, environment, tmp_path, prefix, together=daemon is not None
    ) as servers:
        if daemon:
            quotas = [s.memory_quota_bytes for s in daemon.status().sessions if s.memory_bytes]
            assert quotas == [20 * GIB] * 2
        alone = [servers.proxy.complete(prompt, TOKENS) for prompt in PROMPTS[:2]]
        assert alone == expected[:2]
        with ThreadPoolExecutor(len(PROMPTS)) as pool:
            together = list(pool.map(lambda prompt: servers.proxy.complete(prompt, TOKENS), PROMPTS))
        assert together == expected
        # Each prompt's cache was pulled, none was computed again.
        pulled = re.findall(r"KV cache transfer for request \S+ took", servers.decode.log.read_text())
        assert len(pulled) == len(PROMPTS) + 2
