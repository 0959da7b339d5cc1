"""Forks after aclInit: parent and child each go on with their own memory."""

import os
import sys

from ascendcl import call, copy_in, copy_out, create_stream, malloc, start

start()
memory = malloc(4096)
copy_in(memory, b"parent")
child = os.fork()
if child == 0:
    call("aclrtSetDevice", 0)
    own = malloc(4096)
    copy_in(own, b"child!")
    ok = copy_out(own, 6) == b"child!"
    call("aclrtSynchronizeStream", create_stream())
    os._exit(0 if ok else 1)
ok = copy_out(memory, 6) == b"parent"
_, status = os.waitpid(child, 0)
ok = ok and copy_out(memory, 6) == b"parent"
sys.exit(0 if ok and status == 0 else 1)
