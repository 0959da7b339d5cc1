"""Where text leaves a program: standard output, standard error, and files.

All text for people goes through `out` (a line each), `say` (a line on standard error that names the program)
or a `Console` with a `Table`. Each of them makes it safe (`text.safe`), so a caller need not know who chose a
name. `out_json` prints JSON, which is safe by itself.

Output that fails is an `OutputError` that names it, wherever it was written from: `begin` puts a stream of
ours in the place of `sys.stdout`. `program` turns it into an error and an exit status. `whole_file` replaces
a file at once or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from flexnpu.console.text import json_text, safe

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STDOUT = "standard output"

_program = "flexnpu"


class OutputError(OSError):
    """Something could not be written. The message names it; `quiet`: its reader went away."""

    def __init__(self, what: str, error: OSError) -> None:
        # Without an errno of its own: click ends the program on EPIPE before we can.
        super().__init__(f"cannot write {what}: {_reason(error)}")
        self.quiet = error.errno == errno.EPIPE


def _reason(error: OSError) -> str:
    return "it is closed" if error.errno == errno.EBADF else error.strerror or str(error)


# -- streams -------------------------------------------------------------------------------------------------


class _Raw(io.FileIO):
    """A descriptor that says what failed, and takes nothing more after it did."""

    def __init__(self, descriptor: int, name: str | None) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._name = name
        self._dead = False

    def write(self, data: ReadableBuffer, /) -> int:
        size = memoryview(data).nbytes
        if self._dead:
            return size
        try:
            while (written := super().write(data)) is None:  # somebody made it non-blocking
                select.select([], [self.fileno()], [])
        except OSError as error:
            self._dead = True
            if self._name is None:  # of standard error: there is nobody left to tell
                return size
            raise OutputError(self._name, error) from None
        return written


def _stream(descriptor: int, old: Any, name: str | None) -> io.TextIOWrapper:
    lines = bool(getattr(old, "line_buffering", False) or getattr(old, "write_through", False))
    return io.TextIOWrapper(
        io.BufferedWriter(_Raw(descriptor, name)),
        encoding=getattr(old, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=lines or name is None,
    )


def begin(program: str) -> None:
    """Name the program, and see to its standard streams. Streams that a test has replaced stay."""
    global _program
    _program = program
    _reserve()
    if sys.stdout is sys.__stdout__:
        sys.stdout = _stream(1, sys.stdout, STDOUT)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _stream(2, sys.stderr, None)


def _reserve() -> None:
    """Occupy standard descriptors that are closed, so that no file or socket of ours gets their number.

    What is written to standard output then fails, as it should; what a command runs finds them closed.
    """
    for descriptor, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, mode | os.O_CLOEXEC)  # the lowest number that is free


def flush() -> None:
    """Raises `OutputError`."""
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(STDOUT, error) from None


# -- text ----------------------------------------------------------------------------------------------------


def out(*lines: object, flush: bool = False) -> None:
    """Print each of `lines` as one line, safe. Raises `OutputError`."""
    for line in lines or ("",):
        print(safe(line), flush=flush)


def out_json(value: Any, *, indent: int | None = None, compact: bool = False, flush: bool = False) -> None:
    """Print `value` as JSON: one line, or several with `indent`. Raises `OutputError`."""
    print(json_text(value, indent=indent, compact=compact), flush=flush)


def out_line(json_line: str) -> None:
    """Print a line of JSON that `json_text` made; it is written when there is enough, or by `flush`. Raises
    `OutputError`."""
    sys.stdout.write(json_line + "\n")


def say(text: object) -> None:
    """A message on standard error, after the program's name. Further lines of it are indented, so that no
    part of a message looks like one of its own. Never fails."""
    first, *more = str(text).split("\n")
    lines = [f"{_program}: {safe(first)}", *(f"  {safe(line)}" for line in more)]
    with contextlib.suppress(OSError, ValueError):
        print("\n".join(lines), file=sys.stderr, flush=True)


# -- files ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _writing(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(os.fspath(path), error) from None


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """A text file (UTF-8) to write, which gets its name when the block has ended well.

    If the block or the writing fails, what was at `path` before is still there and nothing else is left.
    What is no regular file (a pipe, a device) is written directly. Raises `OutputError`.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
    with contextlib.ExitStack() as stack:
        with _writing(path):
            target = Path(path).resolve()  # of a symbolic link, what it names is replaced
            present = target.stat() if target.exists() else None
            if present is None or stat.S_ISREG(present.st_mode):
                mode = 0o666 if present is None else stat.S_IMODE(present.st_mode)
                draft = target.with_name(f".{target.name[:200]}.{os.getpid()}.part")
                descriptor = os.open(draft, flags | os.O_EXCL | os.O_NOFOLLOW, mode)
                stack.callback(draft.unlink, missing_ok=True)
            else:
                draft, descriptor = target, os.open(target, flags)
            stack.callback(os.close, descriptor)
        file = _stream(descriptor, None, os.fspath(path))
        yield file
        with _writing(path):
            file.flush()
            if draft != target:
                os.replace(draft, target)
