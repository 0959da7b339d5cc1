"""torch_npu against its quota: what it sees, how it fails, how it recovers. Prints JSON."""

import gc
import json

import torch
import torch_npu  # noqa: F401

MIB = 1 << 20

torch.npu.set_device(0)
free, total = torch.npu.mem_get_info()
saw: dict[str, object] = {"free": free, "total": total}
held: list[torch.Tensor] = []
try:
    while True:
        held.append(torch.empty(32 * MIB, dtype=torch.uint8, device="npu"))
except torch.OutOfMemoryError as error:
    saw["error"] = str(error)
saw["pieces"] = len(held)
held.clear()
gc.collect()
torch.npu.empty_cache()
saw["free after empty_cache"] = torch.npu.mem_get_info()[0]
# As large as all of the pieces: their memory must be back.
big = torch.ones(int(str(saw["pieces"])) * 32 * MIB // 4, dtype=torch.float32, device="npu")
saw["sum"] = big[:1000].sum().item()
print(json.dumps(saw))
