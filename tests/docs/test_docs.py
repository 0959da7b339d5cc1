"""The pages build, their links lead somewhere, and the paths that they name exist."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "flexnpu/emulator/README.md"]
LONGEST = 120
SUFFIXES = {".py", ".cpp", ".hpp", ".h", ".c", ".tsv", ".toml", ".yml", ".md"}
# What a build or a command makes.
MADE = ("build/", "dist/", "dashboards/out", "demo-report.json")
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}


def _names_of_files() -> set[str]:
    return {
        path.name
        for folder in FOLDERS - {"build", "dist"}
        for path in (ROOT / folder).rglob("*")
        if path.suffix in SUFFIXES
    } | {path.name for path in ROOT.iterdir()}


FILES = _names_of_files()


def without_fences(text: str) -> str:
    """`text` with fenced blocks emptied, line by line."""
    return re.sub(r"^( *)```.*?^\1```$", lambda block: "\n" * block[0].count("\n"), text, flags=re.M | re.S)


def paths_in(text: str) -> Iterator[str]:
    """What in backticks looks like a path of this tree, outside of fenced blocks."""
    for quoted in re.findall(r"`([^`\n]+)`", without_fences(text)):
        if not re.fullmatch(r"\.?[\w.*-]+(/[\w.*-]+)*/?", quoted) or quoted.startswith(MADE):
            continue
        if "/" in quoted.rstrip("/"):
            if quoted.split("/")[0] in FOLDERS or Path(quoted).suffix in SUFFIXES:
                yield quoted
        elif Path(quoted).suffix in SUFFIXES and Path(quoted).stem:
            yield quoted


def exists(path: str, page: Path) -> bool:
    """A path is from the root, a file's name alone is that of any file."""
    if "/" not in path.rstrip("/"):
        return "*" in path or path in FILES
    return any(any(folder.glob(path.rstrip("/"))) for folder in (ROOT, page.parent))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_in_backticks_exist(page: Path) -> None:
    missing = sorted({path for path in paths_in(page.read_text()) if not exists(path, page)})
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", without_fences(page.read_text()))
    local = [target.partition("#")[0] for target in targets if "://" not in target]
    assert not [target for target in local if target and not (page.parent / target).exists()]


def test_lines_of_what_people_write_are_short() -> None:
    """Generated pages and tables, whose rows cannot be broken, aside."""
    pages = [page for page in PAGES if "reference" not in page.parts]
    long = [
        f"{page.relative_to(ROOT)}:{number}"
        for page in pages
        for number, line in enumerate(without_fences(page.read_text()).splitlines(), 1)
        if len(line) > LONGEST and not line.lstrip().startswith("|")
    ]
    assert not long


def test_what_looks_like_a_path_is_found() -> None:
    text = "`probes/steps/phases.py` `gone.py` `a/b` `make x`\n```\n`probes/none.py`\n```\n`tests/no/one`"
    assert list(paths_in(text)) == ["probes/steps/phases.py", "gone.py", "tests/no/one"]
    page = ROOT / "README.md"
    assert exists("probes/steps/phases.py", page)
    assert exists("phases.py", page)
    assert exists("flexnpu/emulator/profiles/*.toml", page)
    assert not exists("gone.py", page)
    assert not exists("tests/no/one", page)


def _build(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def mkdocs() -> None:
    if importlib.util.find_spec("mkdocs") is None:
        if os.environ.get("CI"):
            pytest.fail("mkdocs is missing: make setup installs it")
        pytest.skip("mkdocs is missing")


@pytest.mark.usefixtures("mkdocs")
def test_pages_build_without_a_broken_link(tmp_path: Path) -> None:
    done = _build(tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "index.html").is_file()


@pytest.mark.usefixtures("mkdocs")
def test_a_broken_anchor_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# One\n\n[two](#two)\n")
    settings = (ROOT / "mkdocs.yml").read_text().partition("nav:\n  - ")[0]
    (tmp_path / "mkdocs.yml").write_text(settings)
    done = _build(tmp_path / "site", "--config-file", str(tmp_path / "mkdocs.yml"))
    assert done.returncode != 0
    assert "#two" in done.stderr
