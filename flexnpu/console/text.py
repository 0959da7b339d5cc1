"""Text that others chose, made safe to show.

A process chooses its own name, a client the path of its request, a server the words of its metrics page. On
a terminal such text could move the cursor, change the title, reverse what is read, or forge a line. `safe`
shows every character that is not printable by its escape, as Python's repr does: control characters (C0, C1,
DEL), bidirectional and other invisible format characters, line breaks, bytes that are no UTF-8, and
characters that this Unicode does not know. What is printable stays, whatever its script.

>>> safe("evil\\x1b[2J\\u202e\\n")
'evil\\\\x1b[2J\\\\u202e\\\\n'
>>> safe("Müller 模型")
'Müller 模型'
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def safe(text: object, *, keep: str = "") -> str:
    """`text` without any character that a terminal would act on; those in `keep` stay.

    Bytes are read as UTF-8. A byte that is none is shown as ``\\xNN``, also where Python has read it with
    ``surrogateescape``.
    """
    shown = text.decode("utf-8", "surrogateescape") if isinstance(text, bytes) else str(text)
    if shown.isprintable():
        return shown
    return "".join(one if one.isprintable() or one in keep else _escape(one) for one in shown)


def _escape(one: str) -> str:
    code = ord(one)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x100:
        return _SHORT.get(one, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def json_text(
    value: Any,
    *,
    indent: int | None = None,
    compact: bool = False,
    default: Callable[[Any], Any] | None = None,
) -> str:
    """`value` as JSON in printable ASCII: what others chose stays in it, escaped as JSON does.

    `default` makes something else of what has no JSON form.
    """
    text = json.dumps(value, indent=indent, separators=(",", ":") if compact else None, default=default)
    return text.replace("\x7f", "\\u007f")  # the one control character that JSON leaves as it is
