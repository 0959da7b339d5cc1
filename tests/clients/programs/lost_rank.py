"""Two ranks, of which the second is killed amid a collective: what the first is told, and how soon.

lost_rank.py RANK WORLD FILE. Rank 0 prints one JSON object.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

# The error is to come from the device to whoever waits for it, not from torch's own watching thread.
os.environ["TORCH_HCCL_ASYNC_ERROR_HANDLING"] = os.environ["HCCL_ASYNC_ERROR_HANDLING"] = "0"

import torch
import torch.distributed as dist
import torch_npu  # noqa: F401

RANK, WORLD, FILE = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]


def main() -> None:
    torch.npu.set_device(int(os.environ.get("TEST_DEVICE", RANK)))
    dist.init_process_group("hccl", init_method=f"file://{FILE}", rank=RANK, world_size=WORLD)
    x = torch.ones(8).npu()
    dist.all_reduce(x)
    torch.npu.synchronize()
    assert x.cpu().tolist() == [WORLD] * 8
    if RANK == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    start = time.monotonic()
    error = ""
    try:
        dist.all_reduce(x)
        torch.npu.synchronize()
    except RuntimeError as failure:
        error = str(failure)
    print(json.dumps({"seconds": time.monotonic() - start, "error": error}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
