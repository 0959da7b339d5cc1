from __future__ import annotations

import os
import subprocess
from pathlib import Path

import mockset
import pytest

from probes.placing import symbols
from probes.placing.plan import FUNNELS
from probes.steps.tracer import find_processes


def build(folder: Path, name: str, code: str, *flags: str) -> Path:
    source = folder / f"{name}.c"
    source.write_text(code)
    library = folder / f"lib{name}.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O1", f"-Wl,-soname,lib{name}.so", "-o", library, source, *flags],
        check=True,
        timeout=60,
    )
    return library


def test_each_symbol_is_found_where_it_is_defined(driver: mockset.Driver) -> None:
    found = symbols.resolve(
        driver.pid, ["aclrtLaunchKernelWithHostArgs", "aclCreateTensor", "aclnnEmbedding", "aclNoSuchThing"]
    )
    where = {
        name: [os.path.basename(d.library.path) for d in definitions] for name, definitions in found.items()
    }
    assert where == {
        "aclrtLaunchKernelWithHostArgs": ["libacl_rt.so"],
        "aclCreateTensor": ["libnnopbase.so"],
        "aclnnEmbedding": ["libopapi.so"],  # libopapi imports the launch, and is not taken to define it
    }


def test_the_offset_leads_to_the_function_in_memory(driver: mockset.Driver) -> None:
    (found,) = symbols.resolve(driver.pid, ["aclrtMemcpy"])["aclrtMemcpy"]
    mapped = next(m for m in symbols.mapped_files(driver.pid) if m.path == found.library.path)
    with open(f"/proc/{driver.pid}/mem", "rb", buffering=0) as memory:
        memory.seek(mapped.start + found.offset - mapped.offset)
        assert memory.read(len(found.code)) == found.code


def test_only_named_libraries_are_looked_into(driver: mockset.Driver) -> None:
    names = ["aclrtLaunchKernelWithHostArgs", "aclCreateTensor"]
    assert set(symbols.resolve(driver.pid, names, only={"libnnopbase.so"})) == {"aclCreateTensor"}
    assert symbols.resolve(driver.pid, names, only={"/no/such/lib.so"}) == {}


CODE = "int aclrtMemcpy(void) { return %d; }"


def load(*libraries: Path) -> subprocess.Popen[str]:
    program = (
        "import ctypes, sys; [ctypes.CDLL(p, ctypes.RTLD_GLOBAL) for p in sys.argv[1:]];"
        "print('ready', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [*mockset.python(), "-c", program, *map(str, libraries)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def definers(child: subprocess.Popen[str]) -> list[str]:
    found = symbols.resolve(child.pid, ["aclrtMemcpy"]).get("aclrtMemcpy", ())
    return sorted(os.path.basename(definition.library.path) for definition in found)


def stop(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.close()
    child.wait(120)


def test_a_library_that_forwards_to_another_is_left_out(tmp_path: Path) -> None:
    real = build(tmp_path, "real", CODE % 1)
    flags = [f"-L{tmp_path}", "-Wl,--no-as-needed", "-lreal", "-Wl,-rpath,$ORIGIN"]
    compatible = build(tmp_path, "compatible", CODE % 2, *flags)
    child = load(real, compatible)
    try:
        assert definers(child) == ["libreal.so"]
    finally:
        stop(child)


def test_unrelated_definers_are_both_kept(tmp_path: Path) -> None:
    child = load(build(tmp_path, "one", CODE % 1), build(tmp_path, "two", CODE % 2))
    try:
        assert definers(child) == ["libone.so", "libtwo.so"]
    finally:
        stop(child)


@pytest.mark.parametrize(
    "flag", ["-Wl,--hash-style=sysv", "-Wl,--hash-style=gnu", "-Wl,-Ttext-segment=0x40000"]
)
def test_kinds_of_libraries(tmp_path: Path, flag: str) -> None:
    child = load(build(tmp_path, "kind", CODE % 1, flag))
    try:
        assert definers(child) == ["libkind.so"]
        (found,) = symbols.resolve(child.pid, ["aclrtMemcpy"])["aclrtMemcpy"]
        assert b"\xb8\x01\x00\x00\x00" in found.code or found.machine != "x86_64"  # mov eax, 1
    finally:
        stop(child)


@pytest.mark.skipif(os.geteuid() != 0, reason="follows map_files")
def test_a_library_replaced_on_disk_is_read_as_it_is_mapped(tmp_path: Path) -> None:
    library = build(tmp_path, "old", CODE % 1)
    child = load(library)
    try:
        (before,) = symbols.resolve(child.pid, ["aclrtMemcpy"])["aclrtMemcpy"]
        library.unlink()
        build(tmp_path, "old", "int other(void) { return 1; }" * 1 + "int aclrtMemcpy(void) { return 3; }")
        (after,) = symbols.resolve(child.pid, ["aclrtMemcpy"])["aclrtMemcpy"]
        assert after.code == before.code
    finally:
        stop(child)


def test_a_process_that_is_gone() -> None:
    with pytest.raises(symbols.ProcessGone, match="no process 4194305"):
        symbols.resolve(4194305, ["aclrtMemcpy"])


def test_processes_that_use_an_npu_are_found(driver: mockset.Driver) -> None:
    found = find_processes()
    assert driver.pid in found
    assert os.getpid() not in found
    assert all(symbols.resolve(pid, FUNNELS) for pid in [driver.pid])
