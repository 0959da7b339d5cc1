"""The wire tracer under its former name, for programs outside of FlexNPU.

Ours import `probes.requests.wire`.
"""

from __future__ import annotations

from probes.requests.timing import timing
from probes.requests.wire import WireError, WireTracer

__all__ = ["WireError", "WireTracer", "timing"]
