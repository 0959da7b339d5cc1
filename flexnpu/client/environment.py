"""What a program's environment says so that it loads FlexNPU's libraries in the place of the vendor's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
CLIENT_HOME = PACKAGE / "client"
EMULATOR_HOME = PACKAGE / "emulator"
GUARD = CLIENT_HOME / "lib" / "libflexnpu_guard.so"
#: pyACL, the module `acl`: CANN's set_env puts its own on PYTHONPATH.
PYTHON_HOME = PACKAGE / "host" / "python"

#: Programs look for more libraries below these: a stand-in for CANN's folder, so that they find none of the
#: vendor's there.
_HOMES = {"ASCEND_HOME_PATH": "", "ASCEND_TOOLKIT_HOME": "", "ASCEND_OPP_PATH": "opp"}


def no_guard() -> str | None:
    """Why ``guard.cpp`` cannot be preloaded, and the remedy; None where it can be."""
    if re.search("[: ]", str(GUARD)):
        return f"{GUARD} has a space or colon, which ends a name in LD_PRELOAD: put FlexNPU elsewhere"
    if not GUARD.exists():
        return f"{GUARD} is not there: build it with: make build"
    return None


def environment(home: Path, data_sockets: Sequence[Path], base: Mapping[str, str]) -> dict[str, str]:
    """`base` changed so that programs load the libraries in `home`/lib. lib/toolkit there is laid out as the
    vendor's installation, as far as programs look into it. The program's devices are those behind
    `data_sockets`, in that order.

    With the client's libraries, ``guard.cpp`` is preloaded: it keeps a program on them that sources the
    vendor's set_env.sh. Where `no_guard` says why not, it is left out.
    """
    result = dict(base)
    ours = {CLIENT_HOME / "lib", EMULATOR_HOME / "lib"}
    rest = [
        entry for entry in base.get("LD_LIBRARY_PATH", "").split(":") if entry and Path(entry) not in ours
    ]
    result["LD_LIBRARY_PATH"] = ":".join([str(home / "lib"), *rest])
    preloads = [
        entry for entry in re.split("[: ]", base.get("LD_PRELOAD", "")) if entry and entry != str(GUARD)
    ]
    if home == CLIENT_HOME and no_guard() is None:
        preloads.append(str(GUARD))
    result["LD_PRELOAD"] = ":".join(preloads)
    if not preloads:
        del result["LD_PRELOAD"]
    modules = [entry for entry in base.get("PYTHONPATH", "").split(":") if entry != str(PYTHON_HOME)]
    result["PYTHONPATH"] = ":".join([str(PYTHON_HOME), *filter(None, modules)])
    for name, folder in _HOMES.items():
        result[name] = str(home / "lib" / "toolkit" / folder)
    result.pop("FLEXNPU_SOCKET", None)
    result.pop("FLEXNPU_SOCKETS", None)
    if len(data_sockets) == 1:
        result["FLEXNPU_SOCKET"] = str(data_sockets[0])
    elif data_sockets:
        result["FLEXNPU_SOCKETS"] = ",".join(str(path) for path in data_sockets)
    return result
