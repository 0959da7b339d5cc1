"""What is kept between programs: nobody else can write it, and nothing breaks it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import mockset
import pytest

from probes.placing import sites, store, symbols
from probes.steps import layouts, operator_mix


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(store.OFF, raising=False)
    monkeypatch.setenv("FLEXNPU_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    found = store.folder()
    assert found is not None
    return found


def entries(folder: Path) -> list[Path]:
    return sorted((folder / "things").iterdir())


def test_what_was_put_is_there_until_it_is_put_anew(folder: Path) -> None:
    assert store.get("things", "a") is None
    store.put("things", "a", {"x": [1, 2, 3]})
    store.put("things", "b", "other")
    assert store.get("things", "a") == {"x": [1, 2, 3]}
    assert store.get("others", "a") is None
    store.put("things", "a", 7)
    assert store.get("things", "a") == 7
    assert len(entries(folder)) == 2
    for path in [folder, folder / "things", *entries(folder)]:
        assert not path.stat().st_mode & 0o077


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[1]", b'{"format": 0, "key": "a", "value": 1}', b"\xff" * 99]
)
def test_a_damaged_entry_is_absent_and_written_anew(folder: Path, damage: bytes) -> None:
    store.put("things", "a", 1)
    entries(folder)[0].write_bytes(damage)
    assert store.get("things", "a") is None
    store.put("things", "a", 2)
    assert store.get("things", "a") == 2


def test_an_entry_of_another_key_is_not_taken_for_it(folder: Path) -> None:
    store.put("things", "a", 1)
    store.put("things", "b", 2)
    first, second = entries(folder)
    second.write_bytes(first.read_bytes())
    assert {store.get("things", "a"), store.get("things", "b")} in ({1, None}, {2, None})


@pytest.mark.parametrize("what", ["entry", "kind", "folder"])
@pytest.mark.parametrize("how", ["mode", "owner"])
def test_what_others_can_write_is_not_believed(folder: Path, what: str, how: str) -> None:
    store.put("things", "a", 1)
    path = {"entry": entries(folder)[0], "kind": folder / "things", "folder": folder}[what]
    if how == "mode":
        path.chmod(path.stat().st_mode | 0o002)
    elif os.geteuid() == 0:
        os.chown(path, 65534, 65534)
    else:
        pytest.skip("needs root")
    assert store.get("things", "a") is None
    store.put("things", "b", 2)  # nor is anything put where others can write
    if what != "entry":
        assert store.get("things", "b") is None


def test_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    store.put("things", "a", 1)
    path = entries(folder)[0]
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert store.get("things", "a") is None
    store.put("things", "a", 2)
    assert store.get("things", "a") == 2
    assert b'"value":1' in (tmp_path / "elsewhere").read_bytes()  # the link was replaced, not what it names
    (folder / "things").rename(tmp_path / "moved")
    (folder / "things").symlink_to(tmp_path / "moved")
    assert store.get("things", "a") is None


def test_a_pipe_in_an_entry_s_place_does_not_hold_it_up(folder: Path) -> None:
    store.put("things", "a", 1)
    path = entries(folder)[0]
    path.unlink()
    os.mkfifo(path)
    assert store.get("things", "a") is None


def test_it_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MOST", 8)
    for number in range(50):
        store.put("things", str(number), number)
        assert store.get("things", str(number)) == number
        assert len(entries(folder)) <= 9
    store.put("things", "large", "x" * (store.MOST_BYTES + 1))
    assert store.get("things", "large") is None


def test_without_a_place_nothing_is_kept_and_nothing_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("a file is in the way")
    store.put("things", "a", 1)
    assert store.get("things", "a") is None
    monkeypatch.setenv(store.OFF, "1")
    assert store.folder() is None
    store.put("things", "a", object())  # no JSON
    assert store.get("things", "a") is None


# -- who keeps what -----------------------------------------------------------------------------------------


def test_a_layout_is_learned_once_and_anew_when_the_library_changes(
    driver: mockset.Driver, mock_driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layouts._cache.clear()  # an earlier test's
    first = layouts.learn(driver.pid)
    assert first.complete
    runs: list[object] = []

    def run(*arguments: object) -> dict[str, Any]:
        runs.append(arguments)
        return {"reason": "asked again"}

    monkeypatch.setattr(layouts, "_run", run)
    layouts._cache.clear()
    again = layouts.learn(driver.pid)
    assert (again.tensor, again.int_array, runs) == (first.tensor, first.int_array, [])
    layouts._cache.clear()
    os.utime(mock_driver.parent / "libnnopbase.so", (1, 1))
    assert layouts.learn(driver.pid).reason == "asked again"
    assert len(runs) == 1


def test_what_could_not_be_learned_is_not_kept(
    driver: mockset.Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layouts, "_run", lambda *_: {"reason": "it crashed", "final": True})
    layouts._cache.clear()
    assert layouts.learn(driver.pid).reason == "it crashed"
    monkeypatch.undo()
    layouts._cache.clear()
    assert layouts.learn(driver.pid).complete


CODE = bytes.fromhex("4883ec18 4889fd 7400 c3").ljust(64, b"\x90")  # sub rsp, 24; mov rbp, rdi; je; ret


def test_a_site_that_was_chosen_once_needs_no_disassembler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sites, "KEPT", sites.Kept())
    sites.choose.cache_clear()
    first = sites.choose(CODE, "x86_64")
    assert first.cost is not sites.HitCost.UNKNOWN
    sites.KEPT.save()
    monkeypatch.setitem(sys.modules, "capstone", None)
    for machine, code, known in (
        ("x86_64", CODE, True),
        ("x86_64", CODE[:40], False),
        ("aarch64", CODE, False),
    ):
        monkeypatch.setattr(sites, "KEPT", sites.Kept())
        sites.choose.cache_clear()
        chosen = sites.choose(code, machine)
        assert (chosen == first) is known
        assert (chosen.cost is sites.HitCost.UNKNOWN) is not known
    sites.choose.cache_clear()


def test_a_push_is_known_without_a_disassembler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sites, "KEPT", sites.Kept())
    codes = [bytes([0x50 + n]) for n in range(8)] + [bytes([0x41, 0x50 + n]) for n in range(8)]
    plain = []
    for code in codes:
        whole = code + bytes.fromhex("4889e5 c3")
        sites.choose.cache_clear()
        quick = sites.choose(whole, "x86_64")
        plain.append(quick.instruction)
        slow = sites._disassembled(whole, "x86_64", sites._x86_step, keep_stack=False, arguments=sites.ALL)
        assert quick == slow
    assert len(set(plain)) == 16


def test_operators_are_read_once(driver: mockset.Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    operator_mix._scan.cache_clear()
    first = operator_mix.operators_of(driver.pid)
    assert first is not None
    operator_mix._scan.cache_clear()
    monkeypatch.setattr(operator_mix, "_read", lambda _real: pytest.fail("read again"))
    again = operator_mix.operators_of(driver.pid)
    assert again is not None
    assert (again.names, again.group.points) == (first.names, first.group.points)
    operator_mix._scan.cache_clear()


def test_a_version_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "library.so"
    path.write_bytes(b"one")
    before = symbols.version_of(str(path))
    assert before == symbols.version_of(str(path))
    path.write_bytes(b"two")
    os.utime(
        path, ns=(0, before[3] if before else 0)
    )  # whoever sets the time back cannot set back the inode's
    assert symbols.version_of(str(path)) != before
