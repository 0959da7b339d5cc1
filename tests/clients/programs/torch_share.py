"""A tensor of the NPU handed to another process by torch.multiprocessing: shared, not copied. Prints JSON."""

import json
from typing import Any

import torch
import torch.multiprocessing as mp
import torch_npu  # noqa: F401


def child(inbox: Any, outbox: Any) -> None:
    tensor = inbox.get(timeout=60)
    outbox.put([tensor.sum().item(), str(tensor.device), list(tensor.shape)])
    tensor.add_(1)
    torch.npu.synchronize()
    outbox.put("added")
    inbox.get(timeout=60)


if __name__ == "__main__":
    mp.set_start_method("spawn")
    outbox, inbox = mp.Queue(), mp.Queue()
    process = mp.Process(target=child, args=(outbox, inbox))
    process.start()
    tensor = torch.ones(1000, device="npu")
    outbox.put(tensor)
    saw = {"there": inbox.get(timeout=60), "then": inbox.get(timeout=60), "here": tensor.sum().item()}
    outbox.put(None)
    process.join(60)
    print(json.dumps(saw))
