"""The speed of an emulated device, changed while programs run on it."""

from __future__ import annotations

import os
import struct
from types import TracebackType
from typing import Self

LEAST, MOST = 1e-3, 1e3


class Clock:
    """One factor on all modelled times of a device, in memory that the emulated CANN reads as it goes.

        with Clock() as clock:
            environment = emulator.environment(slowdown=clock.path)
            process = subprocess.Popen(command, env=environment, pass_fds=[clock.fd])
            clock.set(4.0)

    Nothing is left on the machine: the memory goes with the last process that has it."""

    def __init__(self, slowdown: float = 1.0) -> None:
        self.fd = os.memfd_create("flexnpu-emu-clock", os.MFD_CLOEXEC)
        self.set(slowdown)

    @property
    def path(self) -> str:
        """For FLEXNPU_EMU_SLOWDOWN, in a process that inherits `fd`."""
        return f"/proc/self/fd/{self.fd}"

    def set(self, slowdown: float) -> None:
        """Work that begins from now on takes `slowdown` times as long as the profile says.

        Raises ValueError for a factor that the emulated CANN would not take.
        """
        if not LEAST <= slowdown <= MOST:
            raise ValueError(f"slowdown {slowdown}: must be from {LEAST} to {MOST:.0f}")
        os.pwrite(self.fd, struct.pack("=d", slowdown), 0)

    def close(self) -> None:
        """Close the file. Programs that have it open keep the factor."""
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
