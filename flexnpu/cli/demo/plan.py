"""What the demo runs: models, loads, lengths, and what it must show."""

from __future__ import annotations

from dataclasses import dataclass

from workloads.models import TinyModel
from workloads.replay import Scaling


@dataclass(frozen=True)
class ServerPlan:
    """One `transformers serve` and the load that it gets.

    ``trace`` names a file of workloads/data, replayed from its ``skip_s``-th second on; ``max_in_flight``
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


#: Short prompts, answers of some ten tokens, a quarter to a half of what one server can do.
CHAT = ServerPlan(
    name="chat",
    model=TinyModel("llama", seed=1),
    trace="conv",
    skip_s=120.0,
    scaling=Scaling(
        rate=0.15, prompt_scale=0.04, output_scale=0.1, prompt_limits=(24, 64), output_limits=(8, 24)
    ),
    max_in_flight=4,
)

#: Prompts of 4,000 to 6,000 tokens by the trace, a sixteenth of that here, faster than the device takes them.
FLOOD = ServerPlan(
    name="flood",
    model=TinyModel("qwen2", seed=2),
    trace="code",
    skip_s=180.0,
    scaling=Scaling(
        rate=1.25, prompt_scale=1 / 16, output_scale=0.0, prompt_limits=(256, 384), output_limits=(1, 1)
    ),
    max_in_flight=4,
)


@dataclass(frozen=True)
class Plan:
    """The whole demo. Times are seconds."""

    profile: str = "demo"
    attention: str = "eager"
    """torch_npu's fused attention builds a mask of 2048 x 2048 for each call, whatever the prompt's length:
    nothing to a real chip's memory, 20 ms to the demo's."""
    chat: ServerPlan = CHAT
    flood: ServerPlan = FLOOD
    calm_s: float = 12.0
    phase_s: float = 50.0
    lead_s: float = 6.0
    """The first seconds of each flooded phase, in which the controller learns what a step takes; no figure
    counts them."""
    drain_s: float = 20.0
    window_us: float = 300.0
    ttft_slo_s: float = 0.08
    """Objective for the time to first token; a chat that has the device for itself keeps it."""
    alert_scale: float = 1 / 60
    """Factor on the alert's windows, so that an hour is a minute."""
    targets: Targets = Targets()

    @property
    def servers(self) -> tuple[ServerPlan, ServerPlan]:
        return self.chat, self.flood
