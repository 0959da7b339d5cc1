"""The commands that the pages name exist, with the options that they are given."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "flexnpu/emulator/README.md"]
SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
TARGETS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.M))
PREFIXES = {"sudo", "exec", "time", "$", "#"}


def commands_in(text: str) -> Iterator[list[str]]:
    """The words of what is in backticks or in a block of code and begins with a program of ours."""
    blocks = re.findall(r"^( *)```\w*\n(.*?)^\1```$", text, re.M | re.S)
    lines = [line for _, block in blocks for line in block.replace("\\\n", " ").splitlines()]
    rest = re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.M | re.S)
    lines += [line for line in rest.splitlines() if line.startswith("    ")]
    lines += re.findall(r"`([^`]+)`", rest)
    for line in lines:
        try:
            words = shlex.split(re.split(r" {2,}", line.strip())[0], comments=True)
        except ValueError:  # output, not a command
            continue
        while words and (words[0] in PREFIXES or re.fullmatch(r"[A-Z_]+=\S*", words[0])):
            del words[0]
        # `$V/bin/python` is of vLLM's venv, whose modules are not ours.
        python = bool(words) and words[0].endswith("python") and not words[0].startswith("$")
        if words and (words[0] in SCRIPTS or words[0] == "make" or python):
            yield words


def wrong_in(words: list[str]) -> str | None:
    """What of a command does not exist."""
    if words[0] == "make":
        return next(
            (one for one in words[1:] if re.fullmatch(r"[a-z][\w-]*", one) and one not in TARGETS), None
        )
    if words[0].endswith("python"):
        found = len(words) < 3 or words[1] != "-m" or importlib.util.find_spec(words[2])
        return None if found else f"module {words[2]}"
    module, _, name = SCRIPTS[words[0]].partition(":")
    command: click.Command = getattr(importlib.import_module(module), name)
    assert isinstance(command, click.Command)
    context = click.Context(command, info_name=words[0])
    for word in words[1:]:
        if word == "--" or word == "...":
            return None
        if isinstance(command, click.Group) and not word.startswith("-"):
            inner = command.get_command(context, word)
            if inner is None:
                return None if re.search(r"[A-Z.,<|]", word) else f"command {word}"
            command, context = inner, click.Context(inner, info_name=word, parent=context)
        elif word.startswith("--"):
            options = {one for param in command.params for one in (*param.opts, *param.secondary_opts)}
            if word.partition("=")[0] not in options | {"--help", "--version"}:
                return f"option {word} of {context.command_path}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist(page: Path) -> None:
    told = {" ".join(words): wrong_in(words) for words in commands_in(page.read_text())}
    assert {command: wrong for command, wrong in told.items() if wrong} == {}


def test_what_does_not_exist_is_found() -> None:
    text = (
        "`flexnpu nonsense` `make nothing`\n\n    sudo flexnpu-probe attach --nothing   says why\n\n"
        "```sh\nflexnpu status\n```"
    )
    found = {words[0]: wrong_in(words) for words in commands_in(text)}
    assert len(list(commands_in(text))) == 4
    assert found["make"] == "nothing"
    assert found["flexnpu-probe"] == "option --nothing of flexnpu-probe attach"
    assert wrong_in(["flexnpu", "nonsense"]) == "command nonsense"
    assert wrong_in(["flexnpu", "status", "--json"]) is None
