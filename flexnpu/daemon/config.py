"""What a daemon is started with, checked before anything is touched."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from flexnpu.daemon import privileges
from flexnpu.daemon.privileges import Account

Mode = Literal["compute", "time"]

PACKAGE = Path(__file__).resolve().parent.parent
CLIENT_LIB = PACKAGE / "client" / "lib"
EMULATOR_LIB = PACKAGE / "emulator" / "lib"
PROFILES = PACKAGE / "emulator" / "profiles"
DEFAULT_PROFILE = "ascend910c-die"
"""What the emulated libraries take when they are told nothing."""
MAX_DEVICE = 1023

_VENDOR_ROOTS = ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")
_VENDOR_DEFAULT = Path("/usr/local/Ascend/ascend-toolkit/latest")


class ConfigError(ValueError):
    """Something that the daemon was told cannot be; the message says what to do."""


@dataclass(frozen=True)
class Shares:
    """How much of the daemon one program, one user and all together may have; None: its default."""

    sessions: int | None = None
    sessions_per_user: int | None = None
    rings: int | None = None
    """Threads that call: each has a ring."""
    rings_per_user: int | None = None
    rings_per_session: int | None = None
    host_bytes: int | None = None
    """Memory that programs share with the daemon: 32 MiB a session, and what they allocate with
    aclrtMallocHost."""
    host_bytes_per_user: int | None = None
    pinned_bytes: int | None = None
    """How much of that is registered with the vendor as page-locked, which makes copies faster."""
    pinned_bytes_per_user: int | None = None
    threads: int | None = None
    """The daemon's own, for calls that may block."""
    streams: int | None = None
    streams_per_user: int | None = None
    streams_per_session: int | None = None
    events: int | None = None
    events_per_user: int | None = None
    events_per_session: int | None = None
    graphs: int | None = None
    graphs_per_user: int | None = None
    graphs_per_session: int | None = None
    communicators: int | None = None
    communicators_per_user: int | None = None
    communicators_per_session: int | None = None
    binaries: int | None = None
    binaries_per_user: int | None = None
    binaries_per_session: int | None = None


@dataclass(frozen=True)
class Config:
    """One daemon's settings; made by `checked`."""

    device: int
    run_dir: Path
    vendor_lib: Path
    """The directory of libascendcl.so and its family: the vendor's or the emulated ones."""
    emulated: bool
    profile: str | None = None
    mode: Mode | None = None
    allow_uids: frozenset[int] = frozenset()
    """Users whose programs may have sessions, besides root's and those of the user who starts the daemon."""
    allow_gids: frozenset[int] = frozenset()
    """Groups whose members' programs may have sessions."""
    control_gid: int | None = None
    """The group whose members may use the control socket, besides root and the user who starts the daemon."""
    account: Account | None = None
    """Whom the daemon becomes once it has its files; None: it stays who it is."""
    quota: int | None = None
    """Device memory that one session may have, bytes; None: as much as the device has."""
    allow_kernels: bool = False
    """Programs may load device code of their own, which can reach other programs' memory."""
    shares: Shares = field(default_factory=Shares)

    @property
    def own_uids(self) -> frozenset[int]:
        """The user whom the daemon becomes, unless programs that are none of ours run as that user, too."""
        if self.account is None or self.account.shared:
            return frozenset()
        return frozenset({self.account.uid})

    def limits(self) -> dict[str, int]:
        """The native plane's limits; those that are absent keep its defaults."""
        chosen = {
            **asdict(self.shares),
            "device_bytes_per_session": self.quota,
            "allow_kernels": int(self.allow_kernels),
        }
        return {name: value for name, value in chosen.items() if value is not None}

    def profile_file(self) -> Path | None:
        """The emulated chip's file; None for a real one."""
        if not self.emulated:
            return None
        name = self.profile or os.environ.get("FLEXNPU_EMU_PROFILE") or DEFAULT_PROFILE
        return Path(name).absolute() if _is_path(name) else PROFILES / f"{name}.toml"

    def environment(self) -> dict[str, str]:
        """Variables that the emulated libraries read when they are loaded."""
        if not self.emulated:
            return {}
        profile = str(self.profile_file()) if self.profile and _is_path(self.profile) else self.profile
        chosen = {"FLEXNPU_EMU_PROFILE": profile, "FLEXNPU_EMU_MODE": self.mode}
        return {name: value for name, value in chosen.items() if value is not None}


def checked(
    device: int,
    run_dir: Path,
    *,
    vendor_lib: Path | None = None,
    emulated: bool = False,
    profile: str | None = None,
    mode: Mode | None = None,
    allow_uids: frozenset[int] = frozenset(),
    allow_groups: Sequence[str] = (),
    control_group: str | None = None,
    user: str | None = None,
    quota: int | None = None,
    allow_kernels: bool = False,
    shares: Shares | None = None,
) -> Config:
    """Settings that can work. Raises `ConfigError`, `PrivilegeError`."""
    if not 0 <= device <= MAX_DEVICE:
        raise ConfigError(f"device {device}: a device number is 0 to {MAX_DEVICE}")
    if emulated and vendor_lib is not None:
        raise ConfigError("--emulated and --vendor-lib exclude each other: leave one out")
    if not emulated and (profile or mode):
        raise ConfigError("--profile and --mode are for the emulated NPU: add --emulated")
    if profile is not None:
        _check_profile(profile)
    _check_not_interposed()
    lib = EMULATOR_LIB if emulated else (vendor_lib or _installed_vendor_lib())
    if not (lib / "libascendcl.so").exists():
        build, give = "build it with: make build", "give CANN's lib64 with --vendor-lib, or use --emulated"
        raise ConfigError(f"no libascendcl.so in {lib}: {build if emulated else give}")
    return Config(
        device=device,
        run_dir=run_dir.absolute(),
        vendor_lib=lib.resolve(),
        emulated=emulated,
        profile=profile,
        mode=mode,
        allow_uids=allow_uids,
        allow_gids=frozenset(map(privileges.group_id, allow_groups)),
        control_gid=None if control_group is None else privileges.group_id(control_group),
        account=privileges.account(user),
        quota=quota,
        allow_kernels=allow_kernels,
        shares=shares or Shares(),
    )


def _installed_vendor_lib() -> Path:
    for name in _VENDOR_ROOTS:
        if os.environ.get(name):
            return Path(os.environ[name]) / "lib64"
    return _VENDOR_DEFAULT / "lib64"


def _is_path(profile: str) -> bool:
    return "/" in profile or profile.endswith(".toml")


def _check_profile(profile: str) -> None:
    if _is_path(profile):
        if not Path(profile).is_file():
            raise ConfigError(f"profile {profile}: no such file")
        return
    known = sorted(path.stem for path in PROFILES.glob("*.toml"))
    if profile not in known:
        raise ConfigError(f"profile {profile}: not one of {', '.join(known)}; or give a path to a TOML file")


def _check_not_interposed() -> None:
    """The daemon must reach the device itself, not through another daemon."""
    entries = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    if any(entry and Path(entry).resolve() == CLIENT_LIB for entry in entries):
        raise ConfigError(
            "LD_LIBRARY_PATH holds FlexNPU's client libraries (flexnpud was started under flexnpu run): "
            "start it outside"
        )
