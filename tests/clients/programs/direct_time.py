"""A 7 B model's shapes on the emulated device in time mode. Prints one JSON object of times and memory."""

import itertools
import json
import resource

import torch
import torch_npu  # noqa: F401
from transformers import LlamaConfig, LlamaForCausalLM


def timed(call, repeat: int, ahead=lambda: None) -> list[float]:
    """us between calls on the device; `ahead` keeps it busy first, so that the host cannot be the limit."""
    events = [torch.npu.Event(enable_timing=True) for _ in range(repeat + 1)]
    call()
    ahead()
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.npu.synchronize()
    return [a.elapsed_time(b) * 1e3 for a, b in itertools.pairwise(events)]


def main() -> None:
    a = torch.empty(4096, 4096, dtype=torch.float16, device="npu:0")
    row = torch.empty(1, 4096, dtype=torch.float16, device="npu:0")

    def backlog() -> None:
        for _ in range(200):  # 0.5 ms each
            a @ a

    square = timed(lambda: a @ a, 20, backlog)
    thin = timed(lambda: row @ a, 20, backlog)

    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=32000,
    )
    with torch.device("meta"):
        net = LlamaForCausalLM(config).eval().half()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    net = net.to_empty(device="npu:0")
    prompt = torch.zeros(1, 2048, dtype=torch.long, device="npu:0")
    with torch.no_grad():
        prefill = timed(lambda: net(prompt, use_cache=False), 3)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = {
        "square_us": square,
        "thin_us": thin,
        "prefill_us": prefill,
        "allocated_gib": torch.npu.memory_allocated() / 2**30,
        "grown_mib": (after - before) / 1024,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
