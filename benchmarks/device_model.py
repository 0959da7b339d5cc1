"""The device model against what was published of Ascend 910B and 910C dies, over the uncertain parameters.

Each row has a published figure and the model's, for bandwidths of 59, 80 and 107 GB/s a core (the vendor's
configuration, between, a third party's measurement) and for the share of the memory's peak that is reached:
0.6 (msmodeling) and 0.84 (CloudMatrix384). `fits` says whether the published range holds the model's. No
parameter is fitted here, save in the rows of two processes that say so: the static times. They also vary the
share of these that passes before a kernel takes cores, which no source tells. Prints one JSON object.

    python -m benchmarks.device_model [--profile NAME]

Sources: half the cores, LongCat-Flash on A3 (cann-recipes-infer); 16 + 8 cores, CloudMatrix384 (second hand);
quotas, XPUShare (910B; its limits mix cores and throttling); two processes, XSched's raw files (910B3,
ResNet-152: 672.7 requests a second alone, 443.0 + 443.4 together, p50 1.44 ms alone).
"""

from __future__ import annotations

import json
import math
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import click

import flexnpu.device._device as _device
from flexnpu.emulator import profile_path

CORE_GBPS = (59.0, 80.0, 107.0)
MEMORY_SHARES = (0.6, 0.84)
CUBE, VECTOR, MIXED = _device.Unit.Cube, _device.Unit.Vector, _device.Unit.Mixed


@dataclass(frozen=True)
class Figures:
    """Of a chip, from a profile of the emulator: rates a us, static times in us."""

    cube: int
    vector: int
    cube_rate: float
    vector_rate: float
    memory_peak: float
    mma_us: float
    vector_us: float
    launch_share: float
    """Of a kernel's static time, what passes before it takes cores."""
    core_gbps: float = CORE_GBPS[0]
    memory_share: float = MEMORY_SHARES[0]

    def chip(self, contention: Any = _device.Contention.Fluid) -> Any:
        """The chip of the model."""
        return _device.Chip(
            contention=contention,
            cube_cores=self.cube,
            vector_cores=self.vector,
            cube_rate=self.cube_rate,
            vector_rate=self.vector_rate,
            hbm_rate=self.memory_peak * self.memory_share,
            core_rate=self.core_gbps * 1e3,
        )

    def kernel(self, unit: Any, *, factor: float = 1.0, **work: Any) -> dict[str, Any]:
        """A kernel's arguments, with the static time of its kind, times `factor`."""
        static_us = factor * (self.vector_us if unit == VECTOR else self.mma_us)
        return {
            "unit": unit,
            "launch_us": static_us * self.launch_share,
            "static_us": static_us * (1 - self.launch_share),
            **work,
        }


def figures(profile: str) -> Figures:
    """Of the profile of that name, with bfloat16 products. Raises EmulatorError."""
    told = tomllib.loads(profile_path(profile).read_text())
    cores, compute = told["cores"], told["compute"]
    return Figures(
        cube=cores["cube"],
        vector=cores["vector"],
        cube_rate=compute["bf16_tflops"] * 1e6 * compute["efficiency"] / cores["cube"],
        vector_rate=compute["vector_fp16_tflops"] * 1e6 * compute["efficiency"] / cores["vector"],
        memory_peak=told["memory"]["rate_tibps"] * 2**40 / 1e6,
        mma_us=told["static_us"]["mma"],
        vector_us=told["static_us"]["vector"],
        launch_share=1 - told["graph"]["static_share"],
    )


def alone_us(chip: Any, kernel: dict[str, Any], cores: tuple[int, int] = (0, 0)) -> float:
    """How long a kernel takes alone, on so many cube and vector cores (0: all)."""
    device = _device.Device(chip)
    stream = device.add_stream()
    device.set_limit(stream, *cores)
    if not device.submit(0.0, stream, **kernel):
        raise ValueError(f"the chip refuses {kernel}")
    return float(device.next().end_us)


# ------------------------------------------------------------------ fewer cores


def _kinds(at: Figures) -> dict[str, dict[str, Any]]:
    """Operators of a layer of decode and of prefill, bound by computing and by memory. Shapes are assumed
    (the sources name none): hidden 6144, as LongCat-Flash's."""
    hidden = 6144.0
    product = 2.0 * hidden * hidden
    weights = 2.0 * hidden * hidden
    return {
        "product of 16 rows (memory)": at.kernel(CUBE, cube_ops=16 * product, bytes=weights),
        "product of 256 rows": at.kernel(CUBE, cube_ops=256 * product, bytes=weights + 4 * 256 * hidden),
        "product of 2048 rows (computing)": at.kernel(
            CUBE, cube_ops=2048 * product, bytes=weights + 4 * 2048 * hidden
        ),
        # Latent attention of a decode batch: each byte of the cache is used by 64 heads.
        "fused attention, decode": at.kernel(MIXED, cube_ops=7e9, vector_ops=1e7, bytes=6e7),
        "RmsNorm of 4096 rows": at.kernel(VECTOR, vector_ops=4 * 4096 * hidden, bytes=4 * 4096 * hidden),
    }


def fewer_cores(at: Figures) -> Iterator[dict[str, Any]]:
    """Slowdown of single operators on half the cores, and of products on a share of them."""
    chip = at.chip()
    half = (at.cube // 2, at.vector // 2)
    for name, kernel in _kinds(at).items():
        slower = alone_us(chip, kernel, half) / alone_us(chip, kernel)
        yield _row(f"half the cores: {name}", (1.23, 1.57), slower)
    for share, seen in ((0.25, 3.49), (0.5, 1.83), (0.75, 1.27)):
        cores = (round(at.cube * share), round(at.vector * share))
        kernel = _kinds(at)["product of 2048 rows (computing)"]
        slower = alone_us(chip, kernel, cores) / alone_us(chip, kernel)
        yield _row(f"{share:.0%} of the cores: a large product", (0.9 * seen, 1.1 * seen), slower)


# ------------------------------------------------------------------ 16 + 8


def beside(at: Figures) -> Iterator[dict[str, Any]]:
    """Attention on 16 + 32 cores beside experts on 8 + 16, 600 us each, against one after the other on all:
    how much more is done. The source overlaps communication, too, which the model has none of."""
    share, rest = (16, 32), (8, 16)
    one = {"launch_us": 0.0, "static_us": 0.0}
    for phase, low, high in (("decode", 1.058, 1.094), ("prefill", 1.23, 1.31)):
        if phase == "decode":
            attention = {"unit": MIXED, "bytes": 1.0, **one}
            experts = {"unit": CUBE, "bytes": 1.0, **one}
        else:
            attention = {"unit": MIXED, "cube_ops": 1.0, "vector_ops": 0.01, **one}
            experts = {"unit": CUBE, "cube_ops": 1.0, **one}
        chip = at.chip()
        for kernel, cores in ((attention, share), (experts, rest)):
            factor = 600 / alone_us(chip, kernel, cores)
            for name in ("cube_ops", "vector_ops", "bytes"):
                kernel[name] = kernel.get(name, 0.0) * factor
        apart = alone_us(chip, attention) + alone_us(chip, experts)
        device = _device.Device(chip)
        for kernel, cores in ((attention, share), (experts, rest)):
            stream = device.add_stream()
            device.set_limit(stream, *cores)
            device.submit(0.0, stream, **kernel)
        _, together = device.drain()
        yield _row(f"16 + 8 beside each other: {phase}", (low, high), apart / together)


# ------------------------------------------------------------------ two processes


def resnet152(at: Figures, *, tiled: bool, factor: float) -> list[dict[str, Any]]:
    """One picture through ResNet-152 (He et al., CVPR 2016) in float16: its convolutions as products.

    `tiled`: a product has a block for each 128 x 128 of its result, else one for each core. `factor` is of
    the static times.
    """
    kernels: list[dict[str, Any]] = []

    def product(side: int, inner: int, outer: int) -> None:
        rows = side * side
        blocks = math.ceil(rows / 128) * math.ceil(outer / 128) if tiled else 0
        moved = 2.0 * (rows * inner + inner * outer + rows * outer)
        kernels.append(
            at.kernel(CUBE, factor=factor, cube_ops=2.0 * rows * inner * outer, bytes=moved, blocks=blocks)
        )

    def added(side: int, channels: int) -> None:
        size = float(side * side * channels)
        blocks = math.ceil(size / 16384) if tiled else 0
        kernels.append(at.kernel(VECTOR, factor=factor, vector_ops=2 * size, bytes=6 * size, blocks=blocks))

    product(112, 3 * 49, 64)
    added(56, 64)  # the pooling
    channels = 64
    for stage, (side, repeats) in enumerate(((56, 3), (28, 8), (14, 36), (7, 3))):
        width = 64 << stage
        for block in range(repeats):
            product(side, channels, width)
            product(side, 9 * width, width)
            product(side, width, 4 * width)
            if block == 0:
                product(side, channels, 4 * width)
            added(side, 4 * width)
            channels = 4 * width
    added(7, 2048)
    product(1, 2048, 1000)
    return kernels


def _rate(at: Figures, model: Sequence[dict[str, Any]], processes: int, gap_us: float) -> float:
    """Pictures a second that so many closed loops get through, `gap_us` between one's pictures."""
    device = _device.Device(at.chip())
    streams = [device.add_stream() for _ in range(processes)]
    ends, pictures = 0, 40
    for stream in streams:
        for ticket, kernel in enumerate(model):
            device.submit(0.0, stream, ticket, **kernel)
    left = dict.fromkeys(streams, pictures - 1)
    last = len(model) - 1
    while (end := device.next()) is not None:
        if end.ticket == last:
            ends += 1
            if left[end.stream] > 0:
                left[end.stream] -= 1
                for ticket, kernel in enumerate(model):
                    device.submit(end.end_us + gap_us, end.stream, ticket, **kernel)
    return float(ends / device.now_us() * 1e6)


def two_processes(at: Figures) -> Iterator[dict[str, Any]]:
    """Two processes with ResNet-152, against one."""
    gap_us = 1e6 / 672.7 - 1440  # what the source's rate and its median leave between two pictures
    seen_us = 1440.0
    for tiled in (True, False):
        for share in (at.launch_share, 0.25, 0.0):
            chip = replace(at, launch_share=share)
            # The static times that give the source's time alone.
            none = 1e6 / _rate(chip, resnet152(chip, tiled=tiled, factor=0), 1, gap_us) - gap_us
            once = 1e6 / _rate(chip, resnet152(chip, tiled=tiled, factor=1), 1, gap_us) - gap_us
            factor = max(0.0, (seen_us - none) / (once - none))
            for name, times in (("as the profile's", 1.0), ("fitted to the time alone", factor)):
                model = resnet152(chip, tiled=tiled, factor=times)
                alone = _rate(chip, model, 1, gap_us)
                both = _rate(chip, model, 2, gap_us)
                blocks = "a block a tile" if tiled else "a block a core"
                yield {
                    **_row(f"two processes: {blocks}, static times {name}", (1.30, 1.34), both / alone),
                    "static_factor": round(times, 2),
                    "launch_share": share,
                    "alone_per_s": round(alone, 1),
                    "alone_published_per_s": 672.7,
                    "kernels": len(model),
                }


# ------------------------------------------------------------------ the table


def _row(name: str, published: tuple[float, float], model: float) -> dict[str, Any]:
    low, high = published
    return {
        "name": name,
        "published": [round(low, 3), round(high, 3)],
        "model": round(model, 3),
        "fits": low <= model <= high,
    }


def pace_ns(at: Figures, streams: int, contention: Any, kernels: int = 100_000) -> float:
    """CPU time that a kernel costs the model while its queues are full, ns."""
    device = _device.Device(at.chip(contention))
    numbers = [device.add_stream() for _ in range(streams)]
    mix = list(_kinds(at).values())
    for ticket in range(kernels):
        device.submit(0.0, numbers[ticket % streams], ticket, **mix[ticket // streams % len(mix)])
    began = time.process_time_ns()
    device.drain()
    return (time.process_time_ns() - began) / kernels


ROWS: tuple[Callable[[Figures], Iterator[dict[str, Any]]], ...] = (fewer_cores, beside, two_processes)


def table(chip: Figures) -> list[dict[str, Any]]:
    """The rows for each value of the uncertain parameters."""
    return [
        {"core_gbps": core, "memory_share": share, **row}
        for share in MEMORY_SHARES
        for core in CORE_GBPS
        for rows in ROWS
        for row in rows(replace(chip, core_gbps=core, memory_share=share))
    ]


@click.command(help=(__doc__ or "").split("\n\n")[0])
@click.option("--profile", default="ascend910c-die", show_default=True, help="A profile of the emulator.")
def main(profile: str) -> None:
    """Prints the table and what the model costs."""
    chip = figures(profile)
    rows = table(chip)
    pace = [
        {
            "streams": n,
            "contention": str(kind).rpartition(".")[2].lower(),
            "ns": round(pace_ns(chip, n, kind)),
        }
        for n in (1, 2, 8)
        for kind in (_device.Contention.Serial, _device.Contention.Fluid)
    ]
    fitting = sum(row["fits"] for row in rows)
    click.echo(
        json.dumps(
            {
                "benchmark": "device_model",
                "profile": profile,
                "rows": rows,
                "rows_that_fit": fitting,
                "rows_that_do_not": len(rows) - fitting,
                "cpu_per_kernel": pace,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
