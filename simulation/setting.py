"""What is simulated: the model, the chip, and the engines on it."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from typing import Any, Literal

import simulation._core as _core
from flexnpu.emulator import profile_path

Contention = Literal["fluid", "serial"]
Layout = Literal["pd", "one"]

QWEN_7B: dict[str, int] = {
    "layers": 28,
    "hidden": 3584,
    "heads": 28,
    "kv_heads": 4,
    "head_size": 128,
    "ffn": 18944,
    "vocabulary": 152064,
}
"""Qwen2.5-7B (its config.json)."""
USED_MEMORY = 0.9
"""Of the device's memory, what engines take at most (vLLM's --gpu-memory-utilization)."""


@dataclass(frozen=True)
class Chip:
    """A die, from a profile of the emulator."""

    cube: int
    vector: int
    cube_rate: float
    """Operations a us of a core, by the profile's efficiency; and of a vector core."""
    vector_rate: float
    memory_rate: float
    """Bytes a us."""
    memory_bytes: float
    mma_us: float
    vector_us: float
    launch_share: float
    """Of an operator's static time, what passes before it takes cores."""

    @classmethod
    def load(cls, profile: str) -> Chip:
        """The profile of that name, or at that path; products are bfloat16. Raises EmulatorError."""
        told = tomllib.loads(profile_path(profile).read_text())
        cores, compute, memory = told["cores"], told["compute"], told["memory"]
        return cls(
            cube=cores["cube"],
            vector=cores["vector"],
            cube_rate=compute["bf16_tflops"] * 1e6 * compute["efficiency"] / cores["cube"],
            vector_rate=compute["vector_fp16_tflops"] * 1e6 * compute["efficiency"] / cores["vector"],
            memory_rate=memory["rate_tibps"] * 2**40 / 1e6 * memory["efficiency"],
            memory_bytes=memory["size_gib"] * 2**30,
            mma_us=told["static_us"]["mma"],
            vector_us=told["static_us"]["vector"],
            launch_share=1 - told["graph"]["static_share"],
        )


@dataclass(frozen=True)
class Engines:
    """How the model is served.

    ``layout``: `pd`, one engine for prompts and one for answers behind a proxy, or `one`, one that does both.
    ``prefill_*`` are of the engine for prompts, which `one` has not.
    """

    layout: Layout = "pd"
    slots: int = 256
    token_budget: int = 2048
    chunked: bool = True
    async_scheduling: bool = True
    prefill_slots: int = 16
    prefill_budget: int = 8192
    prefill_memory: float = 0.3
    """Of the memory for caches, the part of the engine for prompts."""
    block_tokens: int = 128
    launch_us: float = 10.0
    """Of a host, an operator (9.1 us with a library that does nothing, measured on a virtual machine)."""
    schedule_us: float = 1000.0
    """Of a host, a step; assumed."""
    prefill_cores: int = 0
    """Core limit of the engine for prompts, in cube cores with two vector cores each; 0: none. The other has
    the rest."""
    first_from_prefill: bool = True


@dataclass(frozen=True)
class Setting:
    """A whole simulation, but for its requests and policy."""

    chip: Chip
    contention: Contention = "fluid"
    core_gbps: float = 59.0
    engines: Engines = Engines()
    model: dict[str, int] = field(default_factory=lambda: dict(QWEN_7B))

    def weight_bytes(self) -> float:
        """Of the model's matrices, in bfloat16."""
        of = self.model
        hidden, keys = of["hidden"], of["kv_heads"] * of["head_size"]
        queries = of["heads"] * of["head_size"]
        layer = hidden * (queries + 2 * keys) + queries * hidden + 3 * hidden * of["ffn"]
        return 2.0 * (of["layers"] * layer + 2 * of["vocabulary"] * hidden)

    def shape(self) -> Any:
        """The model, for the core."""
        return _core.Shape(**self.model)

    def _engine(self, role: str, blocks: int) -> Any:
        of = self.engines
        prefill = role == "Prefill"
        cores = of.prefill_cores if prefill else self.chip.cube - of.prefill_cores
        limit = cores if of.prefill_cores and role != "Both" else 0
        return _core.EngineConfig(
            role=getattr(_core.Role, role),
            slots=of.prefill_slots if prefill else of.slots,
            token_budget=of.prefill_budget if prefill else of.token_budget,
            chunked=of.chunked,
            blocks=blocks,
            block_tokens=of.block_tokens,
            async_scheduling=of.async_scheduling,
            launch_us=of.launch_us,
            schedule_us=of.schedule_us,
            cube_limit=limit,
            vector_limit=2 * limit,
        )

    def core(self) -> Any:
        """The simulation, without requests. Raises ValueError where the model does not fit the memory."""
        copies = 2 if self.engines.layout == "pd" else 1
        room = self.chip.memory_bytes * USED_MEMORY - copies * self.weight_bytes()
        shape = self.shape()
        blocks = int(room / (shape.kv_bytes() * self.engines.block_tokens))
        if blocks < 2:
            raise ValueError(f"the memory has no room for caches beside {copies} x the model's weights")
        if copies == 1:
            engines = [self._engine("Both", blocks)]
        else:
            prefill = max(1, round(blocks * self.engines.prefill_memory))
            engines = [self._engine("Prefill", prefill), self._engine("Decode", blocks - prefill)]
        chip, share = self.chip, self.chip.launch_share
        return _core.Simulation(
            serial=self.contention == "serial",
            chip=(
                chip.cube,
                chip.vector,
                chip.cube_rate,
                chip.vector_rate,
                chip.memory_rate,
                self.core_gbps * 1e3,
            ),
            shape=shape,
            times=_core.StaticTimes(
                mma_launch=chip.mma_us * share,
                mma=chip.mma_us * (1 - share),
                vector_launch=chip.vector_us * share,
                vector=chip.vector_us * (1 - share),
            ),
            engines=engines,
            # A copy within the device reads and writes.
            transfer_rate=chip.memory_rate / 2,
            first_from_prefill=self.engines.first_from_prefill,
        )
