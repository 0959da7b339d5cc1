"""Speed of the emulated operators' numerics, beside torch on one CPU thread, in one run.

A child process runs unmodified torch_npu on the emulated device with a profile whose operators take no
modelled time, so that what is measured is what the numerics cost. Each figure is the best of several rounds:
the machine may be shared. Prints one JSON object.

    python -m benchmarks.operators [--rounds N]
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from flexnpu import emulator
from flexnpu.console.numbers import COUNT

#: A chip so fast that only the real numerics take time.
INSTANT = """
name = "instant"
soc = "Ascend910B3"
stream_depth = 4096
[cores]
cube = 24
vector = 48
[compute]
fp16_tflops = 1e9
bf16_tflops = 1e9
fp32_tflops = 1e9
int8_tops = 1e9
vector_fp16_tflops = 1e9
efficiency = 1.0
[memory]
size_gib = 8.0
rate_tibps = 1e9
efficiency = 1.0
l2_mib = 192.0
[static_us]
mma = 0.0
vector = 0.0
[graph]
replay_us = 0.0
static_share = 1.0

[copy]
h2d_gbps = 1000.0
d2h_gbps = 1000.0
static_us = 0.0
"""


def measure(rounds: int) -> list[dict[str, Any]]:
    """Rows of figures, measured in this process, which torch_npu must be able to use."""
    import torch

    synchronize = importlib.import_module("torch_npu").npu.synchronize

    torch.set_num_threads(1)

    def best(step: Callable[[], object], wait: Callable[[], None]) -> float:
        """Seconds of one step, the best of some rounds of about 20 ms each."""
        step()
        wait()
        started = time.perf_counter()
        step()
        wait()
        repeat = max(1, int(0.02 / max(time.perf_counter() - started, 1e-6)))
        seconds = []
        for _ in range(rounds):
            started = time.perf_counter()
            for _ in range(repeat):
                step()
            wait()
            seconds.append((time.perf_counter() - started) / repeat)
        return min(seconds)

    def nothing() -> None:
        pass

    rows: list[dict[str, Any]] = []

    def compare(
        name: str, step: Callable[..., object], *inputs: torch.Tensor, unit: str, amount: float
    ) -> None:
        on_device = [t.to("npu") for t in inputs]
        device = best(lambda: step(*on_device), synchronize)
        host = best(lambda: step(*inputs), nothing)
        rows.append(
            {
                "operator": name,
                "unit": unit,
                "emulated": round(amount / device, 2),
                "torch_cpu": round(amount / host, 2),
                "emulated_us": round(device * 1e6, 1),
            }
        )

    linear = torch.nn.functional.linear
    with torch.no_grad():
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for tokens, outputs, inner in ((1, 1024, 1024), (37, 1024, 1024), (512, 1024, 1024)):
                compare(
                    f"linear {tokens}x{inner} by {inner}x{outputs} {str(dtype).removeprefix('torch.')}",
                    linear,
                    torch.randn(tokens, inner).to(dtype),
                    torch.randn(outputs, inner).to(dtype),
                    unit="GFLOP/s",
                    amount=2e-9 * tokens * outputs * inner,
                )
        square = torch.randn(768, 768)
        compare("a @ b 768", torch.matmul, square, square, unit="GFLOP/s", amount=2e-9 * 768**3)
        heads = torch.randn(1, 8, 256, 64)
        compare(
            "scaled_dot_product_attention 8x256x64",
            lambda q: torch.nn.functional.scaled_dot_product_attention(q, q, q),
            heads,
            unit="GFLOP/s",
            amount=4e-9 * 8 * 256 * 256 * 64,
        )
        row = torch.randn(1 << 20)
        for name, step, passes in (
            ("mul", lambda a: a * a, 2),
            ("silu", torch.nn.functional.silu, 2),
            ("softmax of 1024", lambda a: torch.softmax(a.view(-1, 1024), -1), 2),
            ("to float16", lambda a: a.half(), 1.5),
            ("sum", torch.sum, 1),
        ):
            compare(f"{name} float32 1 Mi", step, row, unit="GB/s", amount=row.numel() * 4e-9 * passes)
        small = torch.randn(64)
        compare("add of 64 elements", torch.add, small, small, unit="operators/s", amount=1)
    return rows


@click.command(help=__doc__)
@click.option(
    "--rounds",
    type=COUNT,
    default=7,
    show_default=True,
    help="Rounds of about 20 ms for each figure.",
)
@click.option("--child", is_flag=True, hidden=True)
def main(rounds: int, child: bool) -> None:
    """Measures the host's time an operator of the emulated device, without modelled time."""
    if child:
        click.echo(json.dumps(measure(rounds)))
        return
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "instant.toml"
        profile.write_text(INSTANT, encoding="utf-8")
        chosen = emulator.environment(profile=str(profile), machine=f"bench-{os.getpid()}")
        result = subprocess.run(
            [sys.executable, "-m", "benchmarks.operators", "--child", "--rounds", str(rounds)],
            env=os.environ | chosen | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    if result.returncode != 0:
        raise click.ClickException(f"the measured process failed:\n{result.stderr[-3000:]}")
    rows = json.loads(result.stdout.strip().splitlines()[-1])
    click.echo(
        json.dumps({"benchmark": "operators", "isa": os.environ.get("FLEXNPU_EMU_ISA", "best"), "rows": rows})
    )


if __name__ == "__main__":
    main()
