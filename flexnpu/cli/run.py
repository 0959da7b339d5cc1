"""`flexnpu run -- CMD`: CMD with FlexNPU's client libraries in the place of the vendor's."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from pathlib import Path

import click

from flexnpu.client.environment import CLIENT_HOME, EMULATOR_HOME, environment, no_guard
from flexnpu.console.numbers import DEVICE, SIZE
from flexnpu.console.output import say
from flexnpu.console.program import NotPermitted
from flexnpu.control import paths
from flexnpu.control.client import closed_directories

MAX_DEVICES = 64


class Devices(click.ParamType[tuple[int, ...]]):
    """Device numbers, each once."""

    name = "devices"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """For click: 0,1,2 as a tuple."""
        if isinstance(value, tuple):
            return value
        numbers = [part.strip() for part in str(value).split(",")]
        if not all(part.isdecimal() and int(part) <= 1023 for part in numbers):
            self.fail(f"{value!r} is not a list of device numbers, such as 0,1", param, ctx)
        found = tuple(int(part) for part in numbers)
        if len(set(found)) != len(found):
            self.fail(f"{value}: a device is named twice", param, ctx)
        if len(found) > MAX_DEVICES:
            self.fail(f"{len(found)} devices: a program can use {MAX_DEVICES}", param, ctx)
        return found


def listening(path: Path) -> bool:
    """Whether somebody accepts connections at `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(os.fspath(path))
        except OSError as error:
            return error.errno in (errno.EAGAIN, errno.EACCES)  # busy, or said better by the client library
    return True


def find_daemon(device: int) -> Path:
    """The data socket of the daemon of `device`. Raises ClickException."""
    searched = paths.search_dirs()
    found = [paths.data_socket(device, directory) for directory in searched]
    for path in found:
        if os.path.exists(path) and listening(path):
            return path
    closed = closed_directories(searched)
    if len(closed) == len(searched):
        raise NotPermitted(str(closed[0]))
    others = sorted({path.stem.removeprefix("npu") for path in paths.control_sockets()})
    hint = f" (there are sockets for device {', '.join(others)})" if others else ""
    tried = " or ".join(str(path) for path in found)
    raise click.ClickException(
        f"no daemon for device {device} at {tried}{hint}: start one with: flexnpud --device {device}, "
        f"or flexnpud --device {device} --emulated without an NPU"
    )


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    short_help="Run a program on an NPU that it shares through FlexNPU.",
)
@click.option("--device", type=DEVICE, default=0, show_default=True, metavar="N")
@click.option(
    "--devices",
    type=Devices(),
    metavar="N,M,...",
    help="Several NPUs: the program's numbers 0, 1, ... are these devices.",
)
@click.option("--emulated", is_flag=True, help="Straight on an emulated NPU, without a daemon.")
@click.option("--quota", type=SIZE, help="Less device memory than the daemon would give, as 20GiB.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def run(
    device: int,
    devices: tuple[int, ...] | None,
    emulated: bool,
    quota: int | None,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND on an NPU that it shares with others through the daemon of device N.

    \b
    EXAMPLES
      flexnpu run -- python train.py
      flexnpu run --device 1 -- transformers serve MODEL --device npu:0
      flexnpu run --quota 20GiB -- python train.py
      flexnpu run --devices 2,3 -- python two_devices.py     its npu:0 is device 2, its npu:1 device 3

    COMMAND is not changed: it finds FlexNPU's libraries where it looks for CANN's. It sees one NPU, number 0,
    or with --devices as many as are named, each through its own daemon.
    With --emulated it finds the emulated CANN instead; FLEXNPU_EMU_PROFILE, FLEXNPU_EMU_MODE and
    FLEXNPU_EMU_DEVICES then choose the chip, compute or time, and how many.

    A start script may source the vendor's set_env.sh: what it starts still gets FlexNPU's libraries. A
    program that is linked with the vendor's by an absolute path is ended with an error.
    ASCEND_RT_VISIBLE_DEVICES chooses among the devices that the program was given.

    A daemon that is busy is waited for: FLEXNPU_CONNECT_TIMEOUT seconds (300) for a session, and then for as
    long as it lives.
    """
    if not command:
        raise click.UsageError("no command given: flexnpu run -- COMMAND [ARGUMENT...]")
    if quota is not None and emulated:
        raise click.UsageError("--quota is the daemon's to keep: leave out --emulated")
    home = EMULATOR_HOME if emulated else CLIENT_HOME
    if not (home / "lib" / "libascendcl.so").exists():
        raise click.ClickException(f"no libascendcl.so in {home / 'lib'}: build it with: make build")
    data_sockets = [] if emulated else [find_daemon(one) for one in devices or (device,)]
    env = environment(home, data_sockets, os.environ)
    if home == CLIENT_HOME and (why := no_guard()) is not None:
        say(f"a program that sources CANN's set_env.sh gets the vendor's libraries: {why}")
    if quota is not None:
        env["FLEXNPU_QUOTA"] = str(quota)
    program = shutil.which(command[0])
    if program is None:
        say(f"{command[0]}: command not found")
        raise SystemExit(127)
    try:
        os.execve(program, list(command), env)
    except OSError as error:
        say(f"{command[0]}: {error.strerror}")
        raise SystemExit(126) from None
