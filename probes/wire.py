"""The wire tracer under its former name, for programs outside of FlexNPU.

Ours import `probes.requests.wire`.
"""

from __future__ import annotations

from probes.requests.wire import WireError, WireTracer, timing

__all__ = ["WireError", "WireTracer", "timing"]
