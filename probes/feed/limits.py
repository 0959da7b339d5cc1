"""What a field of an event may hold, for pydantic, which is imported only where events are read: it takes 10
MiB and a tenth of a second, and who writes events has no use for it."""

from __future__ import annotations

from typing import Any


class Limits:
    """Beside a type in `Annotated`: the constraints of pydantic's schema of it, by their names."""

    def __init__(self, **constraints: float | bool) -> None:
        self._constraints = constraints

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return handler(source) | self._constraints
