"""`flexnpu-probe`: what running LLM servers do on their NPU, step by step."""

from __future__ import annotations

import click

from probes.commands import attach, doctor, export, hist, list, replay, trace


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="flexnpu", prog_name="flexnpu-probe")
def main() -> None:
    """See what LLM servers do on an Ascend NPU, without restarting or changing them.

    eBPF uprobes on the AscendCL libraries of a running process see each operator launch, copy and
    synchronise, fold them into steps of the model in the kernel, and tell prefill from decode.

    `flexnpu-probe attach --help` is the manual; `flexnpu-probe doctor` says whether tracing works here.
    """


main.add_command(attach.command)
main.add_command(doctor.command)
main.add_command(export.command)
main.add_command(hist.command)
main.add_command(list.command)
main.add_command(replay.command)
main.add_command(trace.command)


if __name__ == "__main__":
    main()
