"""pyroute2's netlink sockets, without the rest of it.

The package's own ``__init__`` imports all that pyroute2 has (routes, databases, firewalls): 18 MiB and a
sixth of a second. Its netlink modules by themselves take 8 MiB, most of that for asyncio.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys


def prepare() -> None:
    """From here on ``pyroute2.netlink`` can be imported by itself. Raises ImportError without pyroute2.

    Who asks the package for anything else gets it: then all of it is imported.
    """
    if "pyroute2" in sys.modules:
        return
    spec = importlib.util.find_spec("pyroute2")
    if spec is None or spec.loader is None or spec.submodule_search_locations is None:
        raise ImportError("pyroute2 is not installed")
    package, loader = importlib.util.module_from_spec(spec), spec.loader

    def of_package(name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        if importlib.util.find_spec(f"pyroute2.{name}") is not None:
            return importlib.import_module(f"pyroute2.{name}")
        vars(package).pop("__getattr__", None)
        loader.exec_module(package)
        return getattr(package, name)

    vars(package)["__getattr__"] = of_package
    sys.modules["pyroute2"] = package
