"""The API table: well-formed, complete for its clients, and refused when a row makes no sense."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from flexnpu.api import generate, tables

ROOT = Path(__file__).resolve().parents[2]
TABLES = ROOT / "flexnpu" / "api"


def test_names_are_unique_and_operators_sorted() -> None:
    functions = [f.name for f in tables.read_functions()]
    ops = [name for name, _ in tables.read_ops()]
    assert len(set(functions)) == len(functions)
    assert ops == sorted(ops), "find_op searches by bisection"
    assert not set(functions) & set(ops)


def test_output_is_stable(tmp_path: Path) -> None:
    for name in ("a", "b"):
        subprocess.run([sys.executable, "-m", "flexnpu.api.generate", tmp_path / name], check=True, cwd=ROOT)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


@pytest.mark.parametrize(
    ("table", "row", "complaint"),
    [
        ("functions.tsv", "aclNew\tacl_rt\taclError\tint32_t\tmaybe\t-", "class 'maybe'"),
        ("functions.tsv", "aclNew\tlibwrong\taclError\tint32_t\trefuse\t-", "library 'libwrong'"),
        ("functions.tsv", "aclNew\tacl_rt\taclError\tconst void*\tforward\t-", "cannot be forwarded"),
        ("functions.tsv", "aclNew\tacl_rt\taclError\t?\tforward\t-", "known signature"),
        ("aclnn.tsv", "aclnnZzz\tTTx\t-", "argument kinds ['x']"),
        ("types.tsv", "aclNewType\tblob", "kind 'blob'"),
    ],
)
def test_a_bad_row_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    table: str,
    row: str,
    complaint: str,
) -> None:
    for name in ("functions.tsv", "aclnn.tsv", "types.tsv", "refusals.tsv", "ge.tsv"):
        text = (TABLES / name).read_text().rstrip("\n") + "\n"
        (tmp_path / name).write_text(text + (row + "\n" if name == table else ""))
    monkeypatch.setattr(tables, "HERE", tmp_path)
    with pytest.raises(tables.TableError, match=re.escape(complaint)):
        generate.generate(tmp_path / "out")


def undefined_symbols(library: Path) -> set[str]:
    with library.open("rb") as file:
        symbols = ELFFile(file).get_section_by_name(".dynsym").iter_symbols()
        return {s.name for s in symbols if s["st_shndx"] == "SHN_UNDEF"}


@pytest.mark.torch_npu
def test_every_symbol_that_torch_npu_links_is_in_the_table() -> None:
    spec = importlib.util.find_spec("torch_npu")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("torch_npu is not installed: pip install 'flexnpu[clients]'")
    library = Path(spec.submodule_search_locations[0]) / "lib" / "libtorch_npu.so"
    ours = re.compile(r"^(acl[a-z]*[A-Z]|Hccl|Msprof|rt[A-Z])")
    needed = {s for s in undefined_symbols(library) if ours.match(s)}
    assert len(needed) > 80, "the filter no longer sees what torch_npu links"
    known = {f.name for f in tables.read_functions()}
    known |= {s for name, _ in tables.read_ops() for s in tables.op_symbols(name)}
    assert needed <= known, f"add rows for {sorted(needed - known)}"
