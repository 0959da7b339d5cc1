"""The native data plane as the Python around it sees it, and its settings."""

from __future__ import annotations

from typing import Any, Protocol

from flexnpu.daemon.config import Config


class Plane(Protocol):
    """`flexnpu.daemon._plane.Plane`. Dicts carry the fields of the control messages' models.

    All but `prepare`, `start` and `stop` raise TimeoutError when the dispatching thread did not answer in
    time; what was asked for is then not done later either.
    """

    def prepare(self) -> None:
        """Load the libraries and bind the data socket, which may need privileges. Raises RuntimeError."""

    def start(self) -> None:
        """Open the device and serve. Raises RuntimeError."""

    def stop(self) -> None:
        """Close all sessions and the device; at most a few seconds."""

    def snapshot(self, within_s: float = 0.25) -> dict[str, Any]:
        """`sessions`, `lanes` and `counters`, all of one time, and `age_s`, how old they are, s.

        It is 0 if they are of now. Else the dispatching thread did not answer within `within_s`; while it is
        late, nobody waits for it again.
        """

    def set_gate(
        self,
        settings: dict[str, Any],
        phases: dict[int, str],
        decode_target_us: float | None,
        targets_us: dict[int, float],
    ) -> list[int]:
        """Set the gate, the phases of lanes, the step target of all decode lanes and those of lanes (us), at
        once.

        `settings` are fields of gate::Settings (gate.hpp); `lease_until_ns` on CLOCK_MONOTONIC. Returns the
        lanes named that do not exist: if there are any, nothing is changed. Raises `PlaneTimeout`, a
        TimeoutError, and then nothing is changed, also not later.
        """


def make(config: Config, data_socket: str) -> Plane:
    """The plane for `config`, not started. Raises ImportError when it was not built."""
    import flexnpu.daemon._plane as _plane

    plane: Plane = _plane.Plane(
        str(config.vendor_lib),
        config.device,
        data_socket,
        sorted(config.allow_uids | config.own_uids),
        sorted(config.allow_gids),
        limits=config.limits(),
    )
    return plane
