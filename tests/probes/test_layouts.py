"""Learning the layouts of opaque objects: on libraries of many makes, and on random memory."""

from __future__ import annotations

import os
import random
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import mockset
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probes.steps import layouts, learning
from probes.steps.layouts import Kind, TensorLayout, VectorLayout, values_of
from probes.steps.learning import Sample

ROOT = Path(__file__).parents[2]


@contextmanager
def mapping(library: Path) -> Iterator[int]:
    """A process that maps `library`; its id."""
    program = f"import ctypes, sys; ctypes.CDLL({str(library)!r}); print(flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PATH": "/usr/bin:/bin"},
    )
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline()
        yield process.pid
        process.stdin.close()


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Builds the library of a variant."""
    # Not below pytest's own folder, which only its user may enter.
    folder = tmp_path_factory.mktemp("layouts")

    def build(variant: int) -> Path:
        output = folder / f"libnnopbase_{variant}.so"
        source = mockset.SOURCES / "layouts.c"
        flags = ["-O1", "-shared", "-fPIC", f"-DVARIANT={variant}", "-Wall", "-Wextra", "-Werror"]
        subprocess.run(["cc", *flags, "-o", output, source], check=True, timeout=60)
        return output

    return build


VECTOR = VectorLayout(Kind.POINTER, 0, end=8)
EXPECTED = {
    1: (TensorLayout(VectorLayout(Kind.INLINE, 224, count=216), 0), VECTOR),
    2: (TensorLayout(VectorLayout(Kind.POINTER, 56, end=64), 84), VECTOR),
    3: (TensorLayout(VectorLayout(Kind.POINTER, 0, count=8), 16, 2), VECTOR),
    4: (
        TensorLayout(VectorLayout(Kind.SMALL, 8, count=0, width=1, inline_max=2, spill=8), 1, 1),
        VectorLayout(Kind.POINTER, 8, count=0, hop=0),
    ),
    5: (
        TensorLayout(VectorLayout(Kind.POINTER, 8, count=24, hop=16), 28),
        VectorLayout(Kind.SMALL, 8, count=0, inline_max=4, spill=40),
    ),
    11: (TensorLayout(VectorLayout(Kind.INLINE, 16, count=8), 0), VECTOR),
    13: (TensorLayout(VectorLayout(Kind.INLINE, 8, count=0), 48), VECTOR),
}


@pytest.mark.parametrize("variant", sorted(EXPECTED))
def test_layout_is_learned(made: Callable[[int], Path], variant: int) -> None:
    with mapping(made(variant)) as pid:
        learned = layouts.learn(pid)
    assert (learned.tensor, learned.int_array) == EXPECTED[variant], learned.reason
    assert learned.reason == ""
    assert learned.complete


@pytest.mark.parametrize(
    ("variant", "array", "reason"),
    [
        (6, None, "no layout of aclTensor explains all samples; no library defines aclCreateIntArray"),
        (7, VECTOR, "no layout of aclTensor explains all samples"),
        (8, None, "the library crashed the learning program (SIGSEGV)"),
        (10, VECTOR, "aclCreateTensor refuses most of the samples"),
        (12, VECTOR, "no layout of aclTensor explains all samples"),
    ],
)
def test_no_layout_rather_than_a_wrong_one(
    made: Callable[[int], Path], variant: int, array: VectorLayout | None, reason: str
) -> None:
    with mapping(made(variant)) as pid:
        learned = layouts.learn(pid)
    assert (learned.tensor, learned.int_array, learned.reason) == (None, array, reason)


def test_a_library_that_hangs_is_given_up_and_asked_again(made: Callable[[int], Path]) -> None:
    with mapping(made(9)) as pid:
        learned = layouts.learn(pid, timeout_s=0.5)
        assert "no answer within 0.5 s" in learned.reason
        assert 0.5 <= layouts.learn(pid, timeout_s=0.5).took_s < 60  # a hang guard


def test_a_library_is_asked_once(made: Callable[[int], Path]) -> None:
    library = made(1)
    with mapping(library) as pid, mapping(library) as other:
        assert layouts.learn(pid) is layouts.learn(other)
    made(2).replace(library)  # the same name, another library
    with mapping(library) as pid:
        assert layouts.learn(pid).tensor == EXPECTED[2][0]


def test_a_library_without_what_it_needs(made: Callable[[int], Path], tmp_path: Path) -> None:
    source = tmp_path / "helper.c"
    source.write_text("int helper(void) { return 1; }\n")
    helper, library = tmp_path / "libhelper.so", tmp_path / "libnnopbase.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", helper, source], check=True, timeout=60)
    flags = ["-shared", "-fPIC", "-DVARIANT=1", "-Wl,--no-as-needed,-rpath,$ORIGIN", f"-L{tmp_path}"]
    source = mockset.SOURCES / "layouts.c"
    subprocess.run(["cc", *flags, "-o", library, source, "-lhelper"], check=True, timeout=60)
    with mapping(library) as pid:
        # Gone from disk, as after an update: the process's own copies are used.
        helper.unlink()
        library.unlink()
        assert layouts.learn(pid).tensor == EXPECTED[1][0]


def test_a_process_in_a_container(tmp_path: Path) -> None:
    """Another root and mount namespace, with libraries that only it has: no name here leads to them."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare")
    helper, source = tmp_path / "helper.c", tmp_path / "main.c"
    helper.write_text("int helper(void) { return 1; }\n")
    source.write_text(
        '#include <unistd.h>\nint main(void) { write(1, "x", 1); return read(0, &(char){0}, 1); }\n'
    )
    root = tmp_path / "root"
    (root / "opt").mkdir(parents=True)

    def cc(*arguments: str | Path) -> None:
        subprocess.run(["cc", "-w", *arguments, f"-L{root}/opt"], check=True, timeout=60, cwd=root / "opt")

    cc("-shared", "-fPIC", "-o", "libonlyhere.so", helper)
    rest = ["-Wl,--no-as-needed,-rpath,/opt"]
    cc(
        "-shared",
        "-fPIC",
        "-DVARIANT=1",
        "-o",
        "libnnopbase.so",
        mockset.SOURCES / "layouts.c",
        *rest,
        "-lonlyhere",
    )
    cc("-o", "main", source, *rest, "-lnnopbase")
    needed = subprocess.run(
        ["ldd", root / "opt/main"],
        capture_output=True,
        text=True,
        check=True,
        env={"LD_LIBRARY_PATH": f"{root}/opt"},
    ).stdout
    for path in re.findall(r"(/\S+) \(0x", needed):
        if not path.startswith(str(root)):
            (root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, root / path[1:])
    (root / "old").mkdir()
    enter = 'mount --bind "$0" "$0" && cd "$0" && pivot_root . old && exec /opt/main'
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", enter, root], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.read(1) == b"x"
        learned = layouts.learn(process.pid)
        process.stdin.close()
    assert learned.library == "/opt/libnnopbase.so"
    assert (learned.tensor, learned.int_array) == EXPECTED[1], learned.reason


def test_a_process_without_ascendcl() -> None:
    with mapping(Path("libz.so.1")) as pid:
        learned = layouts.learn(pid)
    assert not learned.complete
    assert "maps no library that defines aclCreateTensor" in learned.reason


@pytest.mark.parametrize("room", ["emulator", "client"])
def test_our_own_libraries(room: str) -> None:
    library = ROOT / "flexnpu" / room / "lib" / "libnnopbase.so"
    if not library.exists():
        pytest.skip("the native parts are not built")
    with mapping(library) as pid:
        learned = layouts.learn(pid)
    assert learned.complete, learned.reason
    assert learned.took_s < layouts.TIMEOUT_S


def test_the_form_for_bpf_programs() -> None:
    """As struct layout of bpf/layout.h, which a BPF compiler and a C compiler lay out alike."""
    learned = layouts.Learned(*EXPECTED[5], "lib")
    packed = bytes(layouts.pack(learned))
    assert struct.unpack("<2I", packed[:8]) == (1, 1)
    assert struct.unpack("<I3iIiIi", packed[8:40]) == (1, 8, 16, 24, 4, -1, 0, 0)
    assert struct.unpack("<iIiI", packed[40:56]) == (28, 4, -1, 0)
    assert struct.unpack("<I3iIiIi", packed[56:]) == (2, 8, -1, 0, 4, -1, 4, 40)
    nothing = layouts.pack(layouts.Learned(None, None, "", "why"))
    assert (nothing.has_tensor, nothing.has_int_array) == (0, 0)


class Memory:
    """Blocks of random bytes at random addresses."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._blocks: dict[int, bytearray] = {}

    def block(self, size: int) -> int:
        address = self._rng.randrange(1 << 20, 1 << 46, 4096)
        self._blocks[address] = bytearray(self._rng.randbytes(size))
        return address

    def write(self, address: int, data: bytes) -> None:
        for start, block in self._blocks.items():
            if start <= address < start + len(block):
                block[address - start : address - start + len(data)] = data

    def read(self, address: int, size: int) -> bytes | None:
        for start, block in self._blocks.items():
            if start <= address and address + size <= start + len(block):
                return bytes(block[address - start : address - start + size])
        return None


def _plant(memory: Memory, layout: VectorLayout, values: tuple[int, ...], size: int) -> int:
    """An object of `size` random bytes that keeps `values` as `layout` says; its address."""
    address = base = memory.block(size)
    if layout.hop is not None:
        base = memory.block(size)
        memory.write(address + layout.hop, struct.pack("<Q", base))
    content = struct.pack(f"<{len(values)}q", *values)
    where = base + layout.offset
    pointer = layout.offset if layout.kind is Kind.POINTER else layout.spill
    if layout.kind is Kind.POINTER or (layout.kind is Kind.SMALL and len(values) > layout.inline_max):
        where = memory.block(max(8, len(content)))
        memory.write(base + pointer, struct.pack("<Q", where))
    memory.write(where, content)
    if layout.count is not None:
        memory.write(base + layout.count, len(values).to_bytes(layout.width, "little"))
    if layout.end is not None:
        memory.write(base + layout.end, struct.pack("<Q", where + len(content)))
    return address


@st.composite
def planted(draw: st.DrawFn) -> VectorLayout:
    hop = draw(st.none() | st.integers(0, 15).map(lambda n: 8 * n))
    kind = draw(st.sampled_from(Kind))
    # Values from 192 on; pointers at 128 to 184; counts below.
    width = draw(st.sampled_from(learning.WIDTHS))
    count = 8 * draw(st.integers(0, 15))
    if kind is Kind.INLINE:
        return VectorLayout(kind, 192, count=count, width=width, hop=hop)
    if kind is Kind.SMALL:
        return VectorLayout(kind, 192, count=count, width=width, hop=hop, inline_max=2, spill=136)
    if draw(st.booleans()):
        return VectorLayout(kind, 128, end=144, hop=hop)
    return VectorLayout(kind, 128, count=count, width=width, hop=hop)


_SIZES = (1, 2, 3, 4, 5, 6)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(planted(), st.integers(0, 2**32))
def test_what_is_planted_is_found(layout: VectorLayout, seed: int) -> None:
    rng = random.Random(seed)
    memory = Memory(rng)

    def sample(size: int) -> Sample:
        values = tuple(rng.randrange(3, 1000) for _ in range(size))
        return Sample(_plant(memory, layout, values, 256), values)

    samples, further = [[sample(size) for size in _SIZES] for _ in range(2)]
    found = learning.find_vector(memory.read, samples, further)
    assert found is not None
    fresh = [sample(size) for size in _SIZES]
    assert [values_of(memory.read, one.address, found) for one in fresh] == [one.values for one in fresh]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(8, 256))
def test_random_memory_has_no_layout(seed: int, size: int) -> None:
    rng = random.Random(seed)
    memory = Memory(rng)
    samples = [Sample(memory.block(size), tuple(rng.randrange(3, 1000) for _ in range(n))) for n in _SIZES]
    assert learning.find_vector(memory.read, samples, samples) is None
    assert learning.find_tensor(memory.read, samples, samples) is None


_offsets = st.integers(-16, 300)


@settings(max_examples=300, deadline=None)
@given(
    st.builds(
        VectorLayout,
        st.sampled_from(Kind),
        _offsets,
        count=st.none() | _offsets,
        width=st.sampled_from(learning.WIDTHS),
        end=_offsets,
        hop=st.none() | _offsets,
        inline_max=st.integers(0, 9),
        spill=_offsets,
    ),
    st.binary(max_size=320),
)
def test_reading_any_memory_by_any_layout_is_safe(layout: VectorLayout, image: bytes) -> None:
    def read(address: int, size: int) -> bytes | None:
        at = address - (1 << 32)
        return image[at : at + size] if at >= 0 and at + size <= len(image) else None

    found = values_of(read, 1 << 32, layout)
    assert found is None or len(found) <= 4096
