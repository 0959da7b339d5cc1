"""From what the host costs to the speed of the modelled chip, so that the device is what is contended.

The tiny models' host side (transformers' Python, the server, the client) takes as long as the host makes it
take. The modelled chip can be made slower by one factor on all its times. The factor is the smallest of
`STEPS` with which the device outweighs the host in each of the ways that `Rules` names. Everything here is
arithmetic: measurements in, a factor out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Factors to choose from: a few round ones, so that runs of one host are comparable.
STEPS = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0, 24.0, 32.0)


@dataclass(frozen=True)
class HostCosts:
    """What the host adds to the device's time, ms, under the load of the moment."""

    token_ms: float
    """Time per token of a chat, its median over the chats: the host's part of a decode step, and of the gap
    after it."""
    slow_token_ms: float
    """The 95th percentile of the times between two tokens: what the host's scheduler adds now and then."""
    first_token_ms: float
    """Median time to the first token of a chat."""
    prompt_ms: float
    """Median time for one long prompt, from sending to the answer."""


@dataclass(frozen=True)
class DeviceCosts:
    """What the modelled chip takes at factor 1, ms."""

    decode_ms: float
    """A decode step."""
    first_token_ms: float
    """The prefill of a chat."""
    prompt_ms: float
    """A prefill step of a long prompt."""


@dataclass(frozen=True)
class Rules:
    """By how much the device must outweigh the host."""

    decode: float = 1.0
    """A decode step on the device, in the host's parts of one: what shares the device must be worth seeing in
    what a token takes."""
    tail: float = 4.0
    """A long prompt on the device, in the host's slow tokens: what the flood adds to a decode step must stand
    out of what the scheduler adds."""
    prompt: float = 2.0
    """A long prompt on the device, in the host's parts of one: at 2 a flood keeps the device busy for
    two thirds of the time at least."""


#: By so much `Rules` ask for more than a verdict needs.
_SPARE = 2.0


#: Threads that wait for a CPU, more or fewer, that change no verdict.
_UNNOTICED = 0.3


class TooSlowError(Exception):
    """No factor within reach would give a verdict; the message says why and what to do."""


def needs(host: HostCosts, device: DeviceCosts, rules: Rules | None = None) -> dict[str, float]:
    """The factor that each rule asks for, by its reason."""
    rules = rules or Rules()
    return {
        "a decode step": rules.decode * host.token_ms / device.decode_ms,
        "slow decode steps": rules.tail * host.slow_token_ms / device.prompt_ms,
        "a long prompt": rules.prompt * host.prompt_ms / device.prompt_ms,
    }


def objective_ms(host: HostCosts, device: DeviceCosts, factor: float) -> float:
    """Objective for the time to first token: twice what a chat takes that has the device for itself."""
    return 2.0 * (host.first_token_ms + factor * device.first_token_ms)


def alike(waiting: float | None, waiting_later: float | None) -> bool:
    """Whether a host was about as busy in two phases, by how many threads of a server waited for a CPU."""
    if waiting is None or waiting_later is None:
        return True
    low, high = sorted((waiting, waiting_later))
    return high <= 2 * low or high - low <= _UNNOTICED


def choose(wanted: dict[str, float], most: float, steps: Sequence[float] = STEPS) -> float:
    """The smallest of ``steps`` that is enough for all that is ``wanted``; if that is more than ``most``, the
    largest below, as long as it is half of what is wanted.

    Raises `TooSlowError` if it is less.
    """
    reason = max(wanted, key=lambda name: wanted[name])
    within = [factor for factor in steps if factor <= most]
    for factor in within:
        if factor >= wanted[reason]:
            return factor
    if within and within[-1] * _SPARE >= wanted[reason]:
        return within[-1]
    raise TooSlowError(
        f"for {reason} the modelled chip would have to be at least {wanted[reason] / _SPARE:.1f} times "
        f"slower, and {most:.1f} times is the most for phases of this length"
    )
