"""Who is at the other end of a unix socket, and who may be.

One rule for every socket of FlexNPU's: the numbers in `Admission.uids` are served, and whoever has its group,
as first or as supplementary group. The kernel says who a peer was when it connected (SO_PEERCRED,
SO_PEERGROUPS); what the user database says of it does not count, for that is not what the process may do.

`Admission.refusal` is what a server tells a peer that it does not serve, and `denied` what a client says when
the socket's mode has kept it out: who may connect, which group to join, and which option names one.
"""

from __future__ import annotations

import ctypes
import errno
import grp
import os
import pwd
import socket
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

_SO_PEERGROUPS = 59
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Peer:
    """A process, as it was when it connected."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int] = frozenset()
    """Supplementary groups."""

    def has_group(self, gid: int) -> bool:
        """Whether `gid` is one of its groups."""
        return gid == self.gid or gid in self.groups


def peer_of(connection: socket.socket) -> Peer:
    """Who is at the other end of a unix socket. Raises OSError."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, gid = struct.unpack("iII", raw)
    return Peer(pid, uid, gid, _groups(connection))


def _groups(connection: socket.socket) -> frozenset[int]:
    """All of them: Python's own getsockopt takes no more than 256."""
    size = ctypes.c_uint32(0)
    groups = (ctypes.c_uint32 * 0)()
    while True:
        failed = _libc.getsockopt(
            connection.fileno(), socket.SOL_SOCKET, _SO_PEERGROUPS, groups, ctypes.byref(size)
        )
        if not failed:
            return frozenset(groups[: size.value // 4])
        if ctypes.get_errno() != errno.ERANGE:  # an old kernel, or no unix socket: none are known
            return frozenset()
        groups = (ctypes.c_uint32 * (size.value // 4))()


@dataclass(frozen=True)
class Admission:
    """Who may connect. `option` is the one that names the group."""

    uids: frozenset[int]
    gid: int | None
    option: str

    def admits(self, peer: Peer) -> bool:
        """Whether `peer` may connect."""
        return peer.uid in self.uids or (self.gid is not None and peer.has_group(self.gid))

    def refusal(self, peer: Peer, doing: str) -> str:
        """What a peer is told that may not connect."""
        return _sentence(peer.uid, doing, self.uids, self.gid, self.option)


def denied(path: str | os.PathLike[str], doing: str, option: str) -> str:
    """What to say when connecting to `path` fails with EACCES: by the socket's owner, group and mode."""
    try:
        found = os.stat(path)
    except OSError:
        folder = Path(path).parent
        return f"{user_name(os.geteuid())} may not look into {folder}: run as root or as its owner"
    gid = found.st_gid if found.st_mode & stat.S_IWGRP and found.st_gid != 0 else None
    return _sentence(os.geteuid(), doing, frozenset({0, found.st_uid}), gid, option)


def _sentence(uid: int, doing: str, uids: frozenset[int], gid: int | None, option: str) -> str:
    if gid == 0:  # nobody should have to join root's group
        gid = None
    users = " and ".join(user_name(one) for one in sorted(uids))
    text = f"{user_name(uid)} may not {doing}: "
    if gid is None:
        return text + f"{users} may. To let others, start it with {option} and a group of theirs"
    name = group_name(gid)
    return (
        text + f"{users} and members of group {name} may. To join: sudo usermod -aG {name} "
        f"{_user(uid) or 'USER'}, then log in again; or start it with {option} and another group"
    )


def _user(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def user_name(uid: int) -> str:
    """For people: the name, or the number where there is none."""
    return _user(uid) or f"user {uid}"


def group_name(gid: int) -> str:
    """The name, or the number where there is none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
