"""`flexnpu`: the commands by name; each is imported when it is called, so that `flexnpu run` starts
quickly.
"""

from __future__ import annotations

import importlib

import click

from flexnpu import __version__

_COMMANDS = {
    "run": "flexnpu.cli.run:run",
    "status": "flexnpu.cli.status:status",
    "top": "flexnpu.cli.top:top",
    "coverage": "flexnpu.cli.coverage:coverage",
    "demo": "flexnpu.cli.demo.command:demo",
    "bench": "flexnpu.cli.bench:bench",
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, name = _COMMANDS[cmd_name].split(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """FlexNPU: virtualization, tracing and control of Ascend NPUs for LLM serving.

    \b
    Examples:
      flexnpud --device 0 --emulated &              a daemon for an emulated NPU
      flexnpu run -- transformers serve MODEL       a server that shares it
      flexnpu status                                who uses it, and how
      flexnpu top                                   the same, live
      sudo flexnpu-probe attach --all               what their steps look like
    """
