"""The policies: who decides how the gate is set.

A policy is a dataclass with a `name` that follows `Policy`. Its fields are the `Options` that it wants, by
their names. One of ours is a module of this package; another package's is an entry point of the group
`flexnpu.policies`. Both are found by name, and nothing else lists them.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import entry_points
from typing import ClassVar, Protocol

from controllers.state import ControllerState
from flexnpu.control.messages import Doubt, SetGate

GROUP = "flexnpu.policies"
"""Of entry points."""


@dataclass(frozen=True)
class Decision:
    """What to set, if anything, and why."""

    gate: SetGate | None
    """None: no policy; one that is set is withdrawn."""
    why: str
    evidence: dict[str, object] = field(default_factory=dict)
    details: Callable[[], dict[str, object]] = dict
    """More evidence, which costs too much to work out for a decision that is no news."""
    doubt: Doubt | None = None
    """What spoke against acting."""
    holds: bool = False
    """Whether `gate` holds prefill wherever decode could feel it (`controllers.alone`)."""
    again_s: float | None = None
    """When to decide again, at the latest; None: at the next turn."""


class Policy(Protocol):
    """Decides from a settled `ControllerState`; `now_ns` is CLOCK_MONOTONIC."""

    name: ClassVar[str]

    def decide(self, state: ControllerState, now_ns: int) -> Decision:
        """What to set now, and why. Must not wait: it is called at every turn of the controller."""
        ...


@dataclass(frozen=True)
class Options:
    """What a controller was started with. Times in us, but `lease_s`; None: not given."""

    lease_s: float
    window_us: float = 300.0
    """Prefill work in flight beside decode."""
    target_us: float | None = None
    """Step target of decode lanes."""
    factor: float = 1.1
    """Without it: the target over a decode step alone."""
    tpot_us: float | None = None
    """Objective: the time between tokens."""
    percentile: float = 99.0
    """Of the objective."""
    max_hold_us: float | None = None
    decode_idle_us: float | None = None


class PolicyError(ValueError):
    """There is no such policy, or it cannot work with these options; says what to do."""


def found() -> dict[str, Callable[[], type[Policy]]]:
    """The policies there are, by name, each with what loads it. Ours come first: nobody replaces them."""
    known: dict[str, Callable[[], type[Policy]]] = {
        point.name: point.load for point in entry_points(group=GROUP)
    }
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            name = module.name.replace("_", "-")
            known[name] = partial(_of_module, f"{__name__}.{module.name}")
    return dict(sorted(known.items()))


def make(name: str, options: Options) -> Policy:
    """The policy of that name. Raises `PolicyError`."""
    known = found()
    if name not in known:
        raise PolicyError(f"no policy {name!r}: there are {', '.join(known)}")
    try:
        cls = known[name]()
    except Exception as error:  # another package's code
        raise PolicyError(f"policy {name} cannot be loaded: {error!r}") from error
    if not dataclasses.is_dataclass(cls) or getattr(cls, "name", None) != name:
        raise PolicyError(f"policy {name}: {cls!r} must be a dataclass with name = {name!r}")
    wanted = {one.name for one in dataclasses.fields(cls)}
    new: Callable[..., Policy] = cls
    return new(**{key: value for key, value in vars(options).items() if key in wanted})


def _of_module(name: str) -> type[Policy]:
    """The class in a module of ours that has the policy's name."""
    module = importlib.import_module(name)
    own: type[Policy] = next(
        one for one in vars(module).values() if isinstance(one, type) and one.__dict__.get("name")
    )
    return own
