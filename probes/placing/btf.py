"""Where the members of the running kernel's structures are, from its BTF, by libbpf (which bcc needs, too).

>>> member_offsets("no_such_struct", ("x",)) is None
True
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Final

from probes.placing import libbpf

_KIND_STRUCT: Final = 4
_TYPE_HEAD: Final = 12  # struct btf_type, before the members
_MEMBER: Final = 12  # struct btf_member: name, type, offset in bits


def member_offsets(struct: str, members: Sequence[str]) -> dict[str, int] | None:
    """Offsets in bytes of direct members of a structure; None when the kernel, or libbpf, does not say."""
    library = libbpf.library()
    if library is None:
        return None
    btf = library.btf__load_vmlinux_btf()
    if libbpf.failed(btf):
        return None
    try:
        found = library.btf__find_by_name_kind(btf, struct.encode(), _KIND_STRUCT)
        at = library.btf__type_by_id(btf, found) if found > 0 else None
        if not at:
            return None
        info = ctypes.c_uint32.from_address(at + 4).value
        offsets = {}
        for i in range(info & 0xFFFF):
            name, _, bits = (ctypes.c_uint32 * 3).from_address(at + _TYPE_HEAD + i * _MEMBER)
            # With the kind's flag set, the upper 8 bits are a bit field's width.
            width, bits = (bits >> 24, bits & 0xFFFFFF) if info >> 31 else (0, bits)
            text = library.btf__name_by_offset(btf, name)
            if text and text.decode() in members and not width and bits % 8 == 0:
                offsets[text.decode()] = bits // 8
        return offsets if len(offsets) == len(set(members)) else None
    finally:
        library.btf__free(btf)
