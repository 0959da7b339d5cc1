"""The HTTP reader under its former name, for programs outside of FlexNPU.

Ours import `probes.requests`.
"""

from __future__ import annotations

from probes.requests.exchange import Exchange
from probes.requests.http1 import HttpStream

__all__ = ["Exchange", "HttpStream"]
