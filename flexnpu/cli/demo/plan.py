"""What the demo runs: models, loads, lengths, and what it must show."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.models import TinyModel
from benchmarks.replay import Scaling


@dataclass(frozen=True)
class ServerPlan:
    """One `transformers serve` and the load that it gets.

    ``trace`` names a file of benchmarks/data, replayed from its ``skip_s``-th second on; ``max_in_flight``
    bounds the unanswered requests (the others wait in the client, as behind a load balancer).
    """

    name: str
    model: TinyModel
    trace: str
    skip_s: float
    scaling: Scaling
    max_in_flight: int


@dataclass(frozen=True)
class Targets:
    """What the run must show for exit status 0."""

    accuracy: float = 0.99
    accuracy_steps: int = 500
    decode_p99_ratio: float = 0.5
    device_busy: float = 0.5
    wire_ttft_ms: float = 10.0


@dataclass(frozen=True)
class Plan:
    """The whole demo. Times are seconds."""

    profile: str = "demo"
    calm_s: float = 12.0
    phase_s: float = 45.0
    drain_s: float = 20.0
    window_us: float = 300.0
    chat: ServerPlan = field(
        default_factory=lambda: ServerPlan(
            "chat",
            TinyModel("llama", seed=1),
            "conv",
            120.0,
            Scaling(
                rate=0.2, prompt_scale=0.03, output_scale=0.15, prompt_limits=(8, 48), output_limits=(8, 48)
            ),
            4,
        )
    )
    flood: ServerPlan = field(
        default_factory=lambda: ServerPlan(
            "flood",
            TinyModel("qwen2", seed=2),
            "code",
            180.0,
            Scaling(
                rate=1.0, prompt_scale=1 / 16, output_scale=0.0, prompt_limits=(32, 512), output_limits=(1, 1)
            ),
            2,
        )
    )
    targets: Targets = Targets()

    @property
    def servers(self) -> tuple[ServerPlan, ServerPlan]:
        return self.chat, self.flood
