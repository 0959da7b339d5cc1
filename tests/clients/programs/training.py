"""Trains two small networks on the NPU, and the same on the CPU. Prints the losses as JSON."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

importlib.import_module("torch_npu")


def losses(device: str, build: Callable[[], Any], data: Any, goal: Any, optimizer: Any) -> list[float]:
    torch.manual_seed(0)
    network = build().to(device)
    descent = optimizer(network.parameters(), lr=0.05)
    made = []
    for _ in range(4):
        descent.zero_grad()
        loss = nn.functional.cross_entropy(network(data.to(device)), goal.to(device))
        loss.backward()
        descent.step()
        made.append(loss.item())
    return made


def main() -> None:
    torch.manual_seed(1)
    words, goal = torch.randint(0, 11, (6, 3)), torch.randint(0, 4, (6,))
    networks = {
        "adam": (
            lambda: nn.Sequential(
                nn.Embedding(11, 8),
                nn.Flatten(),
                nn.LayerNorm(24),
                nn.Linear(24, 16),
                nn.SiLU(),
                nn.Linear(16, 4),
            ),
            torch.optim.Adam,
        ),
        "sgd": (
            lambda: nn.Sequential(
                nn.Embedding(11, 8), nn.Flatten(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4)
            ),
            torch.optim.SGD,
        ),
    }
    report = {
        name: {device: losses(device, build, words, goal, optimizer) for device in ("cpu", "npu")}
        for name, (build, optimizer) in networks.items()
    }
    print(json.dumps(report))


main()
