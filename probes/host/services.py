"""The name of the service that a process belongs to: one that a restart does not change.

In this order:

1. ``environment``: ``OTEL_SERVICE_NAME`` of the process's environment at its start, else ``service.name`` in
   its ``OTEL_RESOURCE_ATTRIBUTES`` (the OpenTelemetry specification, "SDK environment variables").
2. ``pod``, ``container``, ``unit``: by the path of its control group, as the kubelet, container engines and
   systemd make it: ``pod-UID``, ``container-ID`` (12 digits), or the systemd unit (``vllm.service``). Of
   containers in containers the innermost counts. A unit of a program that starts anything (``ssh.service``,
   ``supervisor.service``) is no name: servers that have nothing to do with one another share it.
3. ``port``: ``port-N``, the lowest TCP port on which it or a process above it listens; one that the kernel
   chose only when there is no other, and only until there is one.

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
from probes.host.families import STRANGERS
from probes.host.selection import cgroups_of, container_of

MAX_NAME: Final = 128
"""Characters of a name."""
_POD = re.compile(r"pod([0-9a-f]{8}([-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})")
_LOGIN = re.compile(r"user@\d+\.service")
_UNITS: Final = (
    "ssh dropbear cron crond anacron atd at fcron supervisor docker containerd podman cri-docker",
    "crio snapd k3s k3s-agent kubelite rke2-server rke2-agent nomad consul jupyter jupyterlab",
    "jupyter-lab jupyterhub jupyter-notebook notebook rstudio-server code-server slurm slurmd",
    "slurmctld pbs pbs_mom torque sge_execd lsfd condor munge gitlab-runner jenkins jenkins-agent",
    "buildkite-agent rc-local display-manager gdm gdm3 lightdm sddm getty serial-getty console-getty",
    "container-getty emergency rescue runit s6 init cockpit",
)
_STRANGE_UNITS: Final = STRANGERS.union(*(line.split() for line in _UNITS))
"""Units, without what follows on "@" or ".service", of programs that start anything."""
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
        pods = list(_POD.finditer(path))
        if pods:
            return Service(f"pod-{pods[-1][1].replace('_', '-')}", "pod")
    for path in paths:
        container = container_of(path)
        if container is not None:
            return Service(f"container-{container[:12]}", "container")
    for path in paths:
        units = [part for part in path.split("/") if _tells_service(part)]
        if units:
            return Service(_name(units[-1]), "unit")
    return None


def _tells_service(unit: str) -> bool:
    """Whether a part of a control group's path is a unit that belongs to one service."""
    if not unit.endswith(".service") or _LOGIN.match(unit):
        return False
    program = unit.removesuffix(".service").partition("@")[0]
    return program not in _STRANGE_UNITS and not program.startswith(("systemd-", "actions.runner."))


def of_ports(ports: Iterable[int]) -> Service | None:
    """By the ports on which a process listens."""
    low, high = _ephemeral()
    ordered = sorted(ports, key=lambda port: (low <= port <= high, port))
    return Service(f"port-{ordered[0]}", "port") if ordered else None


def is_final(service: Service) -> bool:
    """Whether no better name can come: a port that the kernel chose is another at the next start."""
    if service.source != "port":
        return True
    low, high = _ephemeral()
    return not low <= int(service.name.removeprefix("port-")) <= high


def of_process(pid: int) -> Service | None:
    """The service of `pid` by its environment or control groups; None when neither tells it."""
    try:
        environ = Path(f"{folder_of(pid)}/environ").read_bytes()
    except OSError:
        environ = b""
    return of_environment(environ) or of_cgroups(cgroups_of(pid))


def _name(text: bytes | str) -> str:
    return safe(text).strip()[:MAX_NAME]


def _ephemeral() -> tuple[int, int]:
    try:
        low, high = _EPHEMERAL.read_text().split()
        return int(low), int(high)
    except (OSError, ValueError):
        return 32768, 60999
