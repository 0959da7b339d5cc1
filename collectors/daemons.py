"""What daemons say of themselves, read off their control sockets in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from collectors import metrics
from collectors.series import FORGET_S
from collectors.sinks import Sample
from flexnpu.control.client import BusyError, ControlClient, ControlError
from flexnpu.control.messages import DOUBTING, DaemonStatus, KnownStatus


def known_samples(status: KnownStatus) -> Iterator[Sample]:
    """What is known also of a daemon whose data plane does not answer."""
    device = str(status.device)
    yield Sample(metrics.daemon.UP, (device,), 1.0)
    fresh = isinstance(status, DaemonStatus) and status.age_s <= 0
    yield Sample(metrics.daemon.DATA_PLANE_UP, (device,), float(fresh))
    yield Sample(metrics.daemon.DEVICE_INFO, (device, status.soc, status.version), 1.0)
    gate = status.gate
    yield Sample(metrics.gate.POLICY, (device, gate.policy), 1.0)
    yield Sample(metrics.gate.EXPIRED_LEASES, (device,), float(gate.expired_leases))
    if gate.owner is not None:
        yield Sample(metrics.gate.OWNER, (device, str(gate.owner.pid), gate.owner.comm), 1.0)
        for kind, count in gate.owner.counts.items():
            if kind != DOUBTING:
                yield Sample(metrics.controller.EVENTS, (device, kind), float(count))
        if gate.owner.doubt is not None:
            yield Sample(metrics.controller.DOUBT, (device, gate.owner.doubt), 1.0)
    if gate.policy != "transparent":
        yield Sample(metrics.gate.WINDOW, (device,), gate.window_us / 1e6)
        yield Sample(metrics.gate.LEASE, (device,), gate.lease_left_s)
        yield Sample(metrics.gate.OVERLAP_SLOWDOWN, (device,), gate.overlap_slowdown)
        if gate.decode_target_us is not None:
            yield Sample(metrics.gate.DECODE_TARGET, (device,), gate.decode_target_us / 1e6)


def samples_of(status: DaemonStatus) -> Iterator[Sample]:
    """The metrics in a daemon's status."""
    device = str(status.device)
    yield from known_samples(status)
    if status.device_busy_us is not None:
        yield Sample(metrics.daemon.DEVICE_BUSY, (device,), status.device_busy_us / 1e6)
    for lane in status.lanes:
        labels = (device, str(lane.lane), str(lane.pid), lane.comm)
        yield Sample(metrics.lanes.PHASE, (*labels, lane.phase), 1.0)
        yield Sample(metrics.lanes.QUEUED, labels, float(lane.queued))
        yield Sample(metrics.lanes.IN_FLIGHT, labels, float(lane.in_flight))
        yield Sample(metrics.lanes.IN_FLIGHT_TIME, labels, lane.in_flight_us / 1e6)
        yield Sample(metrics.lanes.LAUNCHED, labels, float(lane.launched))
        yield Sample(metrics.lanes.DEVICE_TIME, labels, lane.device_us / 1e6)
        yield Sample(metrics.lanes.GATED, labels, lane.gated_us / 1e6)
    for session in status.sessions:
        labels = (device, str(session.session), str(session.pid), session.comm)
        yield Sample(metrics.daemon.SESSION_MEMORY, labels, float(session.memory_bytes))
        yield Sample(metrics.daemon.SESSION_CALLS, labels, float(session.calls))
        yield Sample(metrics.daemon.SESSION_REFUSED, labels, float(session.refused))
        yield Sample(metrics.daemon.SESSION_RING_FULL, labels, float(session.ring_full))
    for kind, count in status.counters.items():
        yield Sample(metrics.daemon.EVENTS, (device, kind), float(count))


class Daemons:
    """Asks each daemon every `interval_s`.

    `on_trouble` hears once of each that does not answer, and again
    after it did. Its figures are absent while it does not; `metrics.daemon.UP` is 0 if its device is
    known, for `FORGET_S` also when its socket is gone.
    """

    def __init__(
        self,
        find: Callable[[], Sequence[Path]],
        *,
        interval_s: float = 1.0,
        on_trouble: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._find = find
        self._interval = interval_s
        self._on_trouble = on_trouble
        self._clients: dict[Path, ControlClient] = {}
        self._devices: dict[Path, int] = {}
        self._answered: dict[Path, float] = {}
        """When it last did, of those whose device is known; time.monotonic()."""
        self._silent: set[Path] = set()
        self._failing = ""
        self._samples: list[Sample] = []
        self._device_of: dict[int, int] = {}
        self._of_path: dict[Path, dict[int, int]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="daemons", daemon=True)

    def snapshot(self) -> list[Sample]:
        """The samples of the last round. From any thread."""
        return self._samples

    def device_of(self, pid: int) -> int | None:
        """The device of a client process, as far as the daemons know it. From any thread."""
        return self._device_of.get(pid)

    def poll(self) -> None:
        """Ask every daemon once."""
        samples: list[Sample] = []
        device_of: dict[int, int] = {}
        found = self._find()
        for path in found:
            client = self._clients.setdefault(path, ControlClient(path))
            try:
                status = client.status()
            except BusyError as error:
                if error.known is not None:
                    self._note(path, error.known.device)
                    samples += known_samples(error.known)
                self._tell(path, str(error))
                # A process keeps its device while the daemon is busy.
                device_of |= self._of_path.get(path, {})
                continue
            except ControlError as error:
                self._of_path.pop(path, None)
                self._tell(path, str(error))
                continue
            self._silent.discard(path)
            self._note(path, status.device)
            samples += samples_of(status)
            self._of_path[path] = {session.pid: status.device for session in status.sessions}
            device_of |= self._of_path[path]
        for path in [path for path in self._devices if path not in found]:
            self._gone(path)
        up = {sample.labels for sample in samples if sample.metric is metrics.daemon.UP}
        down = {(str(device),) for device in self._devices.values()} - up
        samples += [Sample(metrics.daemon.UP, device, 0.0) for device in sorted(down)]
        self._samples, self._device_of = samples, device_of

    def _note(self, path: Path, device: int) -> None:
        self._devices[path] = device
        self._answered[path] = time.monotonic()

    def _gone(self, path: Path) -> None:
        """Its socket was removed: the daemon has ended, and nobody may start it again."""
        self._of_path.pop(path, None)
        if (client := self._clients.pop(path, None)) is not None:
            client.close()
        if time.monotonic() - self._answered[path] > FORGET_S:
            del self._devices[path], self._answered[path]
            self._silent.discard(path)

    def _tell(self, path: Path, trouble: str) -> None:
        if path not in self._silent:
            self._silent.add(path)
            self._on_trouble(trouble)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.poll()
            except Exception as error:
                # Figures of daemons that nobody asks any more must not look like those of now.
                devices = sorted(set(self._devices.values()))
                self._samples = [Sample(metrics.daemon.UP, (str(device),), 0.0) for device in devices]
                trouble = f"the daemons cannot be asked: {type(error).__name__}: {error}"
                if trouble != self._failing:
                    self._on_trouble(trouble)
                self._failing = trouble
            else:
                self._failing = ""
            self._stop.wait(self._interval)

    def __enter__(self) -> Self:
        self.poll()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(10)
        for client in self._clients.values():
            client.close()
