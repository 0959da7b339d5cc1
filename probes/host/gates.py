"""How long the daemons' gates held each lane, from their control sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flexnpu.control import paths

if TYPE_CHECKING:
    from flexnpu.control.client import ControlClient

Lane = tuple[int, int]


class Gates:
    """Asks every daemon that runs; lanes of programs that do not run under FlexNPU are absent."""

    def __init__(self) -> None:
        self._clients: list[ControlClient] = []
        self._before: dict[Lane, float] = {}

    def delta_us(self) -> dict[Lane, float]:
        """Time, us, for which lanes were held since the last call; new lanes are absent."""
        if not self._clients and not paths.control_sockets():
            self._before = {}
            return {}
        # Imported where a daemon is: its messages take 12 MiB.
        from flexnpu.control.client import ControlError, connect_all

        now: dict[Lane, float] = {}
        if not self._clients:
            self._clients, _ = connect_all(timeout_s=0.5)  # without those that cannot be asked
        for client in list(self._clients):
            try:
                status = client.status()
            except (ControlError, OSError):
                client.close()
                self._clients.remove(client)
                continue
            for lane in status.lanes:
                key = lane.pid, lane.stream
                now[key] = now.get(key, 0.0) + lane.gated_us
        result = {
            lane: max(0.0, held - self._before[lane]) for lane, held in now.items() if lane in self._before
        }
        self._before = now
        return result

    def close(self) -> None:
        """Close the connections to the daemons."""
        for client in self._clients:
            client.close()
        self._clients.clear()
