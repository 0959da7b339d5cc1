"""The functions of libbpf (1.0 or newer) that we call, by ctypes.

>>> library() is None or callable(library().bpf_object__open_file)
True
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, Final

PACKAGE: Final = "libbpf1"
"""Debian's package of it; bcc's library needs it as well."""

RING_CALLBACK: Final = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
PERF_CALLBACK: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32)
LOST_CALLBACK: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64)

_POINTER, _INT, _U32, _U64, _SIZE, _TEXT = (
    ctypes.c_void_p,
    ctypes.c_int,
    ctypes.c_uint32,
    ctypes.c_uint64,
    ctypes.c_size_t,
    ctypes.c_char_p,
)

# name -> (result, arguments)
_FUNCTIONS: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "libbpf_set_print": (_POINTER, (_POINTER,)),
    "libbpf_num_possible_cpus": (_INT, ()),
    "btf__load_vmlinux_btf": (_POINTER, ()),
    "btf__find_by_name_kind": (_INT, (_POINTER, _TEXT, _U32)),
    "btf__type_by_id": (_POINTER, (_POINTER, _U32)),
    "btf__name_by_offset": (_TEXT, (_POINTER, _U32)),
    "btf__free": (None, (_POINTER,)),
    "bpf_object__open_file": (_POINTER, (_TEXT, _POINTER)),
    "bpf_object__load": (_INT, (_POINTER,)),
    "bpf_object__close": (None, (_POINTER,)),
    "bpf_object__next_program": (_POINTER, (_POINTER, _POINTER)),
    "bpf_object__find_map_by_name": (_POINTER, (_POINTER, _TEXT)),
    "bpf_program__name": (_TEXT, (_POINTER,)),
    "bpf_program__fd": (_INT, (_POINTER,)),
    "bpf_program__set_autoload": (_INT, (_POINTER, ctypes.c_bool)),
    "bpf_program__set_expected_attach_type": (_INT, (_POINTER, _INT)),
    "bpf_map__fd": (_INT, (_POINTER,)),
    "bpf_map__set_max_entries": (_INT, (_POINTER, _U32)),
    "bpf_map__set_initial_value": (_INT, (_POINTER, _POINTER, _SIZE)),
    "bpf_map_lookup_elem": (_INT, (_INT, _POINTER, _POINTER)),
    "bpf_map_update_elem": (_INT, (_INT, _POINTER, _POINTER, _U64)),
    "bpf_map_delete_elem": (_INT, (_INT, _POINTER)),
    "bpf_map_get_next_key": (_INT, (_INT, _POINTER, _POINTER)),
    "ring_buffer__new": (_POINTER, (_INT, RING_CALLBACK, _POINTER, _POINTER)),
    "ring_buffer__poll": (_INT, (_POINTER, _INT)),
    "ring_buffer__consume": (_INT, (_POINTER,)),
    "ring_buffer__free": (None, (_POINTER,)),
    "perf_buffer__new": (_POINTER, (_INT, _SIZE, PERF_CALLBACK, LOST_CALLBACK, _POINTER, _POINTER)),
    "perf_buffer__poll": (_INT, (_POINTER, _INT)),
    "perf_buffer__consume": (_INT, (_POINTER,)),
    "perf_buffer__free": (None, (_POINTER,)),
}


class LibbpfMissing(RuntimeError):
    """libbpf is not there, or too old; the message says what to type."""


@cache
def library() -> Any:
    """libbpf, with its functions declared; None where it is missing or too old."""
    try:
        found: Any = ctypes.CDLL("libbpf.so.1", use_errno=True)
        for function, (result, arguments) in _FUNCTIONS.items():
            declared = getattr(found, function)
            declared.restype, declared.argtypes = result, arguments
    except (OSError, AttributeError):
        return None
    return found


def needed() -> Any:
    """libbpf. Raises `LibbpfMissing`."""
    found = library()
    if found is None:
        raise LibbpfMissing(f"libbpf (1.0 or newer) is missing. Type: sudo apt-get install {PACKAGE}")
    return found


def failed(pointer: int | None) -> bool:
    """Whether a pointer that libbpf returned stands for an error (before 1.0, by its value)."""
    return not pointer or pointer >= 2**64 - 4096
