"""What a run's requests saw, and what the device and the gate did."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flexnpu.common.quantiles import quantile
from simulation.arrivals import Load
from simulation.run import Outcome
from simulation.setting import Setting


def _spread(values: Iterable[float]) -> dict[str, float | None]:
    known = list(values)
    return {
        "p50": _rounded(quantile(known, 0.5)),
        "p99": _rounded(quantile(known, 0.99)),
        "mean": _rounded(sum(known) / len(known) if known else None),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def report(
    setting: Setting, load: Load, policy: str, outcome: Outcome, *, ttft_slo_s: float, tpot_slo_ms: float
) -> dict[str, Any]:
    """One JSON object. Latencies in ms from a request's arrival.

    TPOT is a request's mean after its first token: a wait between the first and the second token is in it,
    and not in what is told after the second. Goodput: requests a second that met both objectives.
    """
    done = [one for one in outcome.requests if one.state == "done"]
    end_s = outcome.end_us / 1e6
    good = 0
    tpots = []
    for one in done:
        tpot = (one.end_us - one.first_us) / (one.output - 1) / 1e3 if one.output > 1 else 0.0
        if one.output > 1:
            tpots.append(tpot)
        good += one.first_us - one.arrival_us <= ttft_slo_s * 1e6 and tpot <= tpot_slo_ms
    core, chip = outcome.core, setting.chip
    busy_us, cube_us, vector_us, moved = core.use()
    token_us, most_parked, _ = core.parked()
    engines = range(2 if setting.engines.layout == "pd" else 1)
    whole_us = max(outcome.end_us, 1e-9)
    return {
        "time": "virtual",
        "contention": setting.contention,
        "core_gbps": setting.core_gbps,
        "layout": setting.engines.layout,
        "policy": policy,
        "requests": len(outcome.requests),
        "completed": len(done),
        "rejected": sum(one.state == "rejected" for one in outcome.requests),
        "left_out_of_trace": load.left_out,
        "preemptions": sum(one.preempted for one in outcome.requests),
        "seconds": round(end_s, 6),
        "ttft_ms": _spread((one.first_us - one.arrival_us) / 1e3 for one in done),
        "second_token_ms": _spread((one.second_us - one.arrival_us) / 1e3 for one in done if one.output > 1),
        "tpot_ms": _spread(tpots),
        "tpot_after_second_ms": _spread(
            (one.end_us - one.second_us) / (one.output - 2) / 1e3 for one in done if one.output > 2
        ),
        "end_to_end_ms": _spread((one.end_us - one.arrival_us) / 1e3 for one in done),
        "output_tokens_per_s": round(sum(one.output for one in done) / end_s, 3) if done else 0.0,
        "requests_per_s": round(len(done) / end_s, 6) if done else 0.0,
        "objectives": {"ttft_s": ttft_slo_s, "tpot_ms": tpot_slo_ms},
        "goodput_per_s": round(good / end_s, 6) if done else 0.0,
        "met_objectives": round(good / len(done), 6) if done else None,
        "parked_kv": {
            "mean_tokens": round(token_us / whole_us, 3),
            "most_tokens": most_parked,
        },
        "device": {
            "busy": round(busy_us / whole_us, 4),
            "cube_cores_busy": round(cube_us / whole_us / chip.cube, 4),
            "vector_cores_busy": round(vector_us / whole_us / chip.vector, 4),
            "memory_rate_used": round(moved / whole_us / chip.memory_rate, 4),
        },
        "engines": [
            {
                "steps": counts.steps,
                "operators": counts.operators,
                "prefill_tokens": counts.prefill_tokens,
                "decode_tokens": counts.decode_tokens,
                "longest_hold_us": round(counts.held_us, 3),
            }
            for counts in map(core.counts, engines)
        ],
        "gate": core.gate_counters(),
        "gate_settings": outcome.decisions,
        "operators": core.operators(),
    }
