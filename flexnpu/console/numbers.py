"""Numbers on the command line: finite, within a range, in plain ASCII digits.

Every option that takes a number has one of these types, so a wrong one is told in one way: the option, the
value, and what is allowed (exit status 2). ``nan``, ``inf``, ``1e400``, an empty string and a number of a
thousand digits are wrong everywhere; zero and negative numbers wherever the range says so.

>>> Number(0, 60, above=True, unit="seconds").read("2.5")
2.5
>>> Duration(0, 86400).read("5m")
300.0
>>> SIZE.read("20GiB")
21474836480
>>> Number(0, 60, above=True, unit="seconds").read("nan")
Traceback (most recent call last):
    ...
ValueError: 'nan' is not allowed: give seconds, more than 0 and at most 60
"""

from __future__ import annotations

import math
import re
from typing import Generic, TypeVar

import click

from flexnpu.console.text import safe

_T = TypeVar("_T", int, float)

_WHOLE = re.compile(r"[+-]?[0-9]{1,40}")
_REAL = re.compile(r"[+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,4})?")

MAX_PID = 2**31 - 1
DAY_S = 86_400.0
YEAR_S = 366 * DAY_S


class _Ranged(click.ParamType[_T], Generic[_T]):
    """A number from `low` to `high`; `above`: more than `low`; `below`: less than `high`.

    `read` raises ValueError with what is allowed.
    """

    name = "number"
    kind = "a number"

    def __init__(
        self, low: _T, high: _T, *, above: bool = False, below: bool = False, unit: str | None = None
    ) -> None:
        self.low: _T = low
        self.high: _T = high
        self.above, self.below, self.unit = above, below, unit

    def read(self, text: object) -> _T:
        """The number that `text` says. Raises ValueError."""
        value = self._parse(text.strip()) if isinstance(text, str) else self._given(text)
        if value is None or not self._fits(value):
            shown = safe(repr(text))
            raise ValueError(
                f"{shown if len(shown) <= 60 else shown[:57] + '...'} is not allowed: {self.allowed}"
            )
        return value

    def _fits(self, value: _T) -> bool:
        if value < self.low or value > self.high:
            return False
        return not (self.above and value == self.low) and not (self.below and value == self.high)

    @property
    def allowed(self) -> str:
        """What may be given, as the end of an error."""
        what = self.unit or self.kind
        if not (self.above or self.below):
            return f"give {what}, {self._show(self.low)} to {self._show(self.high)}"
        low = "more than" if self.above else "at least"
        high = "less than" if self.below else "at most"
        return f"give {what}, {low} {self._show(self.low)} and {high} {self._show(self.high)}"

    def _show(self, value: _T) -> str:
        return f"{value:.15g}" if isinstance(value, float) else str(value)

    def _parse(self, text: str) -> _T | None:
        raise NotImplementedError

    def _given(self, value: object) -> _T | None:
        raise NotImplementedError

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> _T:
        """For click."""
        try:
            return self.read(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        """For click."""
        return self.name.upper()


class Number(_Ranged[float]):
    """A finite number."""

    def __init__(
        self, low: float, high: float, *, above: bool = False, below: bool = False, unit: str | None = None
    ) -> None:
        super().__init__(float(low), float(high), above=above, below=below, unit=unit)

    def _parse(self, text: str) -> float | None:
        return float(text) if _REAL.fullmatch(text) and math.isfinite(float(text)) else None

    def _given(self, value: object) -> float | None:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


class Whole(_Ranged[int]):
    """A whole number."""

    kind = "a whole number"

    def _parse(self, text: str) -> int | None:
        return int(text) if _WHOLE.fullmatch(text) else None

    def _given(self, value: object) -> int | None:
        return value if isinstance(value, int) and not isinstance(value, bool) else None


class Duration(Number):
    """Seconds, or with a unit: 500ms, 30s, 5m, 2h."""

    name = "S"
    kind = "seconds, as 30, 0.5, 500ms or 5m"
    _UNITS = (("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0))

    def _parse(self, text: str) -> float | None:
        for unit, seconds in self._UNITS:
            if text.endswith(unit):
                count = super()._parse(text.removesuffix(unit).rstrip())
                return None if count is None else count * seconds
        return super()._parse(text)


class Size(_Ranged[int]):
    """Bytes, with a unit or without: 1000, 512MiB, 20GiB; KB and K are 1000, KiB is 1024."""

    name = "size"
    kind = "bytes, as 1000000, 512MiB or 20GiB"
    _FORM = re.compile(r"(\+?[0-9]{1,40}(?:\.[0-9]{0,40})?)\s*(?:([kmgtpe])(i?)b?|b)?", re.IGNORECASE)

    def _parse(self, text: str) -> int | None:
        found = self._FORM.fullmatch(text)
        if found is None:
            return None
        count, letter, binary = found.groups()
        unit = 1 if letter is None else (1024 if binary else 1000) ** ("kmgtpe".index(letter.lower()) + 1)
        return int(count) * unit if "." not in count else int(float(count) * unit)

    def _given(self, value: object) -> int | None:
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def _show(self, value: int) -> str:
        for power, unit in ((60, "EiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
            if value >> power and value % (1 << power) == 0:
                return f"{value >> power} {unit}"
        return str(value)


DURATION = Duration(0, YEAR_S, above=True)
"""How long a command runs."""
SIZE = Size(1, 1 << 60)
"""Memory."""
COUNT = Whole(1, 1_000_000_000)
"""How often something is done."""
PID = Whole(1, MAX_PID, unit="a process id")
PORT = Whole(0, 65535, unit="a port")
DEVICE = Whole(0, 1023, unit="a device number")
PERCENT = Number(0, 100, unit="percent")
