"""torch_npu with expandable segments: tensors that grow over pieces of physical memory. Prints JSON.

PYTORCH_NPU_ALLOC_CONF=expandable_segments:True must be in the environment.
"""

import gc
import json

import torch
import torch_npu  # noqa: F401

MIB = 1 << 20

saw: dict[str, object] = {}
torch.manual_seed(1)
sums = []
for turn in range(3):
    held = []
    for size in (1, 3, 17, 40, 90):
        host = torch.arange(size * MIB // 4, dtype=torch.float32) % 1000
        tensor = host.npu()
        held.append(bool(torch.equal((tensor + 1).cpu(), host + 1)))
        back = (tensor * 2).cpu()
        held.append(bool(torch.equal(back, host * 2)))
        del tensor
    sums.append(all(held))
    gc.collect()
    if turn == 1:
        torch.npu.empty_cache()
a, b = torch.randn(256, 256), torch.randn(256, 256)
saw["matmul"] = bool(torch.allclose((a.npu() @ b.npu()).cpu(), a @ b, atol=1e-2))
saw["right"] = sums
stats = torch.npu.memory_stats()
saw["reserved"] = stats["reserved_bytes.all.current"] > 0
segments = torch.npu.memory_snapshot()
saw["expandable"] = any(segment.get("is_expandable") for segment in segments)
del a, b
gc.collect()
torch.npu.synchronize()
torch.npu.empty_cache()
saw["left"] = torch.npu.memory_reserved()
try:
    torch.empty(torch.npu.mem_get_info()[1] + MIB, dtype=torch.uint8, device="npu")
except torch.OutOfMemoryError:
    saw["too much"] = "refused"
print(json.dumps(saw))
