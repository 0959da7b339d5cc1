"""Forward passes of a tiny Llama that say what they are: the truth for the classifier's test.

Prints ``ready``, waits for a line, runs, and prints ``truth BATCH TOKENS_A_SEQUENCE PHASE`` for each
forward pass, from the shape that the model itself was called with.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import torch
import torch_npu  # noqa: F401  (brings the npu device)
from transformers import LlamaConfig, LlamaForCausalLM

parser = argparse.ArgumentParser()
parser.add_argument("--attention", default="sdpa")
parser.add_argument("--requests", type=int, default=12)
options = parser.parse_args()

torch.manual_seed(0)
config = LlamaConfig(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=1000,
    max_position_embeddings=512,
    attn_implementation=options.attention,
)
model = LlamaForCausalLM(config).eval().to("npu:0")
truth: list[str] = []


def note(_module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    ids = named["input_ids"] if "input_ids" in named else arguments[0]
    batch, length = ids.shape
    truth.append(f"truth {batch} {length} {'decode' if length == 1 else 'prefill'}")


def ids_of(batch: int, length: int) -> torch.Tensor:
    return torch.randint(3, 999, (batch, length)).to("npu:0")


class Streamer:
    """Copies every token to the host, as a server does."""

    def put(self, value: torch.Tensor) -> None:
        value.tolist()

    def end(self) -> None:
        pass


with torch.no_grad():
    model(ids_of(1, 3))
    torch.npu.synchronize()
    print("ready", flush=True)
    sys.stdin.readline()
    model.register_forward_pre_hook(note, with_kwargs=True)
    for number in range(options.requests):
        batch = (1, 1, 4)[number % 3]
        prompt = ids_of(batch, 2 + 17 * number % 61)
        new = 3 + number % 5
        masked = {"attention_mask": torch.ones_like(prompt)} if number % 4 else {}
        model.generate(
            prompt,
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
            streamer=Streamer() if batch == 1 and number % 2 else None,
            **masked,
        )
        if number % 5 == 4:
            time.sleep(0.4)  # long enough for the last step to be taken for the last
    for _ in range(5):  # without generate: one synchronise a pass
        model(ids_of(2, 7))
        torch.npu.synchronize()
print("\n".join(truth))
print("end", flush=True)
sys.stdin.readline()
