"""Kernel headers for bcc's compiler.

bcc compiles the BPF program on the traced machine and wants the kernel's headers. `prepare` looks for them
in this order and sets BCC_KERNEL_SOURCE when bcc would not find them by itself:

1. BCC_KERNEL_SOURCE, when it is set already;
2. /lib/modules/$(uname -r)/build, the headers installed for the running kernel;
3. /sys/kernel/kheaders.tar.xz, which bcc unpacks itself;
4. headers of another version under /usr/src, put together in a cache folder: distributions split them into a
   common tree and one of the architecture's configuration, and bcc wants one tree.

Headers of another version are safe here because the programs of this package read only registers
(`pt_regs`, a stable layout) and user memory, and of kernel structures only members whose place the running
kernel's own BTF tells (`btf`).
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CACHE = Path("/var/cache/flexnpu/headers")

# The parts of a header tree that bcc's compiler reads; documentation, tools and other architectures stay out.
_PARTS = ("include", "arch/{arch}/include")
# Present in any tree that bcc can use; the second is made by the kernel's configuration.
_MARKS = ("include/linux/kconfig.h", "include/generated/autoconf.h")


class HeadersMissing(RuntimeError):
    """No usable kernel headers; the message says which package brings them."""


@dataclass(frozen=True)
class Headers:
    """Where the headers are, and how they were found."""

    path: Path
    how: str


def kernel_arch(machine: str) -> str:
    """The kernel's name of an architecture that `uname -m` calls `machine`."""
    return {"x86_64": "x86", "aarch64": "arm64"}.get(machine, machine)


def usable(tree: Path) -> bool:
    """Whether a tree of kernel headers has what bcc reads of it."""
    try:
        return all((tree / mark).is_file() for mark in _MARKS)
    except PermissionError:
        return False


def _version_key(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))


def _pairs(sources: Path) -> Iterator[tuple[Path, Path]]:
    """(architecture tree, common tree) of every set of split headers, the newest version first."""
    trees = sorted(sources.glob("linux-headers-*"), key=lambda tree: _version_key(tree.name), reverse=True)
    for tree in trees:
        if not (tree / _MARKS[1]).is_file():
            continue
        # Debian: linux-headers-6.1.0-9-amd64 beside ...-6.1.0-9-common (or ...-common-rt);
        # Ubuntu: linux-headers-5.15.0-91-generic beside linux-headers-5.15.0-91.
        stem = tree.name.rsplit("-", 1)[0]
        for common in (sources / f"{stem}-common", sources / stem):
            if (common / _MARKS[0]).is_file():
                yield tree, common
                break


def assemble(arch_tree: Path, common_tree: Path, cache: Path, arch: str) -> Path:
    """Lay `arch_tree` over a copy of `common_tree` in `cache` and return the folder; done once a version."""
    target = cache / arch_tree.name
    if usable(target):
        return target
    cache.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{arch_tree.name}.", dir=cache))
    try:
        for tree in (common_tree, arch_tree):
            for part in _PARTS:
                source = tree / part.format(arch=arch)
                if source.is_dir():
                    shutil.copytree(source, work / part.format(arch=arch), dirs_exist_ok=True)
        work.chmod(0o755)
        if not usable(work):
            raise HeadersMissing(f"{arch_tree} and {common_tree} do not make a usable header tree")
        try:
            work.rename(target)
        except OSError:
            # Another process finished first, or left half of a tree behind.
            if not usable(target):
                shutil.rmtree(target, ignore_errors=True)
                work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def package(machine: str) -> str:
    """The package that brings headers, in Debian's and Ubuntu's name for `machine`."""
    return {"x86_64": "linux-headers-amd64", "aarch64": "linux-headers-arm64"}.get(machine, "linux-headers")


def prepare(
    *,
    release: str | None = None,
    machine: str | None = None,
    root: Path = Path("/"),
    cache: Path | None = None,
) -> Headers:
    """Find headers for bcc, assemble them if need be, and set BCC_KERNEL_SOURCE. Raises `HeadersMissing`.

    `root`, `release` and `machine` stand for this machine's; tests give others.
    """
    release = release or platform.release()
    machine = machine or platform.machine()
    arch = kernel_arch(machine)
    given = os.environ.get("BCC_KERNEL_SOURCE")
    if given:
        if not usable(Path(given)):
            raise HeadersMissing(
                f"BCC_KERNEL_SOURCE={given} is not a configured kernel header tree "
                f"(no {' or no '.join(_MARKS)}); unset it or point it at one"
            )
        return Headers(Path(given), "named by BCC_KERNEL_SOURCE")
    build = root / "lib/modules" / release / "build"
    # Debian's build folder holds the configuration only and a Makefile that names the common tree, which
    # is enough for bcc when a source link stands beside it.
    if usable(build) or (build.is_dir() and (build.parent / "source/include/linux/kconfig.h").is_file()):
        return Headers(build, f"installed for the running kernel {release}")
    packed = root / "sys/kernel/kheaders.tar.xz"
    if packed.is_file():
        return Headers(packed, "packed into the running kernel")
    whole = [tree for tree in sorted((root / "usr/src").glob("kernels/*"), reverse=True) if usable(tree)]
    if whole:
        os.environ["BCC_KERNEL_SOURCE"] = str(whole[0])
        return Headers(
            whole[0], f"headers of kernel {whole[0].name}, another version than the running {release}"
        )
    for arch_tree, common_tree in _pairs(root / "usr/src"):
        if not (arch_tree / "arch" / arch).is_dir():
            continue
        tree = CACHE / arch_tree.name
        if cache is not None or not usable(tree):  # root has put it there once, for everybody
            folder = cache or _cache()
            try:
                tree = assemble(arch_tree, common_tree, folder, arch)
            except OSError as error:
                raise HeadersMissing(
                    f"headers of {arch_tree.name} cannot be put together in {folder}: {error.strerror}.\n"
                    "Run flexnpu-probe once as root, which puts them into "
                    f"{CACHE}, or set XDG_CACHE_HOME to a folder of this user's."
                ) from None
        os.environ["BCC_KERNEL_SOURCE"] = str(tree)
        return Headers(tree, f"assembled from {arch_tree.name}, another version than the running {release}")
    raise HeadersMissing(
        f"no kernel headers: none for the running kernel {release} under /lib/modules, no "
        f"/sys/kernel/kheaders.tar.xz, none of another version under /usr/src.\n"
        f"Type: sudo apt-get install {package(machine)}   (the version need not be the running kernel's)\n"
        f"or set BCC_KERNEL_SOURCE to a configured kernel header tree."
    )


def _cache() -> Path:
    try:
        CACHE.mkdir(parents=True, exist_ok=True)
        if os.access(CACHE, os.W_OK):
            return CACHE
    except OSError:
        pass
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "flexnpu" / "headers"
