"""Where an opaque aclTensor keeps its dimensions and data type, and an aclIntArray its values.

CANN does not document its objects, and their inside changes between releases. So nothing is assumed here: a
small program of our own (`probes/steps/learning.py`) loads the very library that the traced process maps,
makes tensors and arrays of known content through its public functions, and looks for that content. `learn`
runs it and gives the layouts that explained every sample, or the reason why there are none.

A layout leads from the address of an object to its values in at most three loads, so that a BPF program can
follow it (`bpf/layout.h`):

    base   = object,                     or the pointer at `hop` of the object
    values = base + offset               (INLINE)
           = the pointer at base + offset (POINTER)
           = INLINE up to `inline_max` values, else the pointer at base + `spill` (SMALL)
    count  = `width` bytes at base + `count`, or (pointer at base + `end` - values) / 8

The library is somebody else's code, and who attaches is privileged: loading it could hand over the machine.
So the program gives up every privilege before it loads anything, see `probes/steps/learning.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexnpu.common.processes import folder_of

if TYPE_CHECKING:
    from probes.placing.symbols import Mapped

TIMEOUT_S = 5.0
"""For one library: loading it, making the samples and looking through them."""

CREATORS = ("aclCreateTensor", "aclCreateIntArray")

# Belong to the C library, of which a program can have only one: the learning program's own.
_LIBC = (
    "libc.so", "libm.so", "libdl.so", "libpthread.so", "librt.so", "libutil.so", "libresolv.so", "libanl.so",
    "ld-linux", "ld-musl", "libmvec.so", "libnsl.so", "libnss_", "libthread_db.so",
)  # fmt: skip
_NOBODY = 65534


class Kind(IntEnum):
    """Where the values of a vector are; the numbers are those of `bpf/layout.h`."""

    INLINE = 0
    POINTER = 1
    SMALL = 2


@dataclass(frozen=True)
class VectorLayout:
    """Where an object keeps a vector of int64. Offsets are in bytes."""

    kind: Kind
    offset: int
    """Of the values (INLINE, SMALL) or of the pointer to them (POINTER), from the base."""
    count: int | None = None
    """Offset of the number of values from the base, or None where an end pointer tells it."""
    width: int = 4
    """Bytes of the count: 1, 2 or 4 (of a count of 8 bytes the lower 4 are read)."""
    end: int | None = None
    """Offset of the pointer past the last value from the base; None where `count` tells it."""
    hop: int | None = None
    """Offset in the object of the pointer to the base; None: the object is the base."""
    inline_max: int = 0
    """SMALL: the most values that are kept inline."""
    spill: int = 0
    """SMALL: offset from the base of the pointer to more values than that."""

    def describe(self) -> str:
        """In words, for people: ``values inline at 24, count at 16``."""
        base = "" if self.hop is None else f"behind the pointer at {self.hop}: "
        where = f"inline at {self.offset}"
        if self.kind is Kind.POINTER:
            where = f"by the pointer at {self.offset}"
        elif self.kind is Kind.SMALL:
            where += f" up to {self.inline_max}, else by the pointer at {self.spill}"
        number = f"end pointer at {self.end}" if self.count is None else f"count at {self.count}"
        return f"{base}values {where}, {number}"


IntArrayLayout = VectorLayout
"""Of an aclIntArray: its values are all that it has."""


@dataclass(frozen=True)
class TensorLayout:
    """Where an aclTensor keeps its view dimensions and its data type."""

    dims: VectorLayout
    dtype: int
    """Offset of the data type (aclDataType) from its base."""
    dtype_width: int = 4
    """Bytes of the data type: 1, 2 or 4."""
    dtype_hop: int | None = None
    """Offset in the object of the pointer to the data type's base; None: the object is the base."""

    def describe(self) -> str:
        """For a person: offsets in bytes."""
        base = "" if self.dtype_hop is None else f"behind the pointer at {self.dtype_hop}: "
        return f"dims: {self.dims.describe()}; dtype: {base}at {self.dtype}"


@dataclass(frozen=True)
class Learned:
    """What `learn` found for one process."""

    tensor: TensorLayout | None
    int_array: IntArrayLayout | None
    library: str
    """The library that was asked, as the process names it; empty when there is none."""
    reason: str = ""
    """Why something above is None, in words; empty when nothing is."""
    took_s: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether both layouts were found."""
        return self.tensor is not None and self.int_array is not None


# -- for BPF programs ---------------------------------------------------------------------------------------


def _word(value: int | None) -> int:
    return -1 if value is None else value


def _fill(packed: Any, layout: VectorLayout) -> None:
    packed.kind = int(layout.kind)
    packed.offset = layout.offset
    packed.hop = _word(layout.hop)
    packed.count = _word(layout.count)
    packed.width = layout.width
    packed.end = _word(layout.end)
    packed.inline_max = layout.inline_max
    packed.spill = layout.spill


def pack(learned: Learned) -> Any:
    """The form in which BPF programs read it: ``struct layout`` of `bpf/layout.h`; -1 stands for None."""
    from probes.placing import declarations

    packed = declarations.of_steps().struct("layout")()
    if learned.tensor is not None:
        packed.has_tensor = 1
        _fill(packed.dims, learned.tensor.dims)
        packed.dtype = learned.tensor.dtype
        packed.dtype_width = learned.tensor.dtype_width
        packed.dtype_hop = _word(learned.tensor.dtype_hop)
    if learned.int_array is not None:
        packed.has_int_array = 1
        _fill(packed.ints, learned.int_array)
    return packed


# -- reading an object by its layout ------------------------------------------------------------------------

Read = Callable[[int, int], bytes | None]
"""(address, size) -> that memory, or None where not all of it can be read."""


def _number(read: Read, address: int, width: int) -> int | None:
    data = read(address, width)
    return None if data is None else int.from_bytes(data, "little")


def _base(read: Read, address: int, hop: int | None) -> int | None:
    return address if hop is None else (_number(read, address + hop, 8) or None)


def values_of(read: Read, address: int, layout: VectorLayout, most: int = 4096) -> tuple[int, ...] | None:
    """The vector of the object at `address`, as `find_vector` of bpf/layout.h finds it.

    None when memory cannot be read, or the count is above `most`.
    """
    base = _base(read, address, layout.hop)
    if base is None:
        return None
    count: int | None = None
    if layout.count is not None:
        count = _number(read, base + layout.count, layout.width)
        if count == 0:
            return ()
        if count is None or count > most:
            return None
    values: int | None = base + layout.offset
    if layout.kind is Kind.POINTER:
        values = _number(read, base + layout.offset, 8)
    elif layout.kind is Kind.SMALL and count is not None and count > layout.inline_max:
        values = _number(read, base + layout.spill, 8)
    if values is None:
        return None
    if count is None:
        end = _number(read, base + (layout.end or 0), 8)
        if end is None or not 0 <= end - values <= 8 * most or (end - values) % 8:
            return None
        count = (end - values) // 8
    data = read(values, 8 * count) if count else b""
    if data is None:
        return None
    return tuple(int.from_bytes(data[at : at + 8], "little", signed=True) for at in range(0, 8 * count, 8))


def dtype_of(read: Read, address: int, layout: TensorLayout) -> int | None:
    """The aclDataType of the tensor at `address`; None when memory cannot be read."""
    base = _base(read, address, layout.dtype_hop)
    return None if base is None else _number(read, base + layout.dtype, layout.dtype_width)


# -- running the learning program ---------------------------------------------------------------------------

_cache: dict[tuple[Any, ...], Learned] = {}


def learn(pid: int, *, timeout_s: float = TIMEOUT_S) -> Learned:
    """Learn the layouts of the objects that process `pid` makes, once a library.

    Never raises for what the library or the process does: `Learned.reason` says what failed. Raises
    `symbols.ProcessGone` or PermissionError when the process's maps cannot be read.
    """
    from probes.placing import store, symbols  # which the learning program does without

    found = symbols.resolve(pid, CREATORS)
    if CREATORS[0] not in found:
        return Learned(None, None, "", f"process {pid} maps no library that defines {CREATORS[0]}")
    makers = {name: definitions[0].library for name, definitions in found.items()}
    library = makers[CREATORS[0]]
    key = tuple((name, _identity(maker)) for name, maker in sorted(makers.items()))
    if key in _cache:
        return _cache[key]
    kept = store.get("layouts", repr(key))
    if isinstance(kept, dict) and (known := _known(kept, library.path)) is not None:
        _cache[key] = known
        return known
    begun = time.monotonic()
    files = {os.path.basename(mapped.path): mapped for mapped in symbols.mapped_files(pid)}
    names = {name: os.path.basename(maker.path) for name, maker in makers.items()}
    wanted = {
        file: (symbols.dependencies(mapped.real).soname, mapped.real)
        for file, mapped in files.items()
        if not file.startswith(_LIBC) and ".so" in file
    }
    answer = _run(pid, wanted, names, timeout_s)
    took = time.monotonic() - begun
    learned = _decoded(answer, library.path, took)
    # A program that was too slow, or could not be started, may do better another time.
    if answer.get("final"):
        if len(_cache) >= 256:
            _cache.clear()
        _cache[key] = learned
        if learned.complete:  # another program may learn what this one could not
            store.put("layouts", repr(key), answer)
    return learned


def _known(answer: dict[str, Any], library: str) -> Learned | None:
    """What was learned by an earlier program; None where that is not understood."""
    try:
        return _decoded(answer, library, 0.0)
    except (TypeError, ValueError, KeyError):
        return None


def _identity(library: Mapped) -> tuple[Any, ...]:
    from probes.placing import symbols

    version = symbols.version_of(library.real)
    if version is None:
        return (library.path, library.inode)
    return (*version, symbols.dependencies(library.real).build_id)


def _decoded(answer: dict[str, Any], library: str, took: float) -> Learned:
    tensor: TensorLayout | None = None
    array: VectorLayout | None = None
    if answer.get("tensor"):
        fields = dict(answer["tensor"])
        tensor = TensorLayout(**(fields | {"dims": _vector_of(fields["dims"])}))
    if answer.get("int_array"):
        array = _vector_of(answer["int_array"])
    return Learned(tensor, array, library, str(answer.get("reason", "")), took)


def _vector_of(fields: dict[str, Any]) -> VectorLayout:
    return VectorLayout(**(fields | {"kind": Kind(fields["kind"])}))


def encoded(tensor: TensorLayout | None, array: VectorLayout | None, reason: str) -> dict[str, Any]:
    """What the learning program answers, as JSON."""
    return {
        "tensor": asdict(tensor) if tensor else None,
        "int_array": asdict(array) if array else None,
        "reason": reason,
        "final": True,
    }


@dataclass(frozen=True)
class _Identity:
    """Whose rights the learning program has while it runs the library's code."""

    uid: int
    gid: int


def _whose(pid: int, reals: list[str]) -> _Identity | str:
    """The user to run process `pid`'s libraries as, or why they are not run at all.

    Not as root, even when the process is: it may be root of a container, and no more than that.
    """
    status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    uid, gid = int(fields["Uid"].split()[1]), int(fields["Gid"].split()[1])
    if os.geteuid() != 0:
        for real in reals:
            stat = os.stat(real)
            if stat.st_uid not in (0, os.geteuid()) or stat.st_mode & 0o022:
                return f"{real} may be another user's code, which only root can confine"
        return _Identity(os.geteuid(), os.getegid())
    if uid != 0:
        return _Identity(uid, gid)
    readable = all(os.stat(real).st_mode & 0o004 for real in reals)
    if not readable and os.readlink(f"{folder_of(pid)}/ns/mnt") == os.readlink("/proc/self/ns/mnt"):
        return _Identity(0, gid)  # without capabilities; the file is the machine's own
    return _Identity(_NOBODY, _NOBODY)


def _run(
    pid: int, wanted: dict[str, tuple[str, str]], names: dict[str, str], timeout_s: float
) -> dict[str, Any]:
    """Run the learning program; its answer, or one that only says what went wrong."""
    import shutil  # these take a MiB, and a library is learned once
    import subprocess
    import tempfile

    with contextlib.ExitStack() as stack:
        opened: dict[str, int] = {}
        aliases: dict[str, str] = {}
        try:
            for file, (soname, real) in wanted.items():
                opened[file] = os.open(real, os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, opened[file])
                if soname:
                    aliases[soname] = file
            whose = _whose(pid, [wanted[file][1] for file in set(names.values())])
        except OSError as error:
            return {"reason": f"the library cannot be opened: {error}"}
        if isinstance(whose, str):
            return {"reason": whose}
        folder = tempfile.mkdtemp(prefix="flexnpu-learn-")
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        os.chmod(folder, 0o755)
        job = {
            "uid": whose.uid,
            "gid": whose.gid,
            "folder": folder,
            "files": opened,
            "aliases": aliases,
            "makers": names,
            "cpu_s": int(timeout_s) + 1,
        }
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": "/nonexistent",
            "PYTHONPATH": str(Path(__file__).parents[2]),
            # Empty until the program has lost its privileges; then it holds the process's libraries.
            "LD_LIBRARY_PATH": folder,
        }
        try:
            child = subprocess.Popen(
                [sys.executable, "-S", "-s", "-P", "-B", "-m", "probes.steps.learning"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                cwd="/",
                pass_fds=list(opened.values()),
                start_new_session=True,
            )
        except OSError as error:
            return {"reason": f"the learning program does not start: {error}"}
        try:
            out, err = child.communicate(json.dumps(job).encode(), timeout=timeout_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
            return {"reason": f"no answer within {timeout_s:g} s: the library hangs, or this machine is busy"}
        return _answer(child.returncode, out, err)


def _answer(status: int, out: bytes, err: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(out)
        if isinstance(answer, dict):
            return answer
    except ValueError:
        pass
    said = err.decode(errors="replace").strip().splitlines()
    last = f": {said[-1][:300]}" if said else ""
    if status < 0:
        name = signal.Signals(-status).name if -status in set(signal.Signals) else str(-status)
        return {"reason": f"the library crashed the learning program ({name}){last}", "final": True}
    return {"reason": f"the learning program ended with status {status}{last}"}
