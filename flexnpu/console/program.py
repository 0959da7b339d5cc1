"""The frame of every program: how its errors look, and with which status it ends.

A message on standard error begins with the program's name, names the thing at fault and says what to do. The
exit status is one of:

    0     done
    1     it failed, or its output could not be written; standard error says why
    2     wrong usage
    3     a recording was damaged: what could be read is shown (flexnpu-probe)
    4     not permitted: `NotPermitted`
    130   interrupted
    141   the reader of the output went away; nothing is said, as with other Unix tools
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from flexnpu.console import output
from flexnpu.console.output import OutputError, say

FAILED = 1
WRONG_USAGE = 2
NOT_PERMITTED = 4
INTERRUPTED = 130
READER_GONE = 141

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
"""Of every program, for click."""


class NotPermitted(click.ClickException):
    """The user has no right to do this; the message says which one is missing and how to get it."""

    exit_code = NOT_PERMITTED


def told(error: BaseException) -> int:
    """Say what an error is, on standard error; the exit status. Raises what is no error of the user's."""
    if isinstance(error, OutputError):
        if not error.quiet:
            say(error)
        return READER_GONE if error.quiet else FAILED
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx is not None else ""
        say(error.format_message() + (f"\nTry: {path} --help" if path else ""))
        return error.exit_code
    if isinstance(error, click.ClickException):
        say(error.format_message())
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return INTERRUPTED
    if isinstance(error, OSError) and error.filename is not None:
        say(f"{error.filename}: {error.strerror}")
        return FAILED
    raise error


def _status(code: object) -> int:
    """Of what a command returned, or gave to SystemExit."""
    if code is None or isinstance(code, int):
        return int(code or 0)
    say(code)
    return FAILED


def run(command: Callable[[], object]) -> int:
    """Call `command`, and say what went wrong; the exit status. What it has printed is written by then."""
    try:
        try:
            status = _status(command())
        except SystemExit as ending:
            status = _status(ending.code)
        except BaseException as error:
            status = told(error)
        output.flush()
    except OutputError as error:
        status = told(error)
    return status


class _Framed(click.Command):
    """A command whose `main` is the frame, when it is the program's."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run as a program, and exit; without `standalone_mode` as click does."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, **extra)
        name = self.name or "flexnpu"
        output.begin(name)
        sys.exit(
            run(lambda: super(_Framed, self).main(args, prog_name or name, complete_var, False, **extra))
        )


class Program(_Framed):
    """A program that is one command: ``@click.command("flexnpud", cls=Program)``."""


class Programs(_Framed, click.Group):
    """A program with commands, imported when they are called: ``lazy`` maps their names to
    ``module:attribute``."""

    def __init__(self, *args: Any, lazy: Mapping[str, tuple[str, str]], **options: Any) -> None:
        super().__init__(*args, **options)
        self._lazy = lazy
        """Name: (``module:attribute``, a line of help)."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order given."""
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports it."""
        if cmd_name not in self._lazy:
            return None
        module, attribute = self._lazy[cmd_name][0].split(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in the help, for which nothing is imported."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self._lazy.items()])
