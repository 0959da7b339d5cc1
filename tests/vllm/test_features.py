"""What vLLM's engine has beyond plain decoding gives the tokens of transformers too: each feature directly on
the emulated NPU and interposed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.vllm.conftest import EVERYTHING, only_with_everything
from tests.vllm.engines import PROMPTS, TOKENS, WAYS, Answers, Host, host, model, prompts, reference
from workloads.vllm_ascend import NGRAM, Server

pytestmark = [pytest.mark.torch_npu, pytest.mark.timeout(1800)]


def expected(family: str = "qwen2") -> list[list[int]]:
    return reference(model(family), PROMPTS, TOKENS).tokens


def together(server: Server) -> list[list[int]]:
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        return list(pool.map(lambda prompt: server.complete(prompt, TOKENS), PROMPTS))


def prefix_caching(server: Server) -> None:
    """The second request's first two blocks come from the cache; of a third one the tail differs."""
    (prompt,) = prompts(300)
    asked = (prompt, (*prompt[:290], 26, 4, 211))
    same, other = reference(model("qwen2"), asked, TOKENS).tokens
    assert server.complete(asked[0], TOKENS) == same
    assert server.metric("vllm:prefix_cache_hits_total") == 0
    assert server.complete(asked[0], TOKENS) == same
    assert server.complete(asked[1], TOKENS) == other
    assert server.metric("vllm:prefix_cache_hits_total") == 2 * 256


def sleep_mode(server: Server) -> None:
    """Asleep at level 1 the weights are on the host and their device memory is given back."""
    before = [server.complete(prompt, TOKENS) for prompt in PROMPTS]
    assert before == expected()
    for _ in range(2):
        server.ask("/sleep?level=1", {})
        assert json.loads(server.ask("/is_sleeping")) == {"is_sleeping": True}
        server.ask("/wake_up", {})
        assert json.loads(server.ask("/is_sleeping")) == {"is_sleeping": False}
        assert together(server) == expected()
    freed = re.findall(r"Sleep mode freed ([\d.]+) GiB memory", server.log.read_text(errors="replace"))
    assert len(freed) == 2
    assert all(float(one) > 0 for one in freed)


def speculation(server: Server) -> None:
    """Drafts taken from the text before change no token. OPT says much twice, so that some are right."""
    assert [server.complete(prompt, TOKENS) for prompt in PROMPTS] == expected("opt")
    assert together(server) == expected("opt")
    assert server.metric("vllm:spec_decode_num_draft_tokens_total") > 0
    assert server.metric("vllm:spec_decode_num_accepted_tokens_total") > 0


def tensor_parallel(server: Server) -> None:
    assert [server.complete(prompt, TOKENS) for prompt in PROMPTS[:2]] == expected()[:2]
    assert together(server) == expected()


@dataclass(frozen=True)
class Feature:
    """What the server is started with, and what is asked of it."""

    check: Callable[[Server], None]
    options: tuple[str, ...]
    devices: int = 1
    family: str = "qwen2"


FEATURES = {
    "prefix-caching": Feature(prefix_caching, ("--enable-prefix-caching", "--max-num-batched-tokens", "128")),
    "sleep": Feature(sleep_mode, ("--enable-sleep-mode", "--no-enable-prefix-caching")),
    "ngram": Feature(speculation, NGRAM, family="opt"),
    "tp2": Feature(tensor_parallel, ("--tensor-parallel-size", "2", "--no-enable-prefix-caching"), devices=2),
}

#: (feature, mode, way). The first ones run wherever vLLM is there.
SOME = [("prefix-caching", "eager", "interposed"), ("sleep", "eager", "interposed")]
ALL = [(feature, mode, way) for feature in FEATURES for mode in ("eager", "full") for way in WAYS]


@pytest.mark.parametrize(("feature", "mode", "way"), ALL if EVERYTHING else SOME)
def test_a_feature_changes_no_token(vllm: Path, tmp_path: Path, feature: str, mode: str, way: str) -> None:
    one = FEATURES[feature]
    expected(one.family)  # before the server is there: it takes the same cores
    with host(way, tmp_path, one.devices) as machine:
        # For /sleep and /wake_up; the engine does not wake up with weights in the other layout.
        variables = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ASCEND_ENABLE_NZ": "0"}
        with machine.serve(vllm, model(one.family), mode, *one.options, variables=variables) as server:
            server.wait()
            one.check(server)
        machine.check_used()


@only_with_everything
@pytest.mark.parametrize("way", WAYS)
def test_two_servers_share_a_device(vllm: Path, tmp_path: Path, way: str) -> None:
    """They start at once and answer at once, each its own model."""
    families = ("qwen2", "llama")
    answers = [Answers.of(family) for family in families]
    with host(way, tmp_path) as machine, ExitStack() as stack:
        options = ("--no-enable-prefix-caching",)
        servers = [
            stack.enter_context(machine.serve(vllm, model(family), "eager", *options)) for family in families
        ]
        for server in servers:
            server.wait()
        with ThreadPoolExecutor(len(servers)) as pool:
            list(pool.map(lambda one, server: one.check(server.complete), answers, servers))
        stack.close()
        machine.check_used()


def _adapter(folder: Path, rank: int) -> tuple[Path, Path]:
    """An adapter of the queries and values of Qwen2, and the model that it is merged into."""
    base = model("qwen2")
    weights = load_file(base / "model.safetensors")
    random = np.random.default_rng(7)
    adapter, alpha = {}, 2 * rank
    for name in [name for name in weights if name.endswith(("q_proj.weight", "v_proj.weight"))]:
        rows, columns = weights[name].shape
        down = random.normal(0.0, 0.05, (rank, columns)).astype(np.float32)
        up = random.normal(0.0, 0.05, (rows, rank)).astype(np.float32)
        module = f"base_model.model.{name.removesuffix('.weight')}"
        adapter[f"{module}.lora_A.weight"], adapter[f"{module}.lora_B.weight"] = down, up
        weights[name] = weights[name] + alpha / rank * (up @ down)
    merged = folder / "merged"
    shutil.copytree(base, merged)
    save_file(weights, merged / "model.safetensors", metadata={"format": "pt"})
    lora = folder / "lora"
    lora.mkdir()
    save_file(adapter, lora / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": ["q_proj", "v_proj"]}
    (lora / "adapter_config.json").write_text(json.dumps(settings))
    return lora, merged


def _serve_adapter(machine: Host, vllm: Path, lora: Path, rank: int) -> list[list[list[int]]]:
    """The answers without and with the adapter."""
    options = ("--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", f"tuned={lora}")
    with machine.serve(vllm, model("qwen2"), "eager", *options) as server:
        server.wait()
        return [
            [server.complete(prompt, TOKENS, model=name) for prompt in PROMPTS] for name in ("model", "tuned")
        ]


@only_with_everything
@pytest.mark.parametrize("way", WAYS)
def test_adapters_of_rank_128_need_no_kernel(vllm: Path, tmp_path: Path, way: str) -> None:
    """From this rank on the engine takes torch's own operators."""
    lora, merged = _adapter(tmp_path, 128)
    tuned = reference(merged, PROMPTS, TOKENS).tokens
    assert tuned != expected()
    with host(way, tmp_path) as machine:
        assert _serve_adapter(machine, vllm, lora, 128) == [expected(), tuned]
        machine.check_used()
