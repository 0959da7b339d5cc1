"""All programs and their commands, for tests that walk them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import click

BIN = Path(sys.executable).parent

PROGRAMS = {
    "flexnpu": "flexnpu.cli.main:main",
    "flexnpud": "flexnpu.cli.daemon:main",
    "flexnpu-probe": "probes.cli:main",
    "flexnpu-collector": "collectors.cli:main",
    "flexnpu-controller": "controllers.cli:main",
}
"""As pyproject.toml names them."""


def program(name: str) -> click.Command:
    module, attribute = PROGRAMS[name].split(":")
    found = getattr(importlib.import_module(module), attribute)
    assert isinstance(found, click.Command)
    return found


def commands() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that does something, with the words that call it."""
    for name in PROGRAMS:
        yield from _walk((name,), program(name))


def _walk(path: tuple[str, ...], command: click.Command) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if not isinstance(command, click.Group):
        yield path, command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None
        yield from _walk((*path, name), found)
