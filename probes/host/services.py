"""The name of the service that a process belongs to: one that a restart does not change.

In this order:

1. ``environment``: ``OTEL_SERVICE_NAME`` of the process's environment at its start, else ``service.name`` in
   its ``OTEL_RESOURCE_ATTRIBUTES`` (the OpenTelemetry specification, "SDK environment variables").
2. ``pod``, ``container``, ``unit``: by the path of its control group, as the kubelet, container engines and
   systemd make it: ``pod-UID``, ``container-ID`` (12 digits), or the systemd unit (``vllm.service``).
3. ``port``: ``port-N``, the lowest TCP port on which it or the process above it listens; one that the kernel
   chose only when there is no other.

A name is somebody else's text: it is made printable and bounded (`MAX_NAME`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple
from urllib.parse import unquote

from flexnpu.common.processes import folder_of
from flexnpu.console.text import safe
from probes.host.selection import cgroups_of, containers_of

MAX_NAME: Final = 128
"""Characters of a name."""
_POD = re.compile(r"pod([0-9a-f]{8}([-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})")
_LOGIN = re.compile(r"user@\d+\.service")
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")

Source = Literal["environment", "pod", "container", "unit", "port"]


class Service(NamedTuple):
    """A service's name, and what told it."""

    name: str
    source: Source


def of_environment(environ: bytes) -> Service | None:
    """By the variables of a process, as /proc/PID/environ has them."""
    found = dict(line.split(b"=", 1) for line in environ.split(b"\0") if b"=" in line)
    name = _name(found.get(b"OTEL_SERVICE_NAME", b""))
    for pair in found.get(b"OTEL_RESOURCE_ATTRIBUTES", b"").split(b","):
        key, _, value = pair.partition(b"=")
        if not name and key.strip() == b"service.name":
            name = _name(unquote(value.strip().strip(b'"').decode("utf-8", "replace")))
    return Service(name, "environment") if name else None


def of_cgroups(paths: Sequence[str]) -> Service | None:
    """By the control groups of a process."""
    for path in paths:
        pod = _POD.search(path)
        if pod is not None:
            return Service(f"pod-{pod[1].replace('_', '-')}", "pod")
    containers = sorted(containers_of(paths))
    if containers:
        return Service(f"container-{containers[0][:12]}", "container")
    for path in paths:
        units = [part for part in path.split("/") if part.endswith(".service") and not _LOGIN.match(part)]
        if units:
            return Service(_name(units[-1]), "unit")
    return None


def of_ports(ports: Iterable[int]) -> Service | None:
    """By the ports on which a process listens."""
    low, high = _ephemeral()
    ordered = sorted(ports, key=lambda port: (low <= port <= high, port))
    return Service(f"port-{ordered[0]}", "port") if ordered else None


def service_of(pid: int, ports: Iterable[int] = ()) -> Service | None:
    """The service of `pid`, which listens on `ports`; None when nothing tells it."""
    try:
        environ = Path(f"{folder_of(pid)}/environ").read_bytes()
    except OSError:
        environ = b""
    return of_environment(environ) or of_cgroups(cgroups_of(pid)) or of_ports(ports)


def _name(text: bytes | str) -> str:
    return safe(text).strip()[:MAX_NAME]


def _ephemeral() -> tuple[int, int]:
    try:
        low, high = _EPHEMERAL.read_text().split()
        return int(low), int(high)
    except (OSError, ValueError):
        return 32768, 60999
