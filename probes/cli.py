"""`flexnpu-probe`: what running LLM servers do on their NPU, step by step."""

from __future__ import annotations

import click

from flexnpu.console.program import SETTINGS, Programs

_COMMANDS = {
    "attach": ("probes.commands.attach:command", "Attach to running processes and show their steps."),
    "doctor": ("probes.commands.doctor:command", "Find out whether tracing works here, and prove it."),
    "export": ("probes.commands.export:command", "Convert a recording for Perfetto."),
    "hist": ("probes.commands.hist:command", "Histograms and quantiles of steps and requests."),
    "list": ("probes.commands.list:command", "Show what can be probed in running processes."),
    "replay": ("probes.commands.replay:command", "Show a recording as `attach` showed the run."),
    "trace": ("probes.commands.trace:command", "Record every event to a file."),
}


@click.group("flexnpu-probe", cls=Programs, lazy=_COMMANDS, context_settings=SETTINGS)
@click.version_option(package_name="flexnpu", prog_name="flexnpu-probe")
def main() -> None:
    """See what LLM servers do on an Ascend NPU, without restarting or changing them.

    \b
    EXAMPLES
      sudo flexnpu-probe doctor                          does tracing work here?
      sudo flexnpu-probe attach                          steps of every process on an NPU
      sudo flexnpu-probe trace --all -o run.jsonl.zst    record them
      flexnpu-probe replay run.jsonl.zst                 show the recording

    eBPF uprobes on the AscendCL libraries of a running process see each operator launch, copy and
    synchronise, fold them into steps of the model in the kernel, and tell prefill from decode.

    `flexnpu-probe attach --help` is the manual.
    """


if __name__ == "__main__":
    main()
