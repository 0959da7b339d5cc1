"""`flexnpu sim`: a load through simulated engines on one die, in virtual time."""

from __future__ import annotations

from typing import Any

import click

from flexnpu.console.numbers import DAY_S, YEAR_S, Duration, Number, Whole
from flexnpu.console.output import out, out_json
from flexnpu.console.program import SETTINGS, Program
from flexnpu.control.messages import MAX_LEASE_S
from flexnpu.emulator import EmulatorError


def _three(text: str, option: str) -> tuple[float, int, int]:
    parts = text.split(":")
    try:
        if len(parts) != 3:
            raise ValueError(f"{text!r} has {len(parts)} parts: give three, as 4:1024:256")
        whole = Whole(1, 10_000_000, unit="a number")
        return (
            Number(0, 1e7, above=True, unit="a number").read(parts[0]),
            whole.read(parts[1]),
            whole.read(parts[2]),
        )
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from None


@click.command("sim", cls=Program, context_settings=SETTINGS)
@click.argument("trace", required=False)
@click.option(
    "--backlog", metavar="N:IN:OUT", help="N requests at once instead of a trace, by tokens in and out."
)
@click.option(
    "--poisson", metavar="R:IN:OUT", help="R random requests a second instead, with these mean tokens."
)
@click.option(
    "--layout",
    type=click.Choice(["pd", "one"]),
    default="pd",
    show_default=True,
    help="pd: an engine for prompts, one for answers. one: one for both.",
)
@click.option("--policy", default="fifo", show_default=True, help="A policy of flexnpu-controller.")
@click.option("--tpot-ms", type=Number(0, 1e6, above=True, unit="ms"), help="Objective of the policy slack.")
@click.option(
    "--contention",
    type=click.Choice(["fluid", "serial"]),
    default="fluid",
    show_default=True,
    help="How kernels share the die.",
)
@click.option(
    "--core-gbps",
    type=Number(1, 1e5, unit="GB/s"),
    default=59.0,
    show_default=True,
    help="What one core moves at most.",
)
@click.option(
    "--profile", default="ascend910c-die", show_default=True, help="The chip: a profile of the emulator."
)
@click.option(
    "--duration",
    type=Duration(0, YEAR_S, above=True),
    default=600.0,
    show_default=True,
    help="How long requests arrive.",
)
@click.option(
    "--rate",
    type=Number(0, 1e6, above=True, unit="a factor"),
    default=1.0,
    show_default=True,
    help="How fast the trace's time passes.",
)
@click.option(
    "--slots",
    type=Whole(1, 65536, unit="slots"),
    default=256,
    show_default=True,
    help="Of the engine that decodes: --max-num-seqs.",
)
@click.option(
    "--token-budget",
    type=Whole(1, 1 << 20, unit="tokens"),
    default=2048,
    show_default=True,
    help="And --max-num-batched-tokens.",
)
@click.option(
    "--prefill-slots",
    type=Whole(1, 65536, unit="slots"),
    default=16,
    show_default=True,
    help="The same of the engine for prompts.",
)
@click.option("--prefill-budget", type=Whole(1, 1 << 20, unit="tokens"), default=8192, show_default=True)
@click.option("--chunked/--no-chunked", default=True, show_default=True, help="Chunked prefill.")
@click.option(
    "--async/--no-async", "async_scheduling", default=True, show_default=True, help="Asynchronous scheduling."
)
@click.option(
    "--first-token",
    type=click.Choice(["prefill", "decode"]),
    default="prefill",
    show_default=True,
    help="pd: which engine's first token the client gets.",
)
@click.option(
    "--prefill-cores",
    type=Whole(0, 1024, unit="cores"),
    default=0,
    show_default=True,
    help="pd: cube cores of the engine for prompts; the other has the rest. 0: no limits.",
)
@click.option(
    "--launch-us",
    type=Number(0, 1e5, unit="us"),
    default=10.0,
    show_default=True,
    help="A host's time an operator.",
)
@click.option(
    "--period",
    type=Duration(0.001, DAY_S),
    default=0.5,
    show_default=True,
    help="How often the policy decides.",
)
@click.option(
    "--ttft-slo",
    type=Duration(0, DAY_S, above=True),
    default=2.0,
    show_default=True,
    help="Objective of the first token.",
)
@click.option(
    "--tpot-slo",
    type=Number(0, 1e6, above=True, unit="ms"),
    default=50.0,
    show_default=True,
    help="Objective of the time a token, ms.",
)
@click.option(
    "--seed", type=Whole(0, 2**31, unit="a number"), default=1, show_default=True, help="Of --poisson."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def sim(trace: str | None, backlog: str | None, poisson: str | None, as_json: bool, **options: Any) -> None:
    """Simulate two engines, or one, on an NPU: operator by operator, in virtual time.

    \b
    EXAMPLES
      flexnpu sim conv                                          ten minutes of a production trace
      flexnpu sim conv --policy protect-decode                  the same under a policy
      flexnpu sim --backlog 180:256:256 --layout one --slots 4  a backlog at one engine
      flexnpu sim mooncake.jsonl --contention serial --json     one kernel at a time, as JSON

    TRACE is conv, code (Azure, ten minutes), or a file in the format of Azure's, BurstGPT's or Mooncake's
    traces. The gate is the daemon's, the policies are the controller's. The model is Qwen2.5-7B.
    """
    if (trace is not None) + (backlog is not None) + (poisson is not None) != 1:
        raise click.UsageError("give one of TRACE, --backlog and --poisson")
    try:
        from controllers.policies import Options
        from simulation import arrivals
        from simulation.report import report
        from simulation.run import simulate
        from simulation.setting import Chip, Engines, Setting
    except ImportError as error:
        raise click.ClickException(f"the simulation is not built ({error}): run `make build`") from None
    try:
        if backlog is not None:
            n, prompt, output = _three(backlog, "--backlog")
            load = arrivals.backlog(int(n), prompt, output)
        elif poisson is not None:
            rate, prompt, output = _three(poisson, "--poisson")
            load = arrivals.poisson(
                rate, prompt, output, duration_s=options["duration"], seed=options["seed"]
            )
        else:
            load = arrivals.read(arrivals.trace_path(trace or ""))
            load = arrivals.scaled(load, rate=options["rate"], duration_s=options["duration"])
        if not load.arrivals:
            raise ValueError("no request arrives: give a longer --duration")
        chip = Chip.load(options["profile"])
        if options["prefill_cores"] >= chip.cube:
            raise ValueError(f"--prefill-cores: the chip has {chip.cube} cores: give fewer")
        setting = Setting(
            chip,
            options["contention"],
            options["core_gbps"],
            Engines(
                layout=options["layout"],
                slots=options["slots"],
                token_budget=options["token_budget"],
                chunked=options["chunked"],
                async_scheduling=options["async_scheduling"],
                prefill_slots=options["prefill_slots"],
                prefill_budget=options["prefill_budget"],
                launch_us=options["launch_us"],
                prefill_cores=options["prefill_cores"],
                first_from_prefill=options["first_token"] == "prefill",
            ),
        )
        tpot_us = None if options["tpot_ms"] is None else options["tpot_ms"] * 1e3
        lease_s = min(MAX_LEASE_S, 4 * options["period"])
        outcome = simulate(
            setting,
            load,
            options["policy"],
            period_s=options["period"],
            options=Options(lease_s=lease_s, tpot_us=tpot_us),
        )
    except (ValueError, EmulatorError) as error:
        raise click.ClickException(str(error)) from None
    told = report(
        setting,
        load,
        options["policy"],
        outcome,
        ttft_slo_s=options["ttft_slo"],
        tpot_slo_ms=options["tpot_slo"],
    )
    if as_json:
        out_json(told | {"wall_s": round(outcome.wall_s, 3), "cpu_s": round(outcome.cpu_s, 3)}, indent=2)
    else:
        _show(told, outcome.wall_s, outcome.cpu_s)


def _show(told: dict[str, Any], wall_s: float, cpu_s: float) -> None:
    out(
        f"{told['completed']} of {told['requests']} requests in {told['seconds']:.1f} s of virtual time"
        f" ({told['operators']} operators in {wall_s:.1f} s, {cpu_s:.1f} s of CPU)",
        f"{told['layout']}, {told['policy']}, {told['contention']}; {told['rejected']} rejected",
        f"{'ms':18}{'p50':>12}{'p99':>12}{'mean':>12}",
    )
    for name, label in (
        ("ttft_ms", "first token"),
        ("second_token_ms", "second token"),
        ("tpot_ms", "time a token"),
        ("tpot_after_second_ms", "after the second"),
        ("end_to_end_ms", "end to end"),
    ):
        row = told[name]
        out(f"{label:18}" + "".join(f"{'-' if v is None else f'{v:.1f}':>12}" for v in row.values()))
    out(
        f"{told['output_tokens_per_s']:.1f} tokens/s; goodput {told['goodput_per_s']:.2f} of"
        f" {told['requests_per_s']:.2f} requests/s",
        f"parked KV: {told['parked_kv']['mean_tokens']:.0f} tokens on average,"
        f" {told['parked_kv']['most_tokens']} at most",
        f"device busy {told['device']['busy']:.0%}, cube cores {told['device']['cube_cores_busy']:.0%},"
        f" memory {told['device']['memory_rate_used']:.0%}; gate: {told['gate']['held']} held,"
        f" {told['gate']['forced']} forced",
    )
