from __future__ import annotations

from pathlib import Path

import pytest

from probes.placing import headers


@pytest.fixture(autouse=True)
def _no_headers_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCC_KERNEL_SOURCE", "")  # so that what `prepare` sets is undone too


def put(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{path}\n")


def debian(root: Path, version: str, flavour: str = "amd64", arch: str = "x86") -> None:
    common, own = (root / f"usr/src/linux-headers-{version}-{kind}" for kind in ("common", flavour))
    put(common / "include/linux/kconfig.h", common / f"arch/{arch}/include/asm/ptrace.h")
    put(common / "include/linux/both.h", own / "include/linux/both.h", common / "Documentation/large.txt")
    put(own / "include/generated/autoconf.h", own / f"arch/{arch}/include/generated/asm/unistd.h")


def prepare(root: Path, *, machine: str = "x86_64") -> headers.Headers:
    return headers.prepare(release="6.18.0-here", machine=machine, root=root, cache=root / "cache")


def test_headers_of_the_running_kernel_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    debian(tmp_path, "6.1.0-9")
    build = tmp_path / "lib/modules/6.18.0-here/build"
    put(build / "include/linux/kconfig.h", build / "include/generated/autoconf.h")
    assert prepare(tmp_path).path == build


def test_split_headers_of_another_version_are_put_together(tmp_path: Path) -> None:
    import os

    debian(tmp_path, "6.1.0-9")
    debian(tmp_path, "6.1.0-56")
    found = prepare(tmp_path)
    assert found.path == tmp_path / "cache/linux-headers-6.1.0-56-amd64"
    assert "another version" in found.how
    assert headers.usable(found.path)
    assert os.environ["BCC_KERNEL_SOURCE"] == str(found.path)
    assert (found.path / "arch/x86/include/asm/ptrace.h").is_file()
    assert (found.path / "arch/x86/include/generated/asm/unistd.h").is_file()
    assert "amd64" in (found.path / "include/linux/both.h").read_text()  # the configuration's lies on top
    assert not (found.path / "Documentation").exists()
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [found.path.name]


def test_putting_together_happens_once_and_repairs_a_half_made_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    debian(tmp_path, "6.1.0-56")
    put(tmp_path / "cache/linux-headers-6.1.0-56-amd64/include/linux/kconfig.h")  # killed in the middle
    first = prepare(tmp_path).path
    assert headers.usable(first)
    stamp = (first / "include/linux/kconfig.h").stat().st_mtime_ns
    monkeypatch.setenv("BCC_KERNEL_SOURCE", "")
    assert (prepare(tmp_path).path / "include/linux/kconfig.h").stat().st_mtime_ns == stamp


def test_ubuntu_and_arm(tmp_path: Path) -> None:
    common, own = (
        tmp_path / "usr/src/linux-headers-5.15.0-91",
        tmp_path / "usr/src/linux-headers-5.15.0-91-generic",
    )
    put(common / "include/linux/kconfig.h", own / "include/generated/autoconf.h", own / "arch/arm64/Makefile")
    assert prepare(tmp_path, machine="aarch64").path.name == own.name


def test_no_headers_at_all(tmp_path: Path) -> None:
    with pytest.raises(headers.HeadersMissing, match="apt-get install linux-headers-arm64"):
        prepare(tmp_path, machine="aarch64")


def test_another_architectures_headers_are_of_no_use(tmp_path: Path) -> None:
    debian(tmp_path, "6.1.0-56", "arm64", "arm64")
    with pytest.raises(headers.HeadersMissing, match="apt-get install linux-headers-amd64"):
        prepare(tmp_path)


def test_a_named_tree_must_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCC_KERNEL_SOURCE", str(tmp_path))
    with pytest.raises(headers.HeadersMissing, match=r"BCC_KERNEL_SOURCE=.* is not a configured"):
        prepare(tmp_path)
