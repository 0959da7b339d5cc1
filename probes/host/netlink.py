"""The little of netlink that the process connector and task statistics take.

A library for all of netlink (pyroute2) takes 13 MiB and a quarter of a second to import, which is more than
attaching to a process does.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

from flexnpu.control.closing import Closing

CONNECTOR = 11  # NETLINK_CONNECTOR
_GENERIC = 16  # NETLINK_GENERIC
_ERROR, DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE
_REQUEST = 1  # NLM_F_REQUEST
_CONTROLLER, _GET_FAMILY, _ATTR_FAMILY_ID, _ATTR_FAMILY_NAME = 0x10, 3, 1, 2
_RECEIVE_S = 2.0

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_GENERIC_HEADER = struct.Struct("=BBH")  # struct genlmsghdr: command, version
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
_TYPE_MASK = 0x3FFF  # NLA_TYPE_MASK


def message(kind: int, body: bytes, *, flags: int = 0, sequence: int = 0) -> bytes:
    """A netlink message."""
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    """A netlink attribute, padded to 4 bytes."""
    size = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(size, kind) + value + bytes(-size % 4)


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, value) of the attributes in `data`; ends where they are no attributes any more."""
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if size < _ATTRIBUTE.size or at + size > len(data):
            return
        yield kind & _TYPE_MASK, data[at + _ATTRIBUTE.size : at + size]
        at += size + -size % 4


class Generic(Closing):
    """Requests to the generic netlink family `name`. Raises OSError: the kernel has none, or refuses."""

    def __init__(self, name: str) -> None:
        self._sequence = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _GENERIC)
        try:
            self._socket.bind((0, 0))
            self._socket.settimeout(_RECEIVE_S)
            self._family = _CONTROLLER
            wanted = attribute(_ATTR_FAMILY_NAME, name.encode() + b"\0")
            found = dict(attributes(self.ask(_GET_FAMILY, wanted)))
            self._family = int.from_bytes(found[_ATTR_FAMILY_ID][:2], "little")
        except KeyError:
            self.close()
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT)) from None
        except OSError:
            self.close()
            raise

    def ask(self, command: int, body: bytes) -> bytes:
        """Send attributes, return the attributes of the answer. Raises OSError with the kernel's number."""
        self._sequence += 1
        request = _GENERIC_HEADER.pack(command, 1, 0) + body
        self._socket.send(message(self._family, request, flags=_REQUEST, sequence=self._sequence))
        while True:
            data = self._socket.recv(1 << 16)
            if len(data) < _HEADER.size:
                raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))
            size, kind, _, sequence, _ = _HEADER.unpack_from(data)
            if sequence != self._sequence:
                continue  # of a request whose answer came too late
            if kind == _ERROR:
                code = -int.from_bytes(data[_HEADER.size : _HEADER.size + 4], "little", signed=True)
                raise OSError(code, os.strerror(code))
            return data[_HEADER.size + _GENERIC_HEADER.size : size]

    def close(self) -> None:
        """May be called again."""
        self._socket.close()
