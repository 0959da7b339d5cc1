"""`flexnpu coverage` on objects made here, whose symbols are known."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from flexnpu.cli.coverage import demangle

COMMAND = Path(sys.executable).with_name("flexnpu")

SOURCE = """
extern int aclInit(const char*);
extern int aclrtMalloc(void**, unsigned long, int);
extern int aclrtNoSuchFunction(void);
extern int _ZN2ge9NoSuchOne3RunEv(void);
extern int puts(const char*);
const char* names[] = {"aclnnAddGetWorkspaceSize", "aclnnAdd", "aclnnNoSuchOperator",
    "aclnnNoSuchOperatorGetWorkspaceSize", "Failed to find function aclrtSynchronizeStream",
    "aclvencSendFrame", "aclWordOfAMessage"};
int run(void) { puts(names[0]);
    return aclInit(0) + aclrtMalloc(0, 0, 0) + aclrtNoSuchFunction() + _ZN2ge9NoSuchOne3RunEv(); }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coverage")
    (folder / "client.c").write_text(SOURCE)
    built = folder / "libclient.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", built, folder / "client.c"], check=True)
    return built


def coverage(*arguments: object) -> tuple[int, Any]:
    result = subprocess.run(
        [COMMAND, "coverage", "--json", *map(str, arguments)], capture_output=True, text=True
    )
    return result.returncode, json.loads(result.stdout) if result.stdout else result.stderr


def test_each_symbol_has_the_status_that_the_libraries_give_it(library: Path) -> None:
    code, report = coverage(library)
    assert code == 1
    status = {row["symbol"]: (row["asked"], row["status"], row["class"]) for row in report["symbols"]}
    assert status == {
        "aclInit": ("linked", "interposed", "hand"),
        "aclrtMalloc": ("linked", "interposed", "hand"),
        "aclrtNoSuchFunction": ("linked", "missing", None),
        "_ZN2ge9NoSuchOne3RunEv": ("linked", "missing", None),
        "aclnnAdd": ("looked up", "interposed", "operator"),
        "aclnnAddGetWorkspaceSize": ("looked up", "interposed", "operator"),
        "aclnnNoSuchOperator": ("looked up", "missing", None),
        "aclnnNoSuchOperatorGetWorkspaceSize": ("looked up", "missing", None),
        "aclrtSynchronizeStream": ("looked up", "interposed", "hand"),
        "aclvencSendFrame": ("looked up", "refused", "refuse"),
    }
    refused = next(row for row in report["symbols"] if row["status"] == "refused")
    assert refused["error"] == 200001
    assert "video" in refused["why"]
    assert report["mentioned"] == ["aclWordOfAMessage"]


def test_folders_and_wheels_are_read(library: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "client-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(library, "client/libclient.so")
    _, alone = coverage(library)
    for path in (library.parent, wheel):
        _, report = coverage(path)
        assert report["symbols"] == alone["symbols"]
    result = subprocess.run([COMMAND, "coverage", library], capture_output=True, text=True, check=False)
    assert "aclrtNoSuchFunction" in result.stdout
    assert "refused (200001)" in result.stdout


def test_bad_input_is_named(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no library")
    code, message = coverage(text)
    assert code == 2
    assert str(text) in message
    code, message = coverage("--client", "nobody")
    assert code == 2
    assert "ggml-cann" in message, "it says which clients there are"


def test_declarations_are_readable() -> None:
    assert demangle("_ZN2ge10GEFinalizeEv") == "ge::GEFinalize()"
    assert demangle("aclInit") == "aclInit"
    assert demangle("_Znonsense") == "_Znonsense"


@pytest.mark.parametrize("client", ["ggml-cann", "onnxruntime", "torch_npu", "vllm-ascend"])
def test_nothing_that_the_table_knows_of_is_missing(client: str) -> None:
    code, report = coverage("--client", client)
    assert code == 0
    assert report["counts"]["missing"] == 0
    assert sum(report["counts"][s] for s in ("interposed", "refused")) == report["counts"]["looked_up"] > 30
