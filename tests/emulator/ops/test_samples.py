"""Every operator with a body, on the arguments of torch's own table (OpInfo): see benchmarks/samples.py."""

from __future__ import annotations

import pytest

from benchmarks.samples import rows, samples, table, total
from flexnpu.console.tables import Console

pytestmark = pytest.mark.torch_npu

#: Samples an operator and type: some have more than a thousand, which differ little.
MOST = 100
#: Of the samples that reach a body.
REFUSED = 0.05


@pytest.mark.timeout(900)
@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_what_the_table_asks_for_is_computed_right(dtype: str) -> None:
    with samples() as process:
        found = list(rows(process, [dtype], most=MOST))
    sums = total(found)
    Console(width=200).print(table(row for row in found if row["wrong"] or row["refused"]))
    print(dtype, sums)
    assert sums["right"] > 3000, "torch's table has become smaller, or the device takes less"
    assert sums["wrong"] == 0
    assert sums["refused"] <= REFUSED * (sums["right"] + sums["refused"])
