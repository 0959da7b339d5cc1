"""pyACL, as far as programs here use it: CANN's Python names for AscendCL.

CANN puts its own module of this name on PYTHONPATH; so does FlexNPU with this one. It has `rt` with what
vLLM-Ascend calls. Another name of pyACL raises AttributeError, which says so.
"""

from __future__ import annotations

from . import rt

__all__ = ["rt"]


def __getattr__(name: str) -> object:
    raise AttributeError(f"acl.{name} is not in FlexNPU's pyACL, which has acl.rt only")
