"""Load the object that was compiled when FlexNPU was built, by libbpf."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flexnpu.common.closeable import Closeable
from probes.placing import declarations, libbpf
from probes.placing.loader import Name, Request, Unfit

_OPTIONS = b".rodata.options"
_SUFFIX = "_map"
"""Of a map's name in an object, see bpf/platform.h."""


class LoadedObject(Closeable):
    """See `loader.Loaded`."""

    loader: Name = "core"
    ring = True

    def __init__(self, bpf: Any, handle: Any, programs: dict[str, int]) -> None:
        self._bpf = bpf
        self._handle = handle
        self._programs = programs
        self.why = "its object was built, and this kernel takes it"

    def program(self, name: str) -> int:
        """Descriptor of a program. Raises KeyError."""
        return self._programs[name]

    def map(self, name: str) -> int:
        """Descriptor of a map. Raises KeyError."""
        found = self._bpf.bpf_object__find_map_by_name(self._handle, (name + _SUFFIX).encode())
        if not found:
            raise KeyError(name)
        return int(self._bpf.bpf_map__fd(found))

    def close(self) -> None:
        """Unload. May be called again."""
        if self._handle:
            self._bpf.bpf_object__close(self._handle)
        self._handle = None


def load(request: Request) -> LoadedObject:
    """Raises `Unfit` where there is no object, no libbpf, or a kernel that refuses it."""
    path = request.source.object
    if not path.is_file():
        raise Unfit(f"{path} was not built (it takes clang; make build)")
    try:
        bpf = libbpf.needed()
    except libbpf.LibbpfMissing as error:
        raise Unfit(str(error)) from None
    with _quiet(bpf):
        handle = bpf.bpf_object__open_file(os.fsencode(path), None)
        if libbpf.failed(handle):
            raise Unfit(f"libbpf cannot read {path}: {os.strerror(ctypes.get_errno())}")
        try:
            programs = _choose(bpf, handle, request)
            _tell(bpf, handle, request)
            if bpf.bpf_object__load(handle) < 0:
                code = ctypes.get_errno()
                raise Unfit(f"the kernel does not take {path.name}: {os.strerror(code)}")
            fds = {name: int(bpf.bpf_program__fd(program)) for name, program in programs.items()}
        except BaseException:
            bpf.bpf_object__close(handle)
            raise
    return LoadedObject(bpf, handle, fds)


@contextmanager
def _quiet(bpf: Any) -> Iterator[None]:
    """Without libbpf's own words on standard error: what it refuses, bcc may still load. They are shown where
    FLEXNPU_BPF_LOG is set."""
    before = None if os.environ.get("FLEXNPU_BPF_LOG") else (bpf.libbpf_set_print(None),)
    try:
        yield
    finally:
        if before is not None:
            bpf.libbpf_set_print(before[0])


def _choose(bpf: Any, handle: Any, request: Request) -> dict[str, Any]:
    programs: dict[str, Any] = {}
    program = bpf.bpf_object__next_program(handle, None)
    while program:
        name = bpf.bpf_program__name(program).decode()
        kind = request.programs.get(name)
        bpf.bpf_program__set_autoload(program, kind is not None)
        if kind is not None:
            programs[name] = program
            if kind.attach_type:
                bpf.bpf_program__set_expected_attach_type(program, kind.attach_type)
        program = bpf.bpf_object__next_program(handle, program)
    missing = sorted(set(request.programs) - set(programs))
    if missing:
        raise Unfit(f"{request.source.object.name} is of another version: it has no {missing[0]}")
    return programs


def _tell(bpf: Any, handle: Any, request: Request) -> None:
    """Fill in the options, and how large the ring is."""
    if not request.options:
        return
    options = declarations.read(request.source.options).struct("options")(**request.options)
    constants = bpf.bpf_object__find_map_by_name(handle, _OPTIONS)
    if bpf.bpf_map__set_initial_value(constants, ctypes.byref(options), ctypes.sizeof(options)) < 0:
        raise Unfit(f"{request.source.object.name} is of another version: its options are others")
    ring = bpf.bpf_object__find_map_by_name(handle, (request.ring + _SUFFIX).encode())
    bpf.bpf_map__set_max_entries(ring, request.options["ring_pages"] * 4096)
