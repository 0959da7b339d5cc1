"""One rank of torch.distributed with the hccl backend: every collective, compared with what the CPU computes.

collectives.py RANK WORLD FILE: the ranks meet over FILE. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch
import torch.distributed as dist
import torch_npu  # noqa: F401

RANK, WORLD, FILE = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
DEVICE = int(os.environ.get("TEST_DEVICE", RANK))


def data(rank: int, n: int = 1000, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What that rank contributes: small integers, whose sums are exact in every type."""
    return (torch.arange(n) % 13 + rank).to(dtype)


def main() -> dict[str, Any]:
    torch.npu.set_device(DEVICE)
    dist.init_process_group("hccl", init_method=f"file://{FILE}", rank=RANK, world_size=WORLD)
    everybody = range(WORLD)
    done: list[str] = []

    def same(name: str, got: torch.Tensor, expected: torch.Tensor) -> None:
        got = got.cpu()
        assert got.dtype == expected.dtype, f"{name}: {got.dtype}"
        assert torch.equal(got, expected), f"{name}: {got.flatten()[:8]} is not {expected.flatten()[:8]}"
        done.append(name)

    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int64):
        x = data(RANK, dtype=dtype).npu()
        dist.all_reduce(x)
        same(f"all_reduce {dtype}", x, sum(data(r, dtype=dtype) for r in everybody))
    x = data(RANK).npu()
    dist.all_reduce(x, op=dist.ReduceOp.MAX)
    same("all_reduce max", x, data(WORLD - 1))
    x = data(RANK).npu()
    dist.all_reduce(x, op=dist.ReduceOp.AVG)
    same("all_reduce avg", x, sum(data(r) for r in everybody) / WORLD)

    parts = [torch.empty(1000).npu() for _ in everybody]
    dist.all_gather(parts, data(RANK).npu())
    same("all_gather", torch.stack(parts), torch.stack([data(r) for r in everybody]))
    whole = torch.empty(WORLD * 1000).npu()
    dist.all_gather_into_tensor(whole, data(RANK).npu())
    same("all_gather_into_tensor", whole, torch.cat([data(r) for r in everybody]))
    share = torch.empty(10).npu()
    dist.reduce_scatter_tensor(share, data(RANK, 10 * WORLD).npu())
    same(
        "reduce_scatter_tensor",
        share,
        sum(data(r, 10 * WORLD) for r in everybody)[10 * RANK : 10 * RANK + 10],
    )
    x = data(RANK).npu()
    dist.broadcast(x, src=WORLD - 1)
    same("broadcast", x, data(WORLD - 1))
    x = data(RANK).npu()
    dist.reduce(x, dst=0)
    if RANK == 0:
        same("reduce", x, sum(data(r) for r in everybody))
    share = torch.empty(10).npu()
    dist.scatter(share, [data(r, 10).npu() for r in everybody] if RANK == 0 else None, src=0)
    same("scatter", share, data(RANK, 10))
    ins = [(data(RANK, 10) + 100 * to).npu() for to in everybody]
    outs = [torch.empty(10).npu() for _ in everybody]
    dist.all_to_all(outs, ins)
    same("all_to_all", torch.stack(outs), torch.stack([data(r, 10) + 100 * RANK for r in everybody]))
    out = torch.empty(WORLD).npu()
    dist.all_to_all_single(out, (torch.arange(WORLD) * 100.0 + RANK).npu())
    same("all_to_all_single", out, torch.tensor([100.0 * RANK + r for r in everybody]))
    dist.barrier()
    done.append("barrier")
    if WORLD > 1:
        peer = RANK ^ 1
        x = torch.empty(1000).npu()
        if RANK % 2 == 0:
            dist.send(data(RANK).npu(), peer)
            dist.recv(x, peer)
        else:
            dist.recv(x, peer)
            dist.send(data(RANK).npu(), peer)
        same("send and recv", x, data(peer))
        x = torch.empty(1000).npu()
        after, before = (RANK + 1) % WORLD, (RANK - 1) % WORLD
        ring = [
            dist.P2POp(dist.isend, data(RANK).npu(), after),
            dist.P2POp(dist.irecv, x, before),
        ]
        for work in dist.batch_isend_irecv(ring):
            work.wait()
        torch.npu.synchronize()
        same("batch_isend_irecv", x, data(before))
        pair = dist.new_group([0, 1])
        if RANK < 2:
            x = data(RANK).npu()
            dist.all_reduce(x, group=pair)
            same("all_reduce of a group", x, data(0) + data(1))

    # A step of data-parallel training moves every rank to the weights of one process with all the data.
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    alone = torch.nn.Linear(4, 3)
    alone.load_state_dict(model.state_dict())
    inputs = torch.arange(8.0 * WORLD).reshape(2 * WORLD, 4) / 8
    parallel = torch.nn.parallel.DistributedDataParallel(model.npu(), device_ids=[DEVICE])
    for module, batch in ((parallel, inputs[2 * RANK : 2 * RANK + 2].npu()), (alone, inputs)):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, foreach=False)
        module(batch).square().mean().backward()
        optimizer.step()
    got, expected = model.weight.detach().cpu(), alone.weight.detach()
    assert torch.allclose(got, expected, rtol=1e-5), f"{got} is not {expected}"
    done.append("data-parallel step")
    dist.destroy_process_group()
    return {"rank": RANK, "device": DEVICE, "done": done}


if __name__ == "__main__":
    print(json.dumps(main()), flush=True)
