"""`flexnpu`: the commands by name; each is imported when it is called, so that `flexnpu run` starts
quickly.
"""

from __future__ import annotations

import click

from flexnpu import __version__
from flexnpu.console.program import SETTINGS, Programs

_COMMANDS = {
    "run": ("flexnpu.cli.run:run", "Run a program on an NPU that it shares through FlexNPU."),
    "status": ("flexnpu.cli.status:status", "Show who uses the NPUs, their lanes and the gate."),
    "top": ("flexnpu.cli.top:top", "Watch sessions, lanes, memory and the gate, live."),
    "coverage": (
        "flexnpu.cli.coverage:coverage",
        "Show which AscendCL functions of a program are interposed.",
    ),
    "demo": ("flexnpu.cli.demo.command:demo", "Run the whole chain here, on an emulated NPU."),
    "demo-pd": (
        "flexnpu.cli.demo_pd:demo_pd",
        "Run vLLM-Ascend's prefill and decode here, on one emulated NPU.",
    ),
    "sim": ("simulation.command:sim", "Simulate engines on one NPU under a policy, in virtual time."),
    "bench": ("flexnpu.cli.bench:bench", "Measure what FlexNPU costs on this machine."),
}


@click.group("flexnpu", cls=Programs, lazy=_COMMANDS, context_settings=SETTINGS)
@click.version_option(__version__)
def main() -> None:
    """FlexNPU: virtualization, tracing and control of Ascend NPUs for LLM serving.

    \b
    EXAMPLES
      flexnpud --device 0 --emulated &              a daemon for an emulated NPU
      flexnpu run -- transformers serve MODEL       a server that shares it
      flexnpu status                                who uses it, and how
      flexnpu top                                   the same, live
      sudo flexnpu-probe attach --all               what their steps look like
    """
