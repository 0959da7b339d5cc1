"""A request through Mooncake's proxy and two unmodified vLLM-Ascend servers is one, and its TTFT is split."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from flexnpu.common.ports import free_port
from probes.feed.events import ProcessState, RequestTiming
from tests.probes.test_disaggregated import Probe
from tests.vllm.engines import host, model, prompts
from workloads import disaggregated, vllm_ascend

pytestmark = [pytest.mark.torch_npu, pytest.mark.ebpf, pytest.mark.timeout(1800)]

TOKENS = 24
#: Of unequal lengths, one longer than a block of the cache.
PROMPTS = prompts(5, 150, 33, 64)


def streams(requests: list[RequestTiming]) -> list[RequestTiming]:
    return [one for one in requests if one.t_first_ns is not None]


def test_a_request_through_three_servers_is_one(vllm: Path, tmp_path: Path) -> None:
    """Four at once. The proxy passes nothing on but the answer, and calls that JSON."""
    ports = {role: free_port() for role in disaggregated.ROLES}
    commands = {
        role: vllm_ascend.command(vllm, model("qwen2"), ports[role], "eager", *disaggregated.options(role))
        for role in disaggregated.ROLES
    }
    with ExitStack() as stack:
        machine = stack.enter_context(host("interposed", tmp_path))
        prefix = machine.prefix("--quota", "20GiB")
        servers = stack.enter_context(
            disaggregated.serving(commands, ports, vllm, machine.environment, tmp_path, prefix)
        )
        proxy = servers.proxy.process.pid
        probe = Probe(servers.prefill.engine(), servers.decode.engine())
        stack.callback(probe.kill)
        # The proxy is found by its connections.
        servers.proxy.complete(PROMPTS[0], 2)
        probe.wait_for(
            lambda: any(isinstance(e, ProcessState) and e.pid == proxy for e in list(probe.events))
        )
        bodies = [
            vllm_ascend.completion(prompt, TOKENS, stream=True, seed=n)
            for n, prompt in enumerate(PROMPTS * 2)
        ]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda body: servers.proxy.ask("/v1/completions", body), bodies))
        probe.wait_for(lambda: len(streams(probe.requests(proxy))) >= len(bodies))
        probe.stop()
    for outer in streams(probe.requests(proxy))[-len(bodies) :]:
        assert (outer.status, outer.tokens) == (200, TOKENS)
        joined = [(role, by) for _, _, role, by in outer.hops or ()]
        assert joined == [("prefill", "answer"), ("decode", "answer")]
        parts = outer.parts_us or {}
        # Whose a transfer was is not known where several requests waited.
        wait = {"transfer", "decode_queue"} if "transfer" in parts else {"decode_wait"}
        assert set(parts) == {"proxy", "prefill_queue", "prefill", "first_step", "gate", "send"} | wait
        assert outer.t_first_ns is not None
        assert sum(parts.values()) * 1e3 == pytest.approx(outer.t_first_ns - outer.t_arrival_ns, abs=20)
        print(" ".join(f"{part} {us / 1e3:.1f}" for part, us in parts.items()), "ms")
