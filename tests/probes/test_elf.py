"""Our reader of ELF files against pyelftools, and against files that are none."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path

import mockset
import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probes.placing import symbols
from probes.placing.elf import Elf, ElfError, gnu_hash, sysv_hash

SOURCE = mockset.SOURCES / "mock_cann.c"


def library(folder: Path, *flags: str) -> Path:
    path = folder / "libmock.so"
    command = ["cc", "-O1", "-shared", "-fPIC", "-DRT", "-DNNOPBASE", *flags, "-o", str(path), str(SOURCE)]
    subprocess.run(command, check=True, timeout=120)
    return path


def by_elftools(path: Path) -> dict[str, int]:
    with open(path, "rb") as file:
        table = ELFFile(file).get_section_by_name(".dynsym")
        return {
            symbol.name: symbol["st_value"]
            for symbol in table.iter_symbols()
            if symbol["st_info"]["type"] == "STT_FUNC"
            and symbol["st_shndx"] != "SHN_UNDEF"
            and symbol["st_value"]
        }


@pytest.mark.parametrize(
    "flags",
    [
        ("-Wl,--hash-style=gnu",),
        ("-Wl,--hash-style=sysv",),
        ("-Wl,--hash-style=both", "-Wl,--build-id=sha1", "-lm"),
    ],
    ids=["gnu", "sysv", "both"],
)
def test_it_reads_what_another_reader_reads(tmp_path: Path, flags: tuple[str, ...]) -> None:
    path = library(tmp_path, "-Wl,-soname,libmock.so.1", *flags)
    expected = by_elftools(path)
    with Elf(str(path)) as elf:
        assert elf.functions() == expected
        assert expected
        for name, value in expected.items():
            found = elf.find(name)
            assert found is not None
            assert found.value == value
            assert found.size > 0
            assert elf.file_offset(value) is not None
        assert elf.find("malloc") is None  # needed, not defined
        assert elf.find("aclrtNothing") is None
        assert (elf.soname, elf.machine) == ("libmock.so.1", os.uname().machine)
        assert "libc.so.6" in elf.needed
        assert bool(elf.build_id()) == any("build-id=sha1" in flag for flag in flags) or elf.build_id()


def test_sections_may_be_stripped(tmp_path: Path) -> None:
    path = library(tmp_path)
    expected = by_elftools(path)
    data = bytearray(path.read_bytes())
    data[40:48] = bytes(8)  # e_shoff
    data[60:64] = bytes(4)  # e_shnum, e_shstrndx
    path.write_bytes(data)
    with Elf(str(path)) as elf:
        assert elf.functions() == expected


def test_libraries_of_this_machine() -> None:
    folder = Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib") / (
        sysconfig.get_config_var("MULTIARCH") or ""
    )
    paths = [path for path in sorted(folder.glob("lib[a-l]*.so.*"))[:40] if path.is_file()]
    for path in paths:
        with Elf(str(path)) as elf:
            assert elf.functions() == by_elftools(path), path


def test_the_hashes() -> None:
    # From the generic ABI's and the GNU linker's own descriptions.
    assert (gnu_hash(b""), gnu_hash(b"printf"), gnu_hash(b"exit")) == (0x1505, 0x156B2BB8, 0x7C967E3F)
    assert (sysv_hash(b""), sysv_hash(b"printf"), sysv_hash(b"exit")) == (0, 0x77905A6, 0x6CF04)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = library(tmp_path_factory.mktemp("elf"))
    return path, path.read_bytes()


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_whatever_is_in_a_file_it_is_read_or_refused(whole: tuple[Path, bytes], data: st.DataObject) -> None:
    path, original = whole
    changed = bytearray(original[: data.draw(st.integers(0, len(original)))])
    for _ in range(data.draw(st.integers(0, 8))):
        if changed:
            at = data.draw(st.integers(0, min(len(changed), 6000) - 1))
            changed[at] = data.draw(st.integers(0, 255))
    path.write_bytes(changed)
    try:
        with Elf(str(path)) as elf:
            elf.find("aclrtMemcpy")
            elf.functions()
            elf.build_id()
    except (ElfError, OSError):
        pass
    found = symbols._read(str(path), ("aclrtMemcpy", "aclCreateTensor"))
    assert all(len(code) <= 1024 for *_, code in found.found)
