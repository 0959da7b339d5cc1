"""Which loader serves, and that both load the same programs."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from probes.placing import attach, capabilities, loader, loader_bcc
from probes.placing.loader import Kind, LoadError, Request, Source, Unfit
from probes.steps.programs import _programs

needs_objects = pytest.mark.skipif(not loader.STEPS.object.is_file(), reason="the BPF objects are not built")
OPTIONS = {"gap_ns": 10**9, "ring_pages": 16}


class Elsewhere(Source):
    """A source whose object is another file."""

    file = Path("/nonexistent/steps.bpf.o")

    @property
    def object(self) -> Path:
        return self.file


def request_of(source: Source = loader.STEPS, *programs: str) -> Request:
    kind = Kind.MULTI if capabilities.uprobe_multi() else Kind.PROBE
    return Request(source, dict.fromkeys(programs or ("on_graph", "on_sync_return"), kind), OPTIONS)


@pytest.fixture(autouse=True)
def _root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.mark.ebpf
@pytest.mark.usefixtures("each_loader")
def test_programs_and_maps_have_descriptors(each_loader: str) -> None:
    with loader.load(request_of()) as loaded:
        assert loaded.loader == each_loader
        assert loaded.ring
        fds = [
            loaded.program("on_graph"),
            loaded.program("on_sync_return"),
            loaded.map("lanes"),
            loaded.map("events"),
        ]
        assert len(set(fds)) == 4
        for fd in fds:
            assert "bpf" in os.readlink(f"/proc/self/fd/{fd}")
        assert "max_entries:\t65536" in Path(f"/proc/self/fdinfo/{loaded.map('events')}").read_text()
        with pytest.raises(KeyError):
            loaded.program("on_copy")
    loaded.close()


@pytest.mark.ebpf
@needs_objects
def test_the_kernel_has_little_to_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    """At each start. The kernel follows some million instructions a second, and no program of more than one
    million: a loop over many branches comes there soon."""
    monkeypatch.setenv(loader.ENVIRONMENT, "core")
    multi = capabilities.uprobe_multi()
    wanted = _programs(multi=multi, sessions=multi and capabilities.uprobe_session())
    with loader.load(Request(loader.STEPS, wanted, OPTIONS)) as loaded:
        verified = {}
        for name in wanted:
            about = attach.told_of(loaded.program(name))
            if "verified_insns" not in about:
                pytest.skip("this kernel does not tell what it has verified")
            verified[name] = int(about["verified_insns"])
    assert max(verified.values()) < 100_000, verified
    assert sum(verified.values()) < 300_000, verified


@pytest.mark.ebpf
@needs_objects
def test_the_object_serves_without_bcc_and_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(loader.ENVIRONMENT, raising=False)
    monkeypatch.setattr(loader_bcc, "load", lambda _request: pytest.fail("bcc was asked"))
    with loader.load(request_of()) as loaded:
        assert loaded.loader == "core"


@pytest.mark.ebpf
def test_where_there_is_no_object_bcc_serves_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(loader.ENVIRONMENT, raising=False)
    with loader.load(request_of(Elsewhere("steps"))) as loaded:
        assert loaded.loader == "bcc"
        assert "was not built" in loaded.why


@pytest.mark.ebpf
@needs_objects
def test_an_object_of_another_version_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(loader.ENVIRONMENT, "core")
    with pytest.raises(Unfit, match="it has no on_nothing"):
        loader.load(request_of(loader.STEPS, "on_nothing"))
    broken = tmp_path / "steps.bpf.o"
    shutil.copy(loader.STEPS.object, broken)
    os.truncate(broken, 5000)
    monkeypatch.setattr(Elsewhere, "file", broken)
    with pytest.raises(Unfit, match="libbpf cannot read"):
        loader.load(request_of(Elsewhere("steps")))


def test_an_unknown_loader_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(loader.ENVIRONMENT, "libbpf")
    with pytest.raises(LoadError, match="FLEXNPU_BPF_LOADER=libbpf: the loaders are core and bcc"):
        loader.load(request_of())


def test_without_either_both_reasons_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(loader.ENVIRONMENT, raising=False)

    def missing() -> None:
        raise LoadError("bcc's Python module is missing")

    monkeypatch.setattr(loader_bcc, "module", missing)
    with pytest.raises(LoadError, match=r"(?s)bcc's Python module is missing.*was not built"):
        loader.load(request_of(Elsewhere("steps")))


def test_bcc_gets_all_of_a_source_once() -> None:
    text = loader_bcc.text_of(loader.STEPS)
    assert '#include "' not in text
    for path in ("common.h", "shapes.c", "openings.c", "endings.c", "copies.c", "client.c", "step_record.h"):
        assert text.count(f'#line 1 "{path}"') == 1, path
    assert dataclasses.is_dataclass(Request)


@pytest.mark.parametrize("processor", ["x86", "arm64"])
@pytest.mark.parametrize(
    "source", [loader.STEPS, loader.WIRE, loader.COUNTERS], ids=lambda source: source.name
)
def test_the_objects_compile_for_both_processors(tmp_path: Path, source: Source, processor: str) -> None:
    """Without any header but ours, and to helpers' calls alone: nothing is called by a pointer."""
    if shutil.which("clang") is None:
        pytest.skip("no clang")
    made = tmp_path / "object.o"
    flags = [
        "-DFLEXNPU_BPF",
        "-DFLEXNPU_CORE",
        f"-D__TARGET_ARCH_{processor}",
        "-nostdinc",
        f"-I{loader.ROOT}",
    ]
    command = ["clang", "-target", "bpf", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"]
    subprocess.run([*command, *flags, "-c", str(source.path), "-o", str(made)], check=True, timeout=120)
    symbols = subprocess.run(
        ["nm", str(made)], capture_output=True, text=True, timeout=60, check=False
    ).stdout
    assert " U " not in symbols
