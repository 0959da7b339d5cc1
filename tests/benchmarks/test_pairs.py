"""Peers, spreads and pairs, and a short run of the price of interposition."""

from __future__ import annotations

import json
import os
import sys

import pytest
from click.testing import CliRunner

from benchmarks import launch_cost
from benchmarks.pairs import NATIVE, BenchmarkError, Comparison, Peer, cpu_seconds, spread
from flexnpu.cli.main import main

ECHO = """
import json, sys
print("noise before the answer")
print(json.dumps({"ready": 1}), flush=True)
for line in sys.stdin:
    if line == "die\\n":
        sys.exit("no more")
    print(json.dumps({"said": line.strip()}), flush=True)
"""


def test_a_peer_answers_line_by_line() -> None:
    peer = Peer([sys.executable, "-c", ECHO], os.environ)
    assert peer.ready == {"ready": 1}
    assert peer.ask("one 2") == {"said": "one 2"}
    peer.send("later")
    assert peer.receive() == {"said": "later"}
    peer.close()
    assert peer.process.returncode == 0


def test_a_peer_that_dies_says_why() -> None:
    peer = Peer([sys.executable, "-c", ECHO], os.environ)
    with pytest.raises(BenchmarkError, match="ended with 1:\nno more"):
        peer.ask("die")
    peer.close()


def test_spread() -> None:
    assert spread([]) == {"n": 0}
    assert spread([3.0]) == {"median": 3.0, "n": 1}
    assert spread(range(1, 12)) == {"median": 6.0, "p10": 2.0, "p90": 10.0, "n": 11}


def test_ratios_are_of_pairs_and_not_of_medians() -> None:
    comparison = Comparison()
    for direct, interposed in ((1.0, 2.0), (10.0, 10.0), (100.0, 50.0)):
        comparison.add({"us": direct, "only_here": 1.0}, {"us": interposed})
    report = comparison.report()
    assert set(report) == {"us"}
    assert report["us"]["direct"]["median"] == 10.0
    assert report["us"]["interposed"]["median"] == 10.0
    assert report["us"]["ratio"]["median"] == 1.0
    assert report["us"]["ratio"]["n"] == 3


def test_cpu_seconds_counts_what_this_process_burns() -> None:
    before, times = cpu_seconds(os.getpid()), os.times()
    while os.times().user + os.times().system - times.user - times.system < 0.1:
        sum(range(1000))
    assert cpu_seconds(os.getpid()) - before >= 0.08


def test_calls_are_measured_on_both_sides() -> None:
    report = launch_cost.calls(2)
    assert {"cached_operator_ns", "synchronise_us", "copy_out_8_bytes_us"} <= set(report)
    for figure in report.values():
        assert figure["direct"]["n"] == figure["interposed"]["n"] == 2
        assert figure["direct"]["median"] > 0
        assert figure["interposed"]["median"] > 0
    json.dumps(report)


def test_without_the_native_program_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_cost, "NATIVE", NATIVE.with_name("nothing"))
    result = CliRunner().invoke(main, ["bench", "launch"])
    assert result.exit_code != 0
    assert "make build" in result.output
