"""Maps and rings of loaded BPF programs, by their file descriptors: the same for whoever loaded them.

    lanes = Map(loaded.map("lanes"), LaneKey, Lane)
    for key, lane in lanes.items():
        ...

Keys and values are ctypes types that lay out what the programs do.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

from probes.placing import libbpf


class Map:
    """A hash or an array in the kernel. `get`, `set` and `delete` raise OSError for what the kernel refuses.

    `per_cpu`: it has a value a CPU, so `get` gives a list of them.
    """

    def __init__(self, fd: int, key: Any, value: Any, *, per_cpu: bool = False) -> None:
        self._bpf = libbpf.needed()
        self._fd = fd
        self._key: Any = key
        self._value: Any = value
        self._cpus = max(1, self._bpf.libbpf_num_possible_cpus()) if per_cpu else 0
        # Values of CPUs stand 8 bytes apart, or a multiple of that.
        self._stride = (ctypes.sizeof(value) + 7) // 8 * 8 if per_cpu else ctypes.sizeof(value)

    def key(self, *fields: Any) -> Any:
        """A key of these fields."""
        return self._key(*fields)

    def value(self, *fields: Any) -> Any:
        """A value of the map's type, of its fields in order."""
        return self._value(*fields)

    def get(self, key: Any) -> Any | None:
        """The value, or the list of the CPUs' values; None where there is none."""
        room = ctypes.create_string_buffer(self._stride * max(1, self._cpus))
        key = self._as_key(key)
        if self._bpf.bpf_map_lookup_elem(self._fd, ctypes.byref(key), room) < 0:
            code = ctypes.get_errno()
            if code == errno.ENOENT:
                return None
            raise OSError(code, os.strerror(code))
        if not self._cpus:
            return self._value.from_buffer_copy(room)
        return [self._value.from_buffer_copy(room, self._stride * cpu) for cpu in range(self._cpus)]

    def set(self, key: Any, value: Any) -> None:
        """Of a map with a value a CPU: every CPU's."""
        key = self._as_key(key)
        data = bytes(value).ljust(self._stride, b"\0") * max(1, self._cpus)
        if self._bpf.bpf_map_update_elem(self._fd, ctypes.byref(key), data, 0) < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def delete(self, key: Any) -> None:
        """Nothing happens where there is no such key."""
        key = self._as_key(key)
        if self._bpf.bpf_map_delete_elem(self._fd, ctypes.byref(key)) < 0:
            code = ctypes.get_errno()
            if code != errno.ENOENT:
                raise OSError(code, os.strerror(code))

    def __iter__(self) -> Iterator[Any]:
        """All keys, as a copy. One that comes or goes meanwhile may be in it or not."""
        found: dict[bytes, Any] = {}
        before: Any = None
        again = 0
        while again <= len(found):
            key = self._key()
            given = None if before is None else ctypes.byref(before)
            if self._bpf.bpf_map_get_next_key(self._fd, given, ctypes.byref(key)) < 0:
                break
            # The kernel begins anew where the key before was deleted meanwhile.
            again = again + 1 if bytes(key) in found else 0
            found.setdefault(bytes(key), key)
            before = key
        return iter(list(found.values()))

    def items(self) -> Iterator[tuple[Any, Any]]:
        """Keys with their values; what is deleted meanwhile is left out."""
        for key in self:
            value = self.get(key)
            if value is not None:
                yield key, value

    def _as_key(self, key: Any) -> Any:
        return self._key(key) if isinstance(key, int) else key


class Ring:
    """Records that programs put into a ring buffer. `take(address, size)` is called for each, within `poll`
    or `drain`; it must not raise."""

    def __init__(self, fd: int, take: Callable[[int, int], None]) -> None:
        self._bpf = libbpf.needed()

        def one(_context: Any, data: int, size: int) -> int:
            take(data, size)
            return 0

        self._callback = libbpf.RING_CALLBACK(one)
        self._ring = self._bpf.ring_buffer__new(fd, self._callback, None, None)
        if libbpf.failed(self._ring):
            code = ctypes.get_errno()
            raise OSError(code, f"the ring buffer cannot be mapped: {os.strerror(code)}")

    def poll(self, timeout_ms: int) -> None:
        """Take what there is; wait up to `timeout_ms` to be woken. Raises OSError."""
        if self._bpf.ring_buffer__poll(self._ring, timeout_ms) < 0 and ctypes.get_errno() != errno.EINTR:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self.drain()  # not every record wakes us

    def drain(self) -> None:
        """Take what there is."""
        self._bpf.ring_buffer__consume(self._ring)

    def close(self) -> None:
        """Free the buffer. `take` is not called any more."""
        if self._ring:
            self._bpf.ring_buffer__free(self._ring)
        self._ring = None


class PerfRing:
    """The same for kernels without ring buffers: a buffer a CPU. `lost(n)` is called for records that found
    one full."""

    def __init__(
        self, fd: int, take: Callable[[int, int], None], lost: Callable[[int], None], pages: int
    ) -> None:
        self._bpf = libbpf.needed()
        self._callback = libbpf.PERF_CALLBACK(lambda _context, _cpu, data, size: take(data, size))
        self._lost = libbpf.LOST_CALLBACK(lambda _context, _cpu, count: lost(count))
        self._ring = self._bpf.perf_buffer__new(fd, pages, self._callback, self._lost, None, None)
        if libbpf.failed(self._ring):
            code = ctypes.get_errno()
            raise OSError(code, f"the buffers cannot be mapped: {os.strerror(code)}")

    def poll(self, timeout_ms: int) -> None:
        """Take records, or wait for some up to `timeout_ms`. Raises OSError."""
        if self._bpf.perf_buffer__poll(self._ring, timeout_ms) < 0 and ctypes.get_errno() != errno.EINTR:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def drain(self) -> None:
        """Take the records that there are, without waiting."""
        self._bpf.perf_buffer__consume(self._ring)

    def close(self) -> None:
        """Free the buffers. `take` is not called any more."""
        if self._ring:
            self._bpf.perf_buffer__free(self._ring)
        self._ring = None
