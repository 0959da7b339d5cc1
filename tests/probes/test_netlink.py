"""pyroute2's netlink modules are imported without the rest of it, which is still there for who asks."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
from probes.host import netlink
netlink.prepare()
from pyroute2.netlink.connector.cn_proc import ProcEventSocket
from pyroute2.netlink.taskstats import TaskStats
print("pyroute2.ndb.main" in sys.modules, "pyroute2.netlink.core" in sys.modules)
import pyroute2
netlink.prepare()
print(pyroute2.netlink.taskstats.TaskStats is TaskStats, pyroute2.IPRoute.__name__)
print("pyroute2.ndb.main" in sys.modules, pyroute2.NDB.__name__)
"""


def test_the_rest_comes_when_it_is_asked_for() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["False", "True", "True", "IPRoute", "True", "NDB"], done.stderr
