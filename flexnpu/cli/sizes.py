"""Sizes on the command line: 1000, 512MiB, 20GiB."""

from __future__ import annotations

import click
from pydantic import ByteSize, TypeAdapter, ValidationError

_BYTES: TypeAdapter[ByteSize] = TypeAdapter(ByteSize)


class Size(click.ParamType[int]):
    """A positive number of bytes, with a unit or without."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            size = int(_BYTES.validate_python(value))
        except ValidationError:
            size = 0
        if size <= 0:
            self.fail(f"{value!r} is not a size: give a number of bytes, or as 512MiB or 20GiB", param, ctx)
        return size


SIZE = Size()
