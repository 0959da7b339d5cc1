"""Runs Python as another user with ambient capabilities."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from probes.placing import headers

ROOT = Path(__file__).parents[2]


def python(arguments: Iterable[str], capabilities: Iterable[str]) -> subprocess.CompletedProcess[str]:
    """Run it as nobody with `capabilities`, named as ``sys_ptrace``, and no others."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv")
    headers.prepare()  # where everybody may read them
    sets = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    options = [f"--{kind}={sets}" for kind in ("inh-caps", "ambient-caps", "bounding-set")]
    setpriv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *options]
    return subprocess.run(
        [*setpriv, sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=False,
    )
