"""The self-test with its program some PID namespaces deeper, its results as JSON: nested.py KIND DEEPER.

To be started in a namespace of its own for a tracer that is not in the machine's first one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from probes.selftest import run
from tests.containers import CONTAINER, child_of


def main() -> None:
    kind, deeper = sys.argv[1], int(sys.argv[2])
    start = subprocess.Popen

    class Nested(run._Program):
        def __init__(self, kind: run.Kind) -> None:
            def popen(command: list[str], **how: Any) -> subprocess.Popen[str]:
                return start([*CONTAINER * deeper, *command], **how)

            subprocess.Popen = popen  # type: ignore[misc, assignment]
            super().__init__(kind)
            subprocess.Popen = start  # type: ignore[misc]
            for _ in range(deeper):
                self.pid = child_of(self.pid)

    run._Program = Nested  # type: ignore[misc]
    results = run.run(kind, "detail")  # type: ignore[arg-type]
    print(json.dumps([asdict(result) for result in results]))


if __name__ == "__main__":
    main()
