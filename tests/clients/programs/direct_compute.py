"""Unmodified torch_npu on the emulated device against CPU torch. Prints one JSON object of differences."""

import json

import torch
import torch_npu  # noqa: F401
from transformers import LlamaConfig, LlamaForCausalLM


def matmul() -> dict[str, float]:
    torch.manual_seed(0)
    out = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        a, b = torch.randn(64, 96).to(dtype), torch.randn(96, 48).to(dtype)
        reference = a.float() @ b.float()
        here = (a.npu() @ b.npu()).cpu()
        assert here.dtype == dtype
        out[str(dtype)] = float((here.float() - reference).abs().max() / reference.abs().max())
    return out


def llama() -> dict[str, object]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    net = LlamaForCausalLM(config).eval()
    prompt = torch.randint(0, 1000, (1, 37))
    with torch.no_grad():
        logits = net(prompt).logits
        tokens = net.generate(prompt, max_new_tokens=16, do_sample=False, pad_token_id=0)
        net = net.npu()
        logits_npu = net(prompt.npu()).logits.cpu()
        tokens_npu = net.generate(prompt.npu(), max_new_tokens=16, do_sample=False, pad_token_id=0).cpu()
    return {
        "logits": float((logits - logits_npu).abs().max()),
        "tokens_equal": torch.equal(tokens, tokens_npu),
    }


def streams() -> dict[str, object]:
    first, second = torch.npu.Stream(), torch.npu.Stream()
    begin, end = torch.npu.Event(enable_timing=True), torch.npu.Event(enable_timing=True)
    with torch.npu.stream(first):
        begin.record()
        x = torch.ones(512, 512, device="npu:0")
        for _ in range(10):
            x = x + 1
        end.record()
    with torch.npu.stream(second):
        second.wait_event(end)
        total = x.sum()
    second.synchronize()
    return {"sum": float(total.cpu()), "ms": begin.elapsed_time(end), "done": end.query()}


def out_of_memory() -> str:
    try:
        torch.empty(1 << 40, dtype=torch.uint8, device="npu:0")
    except torch.OutOfMemoryError as error:
        return str(error)
    return ""


def main() -> None:
    products = matmul()  # the first use opens the device
    result = {
        "device": torch.npu.get_device_name(0),
        "memory": list(torch.npu.mem_get_info()),
        "matmul": products,
        "llama": llama(),
        "streams": streams(),
        "out_of_memory": out_of_memory(),
        "after": float((torch.ones(4, device="npu:0") * 3).sum().cpu()),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
