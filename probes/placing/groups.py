"""Which instruction of which file gets which program, and placing them all.

What is placed is decided from one reading of the process's map and files, and placed only if they are still
the same: files are opened before their code is compared with what was read, and probed through that opening.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from probes.placing import attach, symbols
from probes.placing.attach import AttachError, Point, Probe
from probes.placing.plan import Role, Site
from probes.placing.sites import KEPT, HitCost, choose_for


@dataclass(frozen=True)
class Placed:
    """One probe that was placed."""

    symbol: str
    library: str
    offset: int
    instruction: str
    on_return: bool
    program: str = ""
    role: Role = Role.BOUNDARY
    cost: HitCost = HitCost.UNKNOWN


@dataclass
class Group:
    """Probes of one program in one file: one link, where the kernel has them."""

    program: str
    role: Role
    library: symbols.Mapped
    on_return: bool
    session: bool = False
    """Its program serves entries and returns."""
    points: list[Point] = field(default_factory=list)
    placed: list[Placed] = field(default_factory=list)
    definitions: list[symbols.Definition] = field(default_factory=list)


Key = tuple[str, str, int, bool]
"""(symbol, path, inode, on return)."""


def groups_of(
    sites: Iterable[Site],
    found: Mapping[str, tuple[symbols.Definition, ...]],
    have: Iterable[Key] = (),
    *,
    sessions: bool = False,
) -> tuple[list[Group], list[Key]]:
    """What to place for `sites`, in their order, leaving out what `have` says is there; and its keys.

    `sessions`: whether the kernel has uprobe sessions.
    """
    known = set(have)
    groups: dict[tuple[str, str, int, bool], Group] = {}
    new: list[Key] = []
    for site in sites:
        for definition in found.get(site.symbol, ()):
            library = definition.library
            # A return probe must see the return address where the call left it, and both share one trap.
            chosen = choose_for(site, definition)
            # Returns first: an entry without its return would leave a call open.
            session = site.session if sessions else None
            for program, on_return in ((site.on_return, True), (site.entry, False)):
                key = (definition.symbol, library.path, library.inode, on_return)
                if program is None or key in known:
                    continue
                known.add(key)
                new.append(key)
                semaphore = _semaphore(site.semaphore, definition, found)
                program = session or program
                group = groups.setdefault(
                    (program, library.path, library.inode, on_return and not session),
                    Group(program, site.role, library, on_return and not session, session is not None),
                )
                offset = definition.offset + chosen.offset
                point = Point(offset, site.cookie, semaphore)
                if point not in group.points:  # a session's, at its second turn
                    group.points.append(point)
                    group.definitions.append(definition)
                group.placed.append(
                    Placed(
                        definition.symbol,
                        library.path,
                        offset,
                        chosen.instruction,
                        on_return,
                        program,
                        site.role,
                        chosen.cost,
                    )
                )
    KEPT.save()
    return list(groups.values()), new


def _semaphore(
    name: str | None, beside: symbols.Definition, found: Mapping[str, tuple[symbols.Definition, ...]]
) -> int:
    """The file offset of a semaphore in the library of `beside`. Raises `AttachError` when it has none."""
    if name is None:
        return 0
    for definition in found.get(name, ()):
        if definition.library == beside.library:
            return definition.offset
    raise AttachError(f"{beside.library.path} defines {beside.symbol} without {name}")


@contextlib.contextmanager
def opened(library: symbols.Mapped, definitions: Iterable[symbols.Definition]) -> Iterator[str]:
    """A path that leads to the very file whose code is that of `definitions`. Raises `AttachError` when the
    file has changed since they were read."""
    try:
        fd = os.open(library.real, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise AttachError(f"{library.path} cannot be opened any more: {error.strerror}") from None
    try:
        for definition in definitions:
            if os.pread(fd, len(definition.code), definition.offset) != definition.code:
                raise AttachError(
                    f"{library.path} has changed since it was read: {definition.symbol} is another function "
                    "now. Attach again; if this persists, the file is being written to."
                )
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def place(groups: Iterable[Group], programs: Mapping[str, int], pid: int, *, multi: bool) -> list[Probe]:
    """Place `groups` in process `pid`: one after the other, all or nothing. `programs`: file descriptors.

    Raises `AttachError`.
    """
    made: list[Probe] = []
    try:
        for group in groups:
            with opened(group.library, group.definitions) as path:
                made += attach.place(
                    programs[group.program],
                    path,
                    group.points,
                    pid,
                    multi=multi,
                    on_return=group.on_return,
                    session=group.session,
                )
    except AttachError:
        attach.remove(made)
        raise
    return made
