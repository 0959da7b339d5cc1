"""Compile and load the programs where they run, by bcc: where no object serves."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from flexnpu.common.closeable import Closeable
from probes.placing import declarations, headers, libbpf
from probes.placing.loader import ROOT, Kind, LoadError, Name, Request, Source

_INCLUDE = re.compile(r'^#include "([^"]+)"[^\n]*$', re.MULTILINE)


class LoadedText(Closeable):
    """See `loader.Loaded`."""

    loader: Name = "bcc"

    def __init__(self, bpf: Any, programs: dict[str, int], *, ring: bool) -> None:
        self._bpf = bpf
        self._programs = programs
        self.ring = ring
        self.why = ""

    def program(self, name: str) -> int:
        """Descriptor of a program. Raises KeyError."""
        return self._programs[name]

    def map(self, name: str) -> int:
        """Descriptor of a map. Raises KeyError."""
        return int(self._bpf[name.encode()].map_fd)

    def close(self) -> None:
        """Unload. May be called again."""
        if self._bpf is not None:
            self._bpf.cleanup()
        self._bpf = None


def module() -> Any:
    """bcc's Python module. Raises `LoadError`."""
    try:
        return importlib.import_module("bcc")
    except ImportError as error:
        raise LoadError(
            f"bcc's Python module is missing ({error}). Type: sudo apt-get install python3-bpfcc\n"
            "A virtual environment sees it only if it was made with --system-site-packages."
        ) from None


def text_of(source: Source) -> str:
    """The program as one text: bcc wants all of it in one file."""
    seen: set[Path] = set()

    def whole(path: Path) -> str:
        seen.add(path)

        def included(found: re.Match[str]) -> str:
            inner = path.parent / found[1]
            inner = inner if inner.is_file() else ROOT / found[1]
            if inner in seen:
                return ""
            line = path.read_text().count("\n", 0, found.start()) + 2
            return f'{whole(inner)}\n#line {line} "{path.name}"'

        return f'#line 1 "{path.name}"\n{_INCLUDE.sub(included, path.read_text())}'

    return whole(source.path).replace("#pragma once\n", "\n")


def load(request: Request) -> LoadedText:
    """Raises `LoadError`."""
    bcc = module()
    try:
        headers.prepare()
    except headers.HeadersMissing as error:
        raise LoadError(str(error)) from None
    ring = bool(bcc.BPF.kernel_struct_has_field(b"bpf_ringbuf", b"waitq") == 1)
    flags = ["-DFLEXNPU_BPF", "-Wno-macro-redefined"]
    if request.options:
        known = declarations.read(request.source.options).struct("options")
        flags += [f"-D{name.upper()}={int(request.options.get(name, 0))}ULL" for name, _ in known._fields_]
    flags += [f"-D{name}={value}" for name, value in request.macros.items()]
    if ring:
        flags.append("-DEVENTS_RING")
    kinds = {Kind.SYSCALL: bcc.BPF.TRACEPOINT, Kind.RAW: bcc.BPF.RAW_TRACEPOINT}
    try:
        libbpf.needed()  # maps are read by it
        bpf = bcc.BPF(text=text_of(request.source).encode(), cflags=flags)
        programs = {}
        for name, kind in sorted(request.programs.items()):
            expected = {"attach_type": kind.attach_type} if kind.attach_type else {}
            loaded = bpf.load_func(name.encode(), kinds.get(kind, bcc.BPF.KPROBE), **expected)
            programs[name] = int(loaded.fd)
    except libbpf.LibbpfMissing as error:
        raise LoadError(str(error)) from None
    except Exception as error:  # bcc raises bare Exception
        raise LoadError(
            f"the BPF program {request.source.path.name} does not load: {error}. The kernel's log above says "
            "why; kernel lockdown (/sys/kernel/security/lockdown) and seccomp forbid it as well."
        ) from None
    return LoadedText(bpf, programs, ring=ring)
