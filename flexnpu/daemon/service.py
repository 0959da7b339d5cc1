"""One daemon, from its start to its end: the plane, the control socket, the gate's lease, the signals."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

from flexnpu import __version__
from flexnpu.control.messages import (
    DaemonStatus,
    ErrorReply,
    GateStatus,
    KnownStatus,
    LaneStatus,
    Reply,
    Request,
    SessionStatus,
    SetGate,
    StatusRequest,
)
from flexnpu.daemon import plane as planes
from flexnpu.daemon import privileges
from flexnpu.daemon.config import Config
from flexnpu.daemon.control_server import ControlServer
from flexnpu.daemon.files import DaemonFiles
from flexnpu.daemon.gate_lease import Lease, Requester
from flexnpu.daemon.log import log
from flexnpu.daemon.notify import notify
from flexnpu.daemon.privileges import Account

STOP_S = 10.0
"""How long the daemon may take to stop once it is told to."""

_TRANSPARENT = SetGate(policy="transparent", lease_s=1.0)


class Service:
    """Answers control requests for `plane`. Time is CLOCK_MONOTONIC ns, from `clock`."""

    def __init__(
        self, config: Config, plane: planes.Plane, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self.config = config
        self.plane = plane
        self.clock = clock
        self.started_ns = clock()
        self.lease: Lease | None = None
        self.expired_leases = 0
        self.server_counters: dict[str, int] = {}
        self.counters = {"gate_owned_refusals": 0, "gate_taken_over": 0, "plane_timeouts": 0}

    @property
    def gate(self) -> SetGate:
        """The settings in force."""
        return self.lease.gate if self.lease is not None else _TRANSPARENT

    def handle(self, request: Request, requester: Requester) -> Reply:
        """Answer one request. A data plane that is late is an error reply."""
        self.expire()
        try:
            if isinstance(request, StatusRequest):
                return self.status()
            return self.set_gate(request, requester)
        except TimeoutError as error:  # of the data plane: not the same as nothing
            self.counters["plane_timeouts"] += 1
            return ErrorReply(code="busy", message=f"busy: {error}", known=self.known())

    def expire(self) -> float | None:
        """Note a lease that ran out (the gate itself has stopped gating by then). Seconds until that, or
        None.
        """
        if self.lease is None:
            return None
        left_ns = self.lease.until_ns - self.clock()
        if left_ns > 0:
            return left_ns / 1e9
        self.expired_leases += 1
        log(
            "lease-expired",
            policy=self.gate.policy,
            lease_s=self.gate.lease_s,
            pid=self.lease.requester.pid,
            comm=self.lease.requester.comm,
        )
        self.lease = None
        return None

    def set_gate(self, request: SetGate, requester: Requester) -> Reply:
        """Raises TimeoutError when the data plane did not answer; owner and lease are then as before."""
        owner = self.lease
        others = owner is not None and not owner.is_of(requester, request)
        if owner is not None and others and not request.take_over:
            self.counters["gate_owned_refusals"] += 1
            return ErrorReply(code="owned", message=owner.refusal(self.config.device, self.clock()))
        refused = self._apply(request)
        if refused is not None:
            return refused
        if owner is not None and others:
            self.counters["gate_taken_over"] += 1
            log("gate-taken-over", pid=requester.pid, comm=requester.comm, was=owner.requester.pid)
        if request.policy != self.gate.policy:
            log(
                "policy",
                policy=request.policy,
                window_us=request.window_us,
                lease_s=request.lease_s,
                pid=requester.pid,
                comm=requester.comm,
            )
        until_ns = self.clock() + int(request.lease_s * 1e9)
        if request.policy == "transparent" and not request.keep:
            self.lease = None
        else:
            self.lease = Lease(requester, request, until_ns)
        try:
            counters = self.plane.snapshot()["counters"]
        except TimeoutError:  # it was set; only what the gate has learned is not known
            counters = {}
        return self.gate_status(counters)

    def _apply(self, request: SetGate) -> ErrorReply | None:
        """Give the data plane phases, targets and settings; an error when a lane is unknown."""
        settings = {
            "enabled": request.policy != "transparent",
            "window_us": request.window_us,
            "overlap_slowdown": request.overlap_slowdown or 0.0,
            "lease_until_ns": self.clock() + int(request.lease_s * 1e9),
        }
        # Absent: the gate's own.
        settings |= {
            name: value
            for name in ("max_hold_us", "decode_idle_us")
            if (value := getattr(request, name)) is not None
        }
        unknown = self.plane.set_gate(
            settings,
            dict(request.lanes),
            request.decode_target_us or 0.0,
            dict(request.targets_us or {}),
        )
        if not unknown:
            return None
        text = f"lane {min(unknown)}: no such lane; the lanes are in the daemon's status"
        return ErrorReply(code="unknown-lane", message=text)

    def gate_status(self, counters: dict[str, int]) -> GateStatus:
        """The gate's settings and owner; `counters` are the data plane's, for the k that it has learned."""
        now_ns, gate = self.clock(), self.gate
        learned = counters.get("overlap_slowdown_milli", 1000) / 1000
        gates = self.lease is not None and gate.policy != "transparent"
        return GateStatus(
            policy=gate.policy,
            window_us=gate.window_us,
            decode_target_us=gate.decode_target_us,
            overlap_slowdown=gate.overlap_slowdown or learned,
            lease_left_s=self.lease.left_s(now_ns) if self.lease is not None and gates else 0.0,
            expired_leases=self.expired_leases,
            owner=self.lease.owner(now_ns) if self.lease is not None else None,
        )

    def known(self) -> KnownStatus:
        """What needs no answer from the data plane."""
        return KnownStatus(
            version=__version__,
            pid=os.getpid(),
            device=self.config.device,
            soc=getattr(self.plane, "soc", "") or "unknown",
            uptime_s=(self.clock() - self.started_ns) / 1e9,
            gate=self.gate_status({}),
        )

    def status(self) -> DaemonStatus:
        """Answered whatever the data plane does: its latest snapshot, and how old that is."""
        snapshot = self.plane.snapshot()
        counters = snapshot["counters"]
        # Not counts but readings; that of the device is absent where it does not give one.
        busy_us = counters.pop("device_busy_us", None)
        gate = self.gate_status(counters)
        counters.pop("overlap_slowdown_milli", None)
        known = self.known().model_dump(exclude={"gate"})
        return DaemonStatus(
            **known,
            gate=gate,
            sessions=[SessionStatus.model_validate(session) for session in snapshot["sessions"]],
            lanes=[LaneStatus.model_validate(lane) for lane in snapshot["lanes"]],
            age_s=snapshot["age_s"],
            device_busy_us=busy_us,
            counters={**counters, **self.server_counters, **self.counters},
        )


def _end_within(seconds: float) -> None:
    """See to it that the process ends: an operator that never does would hold up its session's closing."""

    def give_up() -> None:
        log("stop-timed-out", seconds=seconds)
        os._exit(1)  # the sentinel removes the files

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()


def _become(config: Config, account: Account) -> None:
    profile = config.profile_file()
    copy = os.memfd_create("profile") if profile is not None and profile.is_file() else None
    if copy is not None and profile is not None:
        os.write(copy, profile.read_bytes())
    # Those who share an emulated device find it in /proc of its other users.
    privileges.drop(account, inspectable=config.emulated)
    if copy is not None and profile is not None:
        if os.access(profile, os.R_OK):
            os.close(copy)
        else:  # below a folder that is closed to `account`
            os.environ["FLEXNPU_EMU_PROFILE"] = f"/proc/self/fd/{copy}"


def serve(config: Config) -> None:
    """Run the daemon until SIGTERM or SIGINT. Raises FilesError, OSError, ImportError or RuntimeError at
    the start.
    """
    files = DaemonFiles(config.device, config.run_dir)
    try:
        # First, while there is one thread: it forks.
        for path in files.claim():
            log("stale-socket-removed", path=str(path))
        privileges.confine()
        os.environ.update(config.environment())
        os.environ.pop("ASCEND_RT_VISIBLE_DEVICES", None)  # --device is the machine's number
        plane = planes.make(config, str(files.data_path))
        service = Service(config, plane)
        server = ControlServer(files.control_path, service.handle, config.own_uids, config.control_gid)
        service.server_counters = server.counters

        def on_signal(number: int, frame: FrameType | None) -> None:
            log("stopping", signal=signal.Signals(number).name)
            notify(STOPPING="1")
            _end_within(STOP_S)
            server.stop()

        signal.set_wakeup_fd(server.wake_writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, on_signal)
        try:
            plane.prepare()
            server.open()
            if config.account is not None:
                _become(config, config.account)
            plane.start()
            try:
                log(
                    "serving",
                    device=config.device,
                    pid=os.getpid(),
                    uid=os.geteuid(),
                    vendor_lib=str(config.vendor_lib),
                    emulated=config.emulated,
                    control=str(files.control_path),
                    data=str(files.data_path),
                )
                notify(READY="1", MAINPID=str(os.getpid()), STATUS=f"serving device {config.device}")
                server.run(service.expire)
            finally:
                plane.stop()
        finally:
            signal.set_wakeup_fd(-1)
            server.close()
    finally:
        files.release()
    log("stopped")
