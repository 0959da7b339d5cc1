"""What the demo runs: models, loads, lengths, and what it must show."""

from __future__ import annotations

from dataclasses import dataclass, replace

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

    def slowed(self, factor: float) -> ServerPlan:
        """One in ``factor`` of the same arrivals, as bursty as they are."""
        return replace(self, scaling=replace(self.scaling, keep=self.scaling.keep / factor))


@dataclass(frozen=True)
class Targets:
    """What the run must show for exit status 0."""

    accuracy: float = 0.99
    accuracy_steps: int = 500
    decode_ratio: float = 0.5
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
class Measuring:
    """How the host is measured before the loads are chosen."""

    slowdown: float = 3.0
    """Of the chip while the host is measured."""
    chat_tokens: tuple[int, int] = (40, 16)
    """Of a chat's prompt and answer."""
    chats: int = 12
    """Some 180 decode steps."""
    prompt_tokens: int = 320
    prompts: int = 6
    longest_s: float = 12.0
    """Nothing is sent after this time, for each of the two."""
    device_slowdown: float = 8.0
    """Of the chip while its own times are read: so slow that the host adds nothing to them."""


@dataclass(frozen=True)
class Plan:
    """The whole demo. Times are seconds."""

    profile: str = "demo"
    slowdown: float = 1.0
    """Factor on all times of the profile's chip."""
    attention: str = "eager"
    """torch_npu's fused attention builds a mask of 2048 x 2048 for each call, whatever the prompt's length:
    nothing to a real chip's memory, 20 ms to the demo's."""
    chat: ServerPlan = CHAT
    flood: ServerPlan = FLOOD
    measuring: Measuring = Measuring()
    calm_s: float = 14.0
    phase_s: float = 50.0
    lead_s: float = 6.0
    """The first seconds of each flooded phase, in which the controller learns what a step takes; no figure
    counts them."""
    drain_s: float = 120.0
    window_us: float = 300.0
    max_hold_ms: float = 10.0
    idle_ms: float = 20.0
    """Of the policy: what `flexnpu-controller` has by default."""
    ttft_slo_s: float = 0.08
    """Objective for the time to first token; replaced by what was measured (`host.objective_ms`)."""
    target_stretch: float = 1.3
    """The policy's target for a decode step, in what one takes that has the device for itself."""
    alert_scale: float = 1 / 60
    """Factor on the alert's windows, so that an hour is a minute."""
    resolve_s: float = 20.0
    """How long the alert may still fire after the load."""
    targets: Targets = Targets()

    @property
    def servers(self) -> tuple[ServerPlan, ServerPlan]:
        """Both servers, the protected one first."""
        return self.chat, self.flood

    def server(self, name: str) -> ServerPlan:
        """The server of that name."""
        return next(server for server in self.servers if server.name == name)

    @property
    def chat_alone(self) -> ServerPlan:
        """The chat's load while it has the device for itself: thinned only where one server could not do it,
        for what it takes alone is what the policy's target is made of."""
        return replace(self.chat, scaling=replace(self.chat.scaling, keep=min(1.0, 4.0 / self.slowdown)))

    @property
    def most_slowdown(self) -> float:
        """Beyond it a phase would have too few steps to compare: below some 80 decode steps."""
        return self._stretched(_LONGEST) * self.phase_s / 6.0

    @staticmethod
    def _stretched(factor: float) -> float:
        return min(factor, _LONGEST)

    def slowed(self, factor: float) -> Plan:
        """The same demo on a chip that is ``factor`` times slower: arrivals, the alert and the policy's times
        follow the device; phases get a tenth longer at most."""
        stretch = self._stretched(factor)
        return replace(
            self,
            slowdown=self.slowdown * factor,
            chat=self.chat.slowed(factor),
            flood=self.flood.slowed(factor),
            phase_s=self.phase_s * stretch,
            lead_s=self.lead_s * stretch,
            drain_s=self.drain_s * max(1.0, factor / 4),
            window_us=self.window_us * factor,
            max_hold_ms=self.max_hold_ms * factor,
            idle_ms=self.idle_ms * factor,
            ttft_slo_s=self.ttft_slo_s * factor,
            alert_scale=self.alert_scale * factor,
            resolve_s=self.resolve_s * max(1.0, factor / 2),
            targets=replace(
                self.targets,
                wire_ttft_ms=self.targets.wire_ttft_ms * factor,
                # As many as there are in phases that long.
                accuracy_steps=round(self.targets.accuracy_steps / max(1.0, factor / 4)),
            ),
        )


#: A phase gets at most so many times as long on a slow chip: the demo shall end within minutes.
_LONGEST = 1.1
