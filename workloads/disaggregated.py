"""Prefill and decode in two vLLM-Ascend servers, P and D, between which KV caches move.

MooncakeConnectorV1: a client asks a proxy. The proxy asks P for one token, and then D, which pulls the cache
from P and streams the answer. The proxy is the one that Mooncake's wheel brings. For
MooncakeLayerwiseConnector see `workloads.layerwise`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flexnpu.common.ports import free_port
from workloads import vllm_ascend

ROLES = {"P": "kv_producer", "D": "kv_consumer"}
PULL = "MooncakeConnectorV1"
PUSH = "MooncakeLayerwiseConnector"


@dataclass(frozen=True)
class Deployment:
    """P, D and the proxy, all serving."""

    prefill: vllm_ascend.Server
    decode: vllm_ascend.Server
    proxy: vllm_ascend.Server


def options(role: str, connector: str = PULL) -> list[str]:
    """What makes a server P or D, on any ports that are free."""
    one = {"dp_size": 1, "tp_size": 1}
    transfer = {
        "kv_connector": connector,
        "kv_role": ROLES[role],
        "kv_port": str(free_port()),
        "engine_id": role,
        "kv_connector_extra_config": {"prefill": one, "decode": one},
    }
    return ["--no-enable-prefix-caching", "--kv-transfer-config", json.dumps(transfer)]


@contextlib.contextmanager
def instances(
    commands: Mapping[str, Sequence[str]],
    ports: Mapping[str, int],
    environment: Mapping[str, str],
    folder: Path,
    prefix: Sequence[str] = (),
    together: bool = True,
) -> Iterator[dict[str, vllm_ascend.Server]]:
    """P and D by `commands`, until the block ends; logs go to `folder`. `together`: they are started at once,
    else D when P serves. Raises VllmError."""
    with contextlib.ExitStack() as stack:
        servers = {}
        for role in ROLES:
            log = folder / f"{role}.log"
            server = vllm_ascend.Server(commands[role], ports[role], environment, log, prefix)
            servers[role] = stack.enter_context(server)
            if not together:
                server.wait()
        for server in servers.values():
            server.wait()
        yield servers


@contextlib.contextmanager
def proxy(
    servers: Mapping[str, vllm_ascend.Server], venv: Path, environment: Mapping[str, str], folder: Path
) -> Iterator[vllm_ascend.Server]:
    """Mooncake's proxy before P and D. Raises VllmError."""
    port = free_port()
    command = [str(venv / "bin" / "python"), "-m", "mooncake.vllm_v1_proxy_server"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    for name, role in (("prefiller", "P"), ("decoder", "D")):
        command += [f"--{name}-host", "127.0.0.1", f"--{name}-port", str(servers[role].port)]
    with vllm_ascend.Server(command, port, environment, folder / "proxy.log") as one:
        one.wait(120, "/healthcheck")
        yield one


@contextlib.contextmanager
def serving(
    commands: Mapping[str, Sequence[str]],
    ports: Mapping[str, int],
    venv: Path,
    environment: Mapping[str, str],
    folder: Path,
    prefix: Sequence[str] = (),
    together: bool = True,
) -> Iterator[Deployment]:
    """`instances`, and the proxy before them. Raises VllmError."""
    with (
        instances(commands, ports, environment, folder, prefix, together) as servers,
        proxy(servers, venv, environment, folder) as before,
    ):
        yield Deployment(servers["P"], servers["D"], before)
