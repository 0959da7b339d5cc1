"""Addresses of sockets."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

Address = tuple[str, int]
"""An IP address, as text, and a port."""


def ip_of(data: bytes) -> str:
    """An IP address of 4 or 16 bytes, as on the wire. One of IPv4 within IPv6 is the former.

    >>> ip_of(bytes(10) + b"\\xff\\xff" + bytes([127, 0, 0, 1])), ip_of(bytes([10, 0, 0, 2]))
    ('127.0.0.1', '10.0.0.2')
    """
    if len(data) == 4:
        return str(IPv4Address(data))
    address = IPv6Address(data)
    return str(address.ipv4_mapped or address)
