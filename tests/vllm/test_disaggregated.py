"""Unmodified vLLM-Ascend, prefill and decode in two servers on one emulated NPU, serves the right tokens."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flexnpu import emulator
from flexnpu.common.ports import free_port
from probes.feed.events import ProcessState, RequestTiming
from tests.clients.conftest import Daemon
from tests.probes.test_disaggregated import Probe
from tests.vllm.conftest import EVERYTHING
from tests.vllm.engines import host, model, prompts, reference
from workloads import disaggregated, vllm_ascend

pytestmark = [pytest.mark.torch_npu, pytest.mark.timeout(1800)]

GIB = 1 << 30
TOKENS = 24
#: Of unequal lengths, one longer than a block of the cache.
PROMPTS = prompts(5, 150, 33, 64)
#: P computes a prompt and D goes on by one token, so sums are rounded otherwise than in one engine. A choice
#: that was better by 0.011 has been seen to fall the other way; what follows such a choice is not compared.
CLEAR = 0.03
RUN = [str(Path(sys.executable).with_name("flexnpu")), "run", "--quota", "20GiB", "--"]
#: (family, mode, way). The first one runs wherever vLLM is there, the others with FLEXNPU_VLLM=1.
SOME = [("qwen2", "eager", "interposed")]
ALL = [
    *SOME,
    ("llama", "full", "interposed"),
    ("qwen3", "piecewise", "interposed"),
    ("qwen2", "eager", "direct"),
]


def clear(tokens: list[int], margins: list[float]) -> int:
    """How many of the first tokens are clear choices."""
    return next((i for i, margin in enumerate(margins) if margin < CLEAR), len(tokens))


@pytest.mark.parametrize(("family", "mode", "way"), ALL if EVERYTHING else SOME)
def test_greedy_tokens_are_those_of_transformers(
    vllm: Path, request: pytest.FixtureRequest, tmp_path: Path, family: str, mode: str, way: str
) -> None:
    said = reference(model(family), PROMPTS, TOKENS)
    sure = [clear(tokens, margins) for tokens, margins in zip(said.tokens, said.margins, strict=True)]
    expected = [tokens[:n] for tokens, n in zip(said.tokens, sure, strict=True)]
    assert min(sure) > 0
    assert len({token for answer in expected for token in answer}) > 8
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
        assert [answer[:n] for answer, n in zip(alone, sure, strict=False)] == expected[:2]
        with ThreadPoolExecutor(len(PROMPTS)) as pool:
            together = list(pool.map(lambda prompt: servers.proxy.complete(prompt, TOKENS), PROMPTS))
        assert [answer[:n] for answer, n in zip(together, sure, strict=True)] == expected
        assert {len(answer) for answer in alone + together} == {TOKENS}
        # Each prompt's cache was pulled, none was computed again.
        pulled = re.findall(r"KV cache transfer for request \S+ took", servers.decode.log.read_text())
        assert len(pulled) == len(PROMPTS) + 2


@pytest.mark.ebpf
def test_a_request_through_three_servers_is_one(vllm: Path, tmp_path: Path) -> None:
    """By Mooncake's proxy, which passes nothing on but the answer; requests together."""
    ports = {role: free_port() for role in disaggregated.ROLES}
    commands = {
        role: vllm_ascend.command(vllm, model("qwen2"), ports[role], "eager", *disaggregated.options(role))
        for role in disaggregated.ROLES
    }
    with contextlib.ExitStack() as stack:
        (daemon,) = stack.enter_context(host("interposed", tmp_path)).daemons
        servers = stack.enter_context(
            disaggregated.serving(commands, ports, vllm, daemon.environment, tmp_path, RUN)
        )
        pids = {"P": servers.prefill.engine(), "D": servers.decode.engine()}
        proxy = servers.proxy.process.pid
        probe = Probe(*pids.values())
        try:
            # The proxy is found by its connections.
            servers.proxy.complete(PROMPTS[0], 2)
            probe.wait_for(
                lambda: any(isinstance(e, ProcessState) and e.pid == proxy for e in list(probe.events))
            )
            ask = [(prompt, n) for n, prompt in enumerate(PROMPTS * 2)]
            with ThreadPoolExecutor(4) as pool:
                list(
                    pool.map(
                        lambda one: servers.proxy.ask(
                            "/v1/completions",
                            vllm_ascend.completion(one[0], TOKENS, stream=True, seed=one[1]),
                        ),
                        ask,
                    )
                )
            probe.wait_for(lambda: len(streams(probe.requests(proxy))) >= len(ask))
            probe.stop()
        finally:
            probe.kill()
    outers = streams(probe.requests(proxy))[-len(ask) :]
    for outer in outers:
        assert outer.status == 200
        assert outer.tokens == TOKENS
        assert [(role, by) for _, _, role, by in outer.hops or ()] == [
            ("prefill", "answer"),
            ("decode", "answer"),
        ]
        parts = outer.parts_us or {}
        # Whose a transfer was is not known where several requests waited.
        wait = {"transfer", "decode_queue"} if "transfer" in parts else {"decode_wait"}
        assert set(parts) == {"proxy", "prefill_queue", "prefill", "first_step", "gate", "send"} | wait
        assert outer.t_first_ns is not None
        assert sum(parts.values()) * 1e3 == pytest.approx(outer.t_first_ns - outer.t_arrival_ns, abs=20)
        print(" ".join(f"{part} {us / 1e3:.1f}" for part, us in parts.items()), "ms")


def streams(requests: list[RequestTiming]) -> list[RequestTiming]:
    return [one for one in requests if one.t_first_ns is not None]
