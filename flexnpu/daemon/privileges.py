"""From root to a user without privileges, for good.

A daemon that is started as root needs root for three things: a place below /run, its sockets, and libraries
that may lie in root's own folders. All of that is done first; then `drop` gives up root, every capability
(the daemon needs none: it opens the device, makes memfds and watches pids) and the way back (no_new_privs, an
empty bounding set). `confine` does the part that every daemon can do, root or not.
"""

from __future__ import annotations

import ctypes
import grp
import os
import pwd
import resource
from dataclasses import dataclass
from pathlib import Path

DEFAULT_USERS = ("flexnpu", "nobody")
"""The first of these that there is gets the daemon, unless it is told otherwise."""

OPEN_FILES = 1 << 16
"""A session has a handful of descriptors, and one a ring."""

_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG = 1, 2
_PR_SET_DUMPABLE = 4
_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


class PrivilegeError(RuntimeError):
    """The daemon cannot become who it is to be; the message says what to do."""


@dataclass(frozen=True)
class Account:
    """Whom the daemon becomes."""

    name: str
    uid: int
    gid: int
    home: str

    @property
    def shared(self) -> bool:
        """Whether programs that have nothing to do with each other run as this user."""
        return self.name == "nobody"


def account(name: str | None) -> Account | None:
    """Whom to become: `name`, else the first of `DEFAULT_USERS`; None: stay who we are.

    Raises `PrivilegeError`.
    """
    if os.geteuid() != 0:
        if name is None or _entry(name).pw_uid == os.geteuid():
            return None
        raise PrivilegeError(f"--user {name}: only root can become another user; leave --user out")
    if name is not None:
        entry = _entry(name)
        return None if entry.pw_uid == 0 else _account(entry)
    for candidate in DEFAULT_USERS:
        try:
            return _account(pwd.getpwnam(candidate))
        except KeyError:
            continue
    raise PrivilegeError(
        f"no user {' or '.join(DEFAULT_USERS)} to give root up for: make one with "
        "useradd --system flexnpu, name one with --user, or stay root with --user root"
    )


def group_id(name: str) -> int:
    """The number of a group, given by name or number. Raises `PrivilegeError`."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        if name.isascii() and name.isdigit() and int(name) < 2**32 - 1:
            return int(name)
        raise PrivilegeError(f"group {name}: there is none; make one with groupadd --system {name}") from None


def _entry(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        if name.isascii() and name.isdigit():
            try:
                return pwd.getpwuid(int(name))
            except KeyError:
                pass
        raise PrivilegeError(f"--user {name}: no such user; make it with useradd --system {name}") from None


def _account(entry: pwd.struct_passwd) -> Account:
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir)


def confine() -> None:
    """No new privileges, no core files (they would hold clients' data), files for the owner alone, and as
    many descriptors as the sessions may need. Call before any thread starts.
    """
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    os.umask(0o077)


def drop(to: Account, *, inspectable: bool = False) -> None:
    """Become `to`, in all threads, without a way back. Raises `PrivilegeError`.

    `inspectable`: processes of the same user may look into /proc of this one, as those that share an emulated
    device must.
    """
    parent = os.getppid()
    death_signal = _death_signal()
    try:
        _empty_bounding_set()
        os.initgroups(to.name, to.gid)
        os.setresgid(to.gid, to.gid, to.gid)
        os.setresuid(to.uid, to.uid, to.uid)
        clear_capabilities()
    except OSError as error:
        raise PrivilegeError(f"cannot become user {to.name}: {error.strerror}") from None
    left = capabilities()
    if os.getresuid() != (to.uid,) * 3 or os.getresgid() != (to.gid,) * 3 or left:
        raise PrivilegeError(f"became user {to.name} but kept something of root's: {left or os.getresuid()}")
    # The kernel forgets both when a process changes its user.
    if inspectable:
        _prctl(_PR_SET_DUMPABLE, 1)
    if death_signal:
        _prctl(_PR_SET_PDEATHSIG, death_signal)
        if os.getppid() != parent:
            os.kill(os.getpid(), death_signal)
    os.environ.update(HOME=to.home, USER=to.name, LOGNAME=to.name)
    os.chdir("/")


def clear_capabilities() -> None:
    """Of the calling thread: none effective, permitted, inheritable or ambient. Raises OSError."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()
    if _libc.capset(header, sets) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)


def capabilities(pid: int | None = None) -> dict[str, int]:
    """The capability sets of a process, by /proc's names, that are not empty."""
    found = {}
    for line in Path(f"/proc/{pid or 'self'}/status").read_text(errors="surrogateescape").splitlines():
        key, _, value = line.partition(":")
        if key in ("CapInh", "CapPrm", "CapEff", "CapAmb") and int(value, 16):
            found[key] = int(value, 16)
    return found


def _empty_bounding_set() -> None:
    number = 0
    while _libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) >= 0:
        # May fail: a container can have CAP_SETUID without CAP_SETPCAP. no_new_privs bars the same way.
        _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
        number += 1


def _death_signal() -> int:
    number = ctypes.c_int(0)
    _libc.prctl(_PR_GET_PDEATHSIG, ctypes.byref(number), 0, 0, 0)
    return number.value


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise PrivilegeError(f"prctl {option}: {os.strerror(ctypes.get_errno())}")
