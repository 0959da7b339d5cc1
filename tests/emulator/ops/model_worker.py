"""Runs a tiny model on the CPU and on the device, and prints what the test needs as one JSON object by type.

Usage: model_worker.py FAMILY ATTENTION DTYPE... FAMILY is llama or qwen2, ATTENTION eager or sdpa.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
from typing import Any

warnings.simplefilter("ignore")
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import torch  # noqa: E402
import torch_npu  # noqa: E402, F401
import transformers  # noqa: E402

NEW_TOKENS = 64
FAMILIES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
}


def run(family: str, attention: str, dtype: torch.dtype) -> dict[str, Any]:
    config_class, model_class = FAMILIES[family]
    config = config_class(
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
        max_position_embeddings=256,
        # Larger than a trained model's start, so that attention looks at something and logits spread.
        initializer_range=0.1,
        attn_implementation=attention,
    )
    torch.manual_seed(0)
    # The truth: float64, and sdpa, for eager attention computes its softmax in float32, where float64's
    # mask overflows.
    exact = model_class(config).double().eval()
    exact.set_attn_implementation("sdpa")
    plain = model_class(config).to(dtype).eval()
    plain.load_state_dict(exact.state_dict())
    device = model_class(config).to(dtype).eval()
    device.load_state_dict(exact.state_dict())
    device = device.npu()
    prompt = torch.randint(0, 512, (2, 37))
    # The first sequence is shorter: padded on the left, as a server batches.
    mask = torch.ones_like(prompt)
    mask[0, :9] = 0

    def logits(model: torch.nn.Module, where: str) -> torch.Tensor:
        with torch.no_grad():
            out = model(prompt.to(where), attention_mask=mask.to(where)).logits
        # What is computed at padding means nothing.
        return out.cpu()[mask.bool()]

    def generate(model: torch.nn.Module, where: str, **options: object) -> list[list[int]]:
        tokens = model.generate(  # type: ignore[operator]
            prompt.to(where),
            attention_mask=mask.to(where),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            **options,
        )
        return tokens[:, prompt.shape[1] :].tolist()

    truth, cpu, npu = logits(exact, "cpu"), logits(plain, "cpu"), logits(device, "npu")
    return {
        "dtype": str(npu.dtype).removeprefix("torch."),
        "largest": truth.abs().max().item(),
        "cpu_error": (cpu.double() - truth).abs().max().item(),
        "npu_error": (npu.double() - truth).abs().max().item(),
        "digest": hashlib.sha256(npu.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest(),
        "cpu_tokens": generate(plain, "cpu"),
        "npu_tokens": generate(device, "npu"),
        "static_tokens": generate(device, "npu", cache_implementation="static"),
    }


def main(family: str, attention: str, *dtypes: str) -> None:
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    answers.write(json.dumps({name: run(family, attention, getattr(torch, name)) for name in dtypes}) + "\n")
    answers.flush()


main(*sys.argv[1:])
