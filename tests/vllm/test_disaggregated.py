"""Unmodified vLLM-Ascend, prefill and decode in two servers on one emulated NPU, serves the right tokens."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from flexnpu.common.ports import free_port
from tests.vllm.conftest import EVERYTHING, only_with_everything
from tests.vllm.engines import PROMPTS, Answers, Host, host, model
from workloads import disaggregated, layerwise, vllm_ascend
from workloads.vllm_ascend import Server

pytestmark = [pytest.mark.torch_npu, pytest.mark.timeout(1800)]

GIB = 1 << 30
#: (family, mode, way). The first one runs wherever vLLM is there, the others with FLEXNPU_VLLM=1.
SOME = [("qwen2", "eager", "interposed")]
ALL = [
    *SOME,
    ("llama", "full", "interposed"),
    ("qwen3", "piecewise", "interposed"),
    ("qwen2", "eager", "direct"),
]
PUSHED = [("qwen2", "eager", "interposed"), ("llama", "full", "interposed"), ("qwen2", "eager", "direct")]


def serve(
    machine: Host, vllm: Path, family: str, mode: str, connector: str, folder: Path
) -> AbstractContextManager[dict[str, Server]]:
    """P and D. With a quota each, they see nothing of each other's memory, so they may start at once."""
    ports = {role: free_port() for role in disaggregated.ROLES}
    commands = {
        role: vllm_ascend.command(
            vllm, model(family), ports[role], mode, *disaggregated.options(role, connector)
        )
        for role in disaggregated.ROLES
    }
    prefix = machine.prefix("--quota", "20GiB")
    return disaggregated.instances(
        commands, ports, machine.environment, folder, prefix, together=bool(machine.daemons)
    )


def check_quotas(machine: Host) -> None:
    for daemon in machine.daemons:
        quotas = [s.memory_quota_bytes for s in daemon.status().sessions if s.memory_bytes]
        assert quotas == [20 * GIB] * 2


@pytest.mark.parametrize(("family", "mode", "way"), ALL if EVERYTHING else SOME)
def test_greedy_tokens_are_those_of_transformers(
    vllm: Path, tmp_path: Path, family: str, mode: str, way: str
) -> None:
    answers = Answers.of(family)
    with host(way, tmp_path) as machine:
        with (
            serve(machine, vllm, family, mode, disaggregated.PULL, tmp_path) as servers,
            disaggregated.proxy(servers, vllm, machine.environment, tmp_path) as proxy,
        ):
            check_quotas(machine)
            answers.check(proxy.complete)
            # Each prompt's cache was pulled, none was computed again.
            pulled = re.findall(r"KV cache transfer for request \S+ took", servers["D"].log.read_text())
            assert len(pulled) == len(PROMPTS) + 2
        machine.check_used()


@only_with_everything
@pytest.mark.parametrize(("family", "mode", "way"), PUSHED)
def test_caches_move_layer_by_layer(vllm: Path, tmp_path: Path, family: str, mode: str, way: str) -> None:
    answers = Answers.of(family)
    with host(way, tmp_path) as machine:
        with (
            serve(machine, vllm, family, mode, disaggregated.PUSH, tmp_path) as servers,
            layerwise.client(servers["P"], servers["D"]) as client,
        ):
            check_quotas(machine)
            answers.check(client.complete)
            received = re.findall(r"receive requests: \{([^}]+)\}", servers["D"].log.read_text())
            assert len(", ".join(received).split(", ")) == len(PROMPTS) + 2
        machine.check_used()
