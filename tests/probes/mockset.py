"""Builds the mock vendor libraries and runs the driver program on them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

SOURCES = Path(__file__).parent / "mock"


def _cc(output: Path, *arguments: str | Path) -> Path:
    subprocess.run(
        ["cc", "-O2", "-fno-omit-frame-pointer", "-Wall", "-o", output, *arguments], check=True, timeout=120
    )
    return output


def build(folder: Path, *flags: str) -> Path:
    """Compile libraries and driver into `folder`; returns the driver."""
    source = SOURCES / "mock_cann.c"
    shared = ("-shared", "-fPIC", *flags)
    _cc(folder / "libacl_rt.so", *shared, "-DRT", source)
    _cc(folder / "libnnopbase.so", *shared, "-DNNOPBASE", source)
    _cc(folder / "libopapi.so", *shared, "-DOPAPI", source, f"-L{folder}", "-lacl_rt", "-Wl,-rpath,$ORIGIN")
    libraries = ("-lopapi", "-lnnopbase", "-lacl_rt", "-lpthread", "-Wl,-rpath,$ORIGIN", "-Wl,--no-as-needed")
    return _cc(folder / "driver", SOURCES / "driver.c", f"-L{folder}", *libraries)


class Driver:
    """The driver program, running."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen(
            [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert self._process.stdout is not None
        self.pid = int(self._process.stdout.readline())

    def run(self, *commands: str) -> None:
        """Run commands one after the other, and wait for each."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for command in commands:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
            assert self._process.stdout.readline() == "ok\n", command

    def stop(self) -> None:
        assert self._process.stdin is not None
        if self._process.poll() is None:
            self._process.stdin.close()
            try:
                self._process.wait(120)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(120)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def python() -> list[str]:
    """The interpreter that runs the tests."""
    return [sys.executable]


def probed(pid: int) -> list[str]:
    """Probed functions of the mock libraries in `pid`, by what the kernel put into its memory: an int3."""
    from probes.placing import symbols
    from probes.placing.plan import SITES

    found = symbols.resolve(pid, [site.symbol for site in SITES])
    result = []
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for name, definitions in found.items():
            for definition in definitions:
                mapped = next(m for m in symbols.mapped_files(pid) if m.path == definition.library.path)
                memory.seek(mapped.start + definition.offset - mapped.offset)
                if memory.read(len(definition.code)) != definition.code:
                    result.append(name)
    return result
