"""Prints, as JSON, digests of what an unmodified torch_npu computes: every way to run it prints the same."""

import hashlib
import json
import sys

import torch
import torch_npu  # noqa: F401
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM


def digest(tensor: torch.Tensor) -> str:
    data = tensor.detach().cpu().contiguous()
    return hashlib.sha256(data.view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


def tensors() -> dict[str, str | list[str]]:
    generator = torch.Generator().manual_seed(1)
    out: dict[str, str | list[str]] = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        a = torch.randn(64, 128, generator=generator).to(dtype).npu()
        b = torch.randn(128, 32, generator=generator).to(dtype).npu()
        out[f"matmul {name}"] = digest(a @ b)
        out[f"broadcast {name}"] = digest(a[None, :, :] * b.t()[:, None, :] + b.t()[:, None, :])
        image = a.reshape(2, 4, 32, 32).requires_grad_()
        kernel = b[:9].reshape(8, 4, 3, 3).requires_grad_()
        convolved = torch.nn.functional.conv2d(image, kernel, b[9, :8], stride=2, padding=1)
        convolved.sum().backward()
        out[f"convolution {name}"] = [digest(t) for t in (convolved, image.grad, kernel.grad)]
        out[f"reduce {name}"] = digest((a * 2 + 1).mean(-1, keepdim=True))
    out["arange"] = digest(torch.arange(1000, device="npu:0") * 3)
    large = torch.randn(3_000_001, generator=generator)
    out["copy"] = digest(large.npu())
    out["nonzero"] = digest((large[:1000] > 0).npu().nonzero())
    out["mask"] = digest(large.npu()[(large > 1).npu()])
    pinned = large.pin_memory()
    there = pinned.to("npu:0", non_blocking=True)
    out["pinned"] = digest(there)
    back = torch.empty_like(large).pin_memory()
    back.copy_(there, non_blocking=True)
    torch.npu.synchronize()
    out["pinned back"] = digest(back)
    return out


def model(kind: str, dtype: torch.dtype, attention: str) -> dict[str, object]:
    torch.manual_seed(0)
    config_type, model_type = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    }[kind]
    config = config_type(
        vocab_size=1000, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=512, attn_implementation=attention,
    )  # fmt: skip
    net = model_type(config).to(dtype).npu().eval()
    prompt = torch.randint(0, 1000, (1, 37), generator=torch.Generator().manual_seed(2)).npu()
    with torch.no_grad():
        logits = net(prompt).logits
        tokens = net.generate(
            prompt,
            max_new_tokens=int(sys.argv[1]) if len(sys.argv) > 1 else 64,
            do_sample=False,
            pad_token_id=0,
        )
    return {"logits": digest(logits), "tokens": tokens[0].tolist()}


def main() -> None:
    out: dict[str, object] = dict(tensors())
    for kind, dtype, attention in (
        ("llama", torch.float32, "eager"),
        ("llama", torch.float16, "sdpa"),
        ("qwen2", torch.float32, "sdpa"),
        ("qwen2", torch.bfloat16, "eager"),
    ):
        out[f"{kind} {dtype} {attention}"] = model(kind, dtype, attention)
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
