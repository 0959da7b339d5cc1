"""Numbers on the command line, of every option of every command."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import click
import pytest

from tests.console.programs import BIN, commands

_CLICKS = click.types.IntParamType, click.types.FloatParamType
NUMERIC = [
    pytest.param(path, command, option, id=f"{' '.join(path)} {option.opts[0]}")
    for path, command in commands()
    for option in command.params
    if isinstance(option, click.Option)
    and not option.is_flag
    and (isinstance(option.type, _CLICKS) or hasattr(option.type, "allowed"))
]
WRONG = ("nan", "inf", "-inf", "-1", "1e400", str(10**30), "9" * 5000, "", "1_0", "\u0661", "0x10", "1 2")


def test_there_are_such_options() -> None:
    assert len(NUMERIC) > 40


@pytest.mark.parametrize(("path", "command", "option"), NUMERIC)
def test_what_is_no_number_or_too_great_is_wrong_usage(
    path: tuple[str, ...], command: click.Command, option: click.Option
) -> None:
    for value in WRONG:
        with pytest.raises(click.UsageError) as failed:
            command.make_context(" ".join(path), [option.opts[0], value])
        text = failed.value.format_message()
        assert option.opts[0] in text, "names the option"
        assert repr(value)[:20] in text, "names the value"
        assert "give " in text, "says what is allowed"
        assert len(text) < 400


def test_a_default_is_allowed_by_its_own_option() -> None:
    for path, command, option in (one.values for one in NUMERIC):
        assert isinstance(option, click.Option)
        default = option.get_default(click.Context(command))
        for value in default if isinstance(default, tuple) else [default]:
            if isinstance(value, int | float):
                assert option.type.convert(value, option, None) == value, path


@pytest.mark.parametrize(
    "words",
    [
        ["flexnpu-probe", "replay", "RECORDING", "--speed", "nan"],
        ["flexnpu-probe", "attach", "--interval", "nan"],
        ["flexnpu-probe", "attach", "--budget", "nan"],
        ["flexnpu-collector", "--settle", "nan"],
        ["flexnpu-controller", "--window-us", "nan"],
        ["flexnpud", "--emulated", "--quota", "99999999999999999999999GiB"],
        ["flexnpud", "--emulated", "--max-host-bytes", "18446744073709551616"],
        ["flexnpu", "run", "--quota", "99999999999999999999999GiB", "--", "true"],
        ["flexnpu", "top", "--interval", "nan"],
    ],
    ids=" ".join,
)
def test_the_programs_say_so_and_end(words: list[str], tmp_path: Path, recording: Path) -> None:
    name, *rest = (str(recording) if word == "RECORDING" else word for word in words)
    begun = time.monotonic()
    done = subprocess.run(
        [str(BIN / name), *rest],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"FLEXNPU_RUN_DIR": str(tmp_path)},
    )
    assert time.monotonic() - begun < 60
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith(f"{name}: ")
    assert "give " in done.stderr
