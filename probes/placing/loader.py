"""Load BPF programs: from an object that was compiled when FlexNPU was built, or by bcc, where they run.

    with load(Request(STEPS, options={...}, programs={"on_sync_return": Kind.PROBE})) as loaded:
        loaded.program("on_sync_return"), loaded.map("lanes")      # file descriptors

Both loaders compile the same files of `bpf/`. An object (CO-RE: libbpf fills in what depends on the kernel,
from the kernel's own BTF) takes no compiler and no kernel headers. bcc serves where no object was built, or
where the kernel does not take it: without ring buffers, without BTF. ``FLEXNPU_BPF_LOADER`` (``core`` or
``bcc``) forces one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

import flexnpu
from probes.placing import attach

FOLDER = Path(__file__).parents[1] / "bpf"
ROOT = Path(flexnpu.__file__).parents[1]
ENVIRONMENT = "FLEXNPU_BPF_LOADER"

Name = Literal["core", "bcc"]
NAMES: tuple[Name, ...] = ("core", "bcc")


class LoadError(RuntimeError):
    """The programs cannot be loaded; the message says why and what to do."""


class Unfit(LoadError):
    """This loader does not serve here; another may."""


class Kind(Enum):
    """What a program is loaded for."""

    PROBE = "a perf event's uprobe"
    MULTI = "a uprobe_multi link"
    SESSION = "a uprobe session"
    SYSCALL = "a tracepoint of a system call"
    RAW = "a raw tracepoint"

    @property
    def attach_type(self) -> int:
        """What the kernel calls it at loading, 0 where it need not know."""
        return {Kind.MULTI: attach.TRACE_UPROBE_MULTI, Kind.SESSION: attach.TRACE_UPROBE_SESSION}.get(self, 0)


@dataclass(frozen=True)
class Source:
    """Programs that are compiled as one: `bpf/NAME.c`, and its object."""

    name: str

    @property
    def path(self) -> Path:
        """The C text."""
        return FOLDER / f"{self.name}.c"

    @property
    def object(self) -> Path:
        """The compiled object; absent where none was built."""
        return FOLDER / f"{self.name}.bpf.o"

    @property
    def options(self) -> Path:
        """Declares what its programs are told when they are loaded, if anything."""
        return FOLDER / f"{self.name}_options.h"


STEPS, WIRE, COUNTERS = Source("steps"), Source("wire"), Source("counters")


@dataclass(frozen=True)
class Request:
    """What to load."""

    source: Source
    programs: Mapping[str, Kind]
    """By name; the source's others are left out."""
    options: Mapping[str, int] = field(default_factory=dict)
    """Values for ``struct options``; what is not named is 0. ``ring_pages``: of 4 KiB, a power of two."""
    ring: str = "events"
    """The ring buffer's map, where there are ``ring_pages``."""
    macros: Mapping[str, int] = field(default_factory=dict)
    """For bcc: where members of the kernel's structures are, which an object finds itself."""


class Loaded(Protocol):
    """Loaded programs; they and their maps go with `close`."""

    loader: Name
    why: str
    """Why it was this loader, in words."""
    ring: bool
    """Whether records come through a ring buffer, else through one buffer a CPU."""

    def program(self, name: str) -> int:
        """Descriptor of a program. Raises KeyError."""

    def map(self, name: str) -> int:
        """Descriptor of a map. Raises KeyError."""

    def close(self) -> None:
        """Unload the programs; who is attached is detached."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


def forced() -> Name | None:
    """The loader that the environment asks for. Raises `LoadError` for what is none."""
    value = os.environ.get(ENVIRONMENT, "")
    if value in ("", "auto"):
        return None
    for name in NAMES:
        if value == name:
            return name
    raise LoadError(f"{ENVIRONMENT}={value}: the loaders are {' and '.join(NAMES)}")


def load(request: Request) -> Loaded:
    """Load by the first loader that serves. Raises `LoadError`."""
    chosen = forced()
    refused = ""
    if chosen != "bcc":
        from probes.placing import loader_core

        try:
            return loader_core.load(request)
        except Unfit as error:
            if chosen == "core":
                raise
            refused = str(error)
    from probes.placing import loader_bcc

    try:
        loaded = loader_bcc.load(request)
    except LoadError as error:
        also = f"\n(The compiled object does not serve: {refused})" if refused else ""
        raise LoadError(f"{error}{also}") from None
    loaded.why = refused or f"{ENVIRONMENT} asks for it"
    return loaded
