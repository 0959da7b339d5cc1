"""Sizes on the command line."""

from __future__ import annotations

import click
import pytest

from flexnpu.console.numbers import SIZE


@pytest.mark.parametrize(
    ("text", "size"), [("1000", 1000), ("512MiB", 512 << 20), ("20GiB", 20 << 30), ("1.5KiB", 1536)]
)
def test_a_size_has_a_unit_or_none(text: str, size: int) -> None:
    assert SIZE.convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "x", "1 parsec", "nan"])
def test_what_is_no_size_is_refused_by_name(text: str) -> None:
    with pytest.raises(click.BadParameter, match="512MiB"):
        SIZE.convert(text, None, None)
