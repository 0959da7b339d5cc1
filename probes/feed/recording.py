"""Recordings of events: `flexnpu-probe trace` writes them, `replay`, `hist` and `export` read them.

A recording is a file of zstd frames, one after the other, each a block of whole lines with a checksum of
its own; `zstdcat` shows the lines. The first line is a `Header`, then come events in their JSON form
(`events`) and `Tick`s, and the last line is an `End` with the number of events. A block is written at least
once in `FLUSH_S`, so kill -9 costs no more than that; a recording without its `End` was cut off, and
`Recording` says so, after it gave everything that can be read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal, Self

import zstandard

from probes.feed.events import Event, EventError, from_json
from probes.feed.limits import Limits

if TYPE_CHECKING:
    from pydantic import TypeAdapter

FORMAT = 1
FLUSH_S = 1.0
BLOCK_BYTES = 1 << 18
"""A block is written when its lines have this many bytes."""
MAX_BLOCK_BYTES = 16 << 20
"""A block of more than this is not read: ours are far smaller."""

_LEVEL = 3
_CHUNK = 1 << 16

_NonNegative = Annotated[int, Limits(ge=0, strict=True)]
_Microseconds = Annotated[float, Limits(ge=0.0, allow_inf_nan=False)]


class RecordingError(ValueError):
    """A file that is no recording, or cannot be written; the message names it."""


@dataclass(frozen=True)
class Header:
    """Where and when a recording was made."""

    format: Annotated[int, Limits(strict=True)]
    version: str
    """Of FlexNPU."""
    host: str
    kernel: str
    machine: str
    t_ns: _NonNegative
    """CLOCK_MONOTONIC at the beginning, as all times in events."""
    realtime_ns: _NonNegative
    """CLOCK_REALTIME at that moment."""
    boottime_ns: _NonNegative
    """CLOCK_BOOTTIME at that moment."""
    type: Literal["recording"] = "recording"

    @staticmethod
    def now() -> Header:
        """Of this machine, at this moment."""
        import importlib.metadata  # takes 2 MiB

        try:
            version = importlib.metadata.version("flexnpu")
        except importlib.metadata.PackageNotFoundError:
            version = "unknown"
        boot = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
        return Header(
            format=FORMAT,
            version=version,
            host=socket.gethostname(),
            kernel=platform.release(),
            machine=platform.machine(),
            t_ns=time.monotonic_ns(),
            realtime_ns=time.time_ns(),
            boottime_ns=time.clock_gettime_ns(boot),
        )


@dataclass(frozen=True)
class Overhead:
    """What the probes of a process cost."""

    percent: Annotated[float, Limits(ge=0.0, allow_inf_nan=False)]
    """Of the steps' time (of all time where there were none), lately."""
    without: list[str]
    """Evidence that was given up for the budget, the first first (`budget.ORDER`)."""


@dataclass(frozen=True)
class Tick:
    """The end of an interval of the live table, with what it showed beside events."""

    t_ns: _NonNegative
    seconds: Annotated[float, Limits(ge=0.0, allow_inf_nan=False)]
    gated: list[tuple[_NonNegative, _NonNegative, _Microseconds]]
    """(pid, stream, us): how long the daemon's gate held each lane in the interval."""
    overhead: dict[int, Overhead] = dataclasses.field(default_factory=dict)
    """By process."""
    type: Literal["tick"] = "tick"


@dataclass(frozen=True)
class End:
    """The last line."""

    events: _NonNegative
    type: Literal["end"] = "end"


_CONTROLS: dict[str, type[Header | Tick | End]] = {"recording": Header, "tick": Tick, "end": End}


@cache
def _adapter(kind: str) -> TypeAdapter[Header | Tick | End]:
    from pydantic import TypeAdapter

    return TypeAdapter(_CONTROLS[kind])


def _line(control: Header | Tick | End) -> bytes:
    return json.dumps(dataclasses.asdict(control), separators=(",", ":")).encode() + b"\n"


def _control(line: bytes) -> Header | Tick | End | None:
    """A line that is no event; None when it is (or is neither). Raises EventError for a wrong field."""
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError):
        return None
    kind = raw.get("type") if isinstance(raw, dict) else None
    if not isinstance(kind, str) or kind not in _CONTROLS:
        return None
    adapter = _adapter(kind)
    from pydantic import ValidationError

    try:
        return adapter.validate_python(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise EventError(f"{kind}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


class Recorder:
    """Write a recording to `path`. A file that is there is kept until the first block is written.

    Raises `RecordingError` when the file cannot be made, or written any further (a full disk).
    """

    def __init__(self, path: str | os.PathLike[str], *, header: Header | None = None) -> None:
        self.path = Path(path)
        self.events = 0
        self._lines: list[bytes] = []
        self._pending = 0
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
        self._begun = False
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        try:
            try:
                self._file = os.fdopen(os.open(self.path, flags | os.O_EXCL, 0o666), "wb", buffering=0)
                self._made = True
            except FileExistsError:
                self._file = os.fdopen(os.open(self.path, flags, 0o666), "wb", buffering=0)
                self._made = False
        except OSError as error:
            raise RecordingError(f"cannot write {self.path}: {error.strerror}") from None
        self._due = 0.0
        self._header = _line(header or Header.now())

    def event(self, event: Event) -> None:
        """Append an event."""
        self.events += 1
        self._add(event.to_json().encode() + b"\n")

    def tick(self, tick: Tick) -> None:
        """Append the end of an interval."""
        self._add(_line(tick))

    def _add(self, line: bytes) -> None:
        self._lines.append(line)
        self._pending += len(line)
        if self._pending >= BLOCK_BYTES:
            self.flush()

    def poll(self) -> None:
        """Write what has waited for `FLUSH_S`. Call it a few times a second."""
        if time.monotonic() >= self._due:
            self.flush()

    def flush(self) -> None:
        """Write what there is; the first time the header, as a block of its own."""
        self._due = time.monotonic() + FLUSH_S
        if not self._begun:
            self._begun = True
            with contextlib.suppress(OSError):  # what is no file cannot be emptied
                self._file.truncate(0)
            self._write(self._header)
        if self._lines:
            lines, self._lines, self._pending = self._lines, [], 0
            self._write(b"".join(lines))

    def _write(self, text: bytes) -> None:
        block = memoryview(self._compressor.compress(text))
        try:
            while block:
                block = block[self._file.write(block) :]
        except OSError as error:
            raise RecordingError(f"cannot write {self.path}: {error.strerror}") from None

    def close(self) -> None:
        """Write the end. May be called again."""
        if self._file.closed:
            return
        try:
            self._add(_line(End(self.events)))
            self.flush()
        finally:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        # What is readable stays; the End would say that all went well.
        with contextlib.suppress(RecordingError):
            if self._begun or self.events:
                self.flush()
        self._file.close()
        if self._made and not self._begun:
            self.path.unlink(missing_ok=True)


class Recording:
    """Read a recording.

        recording = Recording("run.jsonl.zst")
        for item in recording:      # events and ticks
            ...
        if recording.damage: ...

    Raises `RecordingError` when `path` cannot be read or does not begin as a recording does. What is wrong
    further on ends the iteration and is told by `damage`, a sentence, None when the recording is whole.
    Iterate once.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.damage: str | None = None
        self.events = 0
        try:
            self._file: BinaryIO = open(self.path, "rb")  # noqa: SIM115 (closed at the end of iteration)
        except OSError as error:
            raise RecordingError(f"cannot read {self.path}: {error.strerror}") from None
        self._lines = self._read_lines()
        try:
            first = next(self._lines, None)
        except OSError as error:
            raise RecordingError(f"cannot read {self.path}: {error.strerror}") from None
        try:
            header = None if first is None else _control(first)
        except EventError as error:
            self._file.close()
            raise RecordingError(f"{self.path} is no recording: {error}") from None
        if not isinstance(header, Header):
            self._file.close()
            why = f" ({self.damage})" if self.damage else ""
            raise RecordingError(f"{self.path} is no recording of flexnpu-probe trace{why}")
        if header.format != FORMAT:
            self._file.close()
            raise RecordingError(f"{self.path} has format {header.format}; this program reads {FORMAT}")
        self.header = header

    def __iter__(self) -> Iterator[Event | Tick]:
        end: End | None = None
        for number, line in enumerate(self._lines, 2):
            try:
                item = _control(line) or from_json(line)
            except EventError as error:
                self.damage = f"line {number} is no event: {error}"
                break
            if isinstance(item, Header) or end is not None:
                self.damage = f"line {number} does not belong there: recordings were joined"
                break
            if isinstance(item, End):
                end = item
                continue
            if not isinstance(item, Tick):
                self.events += 1
            yield item
        self._file.close()
        if self.damage is None:
            if end is None:
                self.damage = "it ends before its end: the tracer was killed, or is still writing"
            elif end.events != self.events:
                self.damage = f"it has {self.events} events and says {end.events}"

    def _read_lines(self) -> Iterator[bytes]:
        for block in self._blocks():
            lines = block.split(b"\n")
            if lines.pop():
                self.damage = "a block does not end with a line"
            yield from lines
            if self.damage:
                return

    def _blocks(self) -> Iterator[bytes]:
        """The contents of the frames, one by one, each checked before it is given."""
        decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
        data, number = b"", 0
        while True:
            data = data or self._file.read(_CHUNK)
            if not data:
                return
            number += 1
            frame = decompressor.decompressobj(write_size=_CHUNK)
            found: list[bytes] = []
            size = 0
            while not frame.eof:
                if not data:
                    self.damage = f"block {number} is cut off"
                    return
                for start in range(0, len(data), 1024):
                    # Small pieces: what one of them becomes is bounded.
                    try:
                        found.append(frame.decompress(data[start : start + 1024]))
                    except zstandard.ZstdError as error:
                        self.damage = f"block {number} is broken: {error}"
                        return
                    size += len(found[-1])
                    if size > MAX_BLOCK_BYTES:
                        self.damage = f"block {number} has more than {MAX_BLOCK_BYTES} bytes"
                        return
                    if frame.eof:
                        data = frame.unused_data + data[start + 1024 :]
                        break
                else:
                    data = self._file.read(_CHUNK)
            yield b"".join(found)
