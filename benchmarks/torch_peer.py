"""A torch_npu program that measures slices of itself at the word of another program (see `pairs`).

Requests: ``operators N`` (N eager operators and a synchronise), ``eager N`` (N decode steps), ``graph N``
(the same steps replayed from a captured NPUGraph). Run as ``python -m benchmarks.torch_peer MODEL``, where
MODEL is ``qwen2`` (Qwen2.5-0.5B) or ``llama`` (four layers: some 210 launches a step, all of it host work).
"""

from __future__ import annotations

import gc
import importlib
import itertools
import json
import os
import statistics
import sys
import time
from typing import Any

from benchmarks.pairs import cpu_seconds

#: Forward passes of a request, the prefill among them, that are not timed.
WARM = 3
#: Positions that the static cache of the captured step holds.
CACHE = 512


def _network(model: str) -> Any:
    """A network whose weights are never touched in time mode, so that they cost addresses and no memory."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
    from transformers.initialization import no_init_weights

    config: Any
    if model == "llama":
        config = LlamaConfig(
            vocab_size=32000,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=32768,
        )
    else:
        config = Qwen2Config(
            vocab_size=151936,
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            max_position_embeddings=32768,
            tie_word_embeddings=True,
        )
    config.dtype = torch.float16
    with torch.device("npu"), no_init_weights():
        return (LlamaForCausalLM if model == "llama" else Qwen2ForCausalLM)(config)


class Program:
    """The things measured, warm."""

    def __init__(self, model: str) -> None:
        import torch

        self.torch: Any = torch
        self.npu: Any = importlib.import_module("torch_npu").npu
        net: Any = _network(model)
        self.net: Any = net.to(torch.float16).eval()
        tensor: Any = torch.ones(64, 64)
        self.tensor: Any = tensor.npu()
        self.graph: Any = None

    def operators(self, count: int) -> dict[str, float]:
        """us an eager operator: until the last is issued, and until the last is done."""
        a = self.tensor
        self.npu.synchronize()
        began = time.perf_counter()
        for _ in range(count):
            a = a * 1.0
        issued = time.perf_counter()
        self.npu.synchronize()
        done = time.perf_counter()
        return {"issue_us": (issued - began) / count * 1e6, "operator_us": (done - began) / count * 1e6}

    def eager(self, count: int) -> dict[str, float]:
        """Decode with a growing cache, batch 1, after a prompt of 16 tokens.

        A loop of our own: without numerics, generate() never reads that it is done. `tokens_per_s` leaves
        out the first `WARM` forward passes; `cpu_s` is the process's CPU time over all `steps` of them.
        """
        torch = self.torch
        with torch.no_grad():
            cpu = cpu_seconds(os.getpid())
            token = torch.ones(1, 16, dtype=torch.int64).npu()
            cache = None
            ends = []
            for _ in range(WARM + count):
                out = self.net(token, past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                token = out.logits[:, -1:].argmax(-1)
                token.cpu()  # the server's look at each token
                ends.append(time.perf_counter())
            cpu = cpu_seconds(os.getpid()) - cpu
            return _decoded(ends[WARM - 1 :]) | {"cpu_s": cpu, "steps": WARM + count}

    def capture(self) -> None:
        """Captures one decode step over a static cache."""
        from transformers import StaticCache

        torch = self.torch
        self.token = torch.ones(1, 1, dtype=torch.int64).npu()
        self.position = torch.zeros(1, dtype=torch.int64).npu()
        cache: Any = StaticCache(config=self.net.config, max_cache_len=CACHE)
        mask: Any = torch.ones(1, 1, 1, CACHE, dtype=torch.float16).npu()

        def step() -> Any:
            out = self.net(
                self.token,
                attention_mask=mask,
                position_ids=self.position[None],
                past_key_values=cache,
                cache_position=self.position,
                use_cache=True,
            )
            return out.logits[:, -1:].argmax(-1)

        with torch.no_grad():
            side = self.npu.Stream()
            side.wait_stream(self.npu.current_stream())
            with self.npu.stream(side):
                for _ in range(3):
                    step()
            self.npu.current_stream().wait_stream(side)
            self.npu.synchronize()
            self.graph = self.npu.NPUGraph()
            with self.npu.graph(self.graph):
                self.result = step()
        self.host_token = torch.ones(1, 1, dtype=torch.int64).pin_memory()

    def replay(self, count: int) -> dict[str, float]:
        """Decode from the captured step: one copy to the device, one replay, one look at the token."""
        if self.graph is None:
            self.capture()
            self.replay(3)
        cpu, ends = cpu_seconds(os.getpid()), [time.perf_counter()]
        for _ in range(count):
            self.token.copy_(self.host_token, non_blocking=True)
            self.graph.replay()
            self.result.cpu()
            ends.append(time.perf_counter())
        cpu = cpu_seconds(os.getpid()) - cpu
        return _decoded(ends) | {"cpu_s": cpu, "steps": count}


def _decoded(ends: list[float]) -> dict[str, float]:
    """Of decode steps that ended at these times, the first excepted, which only began the next."""
    steps = [end - before for before, end in itertools.pairwise(ends)]
    return {"tokens_per_s": len(steps) / (ends[-1] - ends[0]), "step_us": statistics.median(steps) * 1e6}


def main() -> None:
    """Runs a model in slices, as the requests on stdin ask; answers one JSON line each."""
    program = Program(sys.argv[1] if len(sys.argv) > 1 else "qwen2")
    requests = {"operators": program.operators, "eager": program.eager, "graph": program.replay}
    program.operators(200)
    program.eager(5)
    # The collector strikes where it likes. It runs between slices, and over what they have left alone.
    gc.collect()
    gc.freeze()
    gc.disable()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        what, count = line.split()
        gc.collect()
        print(json.dumps(requests[what](int(count))), flush=True)


if __name__ == "__main__":
    main()
