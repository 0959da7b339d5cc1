"""The step programs in the kernel: loading them, their maps, and the ring that their records come by."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from typing import Any

from flexnpu.common.closeable import Closeable
from probes.placing import loader, namespaces
from probes.placing.loader import Kind
from probes.placing.maps import Map, PerfRing, Ring
from probes.placing.plan import HITS, SITES
from probes.steps import layouts
from probes.steps.raw import TOLD
from probes.steps.records import COUNTERS

# Map -> what its keys and values are; "/": a value a CPU.
_MAPS = {
    "lanes": ("lane_key", "lane"),
    "threads": ("u64", "thread"),
    "processes": ("u64", "process"),
    "evidences": ("u64", "evidence"),
    "executors": ("handle_key", "shape"),
    "models": ("handle_key", "evidence"),
    "targets": ("u64", "target"),
    "layouts": ("u64", "layout"),
    "hits": ("u64", "/hits"),
    "operators": ("operator_key", "u64"),
    "client_names": ("handle_key", "client_name"),
    "counters": ("u32", "/u64"),
}
_BY_HANDLE = ("lanes", "executors", "models", "operators", "client_names")
_BY_PROCESS = ("processes", "targets", "layouts", "hits")


def _type(name: str) -> Any:
    return {"u32": ctypes.c_uint32, "u64": ctypes.c_uint64}.get(name) or TOLD.struct(name)


def _programs(*, multi: bool, sessions: bool) -> dict[str, Kind]:
    kind = Kind.MULTI if multi else Kind.PROBE
    names = {site.entry for site in SITES} | {site.on_return for site in SITES if site.on_return}
    names |= {"on_calibrate"} | ({"on_operator"} if multi else set())
    programs = dict.fromkeys(names, kind)
    if sessions:
        programs |= {site.session: Kind.SESSION for site in SITES if site.session}
    return programs


class Programs(Closeable):
    """The loaded programs. Raises `loader.LoadError`.

    `take` gets each record as bytes, within `poll` and `drain`. What it raises, `poll` raises. `gap_ns`:
    silence that ends plain work. `begins`: steps that open are told, too.
    """

    def __init__(
        self,
        take: Callable[[bytes], None],
        *,
        multi: bool,
        sessions: bool,
        begins: bool,
        gap_ns: int,
        ring_pages: int,
    ) -> None:
        options = {"gap_ns": gap_ns, "ring_pages": ring_pages, "begins": begins, "has_cookies": multi}
        options |= namespaces.options()
        wanted = _programs(multi=multi, sessions=sessions)
        self.loaded = loader.load(loader.Request(loader.STEPS, wanted, options))
        self.fds = {name: self.loaded.program(name) for name in sorted(wanted)}
        """The programs' file descriptors."""
        self._take = take
        self._failure: BaseException | None = None
        self.lost = 0
        """Records that found a CPU's buffer full, on a kernel without ring buffers."""
        self._maps = {
            name: Map(
                self.loaded.map(name),
                _type(key),
                _type(value.removeprefix("/")),
                per_cpu=value.startswith("/"),
            )
            for name, (key, value) in _MAPS.items()
        }
        events = self.loaded.map("events")
        self._ring: Ring | PerfRing
        if self.loaded.ring:
            self._ring = Ring(events, self._on_record)
        else:
            self._ring = PerfRing(events, self._on_record, self._on_lost, ring_pages)

    def _on_record(self, address: int, size: int) -> None:
        # Called from C, where an exception would be printed and forgotten: `poll` raises it.
        try:
            self._take(ctypes.string_at(address, size))
        except BaseException as error:
            self._failure = self._failure or error

    def _on_lost(self, count: int) -> None:
        self.lost += count

    def poll(self, timeout_ms: int) -> None:
        """Take the records that are there; wait up to `timeout_ms` for them."""
        self._ring.poll(timeout_ms)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def drain(self) -> None:
        """Take the records that are there."""
        self._ring.drain()

    # -- what is told of a process --------------------------------------------------------------------------

    def describe(self, pid: int, *, counted: bool, layout: layouts.Learned | None) -> None:
        """Tell the programs about a process. Raises OSError where there is no room for one more."""
        described = self._maps["targets"]
        described.set(pid, described.value(counted, 0))
        hits = self._maps["hits"]
        if hits.get(pid) is None:
            hits.set(pid, hits.value())
        if layout is not None:
            self._maps["layouts"].set(pid, layouts.pack(layout))

    def forget(self, pid: int) -> None:
        """Drop all that is kept of a process."""
        for name in _BY_HANDLE:
            table = self._maps[name]
            for key in table:
                if key.tgid == pid:
                    table.delete(key)
        threads = self._maps["threads"]
        for key in threads:
            if key.value >> 32 == pid:
                threads.delete(key)
        for name in _BY_PROCESS:
            self._maps[name].delete(pid)

    # -- what they know -------------------------------------------------------------------------------------

    def threads(self, pid: int) -> list[int]:
        """Ids of the threads of `pid` that have called a probed function."""
        return sorted(key.value & 0xFFFFFFFF for key in self._maps["threads"] if key.value >> 32 == pid)

    def lanes(self) -> Iterator[tuple[int, int, Any]]:
        """Every lane: its process, its stream, ``struct lane``."""
        for key, lane in self._maps["lanes"].items():
            yield int(key.tgid), int(key.stream), lane

    def evidence(self, number: int) -> Any | None:
        """``struct evidence`` by its id."""
        return self._maps["evidences"].get(number)

    def of_graph(self, pid: int, model: int) -> Any:
        """What is known of a graph, and whether anything is: as `tell_graph` of `bpf/common.h` does it."""
        models = self._maps["models"]
        learned = models.get(models.key(pid, model))
        evidence = models.value() if learned is None else learned
        if learned is not None:
            evidence.flags |= TOLD.constant("FLEXNPU_STEP_FROM_CAPTURE")
        evidence.arrays = 0
        return evidence

    def hits(self, pid: int) -> dict[str, list[int]]:
        """Hits of the probes of `pid` so far, by name (`plan.HITS`) and CPU; empty for an unknown process."""
        cpus = self._maps["hits"].get(pid) or []
        return {name: [int(cpu.of[index]) for cpu in cpus] for index, name in enumerate(HITS)} if cpus else {}

    def counters(self) -> dict[str, list[int]]:
        """What the programs counted, by name (`records.COUNTERS`) and CPU."""
        table = self._maps["counters"]
        return {
            name: [int(cpu.value) for cpu in table.get(index) or []] for index, name in enumerate(COUNTERS)
        }

    def take_operators(self, pid: int) -> dict[int, dict[int, int]]:
        """Launches of the operators of `pid` since the last call, by stream and operator (see `bpf/`)."""
        table = self._maps["operators"]
        streams: dict[int, dict[int, int]] = {}
        for key, count in table.items():
            if key.tgid == pid:
                streams.setdefault(int(key.stream), {})[int(key.operator)] = int(count.value)
                table.delete(key)
        return streams

    def client_names(self, pid: int) -> dict[int, str]:
        """Names of the operators of FlexNPU's client in `pid`, by their address."""
        return {
            int(key.handle): bytes(name.text).decode(errors="replace")
            for key, name in self._maps["client_names"].items()
            if key.tgid == pid
        }

    def close(self) -> None:
        """Unload. May be called again."""
        self._ring.close()
        with contextlib.suppress(OSError):
            self.loaded.close()
