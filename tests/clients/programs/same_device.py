"""One of two ranks that are given the same device: what they are told.

same_device.py RANK WORLD FILE. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import sys

import torch
import torch.distributed as dist
import torch_npu  # noqa: F401

RANK, WORLD, FILE = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]


def main() -> None:
    torch.npu.set_device(0)
    dist.init_process_group("hccl", init_method=f"file://{FILE}", rank=RANK, world_size=WORLD)
    error = ""
    x = torch.ones(8).npu()
    try:
        dist.all_reduce(x)
        torch.npu.synchronize()
    except RuntimeError as failure:
        error = str(failure)
    # The device works on, with what needs no other rank.
    print(json.dumps({"error": error, "sum": (x + x).sum().item()}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
