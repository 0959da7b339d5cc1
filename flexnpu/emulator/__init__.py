"""The emulated CANN: where its libraries lie, and the environment that makes a program use them.

The libraries carry the vendor's names, so an unmodified program finds them through the library path::

    subprocess.run([sys.executable, "server.py"], env=os.environ | environment(mode="compute"))

runs a program directly on the emulated device; ``flexnpud --emulated`` loads the same libraries behind the
daemon.

Processes of one user that run with the same ``machine`` share its devices: their operators contend for
compute and their allocations for memory. Give tests a machine name of their own.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

__all__ = ["EmulatorError", "environment", "lib_dir", "profile_path", "profiles", "toolkit_dir"]

_HERE = Path(__file__).resolve().parent


class EmulatorError(Exception):
    """The emulated CANN cannot be used as asked; the message names the remedy."""


def lib_dir() -> Path:
    """The folder of the emulated libraries: $FLEXNPU_EMU_LIB, else ``lib`` beside this file.

    Raises EmulatorError when they have not been built.
    """
    path = Path(os.environ.get("FLEXNPU_EMU_LIB") or _HERE / "lib")
    if not (path / "libacl_rt.so").exists():
        raise EmulatorError(f"no emulated CANN libraries in {path}: build them with `make build`")
    return path


def toolkit_dir() -> Path:
    """A folder laid out as the vendor's toolkit, as far as programs look: ``lib64`` holds the libraries.

    The build makes it; from an installed wheel, which cannot carry a link, it is made in the user's cache.
    """
    lib = lib_dir()
    built = lib / "toolkit"
    if (built / "lib64").exists():
        return built
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    made = cache / "flexnpu" / f"toolkit-{hashlib.sha256(str(lib).encode()).hexdigest()[:12]}"
    for folder in ("opp", "runtime", "compiler"):
        (made / folder).mkdir(parents=True, exist_ok=True)
    link = made / "lib64"
    if not link.exists():
        temporary = made / f"lib64.{os.getpid()}"
        temporary.symlink_to(lib)
        temporary.replace(link)
    return made


def _profile_dir() -> Path:
    beside = lib_dir().parent / "profiles"
    return beside if beside.exists() else _HERE / "profiles"


def profiles() -> list[str]:
    """Names of the device profiles that are shipped."""
    return sorted(p.stem for p in _profile_dir().glob("*.toml"))


def profile_path(profile: str) -> Path:
    """The file of a profile given by name, or by a path. Raises EmulatorError when there is none."""
    path = (
        Path(profile) if "/" in profile or profile.endswith(".toml") else _profile_dir() / f"{profile}.toml"
    )
    if not path.exists():
        raise EmulatorError(f"no device profile {profile!r}: give a path or one of {', '.join(profiles())}")
    return path.resolve()


def environment(
    mode: str = "compute",
    profile: str = "ascend910c-die",
    *,
    devices: int = 1,
    missing: str = "error",
    machine: str | None = None,
    slowdown: float | str = 1.0,
) -> dict[str, str]:
    """Variables to add to a program's environment so that it runs directly on the emulated CANN.

    mode: ``compute`` (operators compute; device time is the larger of the model's and the real) or ``time``
        (device time only, device memory is never touched).
    profile: the modelled chip, by name (see `profiles`) or path.
    missing: what an operator without a body does: ``error`` or ``time`` (takes its time, computes nothing).
    machine: processes with the same name share devices; default: $FLEXNPU_EMU_MACHINE, else ``default``.
    slowdown: factor on all modelled times, or the path of a `Clock`.

    Raises EmulatorError for values that the emulated CANN would refuse.
    """
    if mode not in ("compute", "time"):
        raise EmulatorError(f"mode {mode!r}: must be 'compute' or 'time'")
    if missing not in ("error", "time"):
        raise EmulatorError(f"missing {missing!r}: must be 'error' or 'time'")
    if not 1 <= devices <= 64:
        raise EmulatorError(f"devices {devices}: must be from 1 to 64")
    lib, toolkit, python = lib_dir(), toolkit_dir(), str(_HERE.parent / "host" / "python")
    modules = [python] + [p for p in os.environ.get("PYTHONPATH", "").split(":") if p and p != python]
    paths = [str(lib)] + [p for p in os.environ.get("LD_LIBRARY_PATH", "").split(":") if p and p != str(lib)]
    variables = {
        "LD_LIBRARY_PATH": ":".join(paths),
        "PYTHONPATH": ":".join(modules),
        "ASCEND_HOME_PATH": str(toolkit),
        "ASCEND_TOOLKIT_HOME": str(toolkit),
        "ASCEND_OPP_PATH": str(toolkit / "opp"),
        "FLEXNPU_EMU_MODE": mode,
        "FLEXNPU_EMU_PROFILE": str(profile_path(profile)),
        "FLEXNPU_EMU_DEVICES": str(devices),
        "FLEXNPU_EMU_MISSING": missing,
        "FLEXNPU_EMU_SLOWDOWN": str(slowdown),
    }
    if machine is not None:
        variables["FLEXNPU_EMU_MACHINE"] = machine
    return variables
