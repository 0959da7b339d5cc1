"""A data plane in a process of its own: `plane_server.py VENDOR_DIR SOCKET`. Reads a JSON object a line.

{"lanes": true} is answered with [[lane, stream], ...], {"counters": true} with the counters;
{"gate": {...}, "phases": {lane: [phase, target_us]}} sets the gate and is answered with true.
"""

import json
import sys

from flexnpu.daemon._plane import Plane

plane = Plane(sys.argv[1], 0, sys.argv[2])
plane.start()
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if "lanes" in request:
        answer: object = [[lane["lane"], lane["stream"]] for lane in plane.lanes()]
    elif "counters" in request:
        answer = plane.counters()
    else:
        for lane, (phase, target_us) in request["phases"].items():
            plane.set_lane(int(lane), phase, target_us)
        plane.set_gate(request["gate"])
        answer = True
    print(json.dumps(answer), flush=True)
plane.stop()
