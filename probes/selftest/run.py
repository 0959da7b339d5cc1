"""Proof that tracing works here: a program of known calls, traced, and every number compared.

    for result in run("vendor", plan="default"):
        print(result.ok, result.what, result.detail)

The program (`program.py`) calls functions with CANN's names and counts its own calls, their arguments and
its steps. It is traced as any other process, by `Tracer`; beside each of the tracer's probes sits one of a
second, much simpler BPF program, which counts hits and adds up argument registers. So three independent
counts of the same calls are held against each other: the program's, the second program's (does every probe
fire, exactly once a call, with its arguments in place?) and the tracer's (are steps and shapes what they
were?).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from probes.feed.events import Event, Step
from probes.placing import attach, capabilities, declarations, headers, loader, loader_bcc, symbols
from probes.placing.groups import Placed
from probes.placing.maps import Map
from probes.placing.plan import SITES, Plan, sites
from probes.placing.sites import ALL, READS
from probes.selftest.program import ARGUMENTS, LAUNCHES, LIBRARIES
from probes.steps.tracer import Target, Tracer

Kind = Literal["vendor", "client"]

_TIMEOUT_S = 30.0
_SETTLE_S = 1.5
_PARM = ("PT_REGS_PARM1", "PT_REGS_PARM2", "PT_REGS_PARM3", "PT_REGS_PARM4")
_STEPS = frozenset(
    {
        *("aclCreateTensor", "aclnnEmbeddingGetWorkspaceSize", "aclnnEmbedding"),
        *("aclmdlRICaptureBegin", "aclmdlRICaptureEnd", "aclmdlRIExecuteAsync"),
    }
)
"""Functions that steps are made of: the program calls them a prime number of times, and then no more."""


class SelfTestError(RuntimeError):
    """The self-test cannot be made; the message says why and what to do."""


@dataclass(frozen=True)
class Result:
    """One thing that was compared."""

    what: str
    ok: bool
    detail: str
    symbol: str = ""
    """The function, where it is about one probe."""
    on_return: bool = False


def available() -> bool:
    """Whether the libraries are built."""
    return all(
        (LIBRARIES / f"lib{name}.so").is_file() for name in ("acl_rt", "nnopbase", "opapi", "llm_datadist")
    )


class _Program:
    """The running program."""

    def __init__(self, kind: Kind) -> None:
        # Not the environment of this process, which may preload FlexNPU's client, but its modules.
        modules = [str(Path(__file__).parents[2]), *filter(None, sys.path)]
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": os.pathsep.join(modules)}
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-s", "-P", "-m", "probes.selftest.program", kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.pid = self._process.pid
        self._line("the program does not start")

    def _line(self, trouble: str) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], _TIMEOUT_S)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            self._process.kill()
            _, said = self._process.communicate()
            last = said.strip().splitlines()[-1:] or ["it says nothing"]
            raise SelfTestError(f"{trouble}: {last[0]}")
        return line

    def start(self, others: list[str]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(others) + "\n")
        self._process.stdin.flush()

    def done(self) -> bool:
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self._line("the program did not come to its end"))
        return report

    def stop(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # type: ignore[union-attr]
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()


class _Counters:
    """A second probe beside each of the tracer's: hits, and sums of the first arguments."""

    def __init__(self, placed: list[Placed], pid: int) -> None:
        self._placed = placed
        self._multi = capabilities.uprobe_multi()
        self._probes: list[attach.Probe] = []
        self._bpf: Any = None
        self._loaded: loader.Loaded | None = None
        told = declarations.read(loader.FOLDER / "counters_records.h")
        try:
            if self._multi:
                # One program, which the cookie tells where it is.
                request = loader.Request(loader.COUNTERS, {"on_hit": loader.Kind.MULTI})
                self._loaded = loader.load(request)
                programs = [self._loaded.program("on_hit")] * len(placed)
                seen = self._loaded.map("seen")
            else:
                programs, seen = self._compiled(len(placed))
        except loader.LoadError as error:
            raise SelfTestError(str(error)) from None
        self._seen = Map(seen, ctypes.c_uint32, told.struct("seen"))
        self._place(programs, pid)

    def _compiled(self, count: int) -> tuple[list[int], int]:
        """Without cookies each probe has a program of its own, of a text that is made here."""
        bcc = loader_bcc.module()
        adds = "\n".join(
            f"    __sync_fetch_and_add(&s->argument[{n}], (u64){parm}(ctx));" for n, parm in enumerate(_PARM)
        )
        functions = "\n".join(
            f"int hit_{n}(struct pt_regs *ctx) {{ return hit(ctx, {n}); }}" for n in range(count)
        )
        text = f"""
#include <uapi/linux/ptrace.h>
struct seen {{ u64 hits, argument[{ARGUMENTS}]; }};
BPF_ARRAY(seen, struct seen, {count});
static inline int hit(struct pt_regs *ctx, int which)
{{
    struct seen *s = seen.lookup(&which);
    if (!s)
        return 0;
    __sync_fetch_and_add(&s->hits, 1);
{adds}
    return 0;
}}
{functions}
"""
        headers.prepare()
        self._bpf = bcc.BPF(text=text.encode(), cflags=["-Wno-macro-redefined"])
        programs = [self._bpf.load_func(f"hit_{n}".encode(), bcc.BPF.KPROBE).fd for n in range(count)]
        return programs, self._bpf[b"seen"].map_fd

    def _place(self, programs: list[int], pid: int) -> None:
        files = {mapped.path: mapped.real for mapped in symbols.mapped_files(pid)}
        # All probes on one instruction have to name the same semaphore.
        words = {site.symbol: site.semaphore for site in SITES if site.semaphore}
        found = symbols.resolve(pid, words.values())
        semaphores = {name: found[word][0].offset for name, word in words.items() if word in found}
        for n, (one, program) in enumerate(zip(self._placed, programs, strict=True)):
            self._probes += attach.place(
                program,
                files[one.library],
                [attach.Point(one.offset, n, semaphores.get(one.symbol, 0))],
                pid,
                multi=self._multi,
                on_return=one.on_return,
            )

    def counts(self) -> list[tuple[Placed, int, list[int]]]:
        """(probe, hits, sums) of each."""
        rows = [self._seen.get(n) or self._seen.value() for n in range(len(self._placed))]
        return [
            (one, int(row.hits), [int(value) for value in row.argument])
            for one, row in zip(self._placed, rows, strict=True)
        ]

    def close(self) -> None:
        attach.remove(self._probes)
        if self._loaded is not None:
            self._loaded.close()
        if self._bpf is not None:
            self._bpf.cleanup()


def run(kind: Kind, plan: Plan = "default") -> list[Result]:
    """Trace the program with `plan` and compare. Raises `SelfTestError`, `TracerError`, `AttachError`."""
    if not available():
        raise SelfTestError(
            f"the self-test's libraries are not in {LIBRARIES}. Type: make build (or install the wheel)"
        )
    events: list[Event] = []
    with contextlib.ExitStack() as stack:
        program = _Program(kind)
        stack.callback(program.stop)
        notes: list[str] = []
        tracer = stack.enter_context(
            Tracer(
                events.append,
                begins=True,
                plan=plan,
                budget_percent=None,
                windows=False,
                on_note=notes.append,
            )
        )
        target = tracer.attach(program.pid)
        counters = _Counters(list(target.placed), program.pid)
        stack.callback(counters.close)
        others = [one.symbol for one in target.placed if one.symbol not in _STEPS]
        program.start(list(dict.fromkeys(others)))
        deadline = time.monotonic() + _TIMEOUT_S
        while not program.done() and time.monotonic() < deadline:
            tracer.poll(0.05)
        report = program.report()
        end = time.monotonic() + _SETTLE_S
        while time.monotonic() < end:
            tracer.poll(0.05)
        counted = counters.counts()
        losses = tracer.losses().counts
        results = [*_placed(kind, plan, target), *_fired(counted, report)]
        results += _decoded(kind, plan, events, report, losses)
        results += [Result("the tracer's word", False, note) for note in notes]
    return results


def _placed(kind: Kind, plan: Plan, target: Target) -> Iterator[Result]:
    """Whether everything that the libraries define and the plan wants is probed."""
    have = {one.symbol for one in target.placed}
    # With learned layouts nobody needs to see objects being made.
    wanted = {site.symbol for site in sites(plan, client=kind == "client", objects=False, begins=True)}
    absent = sorted(wanted - have)
    detail = f"{len(target.placed)} probes" if not absent else f"not placed: {', '.join(absent)}"
    yield Result("every function of the plan is probed", not absent, detail)


def _fired(counted: list[tuple[Placed, int, list[int]]], report: dict[str, Any]) -> Iterator[Result]:
    programs = {site.symbol: site.entry for site in SITES}
    for one, hits, sums in counted:
        calls = report["calls"].get(one.symbol, 0)
        what = f"{one.symbol}{' (return)' if one.on_return else ''}"
        detail = f"{hits} of {calls} calls"
        ok = hits == calls and calls > 1
        if ok and not one.on_return:
            expected = report["sums"][one.symbol]
            read = [n for n in READS.get(programs.get(one.symbol, ""), ALL) if n < len(expected)]
            wrong = [n for n in read if sums[n] != expected[n]]
            ok = not wrong
            if wrong:
                detail += f"; argument {wrong[0] + 1} is another one by then"
            elif read:
                detail += f", {len(read)} argument{'s' if len(read) > 1 else ''}"
        yield Result(what, ok, detail, one.symbol, one.on_return)


def _decoded(
    kind: Kind, plan: Plan, events: list[Event], report: dict[str, Any], losses: dict[str, int]
) -> Iterator[Result]:
    """Whether the steps are those that the program made."""
    steps = [event for event in events if isinstance(event, Step)]
    model = [step for step in steps if step.phase in ("prefill", "decode", "mixed")]
    got = Counter(f"{step.phase} {step.tokens} {step.batch}" for step in model)
    wanted = Counter(report["steps"])
    detail = ", ".join(f"{n} of {wanted[name]} {_phrase(name)}" for name, n in sorted(got.items()))
    missing = wanted - got
    if missing:
        detail += f"; missing: {', '.join(f'{n} {_phrase(name)}' for name, n in sorted(missing.items()))}"
    yield Result("steps and their shapes", got == wanted, detail or "no step was seen")
    if plan == "detail" or kind == "client":
        eager = [step for step in model if not step.graph_launches]
        per_step = {step.launches for step in eager}
        expected = {LAUNCHES if kind == "client" else LAUNCHES + 1}
        counts = ", ".join(str(n) for n in sorted(per_step, key=str))
        yield Result("operators a step", per_step == expected, f"{counts}, by the program {max(expected)}")
    if kind == "client":
        heard = report["semaphores"]
        shown = " and ".join(str(n) for n in heard)
        yield Result("the client knows of its readers", all(heard), f"semaphores at {shown}")
    lost = {name: n for name, n in losses.items() if n and name.endswith(("lost", "full", "bad_reads"))}
    bad = ", ".join(f"{name} {n}" for name, n in sorted(lost.items()))
    yield Result("nothing is lost", not lost, bad or "no record, no map entry, no read")


def _phrase(name: str) -> str:
    phase, tokens, batch = name.split()
    return f"{phase}s of {tokens} tokens, batch {batch}"
