"""`flexnpud`: the daemon of one device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import click

from flexnpu import __version__
from flexnpu.console.numbers import DEVICE, SIZE, Whole
from flexnpu.console.program import SETTINGS, Program
from flexnpu.control import paths
from flexnpu.daemon.config import ConfigError, Mode, Shares, checked
from flexnpu.daemon.files import FilesError
from flexnpu.daemon.privileges import PrivilegeError
from flexnpu.daemon.service import serve

_COUNT = Whole(1, 1_000_000)
_LIMITS: tuple[tuple[str, click.ParamType[int], str], ...] = (
    ("--max-sessions", _COUNT, "Programs at once; default: 256."),
    ("--max-sessions-per-user", _COUNT, "Of one user; default: 128."),
    ("--max-rings", _COUNT, "Threads that call, of all programs; default: 4096."),
    ("--max-rings-per-user", _COUNT, "Of one user's programs; default: 2048."),
    ("--max-rings-per-session", _COUNT, "Of one program; default: 256."),
    ("--max-host-bytes", SIZE, "Host memory shared with programs; default: 3/4 of the machine's."),
    ("--max-host-bytes-per-user", SIZE, "With one user's programs; default: half of the machine's."),
    ("--max-pinned-bytes", SIZE, "How much of that is page-locked; default: half of the machine's."),
    ("--max-pinned-bytes-per-user", SIZE, "For one user's programs; default: a quarter of the machine's."),
    ("--max-threads", _COUNT, "The daemon's own, for calls that may block; default: 1024."),
    ("--max-streams", _COUNT, "Streams of all programs; default: 1984, as many as a device has."),
    ("--max-streams-per-user", _COUNT, "Of one user's programs; default: 1536."),
    ("--max-streams-per-session", _COUNT, "Of one program; default: 1024."),
    ("--max-events", _COUNT, "Events of all programs; default: 65536."),
    ("--max-events-per-user", _COUNT, "Of one user's programs; default: 49152."),
    ("--max-events-per-session", _COUNT, "Of one program; default: 32768."),
    ("--max-graphs", _COUNT, "Captured graphs of all programs; default: 65536."),
    ("--max-graphs-per-user", _COUNT, "Of one user's programs; default: 49152."),
    ("--max-graphs-per-session", _COUNT, "Of one program; default: 32768."),
    ("--max-communicators", _COUNT, "Communicators of all programs; default: 1024."),
    ("--max-communicators-per-user", _COUNT, "Of one user's programs; default: 512."),
    ("--max-communicators-per-session", _COUNT, "Of one program; default: 256."),
    ("--max-binaries", _COUNT, "Binaries of programs' own kernels; default: 4096."),
    ("--max-binaries-per-user", _COUNT, "Of one user's programs; default: 2048."),
    ("--max-binaries-per-session", _COUNT, "Of one program; default: 1024."),
)


def limit_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of `Shares`."""
    for name, kind, text in reversed(_LIMITS):
        metavar = "SIZE" if kind is SIZE else "N"
        command = click.option(name, type=kind, metavar=metavar, help=text)(command)
    return command


@click.command("flexnpud", cls=Program, context_settings=SETTINGS)
@click.option("--device", type=DEVICE, default=0, show_default=True, metavar="N")
@click.option(
    "--vendor-lib",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="CANN's lib64; default: that of $ASCEND_HOME_PATH, else of /usr/local/Ascend.",
)
@click.option("--emulated", is_flag=True, help="An emulated NPU instead.")
@click.option("--profile", metavar="P", help="Emulated chip: a name, or a path to a TOML file.")
@click.option(
    "--mode",
    type=click.Choice(get_args(Mode)),
    help="Emulated: compute (numerics and time) or time (time only).",
)
@click.option(
    "--run-dir", type=click.Path(path_type=Path), metavar="D", help="Where the sockets go; see below."
)
@click.option(
    "--allow-uid",
    "allow_uids",
    type=Whole(0, 2**32 - 2, unit="a user id"),
    multiple=True,
    metavar="UID",
    help="A user whose programs may use the device, besides root's and yours. May be given several times.",
)
@click.option(
    "--allow-group",
    "allow_groups",
    multiple=True,
    metavar="GROUP",
    help="A group whose members' programs may use the device. May be given several times.",
)
@click.option(
    "--group",
    "control_group",
    metavar="GROUP",
    help="Its members may use the control socket (flexnpu status, controllers), besides root and you.",
)
@click.option(
    "--user",
    metavar="USER",
    help="Started as root: whom to become. Default: flexnpu if there is such a user, else nobody.",
)
@click.option(
    "--quota",
    type=SIZE,
    help="Device memory that one program may have, as 20GiB; default: as much as there is.",
)
@click.option(
    "--allow-kernels",
    is_flag=True,
    help="Serve kernels of programs' own (aclrtBinaryLoad*). No address in such code is checked: it can "
    "read and write other programs' memory, so only for programs that trust each other.",
)
@limit_options
@click.version_option(__version__)
def main(
    device: int,
    vendor_lib: Path | None,
    emulated: bool,
    profile: str | None,
    mode: Mode | None,
    run_dir: Path | None,
    allow_uids: tuple[int, ...],
    allow_groups: tuple[str, ...],
    control_group: str | None,
    user: str | None,
    quota: int | None,
    allow_kernels: bool,
    **shares: int | None,
) -> None:
    """Own device N, and dispatch what the programs started with flexnpu run launch on it.

    \b
    EXAMPLES
      flexnpud --device 0                            the vendor's CANN
      flexnpud --device 0 --emulated                 one emulated Ascend 910C die
      flexnpud --emulated --profile small.toml --mode time
      flexnpud --device 0 --quota 20GiB              no program gets more than that
      flexnpud --max-sessions-per-user 8             no user gets more than that
      flexnpud --allow-group users --group npu-admin who may use it, and who may control it

    Its sockets are npuN.sock (programs) and npuN.ctl (control) in the run directory: $FLEXNPU_RUN_DIR, else
    /run/flexnpu for root and $XDG_RUNTIME_DIR/flexnpu for another user. It runs until SIGTERM or SIGINT, logs
    JSON lines to stderr, and leaves nothing behind. Started as root, it makes its sockets, then becomes
    --user without any capability, for good; --user root stays root.
    """
    try:
        config = checked(
            device,
            run_dir or paths.run_dir(),
            vendor_lib=vendor_lib,
            emulated=emulated,
            profile=profile,
            mode=mode,
            allow_uids=frozenset(allow_uids),
            allow_groups=allow_groups,
            control_group=control_group,
            user=user,
            quota=quota,
            allow_kernels=allow_kernels,
            shares=Shares(**{name.removeprefix("max_"): value for name, value in shares.items()}),
        )
        serve(config)
    except (ConfigError, FilesError, PrivilegeError, paths.NoRunDirError) as error:
        raise click.ClickException(str(error)) from None
    except ImportError as error:
        raise click.ClickException(
            f"the native data plane cannot be loaded: {error}; run: make build"
        ) from None
    except (OSError, RuntimeError) as error:
        raise click.ClickException(f"device {device}: {error}") from None
