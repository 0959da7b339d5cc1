"""The table of the device model: it says what does not fit, and the models are as far apart as they are."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("flexnpu.device._device", reason="run make build")

from benchmarks import device_model


def test_a_row_fits_where_the_published_range_holds_the_models_figure() -> None:
    chip = device_model.figures("ascend910c-die")
    rows = {row["name"]: row for row in device_model.fewer_cores(chip)}
    for row in rows.values():
        low, high = row["published"]
        assert row["fits"] == (low <= row["model"] <= high)
    # Half the cores make a large product twice as slow, and one that the memory bounds less so.
    assert rows["half the cores: product of 2048 rows (computing)"]["model"] == pytest.approx(2, rel=0.02)
    assert rows["half the cores: product of 16 rows (memory)"]["model"] < 1.6


def test_a_core_that_moves_more_loses_less_with_half_of_them() -> None:
    chip = device_model.figures("ascend910c-die")
    name = "half the cores: product of 16 rows (memory)"
    slower = [
        next(
            row["model"]
            for row in device_model.fewer_cores(replace(chip, core_gbps=core))
            if row["name"] == name
        )
        for core in device_model.CORE_GBPS
    ]
    assert slower == sorted(slower, reverse=True)
    assert slower[0] > slower[-1]
