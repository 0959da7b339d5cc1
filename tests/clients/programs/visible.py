"""Prints what of its devices it sees: how many, and each one's number by the machine's count.

Argument: a value of ASCEND_RT_VISIBLE_DEVICES to set after the first device was set. It must change nothing.
"""

import json
import os
import sys
from ctypes import byref, c_int32, c_uint32

from ascendcl import attempt, call, malloc

call("aclInit", None)
count = c_uint32()
call("aclrtGetDeviceCount", byref(count))
numbers = []
for device in range(count.value):
    call("aclrtSetDevice", device)
    malloc(1 << 20)
    if device == 0 and len(sys.argv) > 1:
        os.environ["ASCEND_RT_VISIBLE_DEVICES"] = sys.argv[1]
    number = c_int32(-1)
    call("aclrtGetLogicDevIdByUserDevId", device, byref(number))
    numbers.append(number.value)
beyond, why = attempt("aclrtSetDevice", count.value)
print(json.dumps({"count": count.value, "numbers": numbers, "beyond": beyond, "why": why}))
sys.stdout.flush()
sys.stdin.read()  # keeps its sessions
